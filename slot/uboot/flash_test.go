package uboot_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/uboot"
)

// TestRealFlash keeps the environment on the raw flash that the environment variable
// names, and loses what is on it. A machine with the module mtdram has one:
// modprobe mtdram erase_size=64.
func TestRealFlash(t *testing.T) {
	name := os.Getenv("INTERLOCK_MTD")
	if name == "" {
		t.Skip("INTERLOCK_MTD names no MTD character device")
	}
	const block, size = 64 << 10, 0x4000
	places := []uboot.Place{{Path: name, Size: size}, {Path: name, Offset: block, Size: size}}
	behind := bytes.Repeat([]byte("calibration "), 100)
	for i, p := range places {
		e := factory(t)
		e.Flags = byte(1 - i)
		copy, err := e.Encode(size, redundant)
		must(t, err)
		must(t, durable.WriteRange(durable.OS{}, p.Path, p.Offset, append(copy, behind...)))
	}
	dir := t.TempDir()
	s, err := uboot.Open(uboot.Config{
		Env: places, Lock: filepath.Join(dir, "lock"),
		Components: map[string][2]string{"controller": {filepath.Join(dir, "a"), filepath.Join(dir, "b")}},
		Booted:     func(context.Context) (string, string, error) { return "A", "boot 1", nil },
	})
	must(t, err)
	for range 3 {
		must(t, s.MarkGood(t.Context()))
		must(t, s.Try(t.Context(), "B"))
		for i, p := range places {
			got, err := durable.ReadRange(durable.OS{}, p.Path, p.Offset, size+int64(len(behind)))
			must(t, err)
			e, err := uboot.ParseEnv(got[:size], redundant)
			if err != nil || e.All()["BOOT_ORDER"] != "B A" || e.All()["BOOT_B_LEFT"] != "1" || e.Flags > 1 {
				t.Errorf("copy %d: got %+v, %v", i, e, err)
			}
			if !bytes.Equal(got[size:], behind) {
				t.Errorf("what is behind copy %d has changed", i)
			}
		}
	}
}
