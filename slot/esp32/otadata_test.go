package esp32

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"testing"
)

// CRCs that the vendor's tools write.
func TestVectors(t *testing.T) {
	for seq, want := range map[uint32]uint32{
		1: 0x4743989A, 2: 0x55F63774, 3: 0xED4A5011, 4: 0x709D68A8, 5: 0xC8210FCD, 6: 0xDA94A023, 0xFFFFFFFE: 0x99F8B879,
	} {
		if got := NewEntry(seq, Valid).CRC; got != want {
			t.Errorf("CRC of %d: got %#08x, want %#08x", seq, got, want)
		}
	}
	// boot_app0.bin of arduino-esp32, its first 32 bytes.
	want, err := hex.DecodeString("01000000" + "ffffffffffffffffffffffffffffffffffffffff" + "ffffffff" + "9a984347")
	if err != nil {
		t.Fatal(err)
	}
	if got := NewEntry(1, Undefined).Encode(); !bytes.Equal(got, want) {
		t.Errorf("boot_app0: got %x, want %x", got, want)
	}
	if got := blank.Encode(); !bytes.Equal(got, bytes.Repeat([]byte{0xFF}, entrySize)) {
		t.Errorf("blank: got %x", got)
	}
	if got := ParseEntry(want); got != NewEntry(1, Undefined) || !got.Valid() {
		t.Errorf("parse: got %+v", got)
	}
	if e := ParseEntry(want[:31]); e != blank {
		t.Errorf("parse 31 bytes: got %+v, want none", e)
	}
}

// Number 0 is nothing special, and the number for "empty" is never valid, not even
// with its CRC.
func TestEdgesOfNumbers(t *testing.T) {
	if e := NewEntry(0, Valid); !e.Valid() || e.Slot(3) != int(uint32(math.MaxUint32)%3) {
		t.Errorf("0: got %v, slot %d", e.Valid(), e.Slot(3))
	}
	if e := NewEntry(math.MaxUint32, Valid); e.Valid() {
		t.Error("an empty entry is valid")
	}
	killed := NewEntry(0, Valid)
	killed.CRC = 0
	if killed.Valid() {
		t.Error("zeros are a valid entry")
	}
}

// vendorSeq is the loop of esp_rewrite_ota_data, for numbers that it ends with.
func vendorSeq(slot, n int, cur uint32) uint32 {
	base, i := uint32(slot+1)%uint32(n), uint32(0)
	for cur > base+i*uint32(n) {
		i++
	}
	return base + i*uint32(n)
}

func TestNextNumber(t *testing.T) {
	for n := 1; n <= 16; n++ {
		for slot := range n {
			for cur := uint32(1); cur < 100; cur++ {
				got := seqFor(slot, n, cur)
				if NewEntry(cur, Valid).Slot(n) != slot { // for the slot that counts already it takes the same
					if want := vendorSeq(slot, n, cur); got != want {
						t.Errorf("slot %d of %d after %d: got %d, want %d", slot, n, cur, got, want)
					}
				}
				if got <= cur || got > cur+uint32(n) || NewEntry(got, Valid).Slot(n) != slot {
					t.Errorf("slot %d of %d after %d: got %d", slot, n, cur, got)
				}
			}
			for _, cur := range []uint32{lastSeq - 1, lastSeq, lastSeq + 1, math.MaxUint32 - 16, math.MaxUint32 - 1, math.MaxUint32} {
				got := seqFor(slot, n, cur)
				if got == emptySeq || got == 0 || NewEntry(got, Valid).Slot(n) != slot || cur <= lastSeq && got <= cur {
					t.Errorf("slot %d of %d after %#x: got %#x", slot, n, cur, got)
				}
			}
		}
	}
}

// samples are entries in all states, with right and wrong CRCs.
func samples() (list []Entry) {
	list = append(list, blank, Entry{}) // erased, and written over with zeros
	for _, seq := range []uint32{0, 1, 2, 3, 4, 1 << 31, lastSeq, lastSeq + 1, lastSeq + 2, math.MaxUint32 - 2, math.MaxUint32 - 1} {
		for _, state := range []State{New, PendingVerify, Valid, Invalid, Aborted, Undefined, 7} {
			e := NewEntry(seq, state)
			list = append(list, e)
			e.CRC ^= 1
			if state != 7 {
				list = append(list, e)
			}
		}
	}
	return list
}

// From every state there is, every plan ends where it must in a few steps, and on
// its way never lets go of what boots the running slot for good.
func TestPlans(t *testing.T) {
	list := samples()
	count := 0
	for n := 1; n <= 3; n++ {
		for _, e0 := range list {
			for _, e1 := range list {
				for running := factory; running < n; running++ {
					c := control{entry: [2]Entry{e0, e1}, n: n, label: [20]byte{1}}
					checkGood(t, c, running)
					for slot := factory; slot < n; slot++ {
						if slot != running {
							checkTry(t, c, running, slot)
						}
					}
					count++
				}
			}
		}
	}
	t.Logf("%d states", count)
}

// follow does steps, and calls each before and after each of them, and while it is cut.
func follow(c *control, steps []step, each func(*control)) {
	each(c)
	for _, s := range steps {
		c.do(step{s.i, blank})
		each(c)
		c.do(s)
		each(c)
	}
}

