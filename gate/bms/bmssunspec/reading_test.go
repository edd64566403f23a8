package bmssunspec_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmssunspec"
)

// battery is a simulated system with every model that tells of a battery: two strings
// at rest on remote control, and a converter on standby. changed is set last.
type battery struct {
	*sunspec.Image
	models map[uint16]sunspec.Model
}

func whole(t *testing.T, changed ...change) *battery {
	t.Helper()
	var ids []uint16
	for _, m := range everything {
		ids = append(ids, m.id)
	}
	return with(t, ids, changed...)
}

// change is a setting of a model.
type change struct {
	model uint16
	sunspec.Setting
}

var everything = []struct {
	id       uint16
	repeats  int
	settings []sunspec.Setting
}{
	{701, 0, []sunspec.Setting{sunspec.Symbolic("InvSt", "STANDBY"), sunspec.Bits("Alrm"), sunspec.Number("TmpCab", 41)}},
	{713, 0, []sunspec.Setting{sunspec.Number("WHRtg", 200000), sunspec.Number("SoC", 57.25), sunspec.Number("SoH", 97), sunspec.Symbolic("Sta", "OK")}},
	{714, 2, []sunspec.Setting{
		sunspec.Symbolic("Prt[1].PrtTyp", "PV"), sunspec.Number("Prt[1].DCA", 11), sunspec.Bits("Prt[1].DCAlrm"),
		sunspec.Symbolic("Prt[2].PrtTyp", "ESS"), sunspec.Number("Prt[2].DCA", 2.4), sunspec.Number("Prt[2].DCV", 665), sunspec.Number("Prt[2].Tmp", 39),
		sunspec.Bits("Prt[2].DCAlrm"),
	}},
	{715, 0, []sunspec.Setting{sunspec.Symbolic("LocRemCtl", "REMOTE"), sunspec.Number("DERHb", 99)}},
	{802, 0, []sunspec.Setting{
		sunspec.Number("AHRtg", 312), sunspec.Number("SoC", 57.5), sunspec.Number("SoH", 98.5), sunspec.Number("V", 665.6), sunspec.Number("A", -2.5),
		sunspec.Number("W", -1664), sunspec.Number("CellVMin", 3.318), sunspec.Number("CellVMax", 3.342), sunspec.Number("Hb", 4711),
		sunspec.Symbolic("State", "CONNECTED"), sunspec.Symbolic("LocRemCtl", "REMOTE"),
		sunspec.Bits("Evt1"), sunspec.Bits("Evt2"), sunspec.Bits("EvtVnd1"), sunspec.Bits("EvtVnd2"),
	}},
	{803, 2, []sunspec.Setting{
		sunspec.Number("ModTmpMin", 21.5), sunspec.Number("ModTmpMax", 28.7),
		sunspec.Bits("string[1].StrSt", "STRING_ENABLED", "CONTACTOR_STATUS"), sunspec.Bits("string[2].StrSt", "STRING_ENABLED", "CONTACTOR_STATUS"),
		sunspec.Number("string[1].StrSoC", 57), sunspec.Number("string[2].StrSoC", 59), sunspec.Number("string[1].StrA", -1.2), sunspec.Number("string[2].StrA", -1.4),
		sunspec.Bits("string[1].StrEvt1"), sunspec.Bits("string[2].StrEvt1"),
	}},
}

