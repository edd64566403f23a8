package sunspec

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func battery(t testing.TB, im *Image) Battery {
	t.Helper()
	regs := fakeOf(im)
	b, err := ReadBattery(t.Context(), regs, discover(t, regs))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// build makes an image of some models; what is not set is not implemented.
func build(t testing.TB, parts ...part) (*Image, []Model) {
	t.Helper()
	im := NewImage(40000)
	var models []Model
	for _, p := range parts {
		m, err := im.Add(p.id, p.repeats)
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Set(m, p.settings...); err != nil {
			t.Fatal(err)
		}
		models = append(models, m)
	}
	return im, models
}

type part struct {
	id       uint16
	repeats  int
	settings []Setting
}

func set(t testing.TB, im *Image, m Model, settings ...Setting) {
	t.Helper()
	if err := im.Set(m, settings...); err != nil {
		t.Fatal(err)
	}
}

func TestBattery(t *testing.T) {
	im, _ := plant(t)
	got := battery(t, im)
	known := func(v uint32, name, from string) Status {
		return Status{Enum: Enum{v, name}, Known: true, From: from}
	}
	want := Battery{
		SoC: Quantity{57.5, 802, "802 SoC", ""}, SoH: Quantity{99, 802, "802 SoH", ""},
		V: Quantity{665.6, 802, "802 V", ""}, A: Quantity{-2.5, 802, "802 A", ""}, W: Quantity{-1664, 802, "802 W", ""},
		TempMin: Quantity{24.1, 803, "803 ModTmpMin, lowest of 2", ""}, TempMax: Quantity{28.7, 803, "803 ModTmpMax, highest of 2", ""},
		CellMin: Quantity{3.318, 802, "802 CellVMin", ""}, CellMax: Quantity{3.342, 802, "802 CellVMax", ""},
		Capacity:  Quantity{312, 802, "802 AHRtg", ""},
		Heartbeat: Counter{4711, true, "802 Hb", ""}, DERHeartbeat: Counter{99, true, "715 DERHb", ""},
		State: known(3, "CONNECTED", "802 State"), ChaSt: known(6, "HOLDING", "802 ChaSt"),
		LocRemCtl: known(0, "REMOTE", "802 LocRemCtl"), DERLocRemCtl: known(0, "REMOTE", "715 LocRemCtl"),
		OpCtl: known(1, "START", "715 OpCtl"), InvSt: known(3, "RUNNING", "701 InvSt"),
		AlarmsKnown: true, ConverterAlarmsKnown: true,
		Contactors: []Contactor{{1, true, true, true, "803 string[1].StrSt", ""}},
		OtherA: []Quantity{
			{-2.5, 803, "803 string[1].StrA", ""}, {-2.5, 804, "804 A", ""}, {-2.4, 714, "714 Prt[2].DCA", ""}, {-2.5, 802, "802 W/V", ""},
		},
		OtherSoC: []Quantity{{57.5, 713, "713 SoC", ""}, {57.5, 803, "803 mean of StrSoC", ""}},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

// Without any one model the values come from the next that has them, and say so;
// what nobody has is missing, with a reason.
func TestBatteryWithoutModels(t *testing.T) {
	im, _ := plant(t)
	regs := fakeOf(im)
	all := discover(t, regs)
	type row struct {
		without []uint16
		of      func(Battery) Quantity
		want    float64 // NaN: missing
		from    string  // the start of it
	}
	soc, soh := func(b Battery) Quantity { return b.SoC }, func(b Battery) Quantity { return b.SoH }
	amps, volts, watts := func(b Battery) Quantity { return b.A }, func(b Battery) Quantity { return b.V }, func(b Battery) Quantity { return b.W }
	hot, cold := func(b Battery) Quantity { return b.TempMax }, func(b Battery) Quantity { return b.TempMin }
	cell, capacity := func(b Battery) Quantity { return b.CellMax }, func(b Battery) Quantity { return b.Capacity }
	for _, c := range []row{
		{[]uint16{802}, soc, 57.5, "713 SoC"},
		{[]uint16{802, 713}, soc, 57.5, "803 mean"},
		{[]uint16{802, 713, 803}, soc, 57.5, "804 mean"},
		{[]uint16{802, 713, 803, 804}, soc, math.NaN(), ""},
		{[]uint16{802}, soh, 99, "713 SoH"},
		{[]uint16{802, 713}, soh, math.NaN(), "803 string[1].StrSoH"},
		{[]uint16{802}, amps, -2.5, "803 string[1].StrA"},
		{[]uint16{802, 803}, amps, -2.5, "804 A"},
		{[]uint16{802, 803, 804}, amps, -2.4, "714 Prt[2].DCA"},
		{[]uint16{802, 803, 804, 714}, amps, math.NaN(), ""},
		{[]uint16{802}, volts, 665.6, "804 V"},
		{[]uint16{802, 804}, volts, 665, "714 Prt[2].DCV"},
		{[]uint16{802}, watts, -1600, "714 Prt[2].DCW"},
		{[]uint16{803}, hot, 28.7, "804 ModTmpMax, highest of 14"},
		{[]uint16{803}, cold, 24.1, "804 ModTmpMin, lowest of 14"},
		{[]uint16{803, 804}, hot, 33, "714 Prt[2].Tmp"},
		{[]uint16{803, 804, 714}, hot, 31.5, "701 TmpCab"},
		{[]uint16{803, 804, 714, 701}, cold, math.NaN(), ""},
		{[]uint16{802}, cell, 3.342, "803 string[1].StrCellVMax"},
		{[]uint16{802, 803}, cell, 3.342, "804 CellVMax"},
		{[]uint16{802, 803, 804}, cell, math.NaN(), ""},
		{[]uint16{802}, capacity, math.NaN(), ""},
	} {
		b, err := ReadBattery(t.Context(), regs, all.Without(c.without...))
		if err != nil {
			t.Fatalf("without %v: %v", c.without, err)
		}
		got := c.of(b)
		if got.Value != c.want && !(math.IsNaN(got.Value) && math.IsNaN(c.want)) || !strings.HasPrefix(got.From, c.from) {
			t.Errorf("without %v: got %+v, want %v from %s", c.without, got, c.want, c.from)
		}
		if math.IsNaN(got.Value) == (got.Why == "") {
			t.Errorf("without %v: got %+v, want a reason if, and only if, there is no value", c.without, got)
		}
	}

	b, err := ReadBattery(t.Context(), regs, all.Without(802, 715, 701))
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range map[string]string{
		"Hb": b.Heartbeat.Why, "DERHb": b.DERHeartbeat.Why, "State": b.State.Why, "ChaSt": b.ChaSt.Why, "LocRemCtl": b.LocRemCtl.Why, "InvSt": b.InvSt.Why,
	} {
		if why == "" {
			t.Errorf("%s: got no reason", name)
		}
	}
	if b.Heartbeat.Known || b.DERHeartbeat.Known || b.State.Known || b.ChaSt.Known || b.LocRemCtl.Known || b.InvSt.Known || b.OpCtl.Known {
		t.Errorf("got something known without its model: %+v", b)
	}
	if _, err := ReadBattery(t.Context(), regs, all.Without(802, 803, 804, 713, 714)); !errors.Is(err, ErrNoModel) {
		t.Errorf("got %v, want %v", err, ErrNoModel)
	}
}

// A model with every point not implemented gives no value at all.
func TestBatteryWithNothingImplemented(t *testing.T) {
	im, _ := build(t, part{802, 0, nil}, part{803, 1, nil}, part{804, 1, nil}, part{713, 0, nil}, part{714, 1, nil}, part{715, 0, nil}, part{701, 0, nil})
	b := battery(t, im)
	quantities := append([]Quantity{b.SoC, b.SoH, b.V, b.A, b.W, b.TempMin, b.TempMax, b.CellMin, b.CellMax, b.Capacity}, append(b.OtherA, b.OtherSoC...)...)
	for _, q := range quantities {
		if !math.IsNaN(q.Value) || q.Why == "" {
			t.Errorf("got %+v, want no value and a reason", q)
		}
	}
	if b.Heartbeat.Known || b.DERHeartbeat.Known || b.State.Known || b.LocRemCtl.Known || b.AlarmsKnown || b.ConverterAlarmsKnown || b.AlarmsWhy == "" {
		t.Errorf("got %+v, want nothing known", b)
	}
	if len(b.Contactors) != 1 || b.Contactors[0].Known || b.Contactors[0].Why == "" {
		t.Errorf("got the contactors %+v, want one that is not known", b.Contactors)
	}
}

func TestStorageWithoutRatedEnergy(t *testing.T) {
	for _, c := range []struct {
		name     string
		settings []Setting
		want     float64
	}{
		{"0 % without rating", []Setting{Number("SoC", 0)}, math.NaN()},
		{"0 % of nothing", []Setting{Number("SoC", 0), Number("WHRtg", 0)}, math.NaN()},
		{"0 % of something", []Setting{Number("SoC", 0), Number("WHRtg", 10000)}, 0},
		{"some without rating", []Setting{Number("SoC", 40)}, 40},
	} {
		im, _ := build(t, part{713, 0, c.settings})
		if got := battery(t, im).SoC; got.Value != c.want && !(math.IsNaN(got.Value) && math.IsNaN(c.want)) {
			t.Errorf("%s: got %+v, want %v", c.name, got, c.want)
		}
	}
}

func TestAlarms(t *testing.T) {
	bits := func(names ...string) []Setting { return []Setting{Bits("Evt1", names...)} }
	for _, c := range []struct {
		name                     string
		parts                    []part
		alarms, warnings, vendor []string
		known                    bool
	}{
		{"none", []part{{802, 0, bits()}}, nil, nil, nil, true},
		{"alarm and warning", []part{{802, 0, bits("OVER_TEMP_ALARM", "OVER_TEMP_WARNING")}}, []string{"802 OVER_TEMP_ALARM"}, []string{"802 OVER_TEMP_WARNING"}, nil, true},
		{"others that count", []part{{802, 0, bits("COMMUNICATION_ERROR", "CONTACTOR_ERROR", "GROUND_FAULT", "OPEN_DOOR_ERROR")}},
			[]string{"802 COMMUNICATION_ERROR", "802 CONTACTOR_ERROR", "802 GROUND_FAULT", "802 OPEN_DOOR_ERROR"}, nil, nil, true},
		{"a fan", []part{{802, 0, bits("FAN_ERROR")}}, nil, []string{"802 FAN_ERROR"}, nil, true},
		{"no meaning", []part{{802, 0, bits("RESERVED_1", "bit 30")}}, []string{"802 RESERVED_1", "802 bit 30"}, nil, nil, true},
		{"vendor's", []part{{802, 0, append(bits(), Bits("EvtVnd1", "bit 3"), Bits("Evt2", "bit 0"))}}, nil, nil, []string{"802 Evt2 bit 0", "802 EvtVnd1 bit 3"}, true},
		{"not implemented", []part{{802, 0, nil}}, nil, nil, nil, false},
		{"highest bit", []part{{802, 0, []Setting{Raw("Evt1", 1<<31|2)}}}, nil, nil, nil, false},
		{"one string of two", []part{{802, 0, bits()}, {803, 2, []Setting{Bits("string[1].StrEvt1"), Bits("string[2].StrEvt1", "GROUND_FAULT", "RESERVED_1")}}},
			[]string{"803 string 2 GROUND_FAULT"}, []string{"803 string 2 RESERVED_1"}, nil, true},
		{"one string is silent", []part{{802, 0, bits()}, {803, 2, []Setting{Bits("string[1].StrEvt1")}}}, nil, nil, nil, false},
		{"804", []part{{804, 1, append(bits("UNDER_VOLT_ALARM"), Number("Idx", 3), Symbolic("ConFail", "FUSE_OPEN"))}},
			[]string{"804 string 3 UNDER_VOLT_ALARM"}, []string{"804 string 3 ConFail FUSE_OPEN"}, nil, true},
		{"804 is silent", []part{{802, 0, bits()}, {804, 1, nil}}, nil, nil, nil, false},
		{"bank without strings", []part{{802, 0, bits()}, {803, 0, nil}}, nil, nil, nil, true},
		{"only a bank without strings", []part{{803, 0, nil}}, nil, nil, nil, false},
		{"713 alone does not tell", []part{{713, 0, []Setting{Symbolic("Sta", "OK")}}}, nil, nil, nil, false},
		{"713 error", []part{{713, 0, []Setting{Symbolic("Sta", "ERROR")}}}, []string{"713 ERROR"}, nil, nil, false},
		{"713 warning", []part{{713, 0, []Setting{Symbolic("Sta", "WARNING")}}}, nil, []string{"713 WARNING"}, nil, false},
		{"713 something else", []part{{713, 0, []Setting{Number("Sta", 9)}}}, []string{"713 value 9"}, nil, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			im, _ := build(t, c.parts...)
			b := battery(t, im)
			if !slices.Equal(b.Alarms, c.alarms) || !slices.Equal(b.Warnings, c.warnings) || !slices.Equal(b.Vendor, c.vendor) {
				t.Errorf("got the alarms %q, warnings %q, vendor's %q, want %q, %q, %q", b.Alarms, b.Warnings, b.Vendor, c.alarms, c.warnings, c.vendor)
			}
			if b.AlarmsKnown != c.known || (b.AlarmsWhy == "") != c.known {
				t.Errorf("got known %t (%s), want %t", b.AlarmsKnown, b.AlarmsWhy, c.known)
			}
		})
	}
}

// Every bit that is called an alarm, and bits 0, 20, 22 and 23, block; every bit
// that is called a warning does not.
func TestWhichBitsBlock(t *testing.T) {
	for _, s := range batteryEvents {
		im, _ := build(t, part{802, 0, []Setting{Bits("Evt1", s.Name)}})
		b := battery(t, im)
		want := !strings.HasSuffix(s.Name, "_WARNING") && s.Name != "FAN_ERROR"
		if got := slices.Contains(b.Alarms, "802 "+s.Name); got != want || slices.Contains(b.Warnings, "802 "+s.Name) == want {
			t.Errorf("%s: got the alarms %q and warnings %q, want an alarm: %t", s.Name, b.Alarms, b.Warnings, want)
		}
	}
}

func TestConverterAlarms(t *testing.T) {
	im, models := plant(t)
	set(t, im, models[701], Bits("Alrm", "CABINET_OPEN"))
	set(t, im, models[714], Bits("Prt[2].DCAlrm", "ARC_DETECTION"))
	if got, want := battery(t, im).ConverterAlarms, []string{"701 CABINET_OPEN", "714 port 2 ARC_DETECTION"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestContactors(t *testing.T) {
	open := Contactor{2, true, false, true, "803 string[2].StrSt", ""}
	im, _ := build(t, part{803, 2, []Setting{Bits("string[1].StrSt"), Bits("string[2].StrSt", "STRING_ENABLED")}})
	got := battery(t, im).Contactors
	if len(got) != 2 || got[0].Closed || got[0].Enabled || !got[0].Known || got[1] != open {
		t.Errorf("got %+v, want two that are open, the second enabled", got)
	}
	im, _ = build(t, part{804, 1, []Setting{Number("Idx", 7), Bits("St", "CONTACTOR_STATUS")}})
	if got, want := battery(t, im).Contactors, []Contactor{{7, true, true, false, "804 St", ""}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The hottest and the coldest module count, wherever they are told.
func TestTemperatures(t *testing.T) {
	im, models := plant(t)
	set(t, im, models[803], Number("string[1].StrModTmpMax", 61), Number("string[1].StrModTmpMin", -3))
	b := battery(t, im)
	if b.TempMax.Value != 61 || b.TempMin.Value != -3 {
		t.Errorf("got %+v and %+v, want 61 and -3", b.TempMax, b.TempMin)
	}
	im, models = plant(t)
	set(t, im, models[803], Missing("ModTmp_SF"))
	set(t, im, models[804], Number("module[13].ModCellTmpMax", 62), Number("module[7].ModCellTmpMin", -4))
	b = battery(t, im)
	if b.TempMax.Value != 62 || b.TempMin.Value != -4 || b.TempMax.Model != 804 {
		t.Errorf("got %+v and %+v, want 62 and -4 of 804", b.TempMax, b.TempMin)
	}
	// If the string does not speak for all its modules, all modules have to.
	set(t, im, models[804], Missing("ModTmpMax"), Missing("module[4].ModCellTmpMax"))
	if got := battery(t, im).TempMax; got.Model == 804 {
		t.Errorf("got %+v, want it not from 804, where module 4 is silent", got)
	}
}

// The current of a bank is that of all its strings: one that is silent could
// carry any.
func TestSumsNeedAll(t *testing.T) {
	two := []Setting{Number("string[1].StrA", 30), Number("string[2].StrA", -5), Number("string[1].StrSoC", 40), Number("string[2].StrSoC", 50)}
	im, models := build(t, part{803, 2, two})
	b := battery(t, im)
	if b.A.Value != 25 || b.SoC.Value != 45 {
		t.Errorf("got %+v and %+v, want 25 A and 45 %%", b.A, b.SoC)
	}
	set(t, im, models[0], Missing("string[2].StrA"))
	if b = battery(t, im); !math.IsNaN(b.A.Value) || b.A.Why == "" {
		t.Errorf("got %+v, want no value", b.A)
	}
}

func TestPortsOfOtherTypesDoNotCount(t *testing.T) {
	im, models := plant(t)
	set(t, im, models[714], Symbolic("Prt[2].PrtTyp", "PV"))
	for _, q := range battery(t, im).OtherA {
		if q.Model == 714 {
			t.Errorf("got %+v, want nothing from a port to a PV field", q)
		}
	}
	set(t, im, models[714], Symbolic("Prt[2].PrtTyp", "ESS"), Missing("Prt[1].PrtTyp"))
	for _, q := range battery(t, im).OtherA {
		if q.Model == 714 && !math.IsNaN(q.Value) {
			t.Errorf("got %+v, want no value while the type of a port is not known", q)
		}
	}
}

func TestPowerWithoutVoltage(t *testing.T) {
	im, models := plant(t)
	set(t, im, models[802], Number("V", 0))
	for _, q := range battery(t, im).OtherA {
		if q.From == "802 W/V" && !(math.IsNaN(q.Value) && q.Why != "") {
			t.Errorf("got %+v, want no value", q)
		}
	}
}

func TestSeveralBatteries(t *testing.T) {
	full := func(soc float64) []Setting { return []Setting{Bits("Evt1"), Number("SoC", soc)} }
	im, _ := build(t, part{802, 0, full(10)}, part{802, 0, full(90)})
	regs := fakeOf(im)
	d := discover(t, regs)
	if _, err := ReadBattery(t.Context(), regs, d); !errors.Is(err, ErrSeveral) {
		t.Fatalf("got %v, want %v", err, ErrSeveral)
	}
	for instance, want := range map[int]float64{1: 10, 2: 90} {
		one, err := d.Select(802, instance)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := ReadBattery(t.Context(), regs, one); err != nil || b.SoC.Value != want {
			t.Errorf("battery %d: got %+v and %v, want %v", instance, b.SoC, err, want)
		}
	}
	for _, id := range []uint16{803, 713, 714, 715, 701} {
		im, _ := build(t, part{802, 0, full(50)}, part{id, 0, nil}, part{id, 0, nil})
		regs := fakeOf(im)
		if _, err := ReadBattery(t.Context(), regs, discover(t, regs)); !errors.Is(err, ErrSeveral) {
			t.Errorf("two of %d: got %v, want %v", id, err, ErrSeveral)
		}
	}
}

func TestStringsOfOneBattery(t *testing.T) {
	str := func(index float64, more ...Setting) part {
		return part{804, 1, append([]Setting{Number("Idx", index), Number("A", 10*index), Number("ModTmpMax", 20+index), Bits("Evt1"), Bits("St", "CONTACTOR_STATUS")}, more...)}
	}
	base, bank := part{802, 0, []Setting{Bits("Evt1")}}, func(n int) part { return part{803, n, nil} }
	for _, c := range []struct {
		name  string
		parts []part
		ok    bool
	}{
		{"two strings", []part{base, str(1), str(2)}, true},
		{"two strings of a bank", []part{base, bank(2), str(1), str(2)}, true},
		{"more than the bank has", []part{base, bank(1), str(1), str(2)}, false},
		{"fewer than the bank has", []part{base, bank(3), str(1), str(2)}, false},
		{"same index", []part{base, str(1), str(1)}, false},
		{"no index", []part{base, str(1), str(2, Missing("Idx"))}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			im, _ := build(t, c.parts...)
			regs := fakeOf(im)
			d := discover(t, regs)
			b, err := ReadBattery(t.Context(), regs, d)
			if !c.ok {
				if !errors.Is(err, ErrSeveral) {
					t.Errorf("got %v, want %v", err, ErrSeveral)
				}
				one, err := d.Select(804, 2)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := ReadBattery(t.Context(), regs, one); err != nil {
					t.Errorf("with one selected: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.A.Value != 30 || b.TempMax.Value != 22 {
				t.Errorf("got %+v and %+v, want 30 A and 22 °C", b.A, b.TempMax)
			}
		})
	}
}

// A device that answers with an exception from some address on must not look
// like a smaller device.
func TestHalfADevice(t *testing.T) {
	im, models := plant(t)
	regs := fakeOf(im)
	d := discover(t, regs)
	whole := regs.registers
	for _, cut := range []uint16{models[802].Address, models[802].Address + 30, models[803].Address, models[804].Address + 200, models[713].Address} {
		regs.registers = whole[:cut-im.base]
		if b, err := ReadBattery(t.Context(), regs, d); !errors.Is(err, errException2) || !cmp.Equal(b, Battery{}) {
			t.Errorf("cut at %d: got %v, want %v and no battery", cut, err, errException2)
		}
		if _, err := Discover(t.Context(), regs, Search{}); !errors.Is(err, ErrMap) {
			t.Errorf("cut at %d: got %v, want %v", cut, err, ErrMap)
		}
	}
	regs.registers = whole[:models[804].Address-im.base]
	if b, err := ReadBattery(t.Context(), regs, d.Without(804)); err != nil || b.SoC.Value != 57.5 {
		t.Errorf("without what cannot be read: got %v and %v, want 57.5", b.SoC, err)
	}
}

func TestBatteryWithAWrongCount(t *testing.T) {
	im, models := plant(t)
	for _, c := range []struct {
		id   uint16
		path string
	}{{803, "NStr"}, {804, "NMod"}, {714, "NPrt"}} {
		before, err := im.Block(models[c.id])
		if err != nil {
			t.Fatal(err)
		}
		set(t, im, models[c.id], Number(c.path, 500))
		regs := fakeOf(im)
		if _, err := ReadBattery(t.Context(), regs, discover(t, regs)); !errors.Is(err, ErrMap) {
			t.Errorf("%s: got %v, want %v", c.path, err, ErrMap)
		}
		set(t, im, models[c.id], Number(c.path, before.Float(c.path)))
	}
}

func TestBatteryStops(t *testing.T) {
	im, _ := plant(t)
	regs := fakeOf(im)
	d := discover(t, regs)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	regs.reads = 0
	if _, err := ReadBattery(ctx, regs, d); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if got, want := regs.reads, 0; got != want {
		t.Errorf("got %d reads, want %d", got, want)
	}
}
