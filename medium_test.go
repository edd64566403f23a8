package ota_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// stick is a fake source that has the image at hand: its readers can seek. Byte
// bad of the image reads wrong, unless it is -1.
type stick struct {
	*otatest.Source
	bad  *int64
	seek bool
}

func (s stick) Open(_ context.Context, _ *ota.Manifest, _ *ota.Image, offset int64) (io.ReadCloser, error) {
	image := bytes.Clone(s.Firmware.Image)
	if *s.bad >= 0 {
		image[*s.bad] ^= 1
	}
	r := bytes.NewReader(image)
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	if !s.seek {
		return io.NopCloser(io.MultiReader(r)), nil
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{r, io.NopCloser(nil)}, nil
}

// TestDamagedOnTheStick: a byte is wrong near the end of the image. From a source
// that has it at hand, nothing is written; from others, nothing that was not verified.
// In both cases the same stick, mended, installs.
func TestDamagedOnTheStick(t *testing.T) {
	for _, test := range []struct {
		name   string
		seek   bool
		writes int // chunks, all before the damaged one
	}{{"at hand", true, 0}, {"passing by", false, 4}} {
		t.Run(test.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				bad := int64(4*otatest.ChunkSize + 100)
				configure(d, func(c *ota.Config) { c.Source = stick{&d.Source, &bad, test.seek} })
				written := map[string]bool{}
				d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
					if strings.HasPrefix(effect, "write /device/b/") {
						written[effect] = true
					}
					return otatest.Fault{}
				}
				live(t, d)
				wantRunning(t, d, "1.0.0")
				wantReport(t, d, ota.Failed, ota.ErrValidation, "chunk at 16384")
				if len(written) != test.writes {
					t.Errorf("got %d chunks written, want %d: %v", len(written), test.writes, written)
				}
				bad = -1
				background(t, d, func(m *ota.Manager) { m.Install() }) // it is not taken again unasked
				wantRunning(t, d, "1.0.1")
			})
		})
	}
}

// TestChangesBetweenTheLooks: what was right when it was looked at is verified again
// before it is written.
func TestChangesBetweenTheLooks(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var opened []int64
		configure(d, func(c *ota.Config) { c.Source = turncoat{&d.Source, &opened} })
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if want := []int64{0, otatest.ChunkSize}; !slices.Equal(opened, want) {
			t.Errorf("opened at %d, want at %d: the second chunk had changed", opened, want)
		}
	})
}

// turncoat is a fake source. The second chunk of what it opens changes as soon as a
// reader goes back.
type turncoat struct {
	*otatest.Source
	opened *[]int64
}

func (s turncoat) Open(_ context.Context, _ *ota.Manifest, _ *ota.Image, offset int64) (io.ReadCloser, error) {
	*s.opened = append(*s.opened, offset)
	return &turning{image: bytes.Clone(s.Firmware.Image), at: offset}, nil
}

type turning struct {
	image []byte
	at    int64
}

func (r *turning) Read(p []byte) (int, error) {
	if r.at == int64(len(r.image)) {
		return 0, io.EOF
	}
	n := copy(p, r.image[r.at:])
	r.at += int64(n)
	return n, nil
}

func (r *turning) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent {
		return 0, errors.ErrUnsupported
	}
	if offset < 0 {
		r.image[otatest.ChunkSize+7] ^= 1
	}
	r.at += offset
	return r.at, nil
}

func (r *turning) Close() error { return nil }

// TestDoesNotFit: a release that is too large for its slot is refused before a byte
// of it is sent, and who reads that finds both sizes.
func TestDoesNotFit(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.Capacity = 1 << 20
		d.Source.Firmware = otatest.NewFirmware("1.0.1", 2<<20, true, true)
		snapshot := live(t, d)
		if snapshot.Code != ota.ErrInsufficientSpace || d.Source.Sent != 0 {
			t.Errorf("got %s with %d bytes sent, want INSUFFICIENT_SPACE with none", snapshot.Code.Name(), d.Source.Sent)
		}
		if said := snapshot.Reason; !strings.Contains(said, "is 2097152 bytes, slot B holds ") {
			t.Errorf("got %q, want the size of the image and that of the slot", said)
		}
	})
}

// TestFullInTheMiddle: somebody else fills the file system during the download.
// What is in the slot stays, and once there is room only the rest is fetched.
func TestFullInTheMiddle(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		writes := 0
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/b/") {
				if writes++; writes == 3 {
					d.Disk.Capacity = 1 // read by the write that is about to happen
				}
			}
			return otatest.Fault{}
		}
		if got := live(t, d); got.Status != ota.StatusFailed || got.Code != ota.ErrInsufficientSpace {
			t.Errorf("got %s %s, want FAILED INSUFFICIENT_SPACE", got.Status, got.Code.Name())
		}
		wantRunning(t, d, "1.0.0")
		d.Disk.OnEffect, d.Disk.Capacity = nil, 0
		sent := d.Source.Sent
		live(t, d)
		wantRunning(t, d, "1.0.1")
		if again, want := d.Source.Sent-sent, int64(len(v101.Image)-2*otatest.ChunkSize); again != want {
			t.Errorf("%d bytes fetched once there was room, want the %d that were not in the slot yet", again, want)
		}
	})
}
