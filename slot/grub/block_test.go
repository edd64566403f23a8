package grub

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/otatest"
)

var names = [2]string{"A", "B"}

func filled(content string) []byte {
	b := bytes.Repeat([]byte{'#'}, blockSize)
	copy(b, signature+content)
	return b
}

func TestBlock(t *testing.T) {
	in := filled(warning + "ORDER=A B\n# a=remark\nzz=two\\\nlines\\\\\nA_OK=0\nA_OK=1\n=no name\n")
	b, err := parseBlock(in)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ORDER": "A B", "zz": "two\nlines\\", "A_OK": "1"} {
		if got, ok := b.variable(name); got != want || !ok {
			t.Errorf("%s: got %q, %v, want %q", name, got, ok, want)
		}
	}
	if got, err := b.encode(len(in)); !bytes.Equal(got, in) || err != nil {
		t.Errorf("not changed: got\n%s, %v, want\n%s", got, err, in)
	}
	want := filled(warning + "ORDER=B A\n# a=remark\nzz=two\\\nlines\\\\\nA_OK=2\n=no name\nnew=\\\\\\\n\n")
	if got, err := b.set("ORDER", "B A").set("A_OK", "2").set("new", "\\\n").encode(len(in)); !bytes.Equal(got, want) || err != nil {
		t.Errorf("changed: got\n%s, %v, want\n%s", got, err, want)
	}
}

// What GRUB leaves out is not believed here either.
func TestBlockDamaged(t *testing.T) {
	for _, content := range []string{"A_OK=1", "A_OK=1\\\n", "A_OK", "no equals sign\nA_OK=1\n", "#\\\nA_OK=1\n"} {
		b, err := parseBlock([]byte(signature + content))
		if v, ok := b.variable("A_OK"); ok || err != nil {
			t.Errorf("%q: got A_OK=%q, %v, want none", content, v, err)
		}
	}
	for _, content := range []string{"", "#", signature[:len(signature)-1], "\x00" + signature} {
		if _, err := parseBlock([]byte(content)); err == nil {
			t.Errorf("%q: got no error", content)
		}
	}
}

func TestBlockFull(t *testing.T) {
	b, _ := parseBlock([]byte(signature))
	b = b.set("x", strings.Repeat("y", blockSize-len(signature)-3))
	if got, err := b.encode(blockSize); len(got) != blockSize || err != nil {
		t.Errorf("just full: got %d bytes, %v", len(got), err)
	}
	if _, err := b.set("z", "").encode(blockSize); err == nil || !strings.Contains(err.Error(), "1027 bytes, and the block has 1024") {
		t.Errorf("too full: got %v, want an error with the numbers", err)
	}
}

