package uboot_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/slot/uboot"
)

var (
	single    = uboot.Layout{}
	redundant = uboot.Layout{Redundant: true}
)

func factory(t *testing.T) *uboot.Env {
	t.Helper()
	e := &uboot.Env{Flags: 1}
	for _, v := range [][2]string{{"BOOT_ORDER", "A B"}, {"BOOT_A_LEFT", "3"}, {"BOOT_B_LEFT", "3"}} {
		must(t, e.Set(v[0], v[1]))
	}
	return e
}

// What mkenvimage 2023.01 made of these three variables and 0x1000 bytes, with its
// padding of 0xFF (mkenvimage, and mkenvimage -r).
func TestVectors(t *testing.T) {
	for _, v := range []struct {
		layout uboot.Layout
		crc    uint32
	}{{single, 0xCFE51423}, {redundant, 0x50EBCAEF}} {
		head := 4
		if v.layout.Redundant {
			head = 5
		}
		block := bytes.Repeat([]byte{0xff}, 0x1000)
		copy(block[head:], "BOOT_ORDER=A B\x00BOOT_A_LEFT=3\x00BOOT_B_LEFT=3\x00\x00")
		block[4] = map[bool]byte{true: 1, false: block[4]}[v.layout.Redundant]
		binary.LittleEndian.PutUint32(block, v.crc)
		e, err := uboot.ParseEnv(block, v.layout)
		if err != nil {
			t.Errorf("%+v: %v", v.layout, err)
			continue
		}
		if got, want := e.All(), factory(t).All(); !maps.Equal(got, want) {
			t.Errorf("%+v: got %q, want %q", v.layout, got, want)
		}
		big := v.layout
		big.BigEndian = true
		if _, err := uboot.ParseEnv(block, big); !errors.Is(err, uboot.ErrDamaged) {
			t.Errorf("the other byte order: got %v, want ErrDamaged", err)
		}
	}
}

func TestEncode(t *testing.T) {
	want := "0000" + "\x07BOOT_ORDER=A B\x00BOOT_A_LEFT=3\x00BOOT_B_LEFT=3\x00" + strings.Repeat("\x00", 21)
	e := factory(t)
	e.Flags = 7
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		block := []byte(want)
		order.PutUint32(block, crc32.ChecksumIEEE(block[5:]))
		got, err := e.Encode(int64(len(want)), uboot.Layout{Redundant: true, BigEndian: order == binary.BigEndian})
		if err != nil || !bytes.Equal(got, block) {
			t.Errorf("%v: got %q, %v, want %q", order, got, err, block)
		}
	}
}

func TestEnvironmentIsFull(t *testing.T) {
	e := &uboot.Env{}
	must(t, e.Set("a", "12345"))
	for size, fits := range map[int64]bool{5 + 8 + 1: true, 5 + 8: false, 0: false} {
		block, err := e.Encode(size, redundant)
		if (err == nil) != fits {
			t.Errorf("%d bytes: got %v, want it to fit: %v", size, err, fits)
			continue
		}
		if back, err := uboot.ParseEnv(block, redundant); fits && (err != nil || back.All()["a"] != "12345") {
			t.Errorf("%d bytes: got %v, %v back", size, back, err)
		}
	}
}

func TestSet(t *testing.T) {
	block := []byte("0000one=1\x00no equals sign\x00two=2\x00one=again\x00empty=\x00\x00garbage")
	binary.LittleEndian.PutUint32(block, crc32.ChecksumIEEE(block[4:]))
	e, err := uboot.ParseEnv(block, single)
	must(t, err)
	if v, ok := e.Value("one"); v != "again" || !ok {
		t.Errorf("a name twice: got %q, %v, want the last", v, ok)
	}
	if v, ok := e.Value("empty"); v != "" || !ok {
		t.Errorf("an empty value: got %q, %v", v, ok)
	}
	if _, ok := e.Value("no equals sign"); ok {
		t.Error("got a value of what has none")
	}
	must(t, e.Set("one", "x=y z\n\xff"))
	must(t, e.Set("two", ""))
	must(t, e.Set("three", "3"))
	got, err := e.Encode(64, single)
	must(t, err)
	want := "one=x=y z\n\xff\x00no equals sign\x00empty=\x00three=3\x00"
	if got := strings.TrimRight(string(got[4:]), "\x00") + "\x00"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range [][2]string{{"", "1"}, {"a=b", "1"}, {"a b", "1"}, {"a\n", "1"}, {"a\x00", "1"}, {"a", "1\x002"}} {
		if err := e.Set(bad[0], bad[1]); err == nil {
			t.Errorf("set %q to %q: got no error", bad[0], bad[1])
		}
	}
	if after, err := e.Encode(64, single); err != nil || !bytes.Equal(got, after) {
		t.Errorf("what was refused has changed something")
	}
}

