package otatest_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file/filetest"
)

func TestParseCuts(t *testing.T) {
	all := []otatest.Cut{
		{At: 12, How: otatest.Torn, Rest: otatest.DropAll, Unit: 16, Seed: 7},
		{At: 1, How: otatest.Before, Agent: true, Seed: 1},
		{At: 3, How: otatest.After, Rest: otatest.Subset, Seed: 1 << 33},
		{At: 4, How: otatest.Misread},
		{At: 5, How: otatest.BadSector, Seed: 9},
		{At: 6, How: otatest.Rotten, Where: otatest.InControl, Seed: 2},
	}
	f := otatest.Failure{Cuts: all}
	got, err := otatest.ParseCuts(f.CutString())
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if got[i] != all[i] {
			t.Errorf("cut %d: got %v, want %v", i, got[i], all[i])
		}
	}
	for _, s := range []string{"", "1:torn", "x:torn:drop:1:1", "1:gone:drop:1:1", "1:torn:gone:1:1", "1:rotten:drop:1:1", "1:torn:drop:x:1", "1:torn:drop:1:-1"} {
		if c, err := otatest.ParseCuts(s); err == nil {
			t.Errorf("ParseCuts(%q): got %v, want an error", s, c)
		}
	}
}

// media is a disk with a file of three sectors, and a function that reads it all.
func media(t *testing.T) (*otatest.Disk, func() ([]byte, error)) {
	t.Helper()
	d := otatest.NewDisk()
	if err := durable.WriteFile(d, "/f", bytes.Repeat([]byte("x"), 1500), 0o600); err != nil {
		t.Fatal(err)
	}
	return d, func() ([]byte, error) { return durable.ReadFile(d, "/f", 1<<20) }
}

func TestDiskMisreads(t *testing.T) {
	d, read := media(t)
	d.Arm(otatest.Cut{At: 2, How: otatest.Misread})
	for i, want := range []error{nil, syscall.EIO, nil, nil} {
		if _, err := read(); !errors.Is(err, want) {
			t.Errorf("read %d: got %v, want %v", i+1, err, want)
		}
		if got, want := d.Fell(), i > 0; got != want {
			t.Errorf("read %d: Fell is %v, want %v", i+1, got, want)
		}
	}
	if got := d.Reads(); got != 4 {
		t.Errorf("got %d reads, want 4", got)
	}
}

func TestDiskBadSectorUntilItIsWritten(t *testing.T) {
	d, read := media(t)
	d.Arm(otatest.Cut{At: 1, How: otatest.BadSector})
	for range 3 {
		if _, err := read(); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v, want %v", err, syscall.EIO)
		}
	}
	unreadable := 0
	for off := int64(0); off < 1500; off += 512 {
		if _, err := durable.ReadRange(d, "/f", off, 300); err != nil {
			unreadable++
		}
	}
	if unreadable != 1 {
		t.Errorf("%d of 3 sectors cannot be read, want 1", unreadable)
	}
	if err := durable.WriteFile(d, "/f", []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := read(); err != nil || string(got) != "new" {
		t.Errorf("another file of the name: got %q, %v", got, err)
	}
}

// TestAgentThatGoesWrong lets the code under test do what would otherwise end the whole
// test binary, or nothing at all for ever.
func TestAgentThatGoesWrong(t *testing.T) {
	for name, test := range map[string]struct {
		healthy func(*otatest.Device)
		want    string
	}{
		"it panics": {func(*otatest.Device) { panic("out of ideas") }, "panic: out of ideas"},
		"it goes round in circles": {func(d *otatest.Device) {
			for {
				_, _ = durable.ReadFile(d.Disk, "/data/record", 1<<20)
			}
		}, "and no end"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, err := otatest.Start(filetest.Backend{}, otatest.NewFirmware("1.0.0", 5000, true, true), otatest.NewFirmware("1.0.1", 5000, true, true))
				if err != nil {
					t.Fatal(err)
				}
				d.Config = func(c *ota.Config) {
					c.Healthy = func(context.Context) error { test.healthy(d); return nil }
				}
				if err := d.Live(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
			})
		})
	}
}

// TestAgentThatDoesNotStop is told in the bubble's time, in which waiting costs nothing.
func TestAgentThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := otatest.Start(filetest.Backend{}, otatest.NewFirmware("1.0.0", 5000, true, true), otatest.NewFirmware("1.0.1", 5000, true, true))
		if err != nil {
			t.Fatal(err)
		}
		forEver := make(chan struct{})
		d.Config = func(c *ota.Config) {
			c.Gate = func(context.Context, *ota.Manifest, ota.Moment) error { <-forEver; return nil }
		}
		if err := d.Live(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "hangs") || !strings.Contains(err.Error(), "TestAgentThatDoesNotStop") {
			t.Errorf("got %v, want an error with the stacks", err)
		}
		close(forEver) // the bubble waits for everything that was started in it
	})
}
