// Package buildinfo is the version of our programs, the same for all of them.
//
// Start with [Version]. What is promised: text without control characters that is
// never empty.
package buildinfo

import (
	"runtime/debug"
	"time"
)

// Version returns the version of this program and the time of the commit that it
// was built from, zero if that is not known. stamped, if not empty, is what the
// build said with -ldflags "-X main.version=1.2.3". Otherwise it is what the Go
// command recorded, and "dev" for a build from sources that are no release.
func Version(stamped string) (version string, built time.Time) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return read(stamped, info)
}

func read(stamped string, info *debug.BuildInfo) (version string, built time.Time) {
	version = stamped
	if version == "" {
		version = info.Main.Version
	}
	if version == "" || version == "(devel)" {
		version = "dev"
	}
	for _, s := range info.Settings {
		if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
			built = t
		}
	}
	return version, built
}
