package sunspec

import (
	"errors"
	"math"
	"slices"
	"testing"
)

func TestWritePoints(t *testing.T) {
	im, models := plant(t)
	regs := fakeOf(im)
	// The time to revert first, so that the set-point is never without a guard.
	err := WritePoints(t.Context(), regs, models[704],
		Symbolic("WSetEnaRvrt", "ENABLED"), Number("WSetRvrtTms", 300),
		Symbolic("WSetEna", "ENABLED"), Symbolic("WSetMod", "WATTS"), Number("WSet", -1500), Number("WSetRvrt", 0))
	if err != nil {
		t.Fatal(err)
	}
	at := models[704].Address
	want := []Write{
		{at + 30, []uint16{1, 0, 300}},
		{at + 22, []uint16{1, 1, 0xFFFF, 0xFA24, 0, 0}},
	}
	if !slices.EqualFunc(regs.writes, want, func(a, b Write) bool { return a.Address == b.Address && slices.Equal(a.Values, b.Values) }) {
		t.Errorf("got %v, want %v", regs.writes, want)
	}
	b, err := ReadModel(t.Context(), regs, models[704])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := b.Float("WSet"), -1500.0; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSettingsUseTheScaleFactor(t *testing.T) {
	im, models := plant(t)
	if err := im.Set(models[704], Number("WSet_SF", 2), Number("WSet", 0), Number("WMaxLimPct", 100)); err != nil {
		t.Fatal(err)
	}
	b, err := im.Block(models[704])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		value float64
		want  []uint16 // nil: refused
	}{
		{"WSet", 100000, []uint16{0, 1000}},
		{"WSet", -100000, []uint16{0xFFFF, 0xFC18}},
		{"WSet", 149, []uint16{0, 1}},
		{"WSet", 150, []uint16{0, 2}},
		{"WSet", 3e11, nil},
		{"WSet", math.NaN(), nil},
		{"WSet", math.Inf(-1), nil},
		{"WMaxLimPct", 57.5, []uint16{575}},
		{"WMaxLimPct", -1, nil},
		{"WMaxLimPct", 6553.4, []uint16{65534}},
		{"WMaxLimPct", 6553.5, nil}, // this would say "not implemented"
		{"WRmp", 10, []uint16{10}},
		{"WSetMod", 1, []uint16{1}},
	} {
		got, err := b.SetFloat(c.path, c.value)
		if c.want == nil {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%s %v: got %v and %v, want %v", c.path, c.value, got, err, ErrRange)
			}
			continue
		}
		if err != nil || !slices.Equal(got.Values, c.want) {
			t.Errorf("%s %v: got %v and %v, want %v", c.path, c.value, got, err, c.want)
		}
	}
	if w, err := b.SetEnum("WSetEna", "ENABLED"); err != nil || w.Address != models[704].Address+22 || !slices.Equal(w.Values, []uint16{1}) {
		t.Errorf("got %v and %v, want 1 at %d", w, err, models[704].Address+22)
	}
}

// Whatever cannot be written is found before the first write.
func TestNothingIsWrittenUnlessAllCanBe(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  Setting
		want error // nil: any
	}{
		{"not implemented", Number("WMaxLimPct", 50), ErrMissing},
		{"scale factor not implemented", Number("VarSetPct", 50), ErrMissing},
		{"too large", Number("WSet", 1e12), ErrRange},
		{"no such symbol", Symbolic("WSetMod", "KILOWATTS"), ErrRange},
		{"symbol for a number", Symbolic("WSet", "ENABLED"), ErrRange},
		{"bits for a number", Bits("WSet", "ENABLED"), nil},
		{"read only", Number("WSetRvrtRem", 5), nil},
		{"the model's id", Number("ID", 5), nil},
		{"a scale factor", Number("WSet_SF", 5), nil},
		{"no such point", Number("Wset", 5), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			im, models := plant(t)
			set(t, im, models[704], Number("WMaxLimPct_SF", -1), Number("VarSetPct", 0), Missing("VarSetPct_SF"))
			regs := fakeOf(im)
			err := WritePoints(t.Context(), regs, models[704], Symbolic("WSetEna", "ENABLED"), c.bad)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if len(regs.writes) != 0 {
				t.Errorf("got the writes %v, want none", regs.writes)
			}
		})
	}
}

func TestReadBack(t *testing.T) {
	im, models := plant(t)
	regs := fakeOf(im)
	regs.deaf = true
	err := WritePoints(t.Context(), regs, models[704], Symbolic("WSetMod", "WATTS"), Number("WSet", 5), Number("WSetRvrt", 7))
	var readBack *ReadBackError
	if !errors.As(err, &readBack) {
		t.Fatalf("got %v, want a ReadBackError", err)
	}
	if readBack.Point != "WSet" || readBack.Model != 704 || !slices.Equal(readBack.Wrote, []uint16{0, 5}) || !slices.Equal(readBack.Read, []uint16{0, 0}) {
		t.Errorf("got %+v, want WSet of 704, 5 written and 0 read", readBack)
	}
	// A reset of alarms is 0 again when it is done.
	if err := WritePoints(t.Context(), regs, models[802], Number("AlmRst", 1)); err != nil {
		t.Errorf("AlmRst: %v", err)
	}
	if err := WritePoints(t.Context(), regs, models[715], Number("AlarmReset", 1)); err != nil {
		t.Errorf("AlarmReset: %v", err)
	}
	if err := WritePoints(t.Context(), regs, models[802], Symbolic("SetOp", "DISCONNECT")); !errors.As(err, &readBack) {
		t.Errorf("SetOp: got %v, want a ReadBackError", err)
	}
}

