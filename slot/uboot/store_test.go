package uboot_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
	"github.com/interlock-energy/ota/slot/uboot/uboottest"
)

// cutOff runs do, and reports whether a power cut ended it.
func cutOff(do func()) (came bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(*otatest.PowerCut); !ok {
				panic(p)
			}
			came = true
		}
	}()
	do()
	return false
}

// on returns the device with another disk.
func (v *device) on(d *otatest.Disk) *device { c := *v; c.disk = d; return &c }

// vars returns what counts, as the model of U-Boot reads it.
func (v *device) vars(t *testing.T) map[string]string {
	t.Helper()
	vars, err := v.Variables(v.disk)
	if err != nil {
		t.Fatal(err)
	}
	return vars
}

// copies returns the variables of each valid copy, nil for others.
func (v *device) copies() (all [2]map[string]string) {
	for i, p := range v.Places() {
		block, err := durable.ReadRange(v.disk, p.Path, p.Offset, p.Size)
		if err != nil {
			continue
		}
		if e, err := uboot.ParseEnv(block, redundant); err == nil {
			all[i] = e.All()
		}
	}
	return all
}

// wantTwice demands that both copies are valid and say the same, and that what does
// not belong to this package is as it was.
func (v *device) wantTwice(t *testing.T, when string) {
	t.Helper()
	c := v.copies()
	if c[0] == nil || !maps.Equal(c[0], c[1]) {
		t.Errorf("%s: got copies %q and %q, want two that are the same", when, c[0], c[1])
	}
	flags := v.flags()
	if boolean := v.Flags == uboot.Boolean || v.Medium == uboottest.Flash; boolean && flags != [2]byte{0, 1} && flags != [2]byte{1, 0} {
		t.Errorf("%s: got flags %v, want one copy active and one obsolete", when, flags)
	}
	v.wantForeign(t, when)
}

// flags returns the flags of both copies.
func (v *device) flags() (flags [2]byte) {
	for i, p := range v.Places() {
		flags[i] = v.disk.Content(p.Path)[p.Offset+4]
	}
	return flags
}

func (v *device) wantForeign(t *testing.T, when string) {
	t.Helper()
	if got := "ethaddr=" + v.vars(t)["ethaddr"]; got != uboottest.Foreign {
		t.Errorf("%s: got %q, want the factory's %q", when, got, uboottest.Foreign)
	}
}

// An act is one change of the environment, and the device before it.
type act struct {
	name  string
	ready func(t *testing.T, v *device)
	do    func(t *testing.T, s *uboot.Slots) error
}

func tryOther(t *testing.T, s *uboot.Slots) error {
	b, err := s.Booted(t.Context())
	if err != nil {
		return err
	}
	return s.Try(t.Context(), b.Other)
}

func writeOther(t *testing.T, s *uboot.Slots) error {
	b, err := s.Booted(t.Context())
	if err != nil {
		return err
	}
	sl, err := s.Open(t.Context(), "controller", b.Other)
	if err != nil {
		return err
	}
	defer sl.Close()
	_, err = sl.WriteAt(make([]byte, 4096), 0)
	return err
}

func markGood(t *testing.T, s *uboot.Slots) error { return s.MarkGood(t.Context()) }

// trial brings the device to the first start of slot B.
func startTrial(t *testing.T, v *device) {
	must(t, markGood(t, v.slots(t)))
	must(t, writeOther(t, v.slots(t)))
	must(t, tryOther(t, v.slots(t)))
	if slot := v.cycle(t); slot != "B" {
		t.Fatalf("got slot %s on trial, want B", slot)
	}
}

// updated brings the device to slot B, which is good, and A before it.
func updated(t *testing.T, v *device) {
	startTrial(t, v)
	must(t, markGood(t, v.slots(t)))
	v.cycle(t)
}

var acts = []act{
	{"mark good, first start", func(*testing.T, *device) {}, markGood},
	{"mark good, after an update", updated, markGood},
	{"write the other slot", updated, writeOther},
	{"try", func(t *testing.T, v *device) { must(t, writeOther(t, v.slots(t))) }, tryOther},
	{"mark good on trial", startTrial, markGood},
	{"go back on trial", startTrial, tryOther},
	{"mark good after falling back", func(t *testing.T, v *device) { startTrial(t, v); v.cycle(t) }, markGood},
}

