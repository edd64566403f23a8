package watchdog

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLastReset(t *testing.T) {
	for _, tt := range []struct {
		options, status uint32
		want            string
	}{
		{0x8180, 0, "not known: this driver does not tell"}, // i6300esb of the kernel, after power-on
		{0x8180, 0x20, "by this watchdog"},
		{0x81a0, 0, "not by this watchdog"},
		{0x81a0, 0x10, "not by this watchdog"}, // under-voltage
	} {
		if got := lastReset(tt.options, tt.status); got != tt.want {
			t.Errorf("options %#x, status %#x: got %q, want %q", tt.options, tt.status, got, tt.want)
		}
	}
}

// What is no watchdog is refused and left alone: it may be a disk.
func TestOpenNoWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	if d, err := Open(path); err == nil {
		t.Errorf("got %v for a path that is not there, want an error", d)
	}
	if err := os.WriteFile(path, []byte("a partition table"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(path); err == nil {
		t.Errorf("got %v for a regular file, want an error", d)
	}
	if got, err := os.ReadFile(path); string(got) != "a partition table" {
		t.Errorf("it now holds %q, %v", got, err)
	}
}
