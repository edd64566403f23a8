package esp32_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// counted is memory that counts what is done to it.
type counted struct {
	*memory
	effects int
}

func (c *counted) OpenFile(string, int, fs.FileMode) (durable.File, error) { return c, nil }
func (c *counted) Stat(string) (fs.FileInfo, error)                        { return info{}, nil }
func (c *counted) WriteAt(p []byte, off int64) (int, error) {
	c.effects++
	return c.memory.WriteAt(p, off)
}
func (c *counted) Erase(off, n int64) error { c.effects++; return c.memory.Erase(off, n) }

type info struct{}

func (info) Name() string       { return "flash" }
func (info) Size() int64        { return 0 }
func (info) Mode() fs.FileMode  { return fs.ModeDevice | fs.ModeCharDevice }
func (info) ModTime() time.Time { return time.Time{} }
func (info) IsDir() bool        { return false }
func (info) Sys() any           { return nil }

// FuzzFlash opens flash that holds anything, and does everything with it. Whatever
// it is, there are two slots or an error, a few writes at most, and what we say that
// boots is what the bootloader starts.
func FuzzFlash(f *testing.F) {
	app := imagetest.App(imagetest.Spec{Size: 500})
	for _, n := range []int{1, 2, 3} {
		m, tab := layout(f, n, n == 1)
		otadata, _ := tab.Find(image.TypeData, image.DataOTA)
		for _, e0 := range []esp32.Entry{esp32.NewEntry(1, esp32.Valid), esp32.NewEntry(0xFFFFFFFE, esp32.New), esp32.NewEntry(4, esp32.PendingVerify)} {
			f.Add(m.b[image.TableOffset:][:256], e0.Encode(), esp32.NewEntry(2, esp32.New).Encode(), app, byte(n))
		}
		f.Add(m.b[image.TableOffset:][:256], m.b[otadata.Offset:][:32], []byte{}, app[:100], byte(7))
		tab.MD5 = false // lets the fuzzer change rows
		raw, err := tab.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw[:256], esp32.NewEntry(3, esp32.Valid).Encode(), esp32.NewEntry(2, esp32.Valid).Encode(), app, byte(0))
	}
	f.Fuzz(func(t *testing.T, rows, e0, e1, app []byte, flags byte) {
		m := &memory{b: bytes.Repeat([]byte{0xFF}, 0x60000)}
		copy(m.b[image.TableOffset:image.TableOffset+image.TableSize], rows)
		if tab, err := image.ParseTable(m.b[image.TableOffset:], int64(len(m.b))); err == nil {
			if p, ok := tab.Find(image.TypeData, image.DataOTA); ok {
				copy(m.b[p.Offset:p.Offset+32], e0)
				copy(m.b[p.Offset+0x1000:p.Offset+0x1020], e1)
			}
			for i, p := range tab.OTA() {
				if flags>>i&1 == 0 {
					copy(m.b[p.Offset:p.Offset+p.Size], app)
				}
			}
		}
		chip := &counted{memory: m}
		slot := ""
		cfg := esp32.Config{Flash: "f", Rollback: flags&64 == 0,
			Booted: func(context.Context) (string, string, error) { return slot, "1", nil }}
		boot := esp32test.Bootloader{Rollback: cfg.Rollback}
		s, err := esp32.OpenOn(chip, cfg)
		if err != nil {
			return
		}
		started, err := boot.Start(chip, "")
		if err != nil && !errors.Is(err, esp32test.ErrLoop) {
			t.Fatal(err)
		}
		slot = started
		chip.effects = 0
		b, err := s.Booted(t.Context())
		if err == nil && (b.Slot != started || b.Other == "" || b.Other == b.Slot) {
			t.Errorf("got %+v, %s was started", b, started)
		}
		if err == nil {
			exercise(t, s, b.Other)
		}
		if chip.effects > 200 {
			t.Errorf("%d writes and erasures", chip.effects)
		}
		claim, err := esp32.ReadBoot(chip, cfg)
		if err != nil {
			t.Fatal(err)
		}
		got, err := boot.Start(chip, "")
		if errors.Is(err, esp32test.ErrLoop) {
			got, err = "", nil
		}
		if err != nil || got != claim.Next && !refused(m, claim, got) {
			t.Errorf("we say %q, the bootloader starts %q (%v): %+v", claim.Next, got, err, claim)
		}
	})
}

// refused reports whether the model has started an image that we refuse, for
// example because of the addresses of its segments, which the model does not know. To
// refuse more than the bootloader is safe; to claim what it does not start is not.
func refused(m *memory, b *esp32.BootState, label string) bool {
	p, ok := b.Table.Label(label)
	if !ok {
		return false
	}
	_, err := image.Verify(bytes.NewReader(m.b[p.Offset:p.Offset+p.Size]), int64(p.Size), image.Options{})
	return err != nil
}

// exercise does everything that there is; errors are fine.
func exercise(t *testing.T, s *esp32.Slots, other string) {
	ctx := t.Context()
	_, _ = s.Probe(ctx)
	_ = s.MarkGood(ctx)
	_ = s.Try(ctx, other)
	sl, err := s.Open(ctx, "controller", other)
	if err != nil {
		t.Error(err)
		return
	}
	defer sl.Close()
	_, _ = sl.ReadAt(make([]byte, 5000), 0)
	_, _ = sl.WriteAt(make([]byte, 4096), 0)
	_ = sl.Sync(4096)
	_ = s.Try(ctx, other)
	_ = s.MarkGood(ctx)
}
