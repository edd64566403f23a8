//go:build linux

package vm

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// logOf makes a log as QEMU does. Every write fills its sectors with one letter.
func logOf(entries ...any) []byte {
	out := make([]byte, sector)
	n := uint64(0)
	add := func(at, sectors, flags uint64, fill byte) {
		head := make([]byte, sector)
		binary.LittleEndian.PutUint64(head, at)
		binary.LittleEndian.PutUint64(head[8:], sectors)
		binary.LittleEndian.PutUint64(head[16:], flags)
		out = append(append(out, head...), bytes.Repeat([]byte{fill}, int(sectors)*sector)...)
		n++
	}
	for _, e := range entries {
		switch e := e.(type) {
		case string: // "flush"
			add(0, 0, logFlush, 0)
		case [3]int: // sector, number, letter
			add(uint64(e[0]), uint64(e[1]), 0, byte(e[2]))
		case [4]int: // and flags
			add(uint64(e[0]), uint64(e[1]), uint64(e[3]), byte(e[2]))
		}
	}
	binary.LittleEndian.PutUint64(out, logMagic)
	binary.LittleEndian.PutUint64(out[8:], logVersion)
	binary.LittleEndian.PutUint64(out[16:], n)
	binary.LittleEndian.PutUint32(out[24:], sector)
	return out
}

// letters is the first byte of each sector.
func letters(disk []byte) string {
	var s []byte
	for i := 0; i < len(disk); i += sector {
		s = append(s, disk[i])
	}
	return string(s)
}

func TestReplay(t *testing.T) {
	log := logOf([3]int{0, 2, 'a'}, "flush", [3]int{1, 3, 'b'}, [4]int{1, 1, 'c', logFUA}, "flush", [3]int{0, 1, 'd'})
	writes, err := ReadLog(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	r := NewReplay(bytes.Repeat([]byte{'.'}, 4*sector), bytes.NewReader(log), writes)
	for i, want := range []string{"....", "aa..", "aa..", "aa..", "acbb", "acbb"} {
		if _, ok, err := r.Step(); !ok || err != nil {
			t.Fatalf("step %d: got %v, %v", i, ok, err)
		}
		if got := letters(r.Disk); got != want {
			t.Errorf("after step %d: got %s on the medium, want %s", i, got, want)
		}
	}
	if _, ok, _ := r.Step(); ok {
		t.Error("there is another write after the last")
	}
}

// TestCut cuts after every write, and finds every state that can be, and none that cannot.
func TestCut(t *testing.T) {
	log := logOf([3]int{0, 1, 'a'}, "flush", [3]int{1, 2, 'b'}, [3]int{3, 1, 'c'}, [4]int{2, 1, 'd', logFUA})
	writes, err := ReadLog(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	r := NewReplay(bytes.Repeat([]byte{'.'}, 4*sector), bytes.NewReader(log), writes)
	rnd := rand.New(rand.NewPCG(1, 2))
	wants := []map[string]bool{
		{"....": true, "a...": true},
		{"a...": true},
		{"a...": true, "ab..": true, "a.b.": true, "abb.": true},
		{"a...": true, "ab..": true, "a.b.": true, "abb.": true, "a..c": true, "ab.c": true, "a.bc": true, "abbc": true},
		{"a.d.": true, "abd.": true, "a.dc": true, "abdc": true}, // d was promised to be there
	}
	for i, want := range wants {
		if _, _, err := r.Step(); err != nil {
			t.Fatal(err)
		}
		before, got := letters(r.Disk), map[string]bool{}
		for range 400 {
			undo, err := r.Cut(rnd)
			if err != nil {
				t.Fatal(err)
			}
			got[letters(r.Disk)] = true
			undo()
			if after := letters(r.Disk); after != before {
				t.Fatalf("undo after step %d: got %s, want %s", i, after, before)
			}
		}
		if len(got) != len(want) {
			t.Errorf("cuts after step %d: got %v, want %v", i, got, want)
		}
		for s := range got {
			if !want[s] {
				t.Errorf("cuts after step %d: got %s, which cannot be", i, s)
			}
		}
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add(logOf([3]int{0, 2, 'a'}, "flush", [4]int{1, 1, 'c', logFUA}))
	f.Add(logOf([4]int{1, 0, 0, logMark}))
	f.Add([]byte("not a log"))
	f.Fuzz(func(t *testing.T, b []byte) {
		writes, err := ReadLog(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, w := range writes {
			if w.At < 0 || w.Len < 0 {
				t.Fatalf("got a write of %d bytes at %d", w.Len, w.At)
			}
		}
	})
}