func checkGood(t *testing.T, c control, running int) {
	before, steps, held := c, c.good(running), false
	was, _ := c.first(true, true)
	follow(&c, steps, func(c *control) {
		first, _ := c.first(true, true)
		if running == factory && first != was && first != factory {
			t.Fatalf("good factory from %+v: %+v: boots %d in between", before, steps, first)
		}
		if held && first != running {
			t.Fatalf("good %d from %+v: %+v: boots %d after it booted %d", running, before, steps, first, running)
		}
		held = running != factory && c.wayBack(running) >= 0 && first == running
	})
	if running == factory {
		if first, _ := c.first(true, true); first != factory || c.fellBack(factory) || len(steps) > 2 {
			t.Fatalf("good factory from %+v: %+v", before, steps)
		}
		return
	}
	if !c.staysIn(0, running) || !c.staysIn(1, running) || c.fellBack(running) || len(steps) > 4 || len(c.good(running)) != 0 {
		t.Fatalf("good %d from %+v: %+v, ends in %+v", running, before, steps, c)
	}
}

func checkTry(t *testing.T, c control, running, slot int) {
	before, steps := c, c.try(running, slot, New)
	back := running != factory && c.trial(running)
	follow(&c, steps, func(c *control) {})
	first, try := c.first(true, true)
	switch {
	case first != slot, slot != factory && try == back:
		t.Fatalf("try %d from %+v in %d: %+v, boots %d (try %v)", slot, before, running, steps, first, try)
	case slot == factory || back:
		return
	case c.fellBack(running):
		t.Fatalf("try %d from %+v in %d: %+v, fell back already", slot, before, running, steps)
	case len(c.try(running, slot, New)) != 0:
		t.Fatalf("try %d from %+v in %d: %+v, and once more %+v", slot, before, running, steps, c.try(running, slot, New))
	}
	// It boots once, and then the running slot comes back.
	for i, e := range c.entry {
		if e.Whole() && e.State == New && c.active() == i {
			c.entry[i].State = PendingVerify
		}
	}
	if !c.trial(slot) {
		t.Fatalf("try %d from %+v in %d: %+v: no trial", slot, before, running, c)
	}
	if first, try := c.first(true, true); first != running || try {
		t.Fatalf("try %d from %+v in %d: %+v: after the trial boots %d (try %v)", slot, before, running, c, first, try)
	}
}

// Where we follow the vendor's code, the same entries come out.
func TestAsTheVendorWrites(t *testing.T) {
	// otadata before, and what esp_ota_set_boot_partition or
	// esp_ota_mark_app_valid_cancel_rollback makes of it.
	type pair [2]Entry
	for _, test := range []struct {
		name         string
		before, want pair
		steps        func(c control) []step
	}{
		{"first update: the other entry, number 2, NEW",
			pair{NewEntry(1, Valid), blank}, pair{NewEntry(1, Valid), NewEntry(2, New)},
			func(c control) []step { return c.try(0, 1, New) }},
		{"without rollback: UNDEFINED",
			pair{NewEntry(1, Undefined), blank}, pair{NewEntry(1, Undefined), NewEntry(2, Undefined)},
			func(c control) []step { return c.try(0, 1, Undefined) }},
		{"second update",
			pair{NewEntry(1, Valid), NewEntry(2, Valid)}, pair{NewEntry(3, New), NewEntry(2, Valid)},
			func(c control) []step { return c.try(1, 0, New) }},
		{"after an aborted one: its state is not copied",
			pair{NewEntry(1, Valid), NewEntry(2, Aborted)}, pair{NewEntry(1, Valid), NewEntry(2, New)},
			func(c control) []step { return c.try(0, 1, New) }},
		{"from the factory application: entry 0, number of the slot",
			pair{blank, blank}, pair{NewEntry(2, New), blank},
			func(c control) []step { return c.try(factory, 1, New) }},
		{"to the factory application: all erased",
			pair{NewEntry(1, Valid), NewEntry(2, Valid)}, pair{blank, blank},
			func(c control) []step { return c.try(1, factory, New) }},
		{"the end of a trial: the same number, VALID",
			pair{NewEntry(1, Valid), NewEntry(2, PendingVerify)}, pair{NewEntry(1, Valid), NewEntry(2, Valid)},
			func(c control) []step { return c.good(1)[:1] }},
	} {
		c := control{entry: test.before, n: 2, label: blank.Label}
		for _, s := range test.steps(c) {
			c.do(s)
		}
		if got := (pair)(c.entry); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// otatool.py keeps the state of the entry that it overwrites, and so makes
// switches that nobody heeds. What we write has the state that was asked for.
func TestStateIsNeverCopied(t *testing.T) {
	for _, e0 := range samples() {
		for _, e1 := range samples() {
			c := control{entry: [2]Entry{e0, e1}, n: 2, label: blank.Label}
			for _, s := range append(c.good(0), c.try(0, 1, New)...) {
				if s.e.State != Valid && s.e.State != New || s.e.CRC != entrySum(s.e.Seq) || s.e.Seq == emptySeq {
					t.Fatalf("from %+v: writes %+v", c, s)
				}
			}
		}
	}
}

func FuzzEntry(f *testing.F) {
	for _, e := range samples() {
		f.Add(e.Encode(), byte(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, n byte) {
		e := ParseEntry(b)
		if len(b) >= entrySize && !bytes.Equal(e.Encode(), b[:entrySize]) {
			t.Errorf("got %x, want %x", e.Encode(), b[:entrySize])
		}
		if len(b) >= 4 && e.Valid() && entrySum(binary.LittleEndian.Uint32(b)) != e.CRC {
			t.Error("valid with another CRC")
		}
		m := int(n)%16 + 1
		if s := e.Slot(m); s < 0 || s >= m {
			t.Errorf("slot %d of %d", s, m)
		}
	})
}
