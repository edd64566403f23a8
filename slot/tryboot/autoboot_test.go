package tryboot

import (
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

var partitions = [2]int{2, 3}

// Whatever is in the file: what passes the check is changed in its two numbers only,
// and back again.
func FuzzAutoboot(f *testing.F) {
	for _, text := range []string{
		"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n",
		"[all]\r\ntryboot_a_b=1\r\nboot_partition=3\r\n[tryboot]\r\nboot_partition=2",
		"boot_partition=2\ntryboot_a_b=1\n# x\n[none]\nboot_partition=5\n[tryboot]\nboot_partition=3\nboot_partition=2\nboot_partition=3",
		"[tryboot]\nboot_partition=3\n[all]\ntryboot_a_b=1\nboot_partition=2\n",
		"[tryboot]\ntryboot_a_b=1\nboot_partition=3\n[none]\n[all]\n",
		"\x00\x00", "=", "[", "[all]=1", "boot_partition=", "boot_partition=99999999999999999999",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parse(text)
		if err != nil || a.check(partitions) != nil {
			return
		}
		if a.normal == a.trial || a.normal+a.trial != 5 || len(text) > maxAutoboot {
			t.Fatalf("%q passes the check as %+v", text, a)
		}
		swapped, err := a.with(a.trial, a.normal)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		differ := 0
		for i := range text {
			if text[i] != swapped[i] {
				differ++
			}
		}
		b, err := parse(swapped)
		if err != nil || b.check(partitions) != nil || b.normal != a.trial || b.trial != a.normal || len(swapped) != len(text) || differ != 2 {
			t.Fatalf("%q became %q, %d bytes differ: %+v, %v", text, swapped, differ, b, err)
		}
		if back, err := b.with(a.normal, a.trial); back != text || err != nil {
			t.Errorf("%q came back as %q, %v", text, back, err)
		}
	})
}

// Two numbers of different lengths change places, and the file keeps its size.
func TestSwapKeepsTheLength(t *testing.T) {
	const text = "[all]\ntryboot_a_b=1\nboot_partition=5\n[tryboot]\nboot_partition=12\n# end\n"
	a, err := parse(text)
	if err != nil || a.check([2]int{5, 12}) != nil {
		t.Fatalf("got %+v, %v", a, err)
	}
	got, err := a.with(12, 5)
	if want := "[all]\ntryboot_a_b=1\nboot_partition=12\n[tryboot]\nboot_partition=5\n# end\n"; got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestSizeLimit(t *testing.T) {
	const text = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n#"
	full := text + strings.Repeat("x", maxAutoboot-len(text))
	if a, err := parse(full); err != nil || a.check(partitions) != nil {
		t.Errorf("512 bytes: got %v", err)
	}
	if _, err := parse(full + "x"); err == nil || !strings.Contains(err.Error(), "it is 513 bytes") {
		t.Errorf("513 bytes: got %v", err)
	}
}

func FuzzState(f *testing.F) {
	good := state{Try: "B", Boot: "id", Proven: true, Autoboot: "[all]\n"}
	f.Add(good.encode())
	f.Add([]byte("00000000\n{}\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b)
		if err != nil {
			if s != (state{}) {
				t.Errorf("got %+v with %v", s, err)
			}
			return
		}
		if again, err := decode(s.encode()); again != s || err != nil {
			t.Errorf("%+v came back as %+v, %v", s, again, err)
		}
	})
}

// Every bit of the state is under its checksum.
func TestStateBits(t *testing.T) {
	good := state{Try: "B", Boot: "id", Autoboot: "[all]\nboot_partition=2\n"}
	b := good.encode()
	if s, err := decode(b); s != good || err != nil {
		t.Fatalf("got %+v, %v", s, err)
	}
	for i := range b {
		for bit := range 8 {
			bad := append([]byte(nil), b...)
			bad[i] ^= 1 << bit
			if s, err := decode(bad); err == nil && s != good {
				t.Errorf("bit %d of byte %d flips, and nobody notices: %+v", bit, i, s)
			}
		}
	}
	for range 100 { // and a tail of anything
		if s, err := decode(append(b[:len(b)-1:len(b)-1], byte(rand.N(256)), '\n')); err == nil {
			t.Errorf("a longer state passes: %+v", s)
		}
	}
}

// A file system that was made to be read wrongly costs bounded time and memory.
func FuzzRootNames(f *testing.F) {
	b := make([]byte, 1024)
	copy(b[11:], []byte{0, 2, 1, 1, 0, 1, 16, 0, 64, 0, 0xf8, 1, 0})
	b[510], b[511] = 0x55, 0xaa
	f.Add(b)
	loop := append([]byte(nil), b...)
	loop[17], loop[36], loop[44], loop[512+8] = 0, 1, 2, 2 // a cluster that follows itself
	f.Add(loop)
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := rootNames(func(off, n int64) ([]byte, error) {
			if off < 0 || n < 0 || n > 2<<20 {
				t.Fatalf("reads %d bytes at %d", n, off)
			}
			if off+n > int64(len(b)) {
				return nil, io.ErrUnexpectedEOF
			}
			return b[off : off+n], nil
		})
		if err != nil && names != nil {
			t.Errorf("got %q with %v", names, err)
		}
	})
}