// TestEveryTear cuts the power at every effect of every change, in every way, and
// inside at units from a byte to a flash page. U-Boot must then find the variables of
// before or of after, nothing else, and doing it again must end as without a cut.
func TestEveryTear(t *testing.T) {
	total := 0
	for _, b := range backends {
		for _, a := range acts {
			v := newDevice(t, b.Backend)
			a.ready(t, v)
			before := v.vars(t)
			clean := v.on(v.disk.Clone())
			clean.disk.Arm(otatest.Cut{})
			must(t, a.do(t, clean.slots(t)))
			after, effects := clean.vars(t), clean.disk.Effects()
			clean.wantTwice(t, b.name+", "+a.name)
			if err := clean.Untouched(clean.disk); err != nil {
				t.Errorf("%s, %s: %v", b.name, a.name, err)
			}
			if nothing := b.Scheme == uboot.Mender && (a.name == "mark good, after an update" || a.name == "write the other slot"); nothing {
				if !maps.Equal(before, after) {
					t.Errorf("%s, %s: got %q, want nothing written", b.name, a.name, after)
				}
				continue
			}
			if maps.Equal(before, after) || effects < 3 {
				t.Fatalf("%s, %s: changes nothing", b.name, a.name)
			}
			for at := 1; at <= effects; at++ {
				for _, cut := range everyCut(at) {
					when := fmt.Sprintf("%s, %s, %v", b.name, a.name, cut)
					c := v.on(v.disk.Clone())
					s := c.slots(t)
					c.disk.Arm(cut)
					if !cutOff(func() { must(t, a.do(t, s)) }) {
						t.Fatalf("%s: no cut came", when)
					}
					c.disk.PowerOn()
					total++
					if got := c.vars(t); !maps.Equal(got, before) && !maps.Equal(got, after) {
						t.Fatalf("%s: got %q, want %q or %q", when, got, before, after)
					}
					c.wantForeign(t, when)
					must(t, a.do(t, c.slots(t)))
					c.disk.PowerOff(otatest.DropAll, 0)
					c.disk.PowerOn()
					if got := c.vars(t); !maps.Equal(got, after) {
						t.Fatalf("%s, and again: got %q, want %q", when, got, after)
					}
					c.wantTwice(t, when+", and again")
				}
			}
		}
	}
	t.Logf("%d cuts", total)
}

// everyCut lists every way to cut effect at.
func everyCut(at int) (cuts []otatest.Cut) {
	for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
		units := []int{512}
		if how == otatest.Torn {
			units = []int{1, 4, 16, 512, 4096}
		}
		for _, unit := range units {
			cuts = append(cuts, otatest.Cut{At: at, How: how, Unit: unit, Agent: true, Seed: uint64(at)})
			for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
				cuts = append(cuts, otatest.Cut{At: at, How: how, Unit: unit, Rest: rest, Seed: uint64(at + unit)})
			}
		}
	}
	return cuts
}

// TestOneCopyRots flips a bit in each byte of each copy after each change. U-Boot
// finds the same variables in the other copy, and the next MarkGood repairs.
func TestOneCopyRots(t *testing.T) {
	for _, b := range backends {
		for _, a := range acts {
			v := newDevice(t, b.Backend)
			a.ready(t, v)
			must(t, a.do(t, v.slots(t)))
			want := v.vars(t)
			step := int64(1)
			if a.name != "try" {
				step = 61 // every byte once is enough
			}
			for _, p := range v.Places() {
				for off := int64(0); off < p.Size; off += step {
					c := v.on(v.disk.Clone())
					must(t, c.disk.Rot(p.Path, p.Offset+off))
					when := fmt.Sprintf("%s, %s, byte %d of the copy at %#x of %s", b.name, a.name, off, p.Offset, p.Path)
					if got := c.vars(t); !maps.Equal(got, want) {
						t.Fatalf("%s: got %q, want %q", when, got, want)
					}
					must(t, c.slots(t).MarkGood(t.Context()))
					if off != 4 || b.Medium == uboottest.Flash { // the flags have no checksum
						c.wantTwice(t, when)
					}
				}
			}
		}
	}
}

// TestACopyCannotBeRead leaves one copy with a bad sector until it is written.
func TestACopyCannotBeRead(t *testing.T) {
	for _, b := range backends {
		for i := range 2 {
			v := newDevice(t, b.Backend)
			startTrial(t, v)
			p := v.Places()[i]
			bad := true
			v.disk.OnEffect = func(_ int, effect string) otatest.Fault {
				if strings.HasPrefix(effect, fmt.Sprintf("write %s %d+", p.Path, p.Offset)) {
					bad = false
				}
				return otatest.Fault{}
			}
			v.disk.OnRead = func(name string, off int64, data []byte) error {
				if bad && name == p.Path && off < p.Offset+p.Size && p.Offset < off+int64(len(data)) {
					return syscall.EIO
				}
				return nil
			}
			s := v.slots(t)
			if _, err := s.Booted(t.Context()); err != nil {
				t.Errorf("%s, copy %d: %v", b.name, i, err)
			}
			must(t, s.MarkGood(t.Context()))
			v.wantTwice(t, b.name)
			if v.cycle(t) != "B" {
				t.Errorf("%s, copy %d: the slot that was marked good does not boot", b.name, i)
			}
		}
	}
}

// TestOneDisturbedRead must not let the older copy count.
func TestOneDisturbedRead(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	startTrial(t, v)
	for n := range 4 {
		reads := 0
		v.disk.OnRead = func(name string, _ int64, _ []byte) error {
			if reads++; reads == n+1 {
				return syscall.EIO
			}
			return nil
		}
		if b, err := v.slots(t).Booted(t.Context()); err != nil || !b.Trial {
			t.Errorf("read %d: got %+v, %v, want the trial", n+1, b, err)
		}
	}
}

