package buildinfo

import (
	"runtime/debug"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	commit := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.time", Value: at.Format(time.RFC3339)}}
	for _, tt := range []struct {
		name, stamped, recorded string
		settings                []debug.BuildSetting
		want                    string
		built                   time.Time
	}{
		{"nothing is known", "", "", nil, "dev", time.Time{}},
		{"from sources", "", "(devel)", commit, "dev", at},
		{"a tag", "", "v1.2.3", commit, "v1.2.3", at},
		{"stamped", "1.2.3", "(devel)", commit, "1.2.3", at},
		{"no time", "", "v1.2.3", []debug.BuildSetting{{Key: "vcs.time", Value: "yesterday"}}, "v1.2.3", time.Time{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := &debug.BuildInfo{Settings: tt.settings}
			info.Main.Version = tt.recorded
			if got, built := read(tt.stamped, info); got != tt.want || !built.Equal(tt.built) {
				t.Errorf("got %s, %v, want %s, %v", got, built, tt.want, tt.built)
			}
		})
	}
	if got, _ := Version("7"); got != "7" {
		t.Errorf("got %s, want 7", got)
	}
}
