package sunspec

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func TestTypes(t *testing.T) {
	nan := math.NaN() // no value
	for _, c := range []struct {
		t    Type
		raw  uint64
		want float64
	}{
		{Int16, 0x7FFF, 32767}, {Int16, 0xFFFF, -1}, {Int16, 0x8001, -32767}, {Int16, 0x8000, nan},
		{Uint16, 0, 0}, {Uint16, 0x8000, 32768}, {Uint16, 0xFFFE, 65534}, {Uint16, 0xFFFF, nan},
		{Count, 3, 3}, {Count, 0xFFFF, nan},
		{Acc16, 1, 1}, {Acc16, 0xFFFF, 65535}, {Acc16, 0, nan},
		{Enum16, 99, 99}, {Enum16, 0xFFFF, nan},
		{Bitfield16, 0, 0}, {Bitfield16, 0x7FFF, 32767}, {Bitfield16, 0x8000, nan}, {Bitfield16, 0x8001, nan}, {Bitfield16, 0xFFFF, nan},
		{Int32, 0xFFFFFFFF, -1}, {Int32, 0x80000001, -math.MaxInt32}, {Int32, 0x80000000, nan},
		{Uint32, 0x80000000, 1 << 31}, {Uint32, 0xFFFFFFFE, 1<<32 - 2}, {Uint32, 0xFFFFFFFF, nan},
		{Acc32, 0xFFFFFFFF, 1<<32 - 1}, {Acc32, 0, nan},
		{Enum32, 7, 7}, {Enum32, 0xFFFFFFFF, nan},
		{Bitfield32, 0x7FFFFFFF, 1<<31 - 1}, {Bitfield32, 0x80000000, nan}, {Bitfield32, 0x80000002, nan}, {Bitfield32, 0xFFFFFFFF, nan},
		{Int64, math.MaxUint64, -1}, {Int64, 1 << 63, nan},
		{Uint64, 1 << 63, 1 << 63}, {Uint64, math.MaxUint64, nan},
		{Acc64, 5, 5}, {Acc64, 0, nan},
		{Float32, 0x42660000, 57.5}, {Float32, 0x7FC00000, nan}, {Float32, 0xFFC00001, nan}, {Float32, 0x7F800000, nan}, {Float32, 0xFF800000, nan},
		{Float64, 0xC004000000000000, -2.5}, {Float64, 0x7FF8000000000000, nan}, {Float64, 0x7FF0000000000000, nan},
		{ScaleFactor, 0xFFFD, -3}, {ScaleFactor, 0x8000, nan},
		{Pad, 0x8000, nan},
	} {
		got := nan
		if check(c.t, c.raw) == nil {
			got = float(c.t, c.raw)
		}
		if got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("type %d, %#x: got %v, want %v", c.t, c.raw, got, c.want)
		}
		if math.IsNaN(c.want) || c.t == Pad {
			continue
		}
		size := int(Point{Type: c.t}.Size())
		if raw, ok := encode(c.t, c.want, 0); !ok || join(split(raw, size)) != c.raw {
			t.Errorf("type %d, %v: encoded as %#x and %t, want %#x", c.t, c.want, raw, ok, c.raw)
		}
	}
	for typ := Int16; typ <= Pad; typ++ {
		if typ == String {
			continue
		}
		if err := check(typ, notImplemented(typ)); !errors.Is(err, errNotImplemented) {
			t.Errorf("type %d: got %v for not implemented, want %v", typ, err, errNotImplemented)
		}
	}
}

