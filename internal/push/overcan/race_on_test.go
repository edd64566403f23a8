//go:build race

package overcan_test

// raceEnabled makes exhaustive tests take steps: with the race detector each takes ten
// times as long.
const raceEnabled = true