// with is a battery with some of the models.
func with(t *testing.T, ids []uint16, changed ...change) *battery {
	t.Helper()
	b := &battery{sunspec.NewImage(40000), map[uint16]sunspec.Model{}}
	for _, id := range ids {
		for _, m := range everything {
			if m.id != id {
				continue
			}
			model, err := b.Add(id, m.repeats)
			if err != nil {
				t.Fatal(err)
			}
			b.models[id] = model
			if err := b.Set(model, m.settings...); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range changed {
		b.set(t, c.model, c.Setting)
	}
	return b
}

func (b *battery) set(t *testing.T, model uint16, s sunspec.Setting) {
	t.Helper()
	if err := b.Set(b.models[model], s); err != nil {
		t.Fatal(err)
	}
}

func reader(t *testing.T, c bmssunspec.Config) *bmssunspec.Reader {
	t.Helper()
	if c.Source == "" {
		c.Source = "test"
	}
	r, err := bmssunspec.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, regs sunspec.Registers, d bmssunspec.Directions) bms.Reading {
	t.Helper()
	got, err := reader(t, bmssunspec.Config{Registers: regs, Directions: d}).Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestReading: every field of a reading, from a device that has everything.
func TestReading(t *testing.T) {
	b := whole(t,
		change{701, sunspec.Bits("Alrm", "GROUND_FAULT")},
		change{713, sunspec.Symbolic("Sta", "WARNING")},
		change{802, sunspec.Bits("Evt1", "OVER_TEMP_ALARM", "FAN_ERROR")},
		change{802, sunspec.Raw("EvtVnd1", 1<<3)},
		change{803, sunspec.Bits("string[2].StrEvt1", "COMMUNICATION_ERROR")})
	before := time.Now()
	got := read(t, b, bmssunspec.SameDirections)
	if got.At.Before(before) || got.At.After(time.Now()) {
		t.Errorf("the reading is of %v, want a time while it was read", got.At)
	}
	at := got.At
	other := func(from string, q bms.Quantity, v float64, positive bms.Direction) bms.Reading {
		return bms.Reading{Source: "test " + from, Valid: true, NoAlarms: true, At: at, Positive: positive, Signals: map[bms.Quantity]bms.Signal{q: {Value: v}}}
	}
	want := bms.Reading{
		Source: "test", Valid: true, At: at,
		Signals: map[bms.Quantity]bms.Signal{
			bms.SoC: {Value: 57.5}, bms.SoH: {Value: 98.5}, bms.Voltage: {Value: 665.6}, bms.Current: {Value: -2.5}, bms.Capacity: {Value: 312},
			bms.TemperatureMin: {Value: 21.5}, bms.TemperatureMax: {Value: 28.7}, bms.CellMin: {Value: 3.318}, bms.CellMax: {Value: 3.342},
		},
		Beat: &bms.Beat{Count: 4711}, Positive: "the sign of test",
		Alarms:   []string{"701 GROUND_FAULT", "802 OVER_TEMP_ALARM", "803 string 2 COMMUNICATION_ERROR"},
		Warnings: []string{"802 FAN_ERROR", "713 WARNING", "802 EvtVnd1 bit 3"},
		Mode:     bms.ModeStandby, Contactors: bms.ContactorsClosed, Control: bms.ControlRemote,
		Others: []bms.Reading{
			other("803 sum of 2, first 803 string[1].StrA", bms.Current, -2.6, "the sign of test"),
			other("714 Prt[2].DCA", bms.Current, 2.4, ""),
			other("802 W/V", bms.Current, -2.5, "the sign of test"),
			other("713 SoC", bms.SoC, 57.25, ""),
			other("803 mean of StrSoC", bms.SoC, 58, ""),
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

// TestMissing: what nothing tells is not there; no other value moves into its place.
func TestMissing(t *testing.T) {
	for name, q := range map[string]bms.Quantity{"SoC": bms.SoC, "SoH": bms.SoH, "V": bms.Voltage, "A": bms.Current, "CellVMin": bms.CellMin,
		"CellVMax": bms.CellMax, "AHRtg": bms.Capacity} {
		full := read(t, with(t, []uint16{802}), "")
		got := read(t, with(t, []uint16{802}, change{802, sunspec.Missing(name)}), "")
		if _, ok := full.Signals[q]; !ok {
			t.Errorf("%s: got no %s, want one", name, q)
		}
		delete(full.Signals, q)
		if diff := cmp.Diff(full.Signals, got.Signals); diff != "" {
			t.Errorf("without %s: want -, got +\n%s", name, diff)
		}
	}
	got := read(t, with(t, []uint16{802}, change{802, sunspec.Missing("Hb")}, change{802, sunspec.Missing("State")}, change{802, sunspec.Missing("LocRemCtl")},
		change{802, sunspec.Missing("Evt1")}), "")
	if got.Beat != nil || got.Mode != "" || got.Control != "" || got.Contactors != "" || !got.NoAlarms || len(got.Alarms) > 0 {
		t.Errorf("a device that tells little: got %+v", got)
	}
	if got := read(t, with(t, []uint16{715, 713}), ""); got.Beat != nil {
		t.Errorf("the heartbeat of a converter is that of a battery: %v", got.Beat)
	}
	// A scale factor that is none takes the value with it.
	got = read(t, with(t, []uint16{802}, change{802, sunspec.Raw("SoC_SF", 77)}), "")
	if s, ok := got.Signals[bms.SoC]; ok {
		t.Errorf("state of charge with a scale factor of 77: got %v, want none", s)
	}
	// An instrument without a value is no other.
	got = read(t, whole(t, change{713, sunspec.Missing("SoC")}, change{714, sunspec.Missing("Prt[2].DCA")}), "")
	var from []string
	for _, o := range got.Others {
		from = append(from, o.Source)
	}
	if diff := cmp.Diff([]string{"test 803 sum of 2, first 803 string[1].StrA", "test 802 W/V", "test 803 mean of StrSoC"}, from); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

// TestMode: the converter's where it says one, and a fault or a start of either.
func TestMode(t *testing.T) {
	const none = 0xFFFF
	for _, tt := range []struct {
		state, inverter uint64
		want            bms.Mode
	}{
		{1, none, bms.ModeOff}, {2, none, bms.ModeBusy}, {3, none, bms.ModeRunning}, {4, none, bms.ModeStandby}, {5, none, bms.ModeRunning},
		{6, none, bms.ModeBusy}, {99, none, bms.ModeFault}, {0, none, ""}, {7, none, ""}, {none, none, ""},
		{none, 0, bms.ModeOff}, {none, 1, bms.ModeOff}, {none, 2, bms.ModeBusy}, {none, 3, bms.ModeRunning}, {none, 4, bms.ModeRunning},
		{none, 5, bms.ModeBusy}, {none, 6, bms.ModeFault}, {none, 7, bms.ModeStandby}, {none, 8, ""},
		{3, 7, bms.ModeStandby}, {3, 0, bms.ModeOff}, {4, 3, bms.ModeRunning}, {1, 3, bms.ModeRunning}, {4, 8, ""}, {77, 7, bms.ModeStandby},
		{2, 7, bms.ModeBusy}, {6, 0, bms.ModeBusy}, {2, 6, bms.ModeFault}, {99, 7, bms.ModeFault}, {4, 6, bms.ModeFault}, {99, 2, bms.ModeFault},
	} {
		got := read(t, whole(t, change{802, sunspec.Raw("State", tt.state)}, change{701, sunspec.Raw("InvSt", tt.inverter)}), "")
		if got.Mode != tt.want {
			t.Errorf("802 State %d, 701 InvSt %d: got %q, want %q", tt.state, tt.inverter, got.Mode, tt.want)
		}
		var want []string
		if tt.state == 99 {
			want = []string{"802 State FAULT"}
		}
		if diff := cmp.Diff(want, got.Alarms, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("alarms of 802 State %d: want -, got +\n%s", tt.state, diff)
		}
	}
	if got := read(t, with(t, []uint16{802}), "").Mode; got != bms.ModeRunning {
		t.Errorf("connected, and no converter is known: got %q, want %q", got, bms.ModeRunning)
	}
}

// TestContactors: known only if all strings say the same.
func TestContactors(t *testing.T) {
	const none = 0xFFFFFFFF
	for _, tt := range []struct {
		one, two uint64 // bit 0: enabled, bit 1: closed
		want     bms.Contactors
	}{
		{3, 3, bms.ContactorsClosed}, {2, 3, bms.ContactorsClosed}, {1, 1, bms.ContactorsOpen}, {0, 0, bms.ContactorsOpen}, {0, 1, bms.ContactorsOpen},
		{3, 1, ""}, {1, 3, ""}, {3, none, ""}, {none, 3, ""}, {none, 1, ""}, {none, none, ""},
	} {
		got := read(t, whole(t, change{803, sunspec.Raw("string[1].StrSt", tt.one)}, change{803, sunspec.Raw("string[2].StrSt", tt.two)}), "").Contactors
		if got != tt.want {
			t.Errorf("strings say %#x and %#x: got %q, want %q", tt.one, tt.two, got, tt.want)
		}
	}
}

// TestControl: local if anybody has taken it, remote if all that say something say so.
func TestControl(t *testing.T) {
	const none = 0xFFFF
	for _, tt := range []struct {
		battery, converter uint64
		want               bms.Control
	}{
		{0, 0, bms.ControlRemote}, {0, none, bms.ControlRemote}, {none, 0, bms.ControlRemote},
		{1, 0, bms.ControlLocal}, {0, 1, bms.ControlLocal}, {1, none, bms.ControlLocal}, {none, 1, bms.ControlLocal}, {2, 1, bms.ControlLocal},
		{none, none, ""}, {2, none, ""}, {2, 0, ""}, {0, 2, ""},
	} {
		got := read(t, whole(t, change{802, sunspec.Raw("LocRemCtl", tt.battery)}, change{715, sunspec.Raw("LocRemCtl", tt.converter)}), "").Control
		if got != tt.want {
			t.Errorf("802 says %d and 715 %d: got %q, want %q", tt.battery, tt.converter, got, tt.want)
		}
	}
}

// TestDirections: which of the currents have a sign that can be compared.
func TestDirections(t *testing.T) {
	for _, tt := range []struct {
		directions bmssunspec.Directions
		want       bms.Direction
	}{
		{bmssunspec.SameDirections, "the sign of test"}, {bmssunspec.PositiveCharges, bms.Charging},
		{bmssunspec.PositiveDrains, bms.Discharging}, {bmssunspec.UnknownDirections, ""},
	} {
		got := read(t, whole(t), tt.directions)
		var positive []string
		for _, o := range got.Others {
			if _, ok := o.Signals[bms.Current]; ok {
				positive = append(positive, fmt.Sprintf("%s: %s", o.Source, o.Positive))
			}
		}
		want := []string{fmt.Sprintf("test 803 sum of 2, first 803 string[1].StrA: %s", tt.want), "test 714 Prt[2].DCA: ", fmt.Sprintf("test 802 W/V: %s", tt.want)}
		if diff := cmp.Diff(want, positive); diff != "" || got.Positive != tt.want {
			t.Errorf("directions %q: got %q, want %q\n%s", tt.directions, got.Positive, tt.want, diff)
		}
		// Where only the converter measures the current, its sign is nobody else's.
		if got := read(t, with(t, []uint16{713, 714}), tt.directions); got.Positive != "" || got.Value(bms.Current) != 2.4 {
			t.Errorf("directions %q, current of the converter: got %q and %v A, want none and 2.4 A", tt.directions, got.Positive, got.Value(bms.Current))
		}
	}
}

// TestDecide: the reading of a healthy battery passes every recommended rule, and the
// refusal names what is wrong in this device's words.
func TestDecide(t *testing.T) {
	refusal := func(changed ...change) string {
		thresholds := bms.Recommended()
		thresholds.MaxCurrent, thresholds.RequireBeat = 5, true
		r := read(t, whole(t, changed...), bmssunspec.SameDirections)
		if err := bms.Decide(r, thresholds, nil, time.Now()); err != nil {
			return err.Error()
		}
		return ""
	}
	if got := refusal(); got != "" {
		t.Errorf("a healthy battery: %s", got)
	}
	for _, tt := range []struct {
		change
		want string
	}{
		{change{802, sunspec.Number("SoC", 5)}, "state of charge 5.0 %, want at least 30 %"},
		{change{802, sunspec.Number("A", 40)}, "current 40.0 A, want at most 5 A"},
		{change{803, sunspec.Number("ModTmpMax", 70)}, "highest temperature 70.0 °C, want at most 45 °C"},
		{change{803, sunspec.Number("string[1].StrA", 1.4)}, "0.0 A by test 803 sum of 2, first 803 string[1].StrA: 2.5 A apart"},
		{change{714, sunspec.Number("Prt[2].DCA", 90)}, "90.0 A by test 714 Prt[2].DCA: 87.5 A apart"},
		{change{713, sunspec.Number("SoC", 90)}, "90.0 % by test 713 SoC: 32.5 % apart"},
		{change{802, sunspec.Missing("Hb")}, "test has no heartbeat"},
		{change{802, sunspec.Missing("Evt1")}, "test cannot tell of alarms"},
		{change{802, sunspec.Symbolic("LocRemCtl", "LOCAL")}, "control of test is local, want remote"},
		{change{701, sunspec.Symbolic("InvSt", "RUNNING")}, "mode of test is running, want off or standby"},
		{change{802, sunspec.Symbolic("State", "FAULT")}, "test raises alarms: 802 State FAULT"},
		{change{802, sunspec.Bits("Evt1", "GROUND_FAULT")}, "test raises alarms: 802 GROUND_FAULT"},
		{change{713, sunspec.Symbolic("Sta", "ERROR")}, "test raises alarms: 713 ERROR"},
	} {
		if got := refusal(tt.change); !strings.Contains(got, tt.want) {
			t.Errorf("%d %s: got %q, want it to contain %q", tt.model, tt.Path, got, tt.want)
		}
	}
}