// No value of an integer type is written as what means "not implemented", and
// none is written that does not fit.
func TestLimits(t *testing.T) {
	for _, typ := range []Type{Int16, Uint16, Acc16, Enum16, Bitfield16, Count, Int32, Uint32, Acc32, Enum32, Bitfield32, Int64, Uint64, Acc64, ScaleFactor} {
		least, most := limits(typ)
		size := int(Point{Type: typ}.Size())
		for _, v := range []float64{least, most} {
			raw, ok := encode(typ, v, 0)
			kept := join(split(raw, size))
			if !ok || check(typ, kept) != nil || float(typ, kept) != v {
				t.Errorf("type %d, %v: got %#x and %t, want a value that is read as the same", typ, v, raw, ok)
			}
		}
		step := max(1, math.Abs(most)/(1<<52))
		for _, v := range []float64{least - max(1, math.Abs(least)/(1<<51)), most + 2*step, math.NaN(), math.Inf(1), math.Inf(-1)} {
			if raw, ok := encode(typ, v, 0); ok {
				t.Errorf("type %d, %v: got %#x, want it refused", typ, v, raw)
			}
		}
	}
	for _, typ := range []Type{Float32, Float64} {
		if _, ok := encode(typ, math.Inf(1), 0); ok {
			t.Errorf("type %d: infinity was not refused", typ)
		}
	}
	if _, ok := encode(Float32, 1e39, 0); ok {
		t.Error("a float32 of 1e39 was not refused")
	}
}

func TestScaleFactors(t *testing.T) {
	b := vector(t, hex802)
	const soc, socSF = 11, 56
	for _, c := range []struct {
		raw, sf uint16
		want    float64
		why     string
	}{
		{575, 0xFFFF, 57.5, ""},
		{575, 0, 575, ""},
		{5750, 0xFFFE, 57.5, ""},
		{1, 10, 1e10, ""},
		{1, 0xFFF6, 1e-10, ""},
		{57, 0x8000, math.NaN(), "scale factor SoC_SF is not implemented"},
		{57, 11, math.NaN(), "SoC_SF is 11, want -10 to 10"},
		{57, 0xFFF5, math.NaN(), "SoC_SF is -11, want -10 to 10"},
		{0xFFFF, 0, math.NaN(), "does not implement it"},
	} {
		b.Registers[soc], b.Registers[socSF] = c.raw, c.sf
		got, err := b.Number("SoC")
		if c.why == "" {
			if err != nil || got != c.want {
				t.Errorf("%d, %#x: got %v and %v, want %v", c.raw, c.sf, got, err, c.want)
			}
			continue
		}
		if !math.IsNaN(got) || !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%d, %#x: got %v and %v, want no number and %q", c.raw, c.sf, got, err, c.why)
		}
	}
}

// W_SF may be missing: then there is no power, but there is a current.
func TestOptionalScaleFactor(t *testing.T) {
	b := vector(t, hex802)
	b.Registers[63] = 0x8000
	if got := b.Float("W"); !math.IsNaN(got) {
		t.Errorf("W: got %v, want no number", got)
	}
	if got, want := b.Float("A"), -2.5; got != want {
		t.Errorf("A: got %v, want %v", got, want)
	}
}

func TestShorterModels(t *testing.T) {
	b := vector(t, hex802)
	b.Model.Length, b.Registers = 50, b.Registers[:52] // without scale factors
	if _, err := b.Number("SoC"); !errors.Is(err, ErrMissing) {
		t.Errorf("SoC: got %v, want %v", err, ErrMissing)
	}
	if got, err := b.Enum("State"); err != nil || got.Name != "CONNECTED" {
		t.Errorf("State: got %v and %v, want what is still there", got, err)
	}
	if _, err := b.Enum("SetInvState"); err != nil {
		t.Errorf("SetInvState, the last register: %v", err)
	}
	if _, err := b.Integer("AHRtg_SF"); !errors.Is(err, ErrMissing) {
		t.Errorf("AHRtg_SF, one behind: got %v, want %v", err, ErrMissing)
	}
}

// What was not read is missing, also where the device has it.
func TestPartsOfModels(t *testing.T) {
	b := vector(t, hex802)
	b.Registers = b.Registers[:60]
	if got, err := b.Number("A"); !math.IsNaN(got) || !errors.Is(err, ErrMissing) {
		t.Errorf("A, with a scale factor at 61: got %v and %v, want %v", got, err, ErrMissing)
	}
	if got, want := b.Float("V"), 665.6; got != want {
		t.Errorf("V: got %v, want %v", got, want)
	}
	b.Registers = b.Registers[:15]
	if got, err := b.Integer("NCyc"); !errors.Is(err, ErrMissing) {
		t.Errorf("NCyc, of which half was read: got %v and %v, want %v", got, err, ErrMissing)
	}
}