// A write that failed may have been done; saying so is all that can be done
// here, and writing again is harmless.
func TestWriteThatFailedButWasDone(t *testing.T) {
	im, models := plant(t)
	regs := fakeOf(im)
	regs.writeErr = errors.New("timeout")
	settings := []Setting{Symbolic("OpCtl", "ENTER_STANDBY")}
	if err := WritePoints(t.Context(), regs, models[715], settings...); !errors.Is(err, regs.writeErr) {
		t.Errorf("got %v, want %v", err, regs.writeErr)
	}
	regs.writeErr = nil
	if err := WritePoints(t.Context(), regs, models[715], settings...); err != nil {
		t.Error(err)
	}
}

func TestLongRunsAreSplit(t *testing.T) {
	im := NewImage(0)
	m, err := im.Add(803, 40)
	if err != nil {
		t.Fatal(err)
	}
	var settings []Setting
	for i := range 40 {
		path := Path("string", i+1, "StrSetCon")
		if err := im.Set(m, Symbolic(path, "CONNECT_STRING")); err != nil {
			t.Fatal(err)
		}
		settings = append(settings, Symbolic(path, "DISCONNECT_STRING"))
	}
	regs := fakeOf(im)
	if err := WritePoints(t.Context(), regs, m, settings...); err != nil {
		t.Fatal(err)
	}
	if got, want := len(regs.writes), 40; got != want {
		t.Errorf("got %d writes, want %d: nothing between the strings is touched", got, want)
	}
}

func TestImageAnswersAsADevice(t *testing.T) {
	im, models := plant(t)
	d := discover(t, im)
	if got, want := len(d.Models), len(models); got != want {
		t.Errorf("got %d models, want %d", got, want)
	}
	if err := WritePoints(t.Context(), im, models[802], Symbolic("SetOp", "DISCONNECT"), Symbolic("SetInvState", "INVERTER_STOPPED")); err != nil {
		t.Fatal(err)
	}
	b, err := im.Block(models[802])
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := b.Enum("SetOp"); got.Name != "DISCONNECT" {
		t.Errorf("got %v, want DISCONNECT", got)
	}
	if err := WritePoints(t.Context(), im, models[704], Number("WSet", 70000)); err != nil {
		t.Error(err)
	}
	at := models[704].Address
	for _, c := range []struct {
		name    string
		address uint16
		values  []uint16
	}{
		{"read only", models[802].Address + 11, []uint16{1}},
		{"half a point", at + 24, []uint16{1}},
		{"the other half", at + 25, []uint16{1}},
		{"one point and half a point", at + 23, []uint16{1, 1}},
		{"from writable into read only", models[802].Address + 51, []uint16{1, 1}},
		{"before the image", 39999, []uint16{1}},
		{"the marker", 40000, []uint16{1, 1}},
		{"behind the image", 65535, []uint16{1}},
		{"nothing", at + 24, nil},
	} {
		before := im.Registers()
		if err := im.WriteRegisters(t.Context(), c.address, c.values); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: got %v, want %v", c.name, err, ErrAddress)
		}
		if !slices.Equal(before, im.Registers()) {
			t.Errorf("%s: something was written", c.name)
		}
	}
	for _, c := range []struct{ address, count uint16 }{{39999, 2}, {40000, 0}, {40000, 126}, {65535, 2}} {
		if _, err := im.ReadHolding(t.Context(), c.address, c.count); !errors.Is(err, ErrAddress) {
			t.Errorf("%v: got %v, want %v", c, err, ErrAddress)
		}
	}
}

func TestImageRefuses(t *testing.T) {
	im, models := plant(t)
	before := im.Registers()
	if err := im.Set(models[802], Number("SoC", 12), Number("A", 1e9)); !errors.Is(err, ErrRange) {
		t.Errorf("got %v, want %v", err, ErrRange)
	}
	if !slices.Equal(before, im.Registers()) {
		t.Error("half of the settings were done")
	}
	if err := im.Set(Model{ID: 802, Address: 7}, Number("SoC", 12)); !errors.Is(err, ErrNoModel) {
		t.Errorf("got %v, want %v", err, ErrNoModel)
	}
	if _, err := im.Add(64000, 0); err == nil {
		t.Error("a model that is not known was added")
	}
	if _, err := im.Add(804, 4093); err == nil {
		t.Error("a model that is too long was added")
	}
	if _, err := im.Add(804, 2000); err == nil {
		t.Error("a model behind register 65535 was added")
	}
	for _, raw := range [][]uint16{nil, {1}, {1, 1}, {endModel, 0}, {1, 0, 0}} {
		if _, err := im.AddRaw(raw); err == nil {
			t.Errorf("the model %v was added", raw)
		}
	}
	if m, err := im.AddRaw([]uint16{64001, 1, 7}); err != nil || m.ID != 64001 {
		t.Errorf("got %v and %v, want a vendor's model", m, err)
	}
	if err := im.Set(models[802], Bits("Evt1", "NO_SUCH_ALARM")); !errors.Is(err, ErrRange) {
		t.Errorf("got %v, want %v", err, ErrRange)
	}
	if err := im.Set(models[802], Bits("Evt1", "bit 30", "GROUND_FAULT")); err != nil {
		t.Error(err)
	}
}
