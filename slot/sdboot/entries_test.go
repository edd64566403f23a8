package sdboot

import (
	"bytes"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	for name, want := range map[string]entry{
		"x.conf": {good: true}, "X.CONF": {good: true},
		"x+3.conf": {left: 3}, "x+0-1.conf": {done: 1}, "x+12-345.conf": {left: 12, done: 345}, "x+007-0.conf": {left: 7},
	} {
		if got, ok := parseName(name, "x"); got.good != want.good || got.left != want.left || got.done != want.done || !ok {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "x", "xy.conf", "x+.conf", "x+-1.conf", "x+1-.conf", "x+1-2-3.conf", "x+1+2.conf", "x+9999999999.conf", "x+1.conf.tmp", "x+ 1.conf", "y+1.conf"} {
		if got, ok := parseName(name, "x"); ok {
			t.Errorf("%q: got %+v, want none of ours", name, got)
		}
	}
}

func TestParseText(t *testing.T) {
	for _, test := range []struct {
		text    string
		version int
		whole   bool
	}{
		{"efi /a\nversion 7\n", 7, true},
		{"\tlinux  /a\n  version\t8", 8, true},
		{"version 7\nversion 9\nefi /a\n", 9, true},
		{"efi\nversion 7\n", 7, false},
		{"efi /a\nversion -7\n", 0, false},
		{"efi /a\nversion 7 8\n", 0, false},
		{"efi /a\n#version 7\n", 0, false},
		{"", 0, false},
	} {
		if version, whole := parseText([]byte(test.text)); version != test.version || whole != test.whole {
			t.Errorf("%q: got %d, %v, want %d, %v", test.text, version, whole, test.version, test.whole)
		}
	}
	if got, want := string(withVersion([]byte("a\n version 3\nversion\nversions 4"), 5)), "a\nversions 4\nversion 5\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzEntry(f *testing.F) {
	f.Add("x+1-2.conf", []byte("efi /a\nversion 1\n"), []byte("\x06\x00\x00\x00a\x00"))
	f.Add("X.conf", []byte("version 99999999999999999999\n"), []byte{})
	f.Fuzz(func(t *testing.T, name string, text, value []byte) {
		if e, ok := parseName(name, "x"); ok && (e.left < 0 || e.done < 0 || e.good && e.left+e.done > 0) {
			t.Errorf("%q: got %+v", name, e)
		}
		version, whole := parseText(text)
		if version < 0 || whole && version == 0 {
			t.Errorf("got %d, %v", version, whole)
		}
		out := withVersion(text, 42)
		if v, w := parseText(out); v != 42 || w != loads.Match(out) {
			t.Errorf("got version %d, %v of %q, want 42", v, w, out)
		}
		if bytes.Count(value, []byte{0}) == 0 && strings.ContainsRune(efiString(value), 0) {
			t.Error("got a zero in a string")
		}
	})
}
