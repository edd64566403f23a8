//go:build !race

package overcan_test

const raceEnabled = false