// A string that the device does not count is not there, whatever its registers say.
func TestStringsThatDoNotCount(t *testing.T) {
	im, models := build(t, part{803, 2, []Setting{Number("string[2].StrSoC", 30), Number("NStr", 1)}})
	b, err := im.Block(models[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Number("string[2].StrSoC"); !math.IsNaN(got) || !errors.Is(err, ErrMissing) {
		t.Errorf("got %v and %v, want %v", got, err, ErrMissing)
	}
}

func TestWrongKindsOfPoint(t *testing.T) {
	b := vector(t, hex802)
	for name, read := range map[string]func() error{
		"enum of a number": func() error { _, err := b.Enum("SoC"); return err },
		"bits of a number": func() error { _, err := b.Bits("SoC"); return err },
		"text of a number": func() error { _, err := b.Text("SoC"); return err },
		"no such point":    func() error { _, err := b.Number("Soc"); return err },
		"no such model":    func() error { _, err := (Block{Model: Model{ID: 64000}}).Number("SoC"); return err },
		"no such group":    func() error { _, err := b.Repeats("string"); return err },
	} {
		if err := read(); err == nil || errors.Is(err, ErrMissing) {
			t.Errorf("%s: got %v, want an error that is not %v", name, err, ErrMissing)
		}
	}
	if got := b.Float("Soc"); !math.IsNaN(got) {
		t.Errorf("no such point: got %v, want no number", got)
	}
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Acme", "Acme"},
		{"Acme\x00junk", "Acme"},
		{"Acme   ", "Acme"},
		{"A\x1b[2Jcme\xff", "A?[2Jcme?"},
		{"sixteen letters.sixteen letters.", "sixteen letters.sixteen letters."},
	} {
		registers, err := encodeText(Point{Type: String, Length: 16}, c.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(registers); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
	im, models := plant(t)
	b, err := im.Block(models[1])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Text("Vr"); err != nil || got != "1.4.2" {
		t.Errorf("got %q and %v, want 1.4.2", got, err)
	}
	if _, err := b.Text("Opt"); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
	}
	if err := im.Set(models[1], Text("Opt", "seventeen letters")); !errors.Is(err, ErrRange) {
		t.Errorf("got %v, want %v", err, ErrRange)
	}
}

func TestRepeats(t *testing.T) {
	for _, c := range []struct {
		name    string
		id      uint16
		repeats int
		count   Setting // set after the model was made
		cut     uint16  // registers that the model is too short
		want    int     // -1: refused
	}{
		{"803", 803, 3, Setting{}, 0, 3},
		{"803 with room for more", 803, 3, Number("NStr", 1), 0, 1},
		{"803 with more than fit", 803, 3, Number("NStr", 4), 0, -1},
		{"803 too short", 803, 3, Setting{}, 1, -1},
		{"803 that does not count", 803, 3, Missing("NStr"), 0, 3},
		{"803 that does not count and does not fit", 803, 3, Missing("NStr"), 5, -1},
		{"714 that does not count", 714, 2, Missing("NPrt"), 0, 2},
		{"805", 805, 16, Setting{}, 0, 16},
		{"805 too short", 805, 16, Setting{}, 1, -1},
		{"804 without modules", 804, 0, Setting{}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := NewImage(0)
			m, err := im.Add(c.id, c.repeats)
			if err != nil {
				t.Fatal(err)
			}
			if c.count.Path != "" {
				if err := im.Set(m, c.count); err != nil {
					t.Fatal(err)
				}
			}
			b, err := im.Block(m)
			if err != nil {
				t.Fatal(err)
			}
			b.Model.Length -= c.cut
			b.Registers = b.Registers[:len(b.Registers)-int(c.cut)]
			got, err := b.Repeats(Define(c.id).Groups[0].Name)
			if err != nil {
				got = -1
				if !errors.Is(err, ErrMap) {
					t.Errorf("got %v, want %v", err, ErrMap)
				}
			}
			if got != c.want {
				t.Errorf("got %d (%v), want %d", got, err, c.want)
			}
		})
	}
	if n, err := (Block{Model: Model{ID: 704, Length: 65}}).Repeats("PFWInj"); err != nil || n != 1 {
		t.Errorf("PFWInj: got %d and %v, want 1", n, err)
	}
}
