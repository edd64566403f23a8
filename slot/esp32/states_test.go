package esp32_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// memory is a fake: flash without any fault, for what is done a million times.
type memory struct {
	durable.FS
	b []byte
}

func (m *memory) OpenFile(string, int, fs.FileMode) (durable.File, error) { return m, nil }
func (m *memory) Close() error                                            { return nil }
func (m *memory) Sync() error                                             { return nil }
func (m *memory) Truncate(int64) error                                    { return errors.ErrUnsupported }
func (m *memory) Size() (int64, error)                                    { return int64(len(m.b)), nil }
func (m *memory) EraseSize() int64                                        { return image.SectorSize }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off > int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	for i, c := range p {
		if c&^m.b[off+int64(i)] != 0 {
			return 0, errors.New("not erased")
		}
		m.b[off+int64(i)] = c
	}
	return len(p), nil
}

func (m *memory) Erase(off, n int64) error {
	copy(m.b[off:off+n], bytes.Repeat([]byte{0xFF}, int(n)))
	return nil
}

// layout builds a flash with n slots of one sector or so, all with an application,
// whose security versions are 1, 2 and so on.
func layout(t testing.TB, n int, factory bool) (*memory, *image.Table) {
	t.Helper()
	csv := "otadata, data, ota, 0x9000, 0x2000,\n"
	if factory {
		csv += "factory, app, factory, , 4K,\n"
	}
	for i := range n {
		csv += fmt.Sprintf("ota_%d, app, ota_%d, , 4K,\n", i, i)
	}
	tab := table(t, csv)
	raw, err := tab.Encode()
	if err != nil {
		t.Fatal(err)
	}
	last := tab.Partitions[len(tab.Partitions)-1]
	m := &memory{b: bytes.Repeat([]byte{0xFF}, int(last.Offset+last.Size))}
	copy(m.b[image.TableOffset:], raw)
	for i, p := range tab.Partitions[1:] {
		copy(m.b[p.Offset:], imagetest.App(imagetest.Spec{Size: 500, Seed: uint64(i), SecureVersion: uint32(i + 1)}))
	}
	return m, tab
}

// states are the entries to try: all states, numbers and CRCs.
func states() (list [][]byte) {
	list = append(list, bytes.Repeat([]byte{0xFF}, 32))
	for _, seq := range []uint32{1, 2, 3, 4, 1 << 31, math.MaxUint32 - 1} {
		for _, state := range []esp32.State{esp32.New, esp32.PendingVerify, esp32.Valid, esp32.Invalid, esp32.Aborted, esp32.Undefined} {
			e := esp32.NewEntry(seq, state)
			list = append(list, e.Encode())
			if e.CRC ^= 0x100; seq < 3 {
				list = append(list, e.Encode())
			}
		}
	}
	return list
}

// Whatever is in otadata, what we say that boots next is what the bootloader boots.
func TestSameAsBootloader(t *testing.T) {
	all := states()
	count, fuse := 0, uint32(0)
	for n := 1; n <= 4; n++ {
		for _, factory := range []bool{false, true} {
			m, tab := layout(t, n, factory)
			if testing.Short() && n == 4 {
				continue
			}
			for _, boot := range []esp32test.Bootloader{{}, {Rollback: true}, {Rollback: true, AntiRollback: &fuse}} {
				if boot.AntiRollback != nil && factory {
					continue // there is no such thing
				}
				for _, broken := range []int{-1, 0} {
					chip := &memory{b: bytes.Clone(m.b)}
					if broken >= 0 { // so that it is not the first choice that boots
						chip.b[tab.OTA()[broken].Offset+100] ^= 1
					}
					for _, e0 := range all {
						for _, e1 := range all {
							fuse = 2
							cfg := esp32.Config{Rollback: boot.Rollback, AntiRollback: boot.AntiRollback != nil, SecureVersion: fuse}
							copy(chip.b[0x9000:], e0)
							copy(chip.b[0xA000:], e1)
							same(t, chip, boot, cfg)
							count++
						}
					}
				}
			}
		}
	}
	t.Logf("%d states", count)
}

// same compares the claim with the deed. It changes the flash as the bootloader does.
func same(t *testing.T, chip *memory, boot esp32test.Bootloader, cfg esp32.Config) {
	t.Helper()
	claim, err := esp32.ReadBoot(chip, cfg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := boot.Start(chip, "")
	if errors.Is(err, esp32test.ErrLoop) {
		got, err = "", nil
	}
	if err != nil || claim.Next != got {
		t.Fatalf("entries %+v: we say %q, and the bootloader starts %q (%v)", claim.Entries, claim.Next, got, err)
	}
	if got == "" || !claim.Trial {
		return
	}
	after, err := esp32.ReadBoot(chip, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if a := after.Active; a < 0 || after.Entries[a].State != esp32.PendingVerify {
		t.Fatalf("entries %+v: we say that it is a trial, and it left %+v", claim.Entries, after.Entries)
	}
}

// What Booted finds out by itself is what was started, in all states in which it is
// sure.
func TestDerived(t *testing.T) {
	all := states()
	sure, unsure := 0, 0
	for _, factory := range []bool{false, true} {
		m, tab := layout(t, 2, factory)
		for _, broken := range []bool{false, true} {
			chip := &memory{b: bytes.Clone(m.b)}
			if broken {
				chip.b[tab.OTA()[1].Offset+100] ^= 1
			}
			for _, e0 := range all {
				for _, e1 := range all {
					copy(chip.b[0x9000:], e0)
					copy(chip.b[0xA000:], e1)
					want, err := esp32test.Bootloader{Rollback: true}.Start(chip, "")
					if err != nil {
						t.Fatal(err)
					}
					s, err := esp32.OpenOn(chip, esp32.Config{Flash: "f", Rollback: true,
						Booted: func(context.Context) (string, string, error) { return "", "1", nil }})
					if err != nil {
						t.Fatal(err)
					}
					got, err := s.Booted(t.Context())
					if err != nil {
						unsure++
						continue
					}
					if sure++; got.Slot != want {
						t.Fatalf("% x, % x: got %s, want %s", chip.b[0x9000:0x9020], chip.b[0xA000:0xA020], got.Slot, want)
					}
				}
			}
		}
	}
	if unsure > sure/2 {
		t.Errorf("sure of %d, unsure of %d", sure, unsure)
	}
}
