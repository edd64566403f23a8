package broadcast_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// frames parses "351 14 02 ...; 355 ..." as captures are printed.
func frames(t testing.TB, s string) []can.Frame {
	t.Helper()
	var all []can.Frame
	for part := range strings.SplitSeq(s, ";") {
		words := strings.Fields(part)
		f, err := can.Parse(words[0] + "#" + strings.Join(words[1:], ""))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

// heard returns what a decoder makes of frames that come a millisecond apart.
func heard(t testing.TB, profile string, o broadcast.Options, s string) (*broadcast.Decoder, broadcast.State) {
	t.Helper()
	d, err := broadcast.New(profile, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames(t, s) {
		if known, err := d.Add(f, start.Add(time.Duration(i)*time.Millisecond)); !known || err != nil {
			t.Errorf("Add(%v) = %v, %v, want true, nil", f, known, err)
		}
	}
	return d, d.State()
}

func wantValues(t *testing.T, s broadcast.State, want map[broadcast.Quantity]float64) {
	t.Helper()
	for q, v := range s.Values {
		w, ok := want[q]
		if !ok {
			w = math.NaN()
		}
		if math.IsNaN(v.Value) != math.IsNaN(w) || math.Abs(v.Value-w) > 1e-9 {
			t.Errorf("%s = %v, want %v", q, v.Value, w)
		}
	}
	for q := range want {
		if _, ok := s.Values[q]; !ok {
			t.Errorf("%s is not there, want %v", q, want[q])
		}
	}
}

type values = map[broadcast.Quantity]float64

// TestCaptured decodes traffic of real batteries, as people published it.
func TestCaptured(t *testing.T) {
	for _, c := range []struct {
		name, profile, frames string
		want                  values
		check                 func(*testing.T, broadcast.State)
	}{
		{
			name: "Pylontech US5000 old", profile: "pylon-lv",
			frames: "351 14 02 C0 12 C0 12 C2 01; 355 58 00 5E 00; 356 7A 13 F2 FE 6B 01; 359 00 00 00 00 06 50 4E; 35C C0 00; 35E 50 59 4C 4F 4E 20 20 20",
			want: values{"charge_voltage": 53.2, "charge_limit": 480, "discharge_limit": 480, "discharge_voltage": 45,
				"soc": 88, "soh": 94, "voltage": 49.86, "current": -27, "temperature_min": 36.3, "temperature_max": 36.3, "modules": 6},
			check: func(t *testing.T, s broadcast.State) {
				if s.Charge != broadcast.On || s.Discharge != broadcast.On || s.Maker != "PYLON" {
					t.Errorf("charge %q, discharge %q, maker %q, want on, on, PYLON", s.Charge, s.Discharge, s.Maker)
				}
				if !s.AlarmsKnown || len(s.Alarms) != 0 || s.AlarmsVouched != 7 {
					t.Errorf("alarms known %v, %q, of %d, want known, none of 7", s.AlarmsKnown, s.Alarms, s.AlarmsVouched)
				}
			},
		},
		{
			name: "US5000 new", profile: "pylon-lv",
			frames: "351 10 02 C0 12 C0 12 C2 01; 355 54 00 60 00 00 00; 356 7B 13 E9 FE 6B 01; 35A 00 00 00 00 00 00 00 00; 35F 4C 49 01 03 3C 02 AA 00",
			want: values{"charge_voltage": 52.8, "charge_limit": 480, "discharge_limit": 480, "discharge_voltage": 45,
				"soc": 84, "soh": 96, "voltage": 49.87, "current": -27.9, "temperature_min": 36.3, "temperature_max": 36.3, "capacity": 572},
			check: func(t *testing.T, s broadcast.State) {
				if s.Type != "LI" || s.Version != "1.3" || s.Charge != "" {
					t.Errorf("type %q, version %q, charge %q, want LI, 1.3, unknown", s.Type, s.Version, s.Charge)
				}
				if !s.AlarmsKnown || s.AlarmsVouched != 0 {
					t.Errorf("alarms known %v, of %d, want known, none supported", s.AlarmsKnown, s.AlarmsVouched)
				}
			},
		},
		{
			name: "Pylontech", profile: "pylon-lv",
			frames: "351 14 02 74 0E 74 0E CC 01; 355 1A 00 64 00; 356 02 13 00 00 4A 01; 359 00 00 00 00 0A 50 4E",
			want: values{"charge_voltage": 53.2, "charge_limit": 370, "discharge_limit": 370, "discharge_voltage": 46,
				"soc": 26, "soh": 100, "voltage": 48.66, "current": 0, "temperature_min": 33, "temperature_max": 33, "modules": 10},
		},
		{
			name: "Discover AES/Lynk II", profile: "sol-ark",
			frames: "351 2E 02 04 0B 04 0B B0 01; 355 3E 00 64 00; 356 0A 02 11 FF BE 00 00 00; 35A AB AA FE AF AA FA FF",
			want: values{"charge_voltage": 55.8, "charge_limit": 282, "discharge_limit": 282, "discharge_voltage": 43.2,
				"soc": 62, "soh": 100, "voltage": 52.2, "current": -23.9, "temperature_min": 19, "temperature_max": 19},
			check: func(t *testing.T, s broadcast.State) {
				if !s.AlarmsKnown || len(s.Alarms)+len(s.Warnings) != 0 || s.AlarmsVouched != 8 {
					t.Errorf("alarms known %v, %q, warnings %q, of %d, want none of 8", s.AlarmsKnown, s.Alarms, s.Warnings, s.AlarmsVouched)
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s := heard(t, c.profile, broadcast.Options{RatedCurrent: 240}, c.frames)
			wantValues(t, s, c.want)
			if !s.Average || !s.Complete() {
				t.Errorf("average %v, missing %q, want true, none", s.Average, s.Missing)
			}
			if c.check != nil {
				c.check(t, s)
			}
		})
	}
	t.Run("Pytes ESS48", func(t *testing.T) { // one frame only
		_, s := heard(t, "pylon-lv", broadcast.Options{}, "356 49 13 00 00 D2 00")
		wantValues(t, s, values{"voltage": 49.37, "current": 0, "temperature_min": 21, "temperature_max": 21})
		if got, want := fmt.Sprint(s.Missing, s.AlarmsKnown), "[355] false"; got != want {
			t.Errorf("missing and alarms known: %s, want %s", got, want)
		}
	})
	t.Run("Discover as another profile", func(t *testing.T) { // ten times too little: it must be noticed
		d, err := broadcast.New("pylon-lv", broadcast.Options{})
		if err != nil {
			t.Fatal(err)
		}
		known, err := d.Add(frames(t, "356 0A 02 11 FF BE 00 00 00")[0], start)
		if !known || err == nil {
			t.Errorf("Add = %v, %v, want known and an error", known, err)
		}
		if s := d.State(); s.Invalid != 1 || s.Of(broadcast.Current).Available() {
			t.Errorf("invalid %d, current %v, want 1, missing", s.Invalid, s.Of(broadcast.Current))
		}
	})
}

// TestDialects decodes frames made by hand from the makers' documents.
func TestDialects(t *testing.T) {
	for _, c := range []struct {
		name, profile, frames string
		options               broadcast.Options
		want                  values
		check                 func(*testing.T, broadcast.State)
	}{
		{
			name: "SMA with more digits", profile: "sma",
			frames: "351 28 02 E8 03 D0 07 A4 01; 355 32 00 62 00 98 13; 356 00 14 64 00 FA 00; 35A 56 02 40 00 00 08 00 00; 35B 10 00 00 00 00 00 00 00",
			want: values{"charge_voltage": 55.2, "charge_limit": 100, "discharge_limit": 200, "discharge_voltage": 42,
				"soc": 50.16, "soh": 98, "voltage": 51.2, "current": 10, "temperature_min": 25, "temperature_max": 25},
			check: func(t *testing.T, s broadcast.State) {
				// 56: general 2, high voltage 1, low voltage 1, high temperature 1; 02: low temperature 2; 40: internal 1
				if got, want := fmt.Sprint(s.Alarms), "[high temperature high voltage internal low voltage preventive shutdown]"; got != want {
					t.Errorf("alarms %s, want %s", got, want)
				}
				if len(s.Warnings) != 0 || !s.Average {
					t.Errorf("warnings %q, average %v, want none, true", s.Warnings, s.Average)
				}
			},
		},
		{
			name: "Victron with cells", profile: "victron",
			frames: "355 32 00 62 00; 356 00 14 9C FF FA 00; 373 E4 0C 1B 0D 25 01 2C 01; 372 04 00 01 00 00 00 02 00; 379 18 01; " +
				"35A AA AA AA 02 A9 AA AA 02; 370 4D 79 42 4D 53 00 00 00; 380 53 4E 31 32 33 00 00 00; 35F F0 A2 02 11 90 01",
			want: values{"soc": 50, "soh": 98, "voltage": 51.2, "current": -10, "temperature_min": 20, "temperature_max": 27,
				"cell_min": 3.3, "cell_max": 3.355, "modules": 4, "modules_blocking_charge": 1, "modules_blocking_discharge": 0, "modules_offline": 2, "capacity": 280},
			check: func(t *testing.T, s broadcast.State) {
				if s.Average || s.Name != "MyBMS" || s.Serial != "SN123" || s.Version != "2.17" || s.Type != "0xA2F0" {
					t.Errorf("average %v, name %q, serial %q, version %q, type %q", s.Average, s.Name, s.Serial, s.Version, s.Type)
				}
				if got, want := fmt.Sprint(s.Alarms, s.Warnings, s.AlarmsVouched), "[] [general] 13"; got != want {
					t.Errorf("alarms, warnings, vouched %s, want %s", got, want)
				}
			},
		},
		{
			name: "Sol-Ark with the other sign", profile: "sol-ark", options: broadcast.Options{ReverseCurrent: true},
			frames: "355 3E 00 64 00; 356 0A 02 11 FF BE 00",
			want:   values{"soc": 62, "soh": 100, "voltage": 52.2, "current": 23.9, "temperature_min": 19, "temperature_max": 19},
		},
		{
			name: "Pylontech alarms", profile: "pylon-lv",
			frames: "359 92 09 0C 01 02 50 4E",
			want:   values{"modules": 2},
			check: func(t *testing.T, s broadcast.State) {
				if got, want := fmt.Sprint(s.Alarms), "[high charge current high discharge current high voltage internal low temperature]"; got != want {
					t.Errorf("alarms %s, want %s", got, want)
				}
				if got, want := fmt.Sprint(s.Warnings), "[high charge current high temperature low voltage]"; got != want {
					t.Errorf("warnings %s, want %s", got, want)
				}
			},
		},
		{
			name: "Pylontech of high voltage", profile: "pylon-hv", options: broadcast.Options{Address: 1},
			frames: "00004211 A5 09 94 74 9D 04 2E 64; 00004221 8C 0A E9 07 18 79 48 71 ; 00004231 DF 0C DA 0C 03 00 06 00; " +
				"00004241 7E 04 62 04 11 00 03 00; 00004251 02 00 00 20 01 00 00 00; 00004281 AA 00 00 00 00 00 00 00; 00007311 01 00 02 01 01 02 00 00",
			want: values{"voltage": 246.9, "current": -15.6, "board_temperature": 18.1, "soc": 46, "soh": 100,
				"charge_voltage": 270, "discharge_voltage": 202.5, "charge_limit": 100, "discharge_limit": 100,
				"cell_max": 3.295, "cell_min": 3.29, "temperature_max": 15, "temperature_min": 12.2},
			check: func(t *testing.T, s broadcast.State) {
				if s.Charge != broadcast.Off || s.Discharge != broadcast.On || s.Mode != broadcast.ModeDischarging {
					t.Errorf("charge %q, discharge %q, mode %q, want off, on, discharging", s.Charge, s.Discharge, s.Mode)
				}
				if s.Version != "1.2" || s.Hardware != "1 V2 R1" || s.Average {
					t.Errorf("version %q, hardware %q, average %v", s.Version, s.Hardware, s.Average)
				}
				if got, want := fmt.Sprint(s.Alarms, s.Warnings), "[contactor] [4250 alarm bit 0]"; got != want {
					t.Errorf("alarms and warnings %s, want %s", got, want)
				}
			},
		},
		{
			name: "Growatt", profile: "growatt-lv",
			frames: "311 02 28 03 E8 07 D0 08 02; 312 00 00 01 00 03 AA BB 10; 313 13 88 FF 9C 00 FA 37 E3; 314 27 10 6D 60 00 0A 00 05; " +
				"319 80 0D 1B 0C E4 01 02 00; 320 47 57 01 04 00 00 00 00; 321 03 0A 01 00 00 00 00 00",
			want: values{"charge_voltage": 55.2, "charge_limit": 100, "discharge_limit": 200, "voltage": 50, "current": -10,
				"temperature_max": 25, "soc": 55, "soh": 99, "capacity": 280, "cell_max": 3.355, "cell_min": 3.3, "modules": 3},
			check: func(t *testing.T, s broadcast.State) {
				if s.Mode != broadcast.ModeUpdating || s.Charge != broadcast.On || s.Discharge != broadcast.Off {
					t.Errorf("mode %q, charge %q, discharge %q, want updating, on, off", s.Mode, s.Charge, s.Discharge)
				}
				if got, want := fmt.Sprint(s.Alarms, " ", s.Maker, " ", s.Version), "[312 bit 16 unsafe] GW 4"; got != want {
					t.Errorf("alarms, maker, version %s, want %s", got, want)
				}
			},
		},
		{
			name: "the original firmware", profile: "original",
			// modules 0 and 2 of three; 1 is not active, and what it says does not count
			frames: "100 02 02 26 5F 00 01 05 00; 500 14 00 FF 38 41 38 00 00; 501 10 00 00 00 00 38 00 FF; 502 14 64 FF 38 46 37 00 04",
			want:   values{"soc": 55, "soh": 95, "voltage": 103.4, "current": -20, "temperature_min": 25, "temperature_max": 30},
			check: func(t *testing.T, s broadcast.State) {
				if got, want := fmt.Sprint(s.Alarms, s.Warnings, " ", s.Mode), "[module 2 error bit 2] [warning bit 0] state 2"; got != want {
					t.Errorf("alarms, warnings, mode %s, want %s", got, want)
				}
				if got, want := s.Of(broadcast.Voltage).At, start.Add(time.Millisecond); !got.Equal(want) {
					t.Errorf("voltage of %v, want of the oldest module, %v", got, want)
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s := heard(t, c.profile, c.options, c.frames)
			wantValues(t, s, c.want)
			if c.check != nil {
				c.check(t, s)
			}
		})
	}
}

// TestNotAvailable: the marks of SMA's document, and what has not come, are missing.
func TestNotAvailable(t *testing.T) {
	_, s := heard(t, "victron", broadcast.Options{}, "351 FF FF 00 80 00 80 FF FF; 355 FF FF FF FF; 356 00 80 00 80 00 80; 373 FF FF FF FF FF FF FF FF")
	wantValues(t, s, values{})
	if got, want := fmt.Sprint(s.Missing), "[355 356]"; got != want {
		t.Errorf("missing %s, want %s", got, want)
	}
	if s.Invalid != 0 || s.AlarmsKnown {
		t.Errorf("invalid %d, alarms known %v, want 0, false", s.Invalid, s.AlarmsKnown)
	}
	_, s = heard(t, "victron", broadcast.Options{}, "356 00 14 00 00 FA 00; 373 E4 0C 1B 0D FF FF FF FF")
	wantValues(t, s, values{"voltage": 51.2, "current": 0, "temperature_min": 25, "temperature_max": 25, "cell_min": 3.3, "cell_max": 3.355})
	if !s.Average {
		t.Error("the average stands in for cells' temperatures without saying so")
	}
}

// TestImplausible: one value that cannot be, and nothing of its frame counts.
func TestImplausible(t *testing.T) {
	good := "355 32 00 62 00; 356 00 14 64 00 FA 00"
	for _, c := range []struct{ name, profile, frame, want string }{
		{"charge of 101 %", "pylon-lv", "355 65 00 62 00", "[355]"},
		{"other byte order", "pylon-lv", "355 00 32 00 62", "[355]"},
		{"voltage of 60.01", "pylon-lv", "356 71 17 64 00 FA 00", "[356]"},
		{"voltage of 39.99", "pylon-lv", "356 9F 0F 64 00 FA 00", "[356]"},
		{"more than twice the current", "pylon-lv", "356 00 14 B9 0B FA 00", "[356]"},
		{"and discharging", "pylon-lv", "356 00 14 47 F4 FA 00", "[356]"},
		{"100.1 °C", "pylon-lv", "356 00 14 64 00 E9 03", "[356]"},
		{"-40.1 °C", "pylon-lv", "356 00 14 64 00 6F FE", "[356]"},
		{"too short", "pylon-lv", "356 00 14 64 00", "[356]"},
		{"two states of charge", "sma", "355 32 00 62 00 10 27", "[355]"},
		{"cells colder than that", "victron", "373 E4 0C 1B 0D 00 00 2C 01", "[356]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, s := heard(t, c.profile, broadcast.Options{RatedCurrent: 150}, good)
			if !s.Complete() {
				t.Fatalf("missing %q before", s.Missing)
			}
			known, err := d.Add(frames(t, c.frame)[0], start.Add(time.Minute))
			if !known || err == nil {
				t.Errorf("Add = %v, %v, want known and an error", known, err)
			}
			s = d.State()
			if got := fmt.Sprint(s.Missing); got != c.want || s.Invalid != 1 {
				t.Errorf("missing %s, invalid %d, want %s, 1", got, s.Invalid, c.want)
			}
			for _, f := range frames(t, good) { // and it comes back
				d.Add(f, start.Add(2*time.Minute))
			}
			if s = d.State(); c.profile != "victron" && !s.Complete() {
				t.Errorf("missing %q after good frames", s.Missing)
			}
		})
	}
	for _, frame := range []string{"356 70 17 B8 0B E8 03", "356 A0 0F 48 F4 70 FE"} { // exactly at the limits
		heard(t, "pylon-lv", broadcast.Options{RatedCurrent: 150}, frame)
	}
	heard(t, "sma", broadcast.Options{VoltageMin: 100, VoltageMax: 200}, "356 98 3A 64 00 FA 00")
}

// TestLengths: the same frame is longer or shorter, by maker and firmware.
func TestLengths(t *testing.T) {
	for _, c := range []struct {
		frame string
		soc   float64
	}{
		{"355 32 00 62 00", 50}, {"355 32 00 62 00 00 00", 50}, {"355 32 00 62 00 FF FF", 50},
		{"355 32 00 62 00 A0 13", 50.24}, {"355 32 00 62 00 A0 13 00 00", 50.24},
		{"355 FF FF 62 00 A0 13 00 00", 50.24},
	} {
		_, s := heard(t, "sma", broadcast.Options{}, c.frame)
		if got := s.Of(broadcast.SoC).Value; got != c.soc {
			t.Errorf("%s: state of charge %v, want %v", c.frame, got, c.soc)
		}
	}
	_, s := heard(t, "pylon-lv", broadcast.Options{}, "351 14 02 C0 12 C0 12")
	if s.Of(broadcast.DischargeVoltage).Available() || s.Of(broadcast.DischargeLimit).Value != 480 {
		t.Errorf("351 of 6 bytes: %v", s.Values)
	}
}

// TestFirmwareChange: after its own update a battery sends other frames with alarms.
// The old ones must not stay for ever.
func TestFirmwareChange(t *testing.T) {
	d, s := heard(t, "pylon-lv", broadcast.Options{}, "359 02 00 00 00 06 50 4E")
	if got := fmt.Sprint(s.Alarms); got != "[high voltage]" {
		t.Fatalf("alarms %s, want high voltage", got)
	}
	add := func(after time.Duration, frame string) broadcast.State {
		t.Helper()
		if _, err := d.Add(frames(t, frame)[0], start.Add(after)); err != nil {
			t.Fatal(err)
		}
		return d.State()
	}
	if s = add(time.Minute, "35A AA AA AA 02 AA AA AA 02"); len(s.Alarms) != 1 || !s.AlarmsAt.Equal(start) {
		t.Errorf("a minute later: alarms %q of %v, want the old ones still", s.Alarms, s.AlarmsAt)
	}
	if s = add(61*time.Second, "35A AA AA AA 02 AA AA AA 02"); len(s.Alarms) != 0 || !s.AlarmsAt.Equal(start.Add(61*time.Second)) || !s.AlarmsKnown {
		t.Errorf("after that: alarms %q of %v, known %v, want those of 35A", s.Alarms, s.AlarmsAt, s.AlarmsKnown)
	}
	d, _ = heard(t, "pylon-lv", broadcast.Options{}, "359 02 00 00 00 06 50 4E")
	d.Add(frames(t, "359 02")[0], start)
	if s = d.State(); s.AlarmsKnown {
		t.Error("alarms are known, and the frame was too short")
	}
}

// TestSilent: a battery that went silent keeps its values, with their time.
func TestSilent(t *testing.T) {
	d, _ := heard(t, "pylon-lv", broadcast.Options{}, "355 32 00 62 00; 356 00 14 64 00 FA 00")
	later := start.Add(time.Hour)
	d.Add(frames(t, "355 33 00 62 00")[0], later)
	s := d.State()
	if got := s.Of(broadcast.SoC); !got.At.Equal(later) || got.Value != 51 || got.Cycle != time.Second {
		t.Errorf("state of charge %+v, want 51 of %v, every second", got, later)
	}
	if got := s.Of(broadcast.Current); !got.At.Equal(start.Add(time.Millisecond)) {
		t.Errorf("current of %v, want of its own frame", got.At)
	}
}

// TestFrozen: what was said is told apart from that something was said.
func TestFrozen(t *testing.T) {
	all := "351 14 02 C0 12 C0 12 C2 01; 355 58 00 5E 00; 356 7A 13 F2 FE 6B 01; 359 00 00 00 00 06 50 4E; 35C C0 00"
	d, first := heard(t, "pylon-lv", broadcast.Options{}, all)
	for i, f := range frames(t, all) {
		d.Add(f, start.Add(time.Duration(i)*time.Second))
	}
	again := d.State()
	if again.Content != first.Content || again.Changes != first.Changes || again.Frames != 2*first.Frames {
		t.Errorf("repeated: content %x, changes %d, frames %d, want %x, %d, %d", again.Content, again.Changes, again.Frames, first.Content, first.Changes, 2*first.Frames)
	}
	if first.Changes != 0 {
		t.Errorf("%d changes after each frame came once, want none: a battery that only repeats itself would look alive until the last kind of frame has come", first.Changes)
	}
	seen := map[uint64]string{again.Content: "before"}
	for _, f := range []string{"351 15 02 C0 12 C0 12 C2 01", "355 58 00 5D 00", "356 7A 13 F2 FE 6C 01", "356 7A 13 F2 FE 6D 01",
		"359 02 00 00 00 06 50 4E", "359 02 00 00 00 07 50 4E", "359 02 00 02 00 07 50 4E", "35C 40 00", "35C 48 00", "356 7A 13 F2 FE 6D"} {
		before := d.State().Changes
		d.Add(frames(t, f)[0], start)
		s := d.State()
		if other, ok := seen[s.Content]; ok {
			t.Errorf("%s: the content is the same as %s", f, other)
		}
		if seen[s.Content] = f; s.Changes != before+1 {
			t.Errorf("%s: %d changes, want 1", f, s.Changes-before)
		}
	}
}

// TestOthers: frames of other devices, remote frames, and those with the other kind of
// identifier are not the battery's.
func TestOthers(t *testing.T) {
	d, err := broadcast.New("pylon-lv", broadcast.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []can.Frame{
		can.Standard(0x305, 0, 0, 0, 0, 0, 0, 0, 0), can.Extended(0x355, 0x32, 0, 0x62, 0), can.Extended(0x4210),
		{ID: 0x355, Remote: true, Len: 4}, {ID: 0x355, Len: 9}, {},
	} {
		if known, err := d.Add(f, start); known || err != nil {
			t.Errorf("Add(%+v) = %v, %v, want unknown", f, known, err)
		}
	}
	if s := d.State(); s.Unknown != 6 || s.Frames != 0 || s.Content == 0 {
		t.Errorf("unknown %d, frames %d", s.Unknown, s.Frames)
	}
}

// TestModules: the battery of the original firmware is as good as its worst module.
func TestModules(t *testing.T) {
	system, one := "100 02 02 26 5F 00 00 03 00", "500 14 00 FF 38 41 38 00 00"
	for _, c := range []struct{ name, frames, want string }{
		{"none yet", system, "[500 501]"},
		{"one silent", system + ";" + one, "[501]"},
		{"no battery", one, "[100]"},
		{"none active", "100 02 02 26 5F 00 00 00 00", "[active modules]"},
		{"one without its current", system + ";" + one + "; 501 14 00 80 00 41 38 00 00", "[501]"},
		{"both", system + ";" + one + "; 501 14 00 FF 38 41 38 00 00", "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s := heard(t, "original", broadcast.Options{}, c.frames)
			if got := fmt.Sprint(s.Missing); got != c.want {
				t.Errorf("missing %s, want %s", got, c.want)
			}
			if got, want := s.Of(broadcast.Current).Available(), c.want == "[]"; got != want {
				t.Errorf("current available: %v, want %v", got, want)
			}
		})
	}
	d, _ := heard(t, "original", broadcast.Options{FirstModule: 1}, system+"; 501 14 00 FF 38 41 38 00 00; 502 14 00 FF 38 41 38 00 00")
	if s := d.State(); !s.Complete() {
		t.Errorf("counted from 1: missing %q", s.Missing)
	}
	d.Add(frames(t, "502 14 00 FF 38 FF 38 00 00")[0], start) // 215 °C
	if s := d.State(); fmt.Sprint(s.Missing) != "[502]" || s.Of(broadcast.Voltage).Available() {
		t.Errorf("one implausible: missing %q, voltage %v, want [502], none", s.Missing, s.Of(broadcast.Voltage))
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []broadcast.Options{{RatedCurrent: -1}, {RatedCurrent: math.NaN()}, {RatedCurrent: math.Inf(1)}, {VoltageMin: 60, VoltageMax: 50},
		{VoltageMax: math.NaN()}, {VoltageMax: math.Inf(1)}, {Address: 16}, {FirstModule: 2}} {
		if _, err := broadcast.New("sma", o); err == nil {
			t.Errorf("New(%+v) takes it", o)
		}
	}
	if _, err := broadcast.New("pylon", broadcast.Options{}); err == nil || !strings.Contains(err.Error(), "pylon-hv, pylon-lv") {
		t.Errorf("New(pylon) = %v, want the names that there are", err)
	}
}

// TestKeepalive: what an inverter says so that batteries talk.
func TestKeepalive(t *testing.T) {
	for name, want := range map[string]string{
		"pylon-lv": "[305#0000000000000000]", "sma": "[305#0000000000000000]", "victron": "[305#0000000000000000]", "sol-ark": "[305#0000000000000000]",
		"growatt-lv": "[301#0000000000000000]", "original": "[]", "pylon-hv": "[00004200#0000000000000000 00004200#0200000000000000]",
	} {
		p, err := broadcast.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(p.Keepalive()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if !slices.Contains(broadcast.Names(), name) {
			t.Errorf("Names() = %q, without %s", broadcast.Names(), name)
		}
	}
	p, _ := broadcast.Named("pylon-hv")
	if filters := p.Filters(broadcast.Options{Address: 3}); !filters.Match(can.Extended(0x4213)) || filters.Match(can.Extended(0x4210)) || filters.Match(can.Standard(0x213)) {
		t.Errorf("filters %+v", filters)
	}
}