// Every state that there is comes back from a block, and no two look alike.
func TestStates(t *testing.T) {
	seen := map[string]bool{}
	for seq := range 4 {
		for i := range 2 * 2 * 9 * 2 * 9 * 3 {
			s := first(names, i%2, seq == 0)
			s.seq = seq
			n := i / 2
			for j := range s.slots {
				s.slots[j] = slotState{ok: n%2 == 1, try: n / 2 % 9}
				n /= 18
			}
			s.trial, s.boot = n-1, bootTag("x")
			b, err := s.into(nil, names).encode(blockSize)
			if err != nil {
				t.Fatal(err)
			}
			if len(bytes.TrimRight(b, "#")) > sector {
				t.Fatalf("the variables are not within the first sector:\n%s", b)
			}
			parsed, err := parseBlock(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decodeState(parsed, names, seq == 0)
			if !got.equal(s) || err != nil {
				t.Fatalf("got %+v, %v, want %+v", got, err, s)
			}
			if seen[string(b)] {
				t.Fatalf("%+v looks like another state", s)
			}
			seen[string(b)] = true
		}
	}
}

// No byte of the state can change without being noticed, whatever it becomes; and no
// mixture of two states that follow each other, at any size of what is written at once.
func TestSeal(t *testing.T) {
	from, to := first(names, 0, false), first(names, 0, false)
	to.seq, to.trial, to.order, to.boot = 2, 1, []string{"B", "A"}, bootTag("boot")
	to.slots = [2]slotState{{ok: true}, {ok: true, try: 1}}
	a, err := from.into(nil, names).encode(blockSize)
	if err != nil {
		t.Fatal(err)
	}
	b, err := to.into(nil, names).encode(blockSize)
	if err != nil {
		t.Fatal(err)
	}
	check := func(x []byte, what string, args ...any) {
		t.Helper()
		p, err := parseBlock(x)
		if err != nil {
			return
		}
		if got, err := decodeState(p, names, false); err == nil && !got.equal(from) && !got.equal(to) {
			t.Errorf(what+": got %+v, want the old state, the new one, or an error", append(args, got)...)
		}
	}
	end := len(bytes.TrimRight(b, "#"))
	for at := range end {
		for v := range 256 {
			x := bytes.Clone(b)
			x[at] = byte(v)
			check(x, "byte %d is %#x", at, v)
		}
	}
	for _, unit := range []int{1, 4, 16, 64, 512} {
		for cut := 0; cut < blockSize; cut += unit {
			check(append(bytes.Clone(b[:cut]), a[cut:]...), "new up to %d, then old", cut)
			check(append(bytes.Clone(a[:cut]), b[cut:]...), "old up to %d, then new", cut)
			for other := cut; other < blockSize; other += unit { // one stretch of the other
				x := bytes.Clone(a)
				copy(x[cut:other], b[cut:other])
				check(x, "old but for %d to %d", cut, other)
			}
		}
	}
}

// grub-editenv and this package read each other's blocks.
func TestEditenv(t *testing.T) {
	tool := otatest.Tool(t, "grub-editenv")
	path := filepath.Join(t.TempDir(), "grubenv")
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(tool, append([]string{path}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("grub-editenv %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	read := func() (block, []byte) {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := parseBlock(raw)
		if err != nil {
			t.Fatal(err)
		}
		return b, raw
	}
	write := func(b block) {
		t.Helper()
		raw, err := b.encode(blockSize)
		if err == nil {
			err = os.WriteFile(path, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run("create")
	run("set", "ORDER=A B", "A_OK=1", `odd=a\b=c #`, "B_OK=")
	b, raw := read()
	for name, want := range map[string]string{"ORDER": "A B", "A_OK": "1", "odd": `a\b=c #`, "B_OK": ""} {
		if got, ok := b.variable(name); got != want || !ok {
			t.Errorf("%s: got %q, %v, want %q", name, got, ok, want)
		}
	}
	if again, err := b.encode(len(raw)); !bytes.Equal(again, raw) || err != nil {
		t.Errorf("not changed: got\n%s, %v, want\n%s", again, err, raw)
	}

	write(first(names, 0, false).into(b, names).set("back\\slash", `x\y`))
	if got := run("list"); !strings.Contains(got, "interlock_end=1A B11101") || !strings.Contains(got, `x\y`) || !strings.Contains(got, "A_TRY=0") {
		t.Errorf("grub-editenv list: got\n%s", got)
	}
	run("unset", "odd")
	run("set", "more=1")
	b, _ = read()
	if s, err := decodeState(b, names, false); !s.equal(first(names, 0, false)) || err != nil {
		t.Errorf("after grub-editenv changed others: got %+v, %v", s, err)
	}
	run("set", "B_TRY=3")
	b, _ = read()
	if s, err := decodeState(b, names, false); err == nil {
		t.Errorf("after grub-editenv changed the state: got %+v, want an error", s)
	}

	// As full as grub-editenv fills it, and no byte more.
	run("create")
	b, _ = read()
	room := blockSize - len(signature) - len("x=\n")
	for _, l := range b {
		room -= len(l.raw)
	}
	full := b.set("x", strings.Repeat("y", room))
	write(full)
	if got := run("list"); !strings.Contains(got, "x="+strings.Repeat("y", room)) {
		t.Errorf("full: grub-editenv lists\n%s", got)
	}
	if _, err := b.set("x", strings.Repeat("y", room+1)).encode(blockSize); err == nil {
		t.Error("one byte more than full: got no error")
	}
}

func FuzzBlock(f *testing.F) {
	f.Add([]byte(signature))
	f.Add(filled("ORDER=A B\nA_OK=1\n"))
	b, _ := first(names, 0, false).into(nil, names).encode(blockSize)
	f.Add(b)
	f.Add([]byte(signature + "a\\=b\\\n\\\\\n#\\\n=\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := parseBlock(in)
		if err != nil {
			return
		}
		out, err := b.encode(len(in))
		if err != nil {
			t.Fatalf("what was read does not fit: %v", err)
		}
		n := len(signature)
		for _, l := range b {
			n += len(l.raw)
		}
		if !bytes.Equal(out[:n], in[:n]) {
			t.Errorf("lines have changed: got %q, want %q", out[:n], in[:n])
		}
		for _, alone := range []bool{false, true} {
			s, err := decodeState(b, names, alone)
			if err != nil {
				continue
			}
			again, err := parseBlock([]byte(signature))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := decodeState(s.into(again, names), names, alone); !got.equal(s) || err != nil {
				t.Errorf("got %+v, %v, want %+v", got, err, s)
			}
		}
	})
}
