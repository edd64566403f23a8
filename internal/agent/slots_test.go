package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The slot on the command line is the one that is not written: what is not plain is
// an error.
func TestBootedByCommandLine(t *testing.T) {
	if _, err := bootID(); err != nil {
		t.Skip("NOT TESTED: this system has no boot id")
	}
	for _, tt := range []struct{ cmdline, want, wantErr string }{
		{"root=/dev/mmcblk0p2 interlock.slot=A panic=5\n", "A", ""},
		{"interlock.slot=B interlock.slot=B", "B", ""},
		{"not.interlock.slot=A interlock.slot=B interlock.slots=A", "B", ""},
		{"interlock.slot=A root=/dev/mmcblk0p3 interlock.slot=B", "", "interlock.slot=A, and interlock.slot=B"},
		{"interlock.slot= interlock.slot=B", "", "too"},
		{"root=/dev/mmcblk0p2 quiet", "", "does the bootloader pass it on?"},
		{"interlock.slot", "", "does the bootloader pass it on?"},
	} {
		path := filepath.Join(t.TempDir(), "cmdline")
		if err := os.WriteFile(path, []byte(tt.cmdline), 0o600); err != nil {
			t.Fatal(err)
		}
		got, id, err := bootedByCmdline(path, "interlock.slot")
		if tt.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("%q: got slot %q, %v, want an error with %q", tt.cmdline, got, err, tt.wantErr)
			}
		} else if got != tt.want || id == "" || err != nil {
			t.Errorf("%q: got slot %q, boot %q, %v, want %s", tt.cmdline, got, id, err, tt.want)
		}
	}
}
