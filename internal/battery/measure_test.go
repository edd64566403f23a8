package battery_test

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/internal/battery"
)

// TestCells: what is measured of the whole is what its parts add up to.
func TestCells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, soc := range []float64{0, 3, 10, 33.3, 57.5, 80, 99, 100} {
			for _, current := range []float64{-150, 0, 150} {
				b := start(t, battery.Config{Seed: 3, Start: battery.Settings{SoC: &soc, Current: &current}})
				m := b.Measure()
				sum, cells, temperatures := 0.0, m.Voltages(), m.Temperatures()
				for i := range m.Modules {
					for _, c := range m.Modules[i].Cells {
						sum += c.Voltage
						if c.Voltage < cells.Min || c.Voltage > cells.Max || c.Temperature < temperatures.Min || c.Temperature > temperatures.Max {
							t.Fatalf("a cell is outside of the range: %+v", c)
						}
					}
				}
				near(t, "voltage", m.Voltage, sum, 1e-9)
				near(t, "spread", cells.Max-cells.Min, 0.024, 1e-9)
				near(t, "mean", cells.Mean*battery.Cells, sum, 1e-9)
				near(t, "coldest", temperatures.Min, 20.96, 1e-9)
				near(t, "hottest", temperatures.Max, 23.04, 1e-9)
				rest := start(t, battery.Config{Seed: 3, Start: battery.Settings{SoC: &soc}}).Measure()
				near(t, "drop", rest.Voltage-m.Voltage, m.Current*battery.Cells*0.00024, 1e-9)
				if m.Voltage < 500 || m.Voltage > 800 {
					t.Errorf("at %v %% and %v A: got %v V, want what such a battery has", soc, current, m.Voltage)
				}
			}
		}
	})
}

// TestSeeds: the same seed and times give the same measurement, another seed other
// places, and neither changes the whole.
func TestSeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seeded := func(seed uint64) *battery.Battery {
			return start(t, battery.Config{Seed: seed, Noise: true, Start: battery.Settings{Current: new(20.0)}})
		}
		a, b, c := seeded(7), seeded(7), seeded(8)
		for range 5 { // often, which must make no difference
			a.Measure()
			time.Sleep(time.Second)
		}
		x, y, z := a.Measure(), b.Measure(), c.Measure()
		if diff := cmp.Diff(x, y); diff != "" {
			// Times at which it was looked at may move the last digits.
			near(t, "SoC", x.SoC, y.SoC, 1e-9)
			near(t, "voltage", x.Voltage, y.Voltage, 1e-6)
			near(t, "current", x.Current, y.Current, 1e-9)
		}
		if x.Voltages().AtMin == z.Voltages().AtMin && x.Voltages().AtMax == z.Voltages().AtMax || x.Current == z.Current {
			t.Error("another seed gives the same cells or the same noise")
		}
		near(t, "current", x.Current, 20, 0.2)
	})
}

func TestAlarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name     string
			set      battery.Settings
			alarms   []battery.Alarm
			warnings []battery.Alarm
		}{
			{"none", battery.Settings{}, nil, nil},
			{"warm", battery.Settings{TemperatureMax: new(50.0), TemperatureMin: new(45.0)}, nil, []battery.Alarm{battery.NearOverTemperature}},
			{"hot", battery.Settings{TemperatureMax: new(55.0), TemperatureMin: new(45.0)}, []battery.Alarm{battery.OverTemperature}, nil},
			{"nearly hot", battery.Settings{TemperatureMax: new(54.9), TemperatureMin: new(45.0)}, nil, []battery.Alarm{battery.NearOverTemperature}},
			{"cool", battery.Settings{TemperatureMax: new(10.0), TemperatureMin: new(0.0)}, nil, []battery.Alarm{battery.NearUnderTemperature}},
			{"cold", battery.Settings{TemperatureMax: new(0.0), TemperatureMin: new(-10.0)}, []battery.Alarm{battery.UnderTemperature}, nil},
			{"uneven", battery.Settings{TemperatureMax: new(35.0), TemperatureMin: new(20.0)}, nil, []battery.Alarm{battery.TemperatureImbalance}},
			{"low", battery.Settings{SoC: new(8.0)}, nil, []battery.Alarm{battery.NearUnderSoC}},
			{"empty", battery.Settings{SoC: new(0.0)}, []battery.Alarm{battery.UnderVoltage, battery.UnderSoC}, nil},
			{"a lot", battery.Settings{Current: new(180.0)}, nil, []battery.Alarm{battery.NearOverDischarge}},
			{"too much", battery.Settings{Current: new(200.0)}, []battery.Alarm{battery.OverDischarge}, nil},
			{"too much the other way", battery.Settings{Current: new(-200.0)}, []battery.Alarm{battery.OverCharge}, nil},
			{"imbalance", battery.Settings{Imbalance: new(80.0)}, nil, []battery.Alarm{battery.VoltageImbalance}},
			{"less", battery.Settings{Imbalance: new(20.0)}, nil, nil},
			{"other", battery.Settings{OtherAlarm: new(true)}, []battery.Alarm{battery.Other}, nil},
			{"contactors", battery.Settings{ContactorFault: new(true)}, []battery.Alarm{battery.ContactorError}, nil},
			{"contactors, by order", battery.Settings{ContactorsOpen: new(true)}, nil, nil},
		} {
			m := start(t, battery.Config{Start: tt.set}).Measure()
			if !slices.Equal(m.Alarms, tt.alarms) || !slices.Equal(m.Warnings, tt.warnings) {
				t.Errorf("%s: got alarms %v, warnings %v; want %v, %v", tt.name, m.Alarms, m.Warnings, tt.alarms, tt.warnings)
			}
		}
	})
}

// TestOverheating: it heats up without a jump, is what Read says too, and cools down.
func TestOverheating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, battery.Config{})
		if err := b.Set(battery.Settings{Overheating: new(true)}); err != nil {
			t.Fatal(err)
		}
		first := b.Measure()
		last := first.Temperatures().Max
		for range 60 {
			time.Sleep(time.Second)
			m := b.Measure()
			if t1 := m.Temperatures().Max; t1 < last || t1 > last+1.001 {
				t.Fatalf("jumps from %v to %v °C", last, t1)
			} else {
				last = t1
			}
			near(t, "the others", m.Modules[0].Temperatures().Max, 22, 1.1)
		}
		near(t, "hottest", last, 58, 1e-9)
		r := read(t, b)
		near(t, "as read", r.Value("temperature_max"), 58, 1e-9)
		if err := b.Set(battery.Settings{Overheating: new(false)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		m := b.Measure()
		near(t, "hottest again", m.Temperatures().Max, 23.04, 1e-9)
	})
}

// TestPower: what the converter takes is what the battery gives, less the losses.
func TestPower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, w := range []float64{-100_000, -30_000, 0, 30_000, 100_000} {
			b := start(t, battery.Config{})
			if err := b.Control(func(c *battery.Controls) { c.Enabled, c.W = true, w }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(11 * time.Second)
			m := b.Measure()
			dc, want := m.Voltage*m.Current, w/0.98
			if w < 0 {
				want = w * 0.98
			}
			near(t, "AC power", m.ACPower, w, 1e-9)
			near(t, "DC power", dc, want, 1)
		}
		for _, a := range []float64{-100, 100} { // without a set-point it is the current that is given
			b := start(t, battery.Config{Start: battery.Settings{Current: &a}})
			m := b.Measure()
			want := m.Voltage * a * 0.98
			if a < 0 {
				want = m.Voltage * a / 0.98
			}
			near(t, "AC power of the load", m.ACPower, want, 1e-6)
		}
		b := start(t, battery.Config{Start: battery.Settings{SoC: new(0.01)}})
		if err := b.Control(func(c *battery.Controls) { c.Enabled, c.W = true, 50_000 }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if m := b.Measure(); m.SoC != 0 || m.Current != 0 || m.ACPower != 0 {
			t.Errorf("empty: got %v %%, %v A, %v W", m.SoC, m.Current, m.ACPower)
		}
		if err := b.Control(func(c *battery.Controls) { c.W = math.NaN() }); err == nil {
			t.Error("a set-point that is no number is not refused")
		}
		if err := b.Control(func(c *battery.Controls) { c.W, c.Order = -1, "dance" }); err == nil {
			t.Error("an unknown order is not refused")
		}
		if got := b.Measure().Controls.W; got != 50_000 {
			t.Errorf("what was refused changed the set-point to %v", got)
		}
	})
}
