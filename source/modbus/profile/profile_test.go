package profile_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/source/modbus/profile"
)

var update = os.Getenv("UPDATE") == "1"

// What masters are written from is the map that the device has. UPDATE=1 writes it anew.
func TestMapIsWhatTheDocumentsSay(t *testing.T) {
	const file = "../../../docs/fieldbus-modbus.csv"
	var got bytes.Buffer
	if err := profile.WriteCSV(&got); err != nil {
		t.Fatal(err)
	}
	if update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s is not the map; run this test with UPDATE=1 and look at the difference", file)
	}
}

// TestMapFitsTheCodecs: each row is where the codec puts what it describes, no two rows
// overlap, and no register that a codec writes is without a row.
func TestMapFitsTheCodecs(t *testing.T) {
	described := map[int]string{}
	for _, r := range profile.Map() {
		for i := range r.Registers {
			at := int(r.Offset) + i
			if other := described[at]; other != "" {
				t.Errorf("%s and %s are both at +%X", r.Name, other, at)
			}
			described[at] = r.Name
		}
		width := map[string]int{"u16": 1, "i16": 1, "u32": 2}[r.Type]
		if width != 0 && width != r.Registers && !(r.Type == "u16" && r.Registers == 1) {
			t.Errorf("%s: %d registers of type %s", r.Name, r.Registers, r.Type)
		}
	}
	for _, c := range []struct {
		name  string
		at    int
		write func([]uint16)
		size  int
	}{
		{"identity", profile.OffsetIdentity, func(b []uint16) { full[profile.Identity]().Encode(b) }, profile.IdentitySize},
		{"offer", profile.OffsetOffer, func(b []uint16) { full[profile.Offer]().Encode(b) }, profile.OfferSize},
		{"command", profile.OffsetCommand, func(b []uint16) { full[profile.Command]().Encode(b) }, profile.CommandSize},
		{"status", profile.OffsetStatus, func(b []uint16) { full[profile.Status]().Encode(b) }, profile.StatusSize},
		{"display", profile.OffsetDisplay, func(b []uint16) { full[profile.Display]().Encode(b) }, profile.DisplaySize},
		{"data", profile.OffsetData, func(b []uint16) {
			(&profile.Block{Session: 0xFFFF, Number: 0x01010101, Data: bytes.Repeat([]byte{1}, profile.BlockSize)}).Append(b[:0])
		}, profile.DataSize},
	} {
		registers := make([]uint16, c.size)
		c.write(registers)
		for i, v := range registers {
			name := described[c.at+i]
			if reserved := name == "" || name == "cmd_reserved"; (v == 0) != reserved {
				t.Errorf("%s: register +%X is %04x and described as %q", c.name, c.at+i, v, name)
			}
		}
	}
}

// full is a T with nothing in it that is zero, and with texts that fill their room.
func full[T any]() *T {
	v := new(T)
	for i := range reflect.TypeOf(v).Elem().NumField() {
		switch f := reflect.ValueOf(v).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString(strings.Repeat("x", 200))
		case reflect.Array:
			for j := range f.Len() {
				f.Index(j).SetUint(0x55)
			}
		case reflect.Int16:
			f.SetInt(0x0101)
		default:
			f.SetUint(0x01010101 & (1<<f.Type().Bits() - 1))
		}
	}
	return v
}