// Measured with libubootenv 0.3.2 and U-Boot 2023.01; and for Boolean U-Boot,
// env/flash.c.
func TestNewest(t *testing.T) {
	for _, v := range []struct {
		how  uboot.Flags
		a, b byte
		want int
	}{
		{uboot.Incremental, 1, 3, 1}, {uboot.Incremental, 3, 1, 0}, {uboot.Incremental, 255, 0, 1}, {uboot.Incremental, 0, 255, 0},
		{uboot.Incremental, 254, 0, 0}, {uboot.Incremental, 128, 127, 0}, {uboot.Incremental, 7, 7, 0}, {uboot.Incremental, 255, 254, 0},
		{uboot.Incremental, 0, 1, 1}, {uboot.Incremental, 1, 255, 1},
		{uboot.Boolean, 1, 0, 0}, {uboot.Boolean, 0, 1, 1}, {uboot.Boolean, 1, 1, 0}, {uboot.Boolean, 0, 0, 0},
		{uboot.Boolean, 1, 255, 1}, {uboot.Boolean, 255, 1, 0}, {uboot.Boolean, 0, 255, 1}, {uboot.Boolean, 255, 0, 0},
	} {
		if got := uboot.Newest(v.how, [2]byte{v.a, v.b}); got != v.want {
			t.Errorf("%s (%d, %d): got copy %d, want %d", v.how, v.a, v.b, got, v.want)
		}
	}
}

// FuzzParseEnv wants that whatever is taken is written back as it was, and that no
// variable changes with another one.
func FuzzParseEnv(f *testing.F) {
	for _, seed := range []string{"", "a=1\x00b=2\x00\x00", "a=1", "=\x00", "a\x00b=\x00\x00\xff\xff", strings.Repeat("\xff", 40), "BOOT_ORDER=A B\x00BOOT_A_LEFT=3\x00\x00x=1\x00"} {
		f.Add([]byte(seed), true, "BOOT_ORDER", "B A")
		f.Add([]byte(seed), false, "a", "")
	}
	f.Fuzz(func(t *testing.T, data []byte, isRedundant bool, name, value string) {
		l := uboot.Layout{Redundant: isRedundant}
		block := append([]byte("00000")[:map[bool]int{true: 5, false: 4}[isRedundant]], data...)
		if _, err := uboot.ParseEnv(block, l); err == nil && len(block) < 8 {
			t.Fatal("got an environment from almost nothing")
		}
		if len(block) < 8 {
			return
		}
		binary.LittleEndian.PutUint32(block, crc32.ChecksumIEEE(block[len(block)-len(data):]))
		e, err := uboot.ParseEnv(block, l)
		if err != nil {
			t.Fatal(err)
		}
		size := int64(len(block)) + 2 // an end may be missing
		was, err := e.Encode(size, l)
		if err != nil {
			t.Fatal(err)
		}
		used, _, _ := bytes.Cut(append(bytes.Clone(data), 0, 0), []byte{0, 0})
		if data := was[len(block)-len(data):]; !bytes.HasPrefix(data, used) && len(data) > 0 && used[0] != 0 {
			t.Fatalf("got %q back from %q", data, used)
		}
		before := e.All()
		if e.Set(name, value) != nil {
			return
		}
		after := e.All()
		if got, ok := after[name]; got != value || ok != (value != "") {
			t.Fatalf("set %q to %q: got %q, %v", name, value, got, ok)
		}
		delete(before, name)
		delete(after, name)
		if !maps.Equal(before, after) {
			t.Fatalf("set %q: others changed from %q to %q", name, before, after)
		}
	})
}
