package ota_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestStagedImageIsVerifiedAgain(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.Automatic = false })
		background(t, d, func(m *ota.Manager) {
			if err := m.Install().Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
		sent := d.Source.Sent
		if err := d.Disk.Rot("/device/b/controller.img", 9000); err != nil {
			t.Fatal(err)
		}
		configure(d, nil)
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if again := d.Source.Sent - sent; again <= 0 || again >= int64(len(v101.Image)) {
			t.Errorf("%d bytes fetched again, want the part from the damaged chunk on", again)
		}
	})
}

func TestResumedDownloadFetchesNothingTwice(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.CutAt = []int64{100, 5000, 5001, 12288, 20999}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if limit := int64(len(v101.Image) + 5*otatest.ChunkSize); d.Source.Sent > limit {
			t.Errorf("fetched %d bytes, want at most %d", d.Source.Sent, limit)
		}
	})
}

func TestFullMediumMends(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/b/") {
				return otatest.Fault{Err: syscall.ENOSPC}
			}
			return otatest.Fault{}
		}
		if got := live(t, d); got.Status != ota.StatusFailed || got.Code != ota.ErrInsufficientSpace || got.State != ota.Fetching {
			t.Errorf("got %s %s in state %s, want FAILED INSUFFICIENT_SPACE in fetching", got.Status, got.Code.Name(), got.State)
		}
		d.Disk.OnEffect = nil
		live(t, d)
		wantRunning(t, d, "1.0.1")
	})
}

// TestFailingSync: after a sync that failed nobody knows what is on the medium,
// so the slot is read again past the cache, and only what is missing is fetched.
func TestFailingSync(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		failures := 2
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "sync /device/b/") && failures > 0 {
				failures--
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		wantReport(t, d, ota.Succeeded, ota.ErrNone, "")
	})
}

// TestSourceDoesNotJudge: whatever code a source gives its errors, it cannot make
// a device skip a release.
func TestSourceDoesNotJudge(t *testing.T) {
	for _, code := range []ota.ErrorCode{ota.ErrValidation, ota.ErrFlashWrite, ota.ErrIncompatible, ota.ErrInsufficientSpace, ota.ErrInternal, ota.ErrNoUpdate} {
		t.Run(code.Name(), func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				left := 6
				configure(d, func(c *ota.Config) { c.Source = &rottenSource{&d.Source, code, &left} })
				live(t, d)
				wantRunning(t, d, "1.0.1")
			})
		})
	}
}

type rottenSource struct {
	*otatest.Source
	code ota.ErrorCode
	left *int
}

func (s *rottenSource) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	if *s.left--; *s.left >= 0 {
		return nil, fmt.Errorf("read the stick: %w", s.code)
	}
	return s.Source.Open(ctx, m, im, offset)
}

// A medium that loses what cannot be synced is given up, not written for ever.
func TestSyncThatFailsForEverIsGivenUp(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		syncs := 0
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "sync /device/b/") {
				syncs++
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		live(t, d)
		if syncs > 20 {
			t.Errorf("wrote the image %d times in 23 minutes, fetched %d bytes", syncs, d.Source.Sent)
		}
		wantReport(t, d, ota.Failed, ota.ErrFlashWrite, "sync slot")
	})
}

// Nothing goes round and round because an error happens to wrap context.Canceled.
func TestForeignCancellationIsNotATightLoop(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		configure(d, func(c *ota.Config) {
			c.Hooks.Suspend = func(context.Context) error {
				if n++; n > 200 {
					cancel()
				}
				return fmt.Errorf("ask the PCS: %w", context.Canceled)
			}
		})
		d.Live(ctx, 23*time.Minute)
		if n > 100 {
			t.Errorf("suspended %d times", n)
		}
	})
}

// A reader that gives nothing for ever is broken off.
func TestReaderThatGivesNothing(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		spins := 0
		configure(d, func(c *ota.Config) { c.Source = emptySource{&d.Source, &spins} })
		d.Live(t.Context(), time.Minute)
		if spins >= 100000 {
			t.Errorf("read nothing %d times in a row", spins)
		}
	})
}

type emptySource struct {
	*otatest.Source
	spins *int
}

func (s emptySource) Open(context.Context, *ota.Manifest, *ota.Image, int64) (io.ReadCloser, error) {
	return io.NopCloser(emptyReader{s.spins}), nil
}

type emptyReader struct{ spins *int }

func (r emptyReader) Read([]byte) (int, error) {
	if *r.spins++; *r.spins >= 100000 {
		return 0, io.EOF
	}
	return 0, nil
}

// Breaks with progress in between are no failed attempt.
func TestBreaksWithProgressAreNotCounted(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.CutAt = []int64{4100, 9000, 14000, 19000, 24000, 29000}
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if got := order(d); strings.Contains(got, "Failed") {
			t.Errorf("%s: each break came after a new chunk", got)
		}
	})
}

// A reader that does not know ctx is closed when it stalls.
func TestStalledReaderIsClosed(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		opened := 0
		configure(d, func(c *ota.Config) { c.Source = &deadSource{&d.Source, &opened} })
		live(t, d)
		wantRunning(t, d, "1.0.1")
	})
}

type deadSource struct {
	*otatest.Source
	opened *int
}

func (s *deadSource) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, at int64) (io.ReadCloser, error) {
	if *s.opened++; *s.opened == 1 {
		r, _ := io.Pipe()
		return r, nil // a Read returns when it is closed
	}
	return s.Source.Open(ctx, m, im, at)
}

// A full medium is not tried again at once.
func TestFullMediumIsNotTriedAtOnce(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		writes := 0
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/b/") {
				writes++
				return otatest.Fault{Err: syscall.ENOSPC}
			}
			return otatest.Fault{}
		}
		d.Live(t.Context(), 30*time.Second)
		if writes != 1 {
			t.Errorf("%d writes in 30 s, want 1", writes)
		}
	})
}
