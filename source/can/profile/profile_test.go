package profile_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/source/can/profile"
)

var update = flag.Bool("update", false, "write docs/fieldbus-can.csv")

// People import the file into their tools, so it says what the code does.
func TestTableIsTheFile(t *testing.T) {
	const name = "../../../docs/fieldbus-can.csv"
	var want bytes.Buffer
	if err := profile.WriteCSV(&want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(name, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("docs/fieldbus-can.csv (-want +got); go test ./source/can/profile -update writes it:\n%s", diff)
	}
}

func TestIdentifiersAreUniqueAndInTheirRanges(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range profile.Map() {
		key := r.Kind + string(rune(r.ID))
		if seen[key] {
			t.Errorf("%s %04X is there twice", r.Kind, r.ID)
		}
		seen[key] = true
		ours := r.Kind == "DID" && r.ID >= 0xFD00 && r.ID <= 0xFEFF || r.Kind == "RID" && r.ID >= 0xF000 && r.ID <= 0xFEFF
		standard := r.Kind == "DID" && r.ID >= 0xF180 && r.ID <= 0xF19E || r.Kind == "RID" && slices.Contains([]uint16{0x0202, 0x0203, 0xFF00, 0xFF01}, r.ID)
		if !ours && !standard {
			t.Errorf("%s %04X is neither of the standard nor in the range of system suppliers", r.Kind, r.ID)
		}
		if r.Description == "" || r.Sessions.String() == "" || strings.Contains(r.Sessions.String(), "Session(") {
			t.Errorf("%s %04X: no description, or sessions without a name: %v", r.Kind, r.ID, r.Sessions)
		}
	}
}

// What is on the wire never changes: a change here breaks testers in the field.
func TestBytes(t *testing.T) {
	sha := ota.Hash(bytes.Repeat([]byte{0xAB}, 32))
	for _, tt := range []struct {
		name      string
		got, want string
	}{
		{"identity", hex.EncodeToString(profile.Identity{Version: 0x0100, Caps: 0x2F, MaxBlock: 4095, MaxBytes: 1 << 28}.Append(nil)), "42454d460100002f0fff10000000"},
		{"progress", hex.EncodeToString(profile.Progress{Received: 1, Total: 2, Next: 3, Verified: 4}.Append(nil)), "00000001000000020000000300000004"},
		{"transfer", hex.EncodeToString(profile.Transfer{Size: 0x01020304, SHA256: sha}.Append(nil)), "01020304" + strings.Repeat("ab", 32)},
		{"status", hex.EncodeToString(profile.Status{Status: ota.StatusTrial, Code: ota.ErrInternal}.Append(nil)), "0bff9c"},
		{"bus", hex.EncodeToString(profile.Bus{Bitrate: 500_000, BlockSize: 8, STmin: 1, Share: 50}.Append(nil)), "0007a120080132"},
		{"course", hex.EncodeToString(profile.Course{Progress: 250, Written: 0x01020304, Left: 70000, Attempt: 2, ImagesDone: 3, ImagesFailed: 4}.Append(nil)), "00fa" + "01020304" + "00011170" + "0002" + "00000003" + "00000004"},
		{"boot", hex.EncodeToString(profile.AppendBoot(nil, "1.2")), "01312e32"},
		{"safety", hex.EncodeToString(profile.AppendSafety(nil, profile.TemperatureHigh|profile.Other)), "8008"},
		{"signals", profile.FormatSignals([]ota.Signal{{Name: "soc", Value: 62.5, Unit: "%"}, {Name: "a b", Value: -1}}), "soc 62.5 %\na_b -1\n"},
		{"message", string(profile.SecurityMessage("d1", []byte("seed"))), "interlock: unlock programming over CAN, version 1\x00\x00\x02d1seed"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	numbers := map[string]byte{"IDLE": 0, "OPENING": 1, "RECEIVING": 2, "RECEIVED": 3, "VERIFYING": 4, "VERIFIED": 5, "WAIT_SAFE": 6,
		"INSTALLING": 7, "REBOOT_PENDING": 8, "TRIAL": 9, "CONFIRMED": 10, "ROLLED_BACK": 11, "FAILED": 12, "ABORTED": 13}
	for name, n := range numbers {
		if got := profile.State(n).String(); got != name {
			t.Errorf("state %d is %s, want %s", n, got, name)
		}
	}
}

func TestRoundTrips(t *testing.T) {
	id := profile.Identity{Version: 0x0107, Caps: 3, MaxBlock: 258, MaxBytes: 99}
	if got, err := profile.ParseIdentity(append(id.Append(nil), 1, 2)); got != id || err != nil {
		t.Errorf("identity with more behind it: %+v %v", got, err)
	}
	r := &ota.Report{ID: "a", Digest: "d", Version: "1.0.0", Result: ota.RolledBack, Code: ota.ErrInternal, Reason: "no", Time: time.Unix(1, 0).UTC()}
	b, err := profile.EncodeOutcome(r, profile.MaxBlock)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := profile.ParseOutcome(b); err != nil || cmp.Diff(r, got) != "" {
		t.Errorf("outcome: %v %v", got, err)
	}
	course := profile.Course{Progress: 1000, Written: 1, Left: 1 << 31, Attempt: 65535, ImagesDone: 1<<32 - 1, ImagesFailed: 1 << 31}
	if got, err := profile.ParseCourse(append(course.Append(nil), 9)); got != course || err != nil {
		t.Errorf("course with more behind it: %+v %v", got, err)
	}
	if got, err := profile.ParseOutcome(nil); got != nil || err != nil {
		t.Errorf("no outcome: %v %v", got, err)
	}
	signals := []ota.Signal{{Name: "soc", Value: 62.5, Unit: "%"}, {Name: "current", Value: -1.25, Unit: "A"}}
	if got, err := profile.ParseSignals(profile.FormatSignals(signals)); err != nil || cmp.Diff(signals, got) != "" {
		t.Errorf("signals: %v %v", got, err)
	}
}

func TestTooShortIsAnError(t *testing.T) {
	for name, parse := range parsers {
		if parse([]byte{1}) == nil && name != "boot" && name != "signals" {
			t.Errorf("%s of one byte: no error", name)
		}
	}
	if _, err := profile.ParseIdentity(make([]byte, 14)); err == nil {
		t.Error("an identity without its magic: no error")
	}
	if _, err := profile.ParseIdentity(profile.Identity{Version: 0x0200}.Append(nil)); err == nil {
		t.Error("an identity of version 2: no error")
	}
}

var parsers = map[string]func([]byte) error{
	"identity": func(b []byte) error { _, err := profile.ParseIdentity(b); return err },
	"progress": func(b []byte) error { _, err := profile.ParseProgress(b); return err },
	"transfer": func(b []byte) error { _, err := profile.ParseTransfer(b); return err },
	"status":   func(b []byte) error { _, err := profile.ParseStatus(b); return err },
	"bus":      func(b []byte) error { _, err := profile.ParseBus(b); return err },
	"course":   func(b []byte) error { _, err := profile.ParseCourse(b); return err },
	"safety":   func(b []byte) error { _, err := profile.ParseSafety(b); return err },
	"boot":     func(b []byte) error { _, err := profile.ParseBoot(b); return err },
	"signals":  func(b []byte) error { _, err := profile.ParseSignals(string(b)); return err },
	"outcome":  func(b []byte) error { _, err := profile.ParseOutcome(b); return err },
}

func TestTextIsCutAtACharacter(t *testing.T) {
	long := strings.Repeat("°", profile.MaxText)
	got := profile.Text("a" + long)
	if len(got) != profile.MaxText-1 || !utf8.ValidString(got) {
		t.Errorf("got %d bytes, valid %v; want %d", len(got), utf8.ValidString(got), profile.MaxText-1)
	}
	if got := profile.Text("a\xffb"); got != "a?b" {
		t.Errorf("got %q", got)
	}
	for _, reason := range []string{long, strings.Repeat("\x01", 5000), "short"} { // control characters take six bytes in JSON
		b, err := profile.EncodeOutcome(&ota.Report{ID: "7", Reason: reason}, 300)
		r, perr := profile.ParseOutcome(b)
		if err != nil || len(b) > 300 || perr != nil || r.ID != "7" || r.Reason == "" {
			t.Errorf("an outcome with a long reason: %d bytes, %v, %+v, %v", len(b), err, r, perr)
		}
	}
	if _, err := profile.EncodeOutcome(&ota.Report{Digest: long}, 300); err == nil {
		t.Error("an outcome that does not fit: no error")
	}
}

func TestSignatures(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	seed := bytes.Repeat([]byte{7}, profile.SeedSize)
	for name, key := range map[string]crypto.Signer{"Ed25519": ed, "ECDSA": ec} {
		sig, err := profile.SignSeed(key, "d1", seed)
		if err != nil || len(sig) != profile.KeySize {
			t.Fatalf("%s: %d bytes, %v", name, len(sig), err)
		}
		if !profile.VerifySeed(key.Public(), "d1", seed, sig) {
			t.Errorf("%s: does not verify", name)
		}
		other := slices.Clone(seed)
		other[0]++
		bad := slices.Clone(sig)
		bad[5]++
		for what, ok := range map[string]bool{
			"another device":    profile.VerifySeed(key.Public(), "d2", seed, sig),
			"another seed":      profile.VerifySeed(key.Public(), "d1", other, sig),
			"a short seed":      profile.VerifySeed(key.Public(), "d1", seed[:31], sig),
			"another signature": profile.VerifySeed(key.Public(), "d1", seed, bad),
			"a short signature": profile.VerifySeed(key.Public(), "d1", seed, sig[:63]),
			"no signature":      profile.VerifySeed(key.Public(), "d1", seed, nil),
			"no key":            profile.VerifySeed(nil, "d1", seed, sig),
			"zeros":             profile.VerifySeed(key.Public(), "d1", seed, make([]byte, 64)),
		} {
			if ok {
				t.Errorf("%s: %s verifies", name, what)
			}
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := profile.SignSeed(p384, "d1", seed); err == nil {
		t.Error("P-384 signs")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("soc 62.5 %\n"))
	f.Add(profile.Identity{Version: 0x0100}.Append(nil))
	f.Add(make([]byte, 40))
	f.Add([]byte(`{"id":"a","time":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range parsers {
			_ = parse(b)
		}
		if d, err := profile.ParseIdentity(b); err == nil && !bytes.Equal(d.Append(nil), b[:14]) {
			t.Errorf("identity %+v is not % X", d, b[:14])
		}
		if p, err := profile.ParseTransfer(b); err == nil && !bytes.Equal(p.Append(nil), b[:36]) {
			t.Errorf("transfer %+v is not % X", p, b[:36])
		}
		if s, err := profile.ParseSignals(string(b)); err == nil {
			if again, err := profile.ParseSignals(profile.FormatSignals(s)); err != nil || len(again) > len(s) {
				t.Errorf("signals %v become %v, %v", s, again, err)
			}
		}
		if text := profile.Text(string(b)); len(text) > profile.MaxText || !utf8.ValidString(text) {
			t.Errorf("text of %d bytes", len(text))
		}
	})
}
