package modbus_test

import (
	"errors"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// badDisk is a disk that can be told to fail each write, or to take an hour for each sync.
type badDisk struct {
	durable.FS
	fail atomic.Pointer[error]
	slow atomic.Bool
}

type badFile struct {
	durable.File
	disk *badDisk
}

func (d *badDisk) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := d.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return badFile{f, d}, nil
}

func (f badFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.fail.Load(); err != nil {
		return 0, *err
	}
	return f.File.WriteAt(p, off)
}

func (f badFile) Sync() error {
	if f.disk.slow.Load() {
		pause(time.Hour)
	}
	return f.File.Sync()
}

// onBadDisk makes a device with a session, whose disk the test spoils.
func onBadDisk(t *testing.T) (*rig, *master, *badDisk) {
	t.Helper()
	rel := newRelease(t)
	disk := &badDisk{FS: otatest.NewDisk()}
	r := &rig{t: t, fs: disk, dir: "/var/inbox", release: rel}
	r.head.Head = api.Head{Device: "bess-7", Product: "bess"}
	r.start()
	t.Cleanup(func() { r.stop() })
	m := r.master("192.0.2.1")
	m.open(offer(profile.Open, rel.Bundle))
	for s := m.status(); s.State == profile.Opening; s = m.status() {
		m.block(rel.Bundle, s.Missing)
	}
	return r, m, disk
}

// TestDiskFails: a block that the disk does not take is not acknowledged, and is asked for
// again; when the disk works again, so does the transfer.
func TestDiskFails(t *testing.T) {
	for name, err := range map[string]error{"write error": syscall.EIO, "full": syscall.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, m, disk := onBadDisk(t)
				before := m.status()
				disk.fail.Store(&err)
				for range 3 {
					if e := m.block(r.release.Bundle, before.Missing); e != bus.DeviceFailure {
						t.Errorf("a block: got %v, want %v", e, bus.DeviceFailure)
					}
				}
				if e := exception(t, m.records(1, uint16(before.Missing*112), r.release.Bundle[before.Missing*224:][:100])); e != bus.DeviceFailure {
					t.Errorf("records: got %v, want %v", e, bus.DeviceFailure)
				}
				if s := m.status(); s.Received != before.Received || s.Missing != before.Missing || s.Session != m.session {
					t.Errorf("got %+v, want it as before, %+v", s, before)
				}
				other := offer(profile.Open, r.release.Bundle[:9000])
				want := profile.Storage
				if errors.Is(err, syscall.ENOSPC) {
					want = profile.NoSpace
				}
				if e := m.command(other); e != bus.DeviceFailure || m.status().Result != want {
					t.Errorf("OPEN of another: got %v, %v, want %v, %v", e, m.status().Result, bus.DeviceFailure, want)
				}
				disk.fail.Store(nil)
				m.open(offer(profile.Resume, r.release.Bundle))
				m.send(r.release.Bundle)
				m.do(m.with(profile.CloseAll))
				m.until(profile.Verified)
			})
		})
	}
}

// TestSlowDisk: while the disk takes an hour to make something durable, everything is
// answered at once.
func TestSlowDisk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, m, disk := onBadDisk(t)
		disk.slow.Store(true)
		began := time.Now()
		at := func(what string) {
			t.Helper()
			if took := time.Since(began); took > 0 {
				t.Fatalf("%s: answered after %v, want at once", what, took)
			}
		}
		blocks := m.status().Blocks
		for n := range blocks {
			if e := m.block(r.release.Bundle, n); e != 0 {
				t.Fatalf("block %d: %v", n, e)
			}
			at("a block")
		}
		m.status()
		m.display()
		readManifest(t, m)
		bitmap(t, m, blocks)
		at("what is read")
		m.do(m.with(profile.CloseAll))
		at("CLOSE")
		synctest.Wait()
		if s := m.status(); s.State != profile.Verifying {
			t.Errorf("got %v, want VERIFYING, for the disk is at work", s.State)
		}
		m.do(profile.Command{Code: profile.Confirm})
		if e := m.command(offer(profile.Open, r.release.Bundle[:9000])); e != 0 {
			t.Errorf("OPEN of another: %v", e)
		}
		m.open(offer(profile.Open, r.release.Bundle))
		at("OPEN")
		m.do(m.with(profile.Abort))
		at("ABORT")
		disk.slow.Store(false)
	})
}