// TestBothCopiesDamaged writes nothing over what may be repaired.
func TestBothCopiesDamaged(t *testing.T) {
	for _, b := range backends {
		v := newDevice(t, b.Backend)
		for _, p := range v.Places() {
			must(t, v.disk.Rot(p.Path, p.Offset+20))
		}
		var before []byte
		for _, p := range v.Places() {
			before = append(before, v.disk.Content(p.Path)...)
		}
		s := v.slots(t)
		if got, err := s.Booted(t.Context()); err != nil || got.Slot != "A" || got.FellBack || got.Trial {
			t.Errorf("%s: got %+v, %v, want slot A and nothing else", b.name, got, err)
		}
		for _, a := range acts[1:4] {
			if err := a.do(t, s); !errors.Is(err, uboot.ErrDamaged) || !strings.Contains(err.Error(), "restore it") {
				t.Errorf("%s, %s: got %v, want ErrDamaged and what to do", b.name, a.name, err)
			}
		}
		if r, err := s.Probe(t.Context()); err == nil {
			t.Errorf("%s: probe: got %+v, want an error", b.name, r)
		}
		var after []byte
		for _, p := range v.Places() {
			after = append(after, v.disk.Content(p.Path)...)
		}
		if !bytes.Equal(before, after) {
			t.Errorf("%s: something was written", b.name)
		}
		if got := bytes.Trim(v.Image(v.disk, "B"), "\x00"); len(got) > 0 {
			t.Errorf("%s: the other slot was written, and nothing keeps U-Boot from booting it", b.name)
		}
	}
}

// TestWriteErrors lets every effect fail, with and without having happened.
func TestWriteErrors(t *testing.T) {
	for _, b := range backends {
		for _, a := range acts {
			v := newDevice(t, b.Backend)
			a.ready(t, v)
			before := v.vars(t)
			for at := 1; ; at++ {
				ended := false
				for _, fault := range []otatest.Fault{{Err: syscall.EIO}, {Err: syscall.EIO, Did: true}, {Err: syscall.EIO, Short: 100}} {
					when := fmt.Sprintf("%s, %s, effect %d fails (%+v)", b.name, a.name, at, fault)
					c := v.on(v.disk.Clone())
					s := c.slots(t)
					c.disk.Arm(otatest.Cut{})
					c.disk.OnEffect = func(n int, _ string) otatest.Fault {
						if n == at {
							return fault
						}
						return otatest.Fault{}
					}
					err := a.do(t, s)
					if c.disk.Effects() < at {
						ended = true
						break
					}
					if !errors.Is(err, ota.ErrFlashWrite) {
						t.Errorf("%s: got %v, want ErrFlashWrite", when, err)
					}
					c.disk.OnEffect = nil
					must(t, a.do(t, s))
					want := v.on(v.disk.Clone())
					must(t, a.do(t, want.slots(t)))
					if got, want := c.vars(t), want.vars(t); !maps.Equal(got, want) {
						t.Errorf("%s, and again: got %q, want %q (before it was %q)", when, got, want, before)
					}
					c.wantTwice(t, when)
				}
				if ended {
					break
				}
			}
		}
	}
}

// TestEnvironmentFull refuses before anything is written.
func TestEnvironmentFull(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	s := v.slots(t)
	must(t, s.Set(map[string]string{"filler": strings.Repeat("x", 1024-5-len("BOOT_ORDER=A BOOT_A_LEFT=2 BOOT_B_LEFT=0 filler= ethaddr=02:00:00:c0:ff:ee  "))}))
	want := v.copies()
	if err := s.Try(t.Context(), "B"); err == nil || !strings.Contains(err.Error(), "the environment is full") {
		t.Errorf("got %v, want that it is full", err)
	}
	if got := v.copies(); !maps.Equal(got[0], want[0]) || !maps.Equal(got[1], want[1]) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestFileIsMissing makes the second file anew, beside the first: U-Boot makes it with
// its first save only, and a cut can shorten it.
func TestFileIsMissing(t *testing.T) {
	for _, cutShort := range []bool{false, true} {
		for i := range 2 {
			v := newDevice(t, uboottest.Backend{Medium: uboottest.Files})
			p := v.Places()[i]
			want := v.vars(t)
			if cutShort {
				f, err := v.disk.OpenFile(p.Path, 2, 0)
				must(t, err)
				must(t, f.Truncate(100))
				must(t, f.Close())
			} else {
				must(t, v.disk.Remove(p.Path))
			}
			if got := v.vars(t); got["ethaddr"] != want["ethaddr"] {
				t.Errorf("got %q", got)
			}
			must(t, v.slots(t).MarkGood(t.Context()))
			v.wantTwice(t, p.Path)
		}
	}
}