// The places of some registers, as the profile's text has them: a codec that moves both
// ways is not enough.
func TestPlaces(t *testing.T) {
	c := profile.Command{Code: profile.VerifyFile, Seq: 2, Session: 3, Component: 15, Index: 4, Size: 0x00050006, Format: 2, Flags: 1, Arg: 0x00070008, Arg2: 0x0009000A}
	c.SHA256[0], c.SHA256[1], c.SHA256[31] = 0xAB, 0xCD, 0xEF
	got := make([]uint16, profile.CommandSize)
	c.Encode(got)
	for at, want := range map[int]uint16{0x20: 8, 0x21: 2, 0x22: 3, 0x23: 15, 0x24: 4, 0x25: 5, 0x26: 6, 0x27: 2, 0x28: 1, 0x29: 0xABCD, 0x38: 0xEF, 0x39: 7, 0x3A: 8, 0x3B: 9, 0x3C: 10, 0x3D: 0} {
		if got[at-0x20] != want {
			t.Errorf("command, +%X: got %04x, want %04x", at, got[at-0x20], want)
		}
	}
	s := profile.Status{State: 9, Result: 10, Seq: 11, Session: 12, Blocks: 0x000D000E, Received: 0x000F0010, Missing: 0x00110012, Window: 19, RetryAfter: 20,
		Progress: 21, Safety: 22, Reasons: 23, IdleLeft: 24, Written: 0x0019001A, ModulesDone: 27, ModulesFailed: 28, SecondsLeft: 29, Attempt: 30}
	got = make([]uint16, profile.StatusSize)
	s.Encode(got)
	for at, want := range map[int]uint16{0x40: 9, 0x41: 10, 0x42: 11, 0x43: 12, 0x44: 13, 0x45: 14, 0x46: 15, 0x47: 16, 0x48: 17, 0x49: 18, 0x4A: 19, 0x4B: 20,
		0x4C: 21, 0x4D: 22, 0x4E: 23, 0x4F: 24, 0x50: 25, 0x51: 26, 0x53: 27, 0x55: 28, 0x57: 29, 0x58: 30, 0x59: 0, 0x5F: 0} {
		if got[at-0x40] != want {
			t.Errorf("status, +%X: got %04x, want %04x", at, got[at-0x40], want)
		}
	}
	o := profile.Offer{Size: 0x00010002, Format: 3, SHA256: c.SHA256}
	got = make([]uint16, profile.OfferSize)
	o.Encode(got)
	for at, want := range map[int]uint16{0x0A: 1, 0x0B: 2, 0x0C: 3, 0x0D: 0, 0x0F: 0, 0x10: 0xABCD, 0x1F: 0xEF} {
		if got[at-0x0A] != want {
			t.Errorf("offer, +%X: got %04x, want %04x", at, got[at-0x0A], want)
		}
	}
	if back, err := profile.DecodeOffer(got); err != nil || back != o {
		t.Errorf("offer: got %+v, %v, want %+v", back, err, o)
	}
	if _, err := profile.DecodeOffer(got[1:]); !errors.Is(err, profile.ErrFormat) {
		t.Errorf("an offer without its end: got %v, want %v", err, profile.ErrFormat)
	}
	b := profile.Block{Session: 1, Number: 0x00020003, Data: []byte("123456789")}
	got = b.Append(nil) // CRC-32 of these digits is the check value of the IEEE polynomial
	for i, want := range []uint16{1, 2, 3, 9, 0xCBF4, 0x3926, 0x3132, 0x3334, 0x3536, 0x3738, 0x3900} {
		if i >= len(got) || got[i] != want {
			t.Fatalf("block: got %04x, want %04x in register %d", got, want, i)
		}
	}
}

func TestThereAndBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		i := profile.Identity{Version: 0x0101, Caps: profile.Caps(r.Uint32()), BlockSize: 224, Window: 1 + uint16(r.Uint32())>>1, IdleTimeout: uint16(r.Uint32()), Components: 3, MaxSize: r.Uint32()}
		b := make([]uint16, profile.Size)
		i.Encode(b)
		if got, err := profile.DecodeIdentity(b); err != nil || got != i {
			t.Fatalf("identity: got %+v, %v, want %+v", got, err, i)
		}
		c := profile.Command{Code: profile.Code(r.Uint32()), Seq: 1 + uint16(r.Uint32())>>1, Session: uint16(r.Uint32()), Size: r.Uint32(), Flags: uint16(r.Uint32()), Arg: r.Uint32(), Arg2: r.Uint32()}
		for i := range c.SHA256 {
			c.SHA256[i] = byte(r.Uint32())
		}
		c.Encode(b)
		if got, err := profile.DecodeCommand(b[:profile.CommandSize]); err != nil || got != c {
			t.Fatalf("command: got %+v, %v, want %+v", got, err, c)
		}
		s := profile.Status{State: profile.State(r.Uint32()), Blocks: r.Uint32(), Received: r.Uint32(), Missing: r.Uint32(), Window: uint16(r.Uint32()), Written: r.Uint32(), Attempt: uint16(r.Uint32())}
		s.Encode(b)
		if got, err := profile.DecodeStatus(b); err != nil || got != s {
			t.Fatalf("status: got %+v, %v, want %+v", got, err, s)
		}
		d := profile.Display{Running: "1.2.3", Update: "2.0.0-rc.1", Device: "bess-7", Product: "bess", Reason: "not now: 5 V", Status: 3, Code: -9,
			Charge: int16(r.Uint32()), Current: int16(r.Uint32()), CellMax: profile.NotAvailable, Age: uint16(r.Uint32())}
		d.Encode(b)
		if got, err := profile.DecodeDisplay(b); err != nil || got != d {
			t.Fatalf("display: got %+v, %v, want %+v", got, err, d)
		}
		block := profile.Block{Session: uint16(r.Uint32()), Number: r.Uint32(), Data: make([]byte, 1+r.IntN(profile.BlockSize))}
		for i := range block.Data {
			block.Data[i] = byte(r.Uint32())
		}
		got, err := profile.DecodeBlock(block.Append(nil), make([]byte, profile.BlockSize))
		if err != nil || !reflect.DeepEqual(got, block) {
			t.Fatalf("block: got %+v, %v, want %+v", got, err, block)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	good := make([]uint16, profile.IdentitySize)
	(&profile.Identity{Version: profile.Version, BlockSize: 224, Window: 1}).Encode(good)
	command := make([]uint16, profile.CommandSize)
	(&profile.Command{Code: 1, Seq: 1}).Encode(command)
	block := (&profile.Block{Data: make([]byte, 223)}).Append(nil)
	with := func(b []uint16, i int, v uint16) []uint16 {
		b = append([]uint16(nil), b...)
		b[i] = v
		return b
	}
	identity := func(b []uint16) error { _, err := profile.DecodeIdentity(b); return err }
	cmd := func(b []uint16) error { _, err := profile.DecodeCommand(b); return err }
	data := func(b []uint16) error { _, err := profile.DecodeBlock(b, make([]byte, 224)); return err }
	status := func(b []uint16) error { _, err := profile.DecodeStatus(b); return err }
	display := func(b []uint16) error { _, err := profile.DecodeDisplay(b); return err }
	for name, c := range map[string]struct {
		decode func([]uint16) error
		b      []uint16
		want   string // "": it is taken
	}{
		"an identity":                {identity, good, ""},
		"a newer minor version":      {identity, with(good, 2, 0x01FF), ""},
		"another magic":              {identity, with(good, 1, 0), "is the base address right"},
		"another major version":      {identity, with(good, 2, 0x0200), "version 2.0"},
		"another block size":         {identity, with(good, 4, 128), "128 bytes"},
		"no window":                  {identity, with(good, 5, 0), "0 blocks"},
		"half an identity":           {identity, good[:9], "9 registers"},
		"a command":                  {cmd, command, ""},
		"half a command":             {cmd, command[:29], "29 registers"},
		"more than a command":        {cmd, append(command[:30:30], 0), "31 registers"},
		"a command without a number": {cmd, with(command, 1, 0), "number is 0"},
		"a command with more in it":  {cmd, with(command, 29, 1), "reserved"},
		"a block":                    {data, block, ""},
		"no block":                   {data, nil, "0 registers"},
		"a block without bytes":      {data, make([]uint16, 6), "6 registers"},
		"a length of 0":              {data, with(block, 3, 0), "says 0 bytes"},
		"a length of 225":            {data, append(with(block, 3, 225), 0), "says 225 bytes"},
		"a length that does not fit": {data, with(block, 3, 222), "says 222 bytes"},
		"a wrong byte":               {data, with(block, 50, 1), "CRC-32"},
		"half a status":              {status, make([]uint16, 31), "31 registers"},
		"half a display":             {display, make([]uint16, 159), "159 registers"},
	} {
		err := c.decode(c.b)
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, profile.ErrFormat) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestFilePlaces(t *testing.T) {
	for _, c := range []struct {
		offset       int64
		file, record uint16
	}{{0, 1, 0}, {2, 1, 1}, {19998, 1, 9999}, {20000, 2, 0}, {20000*0xEFFF - 2, 0xEFFF, 9999}} {
		if f, r := profile.Place(c.offset); f != c.file || r != c.record {
			t.Errorf("Place(%d): got %d, %d, want %d, %d", c.offset, f, r, c.file, c.record)
		}
		if got, ok := profile.Offset(c.file, c.record); got != c.offset || !ok {
			t.Errorf("Offset(%d, %d): got %d, %v, want %d", c.file, c.record, got, ok, c.offset)
		}
	}
	for _, c := range [][2]uint16{{0, 0}, {1, 10000}, {0xF000, 0}, {0xFFFF, 0}} {
		if got, ok := profile.Offset(c[0], c[1]); ok {
			t.Errorf("Offset(%d, %d): got %d, want none", c[0], c[1], got)
		}
	}
	for first := uint16(profile.FileManifest); first <= profile.FileEvidence; first++ {
		for _, offset := range []int{0, 2, 19998, 20000, 319998} {
			file, record := profile.SpecialPlace(first, offset)
			if f, o, ok := profile.SpecialOffset(file, record); f != first || o != offset || !ok {
				t.Errorf("special file %04X, byte %d: got file %04X, record %d, and back %04X, %d, %v", first, offset, file, record, f, o, ok)
			}
		}
	}
	for _, c := range [][2]uint16{{0xEFFF, 0}, {0xF000, 0}, {0xF004, 0}, {0xF104, 0}, {0xF001, 10000}, {1, 0}} {
		if first, offset, ok := profile.SpecialOffset(c[0], c[1]); ok {
			t.Errorf("SpecialOffset(%04X, %d): got %04X, %d, want none", c[0], c[1], first, offset)
		}
	}
}

func TestTexts(t *testing.T) {
	b := make([]uint16, profile.DisplaySize)
	(&profile.Display{Running: strings.Repeat("9", 33), Update: "é", Reason: "not now: 50.1 °C, want at most 45 °C"}).Encode(b)
	got, err := profile.DecodeDisplay(b)
	if want := strings.Repeat("9", 29) + "..."; err != nil || got.Running != want {
		t.Errorf("a version that is too long: got %q, %v, want %q", got.Running, err, want)
	}
	if got.Update != "?" || got.Reason != "not now: 50.1 degC, want at most 45 degC" {
		t.Errorf("what is not ASCII: got %q and %q", got.Update, got.Reason)
	}
	if got := profile.Text([]uint16{0x4107, 0x4200, 0x4343}); got != "A?B" {
		t.Errorf("a control character and what is behind the end: got %q, want %q", got, "A?B")
	}
	for v, want := range map[float64]int16{-3.25: -33, 12.34: 123, 3276.7: 32767, 3276.8: profile.NotAvailable, -3276.8: profile.NotAvailable} {
		if got := profile.Scaled(v, 10); got != want {
			t.Errorf("Scaled(%v, 10): got %d, want %d", v, got, want)
		}
	}
	if got := (profile.ChargeLow | profile.Other).Names(); len(got) != 2 || got[0] != "SoC low" || got[1] != "other" {
		t.Errorf("names of bits 0 and 15: got %q", got)
	}
	for _, r := range []profile.Result{0, 1, 9, 10, 21, 99} {
		if strings.HasPrefix(r.String(), "result") {
			t.Errorf("result %d has no text", uint16(r))
		}
	}
	if got := profile.State(14).String() + profile.Code(10).String() + profile.Result(22).String(); got != "STATE_14COMMAND_10result 22" {
		t.Errorf("unknown numbers: got %q", got)
	}
}

// FuzzDecode: whatever registers come, the codecs neither panic nor take what they would
// not have written.
func FuzzDecode(f *testing.F) {
	f.Add(profile.Bytes(nil, (&profile.Block{Session: 1, Number: 2, Data: []byte("abc")}).Append(nil)))
	command := make([]uint16, profile.CommandSize)
	(&profile.Command{Code: 1, Seq: 1, Size: 1000, Format: 1}).Encode(command)
	f.Add(profile.Bytes(nil, command))
	f.Add(make([]byte, 2*profile.Size))
	f.Fuzz(func(t *testing.T, raw []byte) {
		src := profile.Registers(nil, raw)
		profile.DecodeIdentity(src)
		profile.DecodeStatus(src)
		profile.DecodeDisplay(src)
		if c, err := profile.DecodeCommand(src); err == nil {
			back := make([]uint16, profile.CommandSize)
			if c.Encode(back); !reflect.DeepEqual(back, src) {
				t.Fatalf("command: got %04x, want %04x", back, src)
			}
		}
		if b, err := profile.DecodeBlock(src, make([]byte, profile.BlockSize)); err == nil {
			back := b.Append(nil)
			if n := len(src) - 1; len(b.Data)%2 == 1 {
				back[n], src[n] = back[n]&0xFF00, src[n]&0xFF00 // the padding is not looked at
			}
			if !reflect.DeepEqual(back, src) {
				t.Fatalf("block: got %04x, want %04x", back, src)
			}
		}
	})
}
