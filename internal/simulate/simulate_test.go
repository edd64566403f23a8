package simulate

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/battery"
)

// wire asks a system without a network in between, in its own unit.
type wire struct{ s *System }

func (w wire) call() modbus.Call { return modbus.Call{Unit: w.s.unit, Transport: modbus.TCP} }

func (w wire) ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error) {
	dst := make([]uint16, count)
	return dst, device{w.s}.ReadHolding(ctx, w.call(), address, dst)
}

func (w wire) WriteRegisters(ctx context.Context, address uint16, values []uint16) error {
	return device{w.s}.WriteHolding(ctx, w.call(), address, values)
}

// vector is the battery of the test vectors of package sunspec.
func vector() battery.Settings {
	return battery.Settings{SoC: new(57.5), Current: new(-2.5), TemperatureMin: new(24.1), TemperatureMax: new(28.7)}
}

func offline(t *testing.T, cfg Config) *System {
	t.Helper()
	s, err := newSystem(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(t *testing.T, s *System) sunspec.Battery {
	t.Helper()
	d, err := sunspec.Discover(t.Context(), wire{s}, sunspec.Search{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := sunspec.ReadBattery(t.Context(), wire{s}, d)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVector compares model 802, 803 and 713 with the vectors that package
// sunspec is tested with, point by point: what both have must be the same.
func TestVector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, Config{Battery: battery.Config{Start: vector()}})
		d, err := sunspec.Discover(t.Context(), wire{s}, sunspec.Search{})
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			model  uint16
			points map[string]float64
		}{
			{802, map[string]float64{"AHRtg": 312, "WHRtg": 208000, "WChaRteMax": 100000, "WDisChaRteMax": 100000, "SoC": 57.5, "SoH": 99,
				"NCyc": 123, "A": -2.5, "CellVMax": 3.342, "CellVMin": 3.318, "V": 692.6, "W": -1730}},
			{803, map[string]float64{"NStr": 1, "NStrCon": 1, "ModTmpMax": 28.7, "ModTmpMin": 24.1, "string[1].StrNMod": 13,
				"string[1].StrSoC": 57.5, "string[1].StrA": -2.5, "string[1].StrCellVMax": 3.342, "string[1].StrCellVMin": 3.318,
				"string[1].StrModTmpMax": 28.7, "string[1].StrModTmpMin": 24.1}},
			{713, map[string]float64{"WHRtg": 208000, "WHAvail": 119600, "SoC": 57.5, "SoH": 99}},
			{714, map[string]float64{"DCA": -2.5, "DCW": -1730, "Prt[1].DCA": -2.5, "Prt[1].DCV": 692.6}},
			{804, map[string]float64{"NMod": 13, "V": 692.6, "A": -2.5, "module[13].ModSoC": 57.5}},
			{704, map[string]float64{"WSet": 0, "WSetRvrtTms": 0, "WSetRvrtRem": 0, "WRmp": 10}},
		} {
			m := d.Find(tt.model)
			if len(m) != 1 {
				t.Fatalf("model %d is there %d times, want once", tt.model, len(m))
			}
			b, err := d.Read(t.Context(), wire{s}, m[0])
			if err != nil {
				t.Fatal(err)
			}
			for point, want := range tt.points {
				if got := b.Float(point); math.Abs(got-want) > 1e-9 {
					t.Errorf("%d %s: got %v, want %v", tt.model, point, got, want)
				}
			}
		}
		// The first registers of 802 are those of the vector, bit for bit.
		base, err := d.Read(t.Context(), wire{s}, d.Find(802)[0])
		if err != nil {
			t.Fatal(err)
		}
		want := []uint16{0x0322, 0x003e, 0x0138, 0x5140, 0x03e8, 0x03e8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0x023f, 0xffff, 0x03de,
			0x0000, 0x007b, 0x0006, 0x0000}
		if got := base.Registers[:len(want)]; !slices.Equal(got, want) {
			t.Errorf("802 begins\n got %04x\nwant %04x", got, want)
		}
	})
}

// TestBattery: what is read is what is so, on every instrument.
func TestBattery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, Config{Cells: true, Battery: battery.Config{Start: battery.Settings{Current: new(40.0)}}})
		time.Sleep(90 * time.Second)
		b, m := read(t, s), s.Measure()
		for what, q := range map[string][2]float64{"SoC": {b.SoC.Value, m.SoC}, "A": {b.A.Value, 40}, "V": {b.V.Value, m.Voltage},
			"W": {b.W.Value, m.Voltage * 40}, "coldest": {b.TempMin.Value, m.Temperatures().Min}, "hottest": {b.TempMax.Value, m.Temperatures().Max},
			"lowest cell": {b.CellMin.Value, m.Voltages().Min}, "highest cell": {b.CellMax.Value, m.Voltages().Max}} {
			if math.Abs(q[0]-q[1]) > max(0.051, q[1]*2e-4) {
				t.Errorf("%s: got %v, want %v", what, q[0], q[1])
			}
		}
		for _, q := range b.OtherA {
			if math.Abs(q.Value-40) > 0.1 {
				t.Errorf("%s: got %v A, want 40", q.From, q.Value)
			}
		}
		for _, q := range b.OtherSoC {
			if math.Abs(q.Value-m.SoC) > 0.051 {
				t.Errorf("%s: got %v %%, want %v", q.From, q.Value, m.SoC)
			}
		}
		if len(b.OtherA) < 4 || len(b.OtherSoC) < 2 {
			t.Errorf("got %d and %d other instruments", len(b.OtherA), len(b.OtherSoC))
		}
		if b.Heartbeat.Value != 91 || b.DERHeartbeat.Value != 91 || b.State.Name != "CONNECTED" || b.ChaSt.Name != "DISCHARGING" ||
			b.InvSt.Name != "RUNNING" || !b.AlarmsKnown || len(b.Alarms)+len(b.Warnings)+len(b.ConverterAlarms) != 0 || !b.Contactors[0].Closed {
			t.Errorf("got %+v", b)
		}
		d, err := sunspec.Discover(t.Context(), wire{s}, sunspec.Search{})
		if err != nil {
			t.Fatal(err)
		}
		modules, sum := d.Find(805), 0.0
		for _, m := range modules {
			b, err := d.Read(t.Context(), wire{s}, m)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := b.Repeats("cell"); n != battery.CellsPerModule || err != nil {
				t.Errorf("model 805: got %d cells, %v", n, err)
			}
			for i := range battery.CellsPerModule {
				sum += b.Float(sunspec.Path("cell", i+1, "CellV"))
			}
		}
		if len(modules) != battery.Modules || math.Abs(sum-m.Voltage) > 0.1 {
			t.Errorf("got %d modules of together %v V, want %d of %v V", len(modules), sum, battery.Modules, m.Voltage)
		}
	})
}

// hear decodes the frames of one cycle with a decoder that may have heard others.
func hear(t *testing.T, s *System, d *broadcast.Decoder) broadcast.State {
	t.Helper()
	frames, err := s.frames()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if known, err := d.Add(f, time.Now()); !known || err != nil {
			t.Errorf("frame %v: known %t, %v", f, known, err)
		}
	}
	return d.State()
}

func decoder(t *testing.T, profile string) *broadcast.Decoder {
	t.Helper()
	d, err := broadcast.New(profile, broadcast.Options{RatedCurrent: 150})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestProfiles: in every profile a listener hears what is so.
func TestProfiles(t *testing.T) {
	for _, profile := range broadcast.Names() {
		t.Run(profile, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := offline(t, Config{Profile: profile, Battery: battery.Config{Start: vector()}})
				st := hear(t, s, decoder(t, profile))
				if !st.Complete() && profile != "growatt-lv" {
					t.Errorf("incomplete: %v", st.Missing)
				}
				volts, within := 692.6/battery.Modules, 0.06
				if profile == "pylon-hv" || profile == "original" {
					volts = 692.6
				}
				if profile == "original" { // 13 modules, each rounded
					within = 13 * 0.005
				}
				for q, want := range map[broadcast.Quantity][2]float64{broadcast.SoC: {57.5, 0.51}, broadcast.Current: {2.5, 0.21}, broadcast.Voltage: {volts, within}} {
					if got := st.Of(q).Value; !(math.Abs(got-want[0]) <= want[1]) {
						t.Errorf("%s: got %v, want %v", q, got, want[0])
					}
				}
				if got := st.Of(broadcast.TemperatureMax).Value; !(got >= 26 && got <= 29) {
					t.Errorf("hottest: got %v", got)
				}
				if len(st.Alarms)+len(st.Warnings) != 0 {
					t.Errorf("got alarms %v, warnings %v", st.Alarms, st.Warnings)
				}
				// A battery at rest still says something new, often enough for a listener
				// that takes a minute of the same for a hang.
				d := decoder(t, profile)
				before := hear(t, s, d).Changes
				for range 20 {
					time.Sleep(time.Second)
					hear(t, s, d)
				}
				if after := d.State().Changes; after-before < 5 {
					t.Errorf("at rest: got %d changes in 20 s, want 5 or more", after-before)
				}
				// Every alarm has a way to be heard.
				if err := s.Fault(alarm, true); err != nil {
					t.Fatal(err)
				}
				if st = hear(t, s, d); len(st.Alarms) == 0 {
					t.Error("an alarm is not heard")
				}
			})
		})
	}
}

func TestWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, Config{})
		at := func(m sunspec.Model, point string) uint16 {
			for _, p := range sunspec.Define(m.ID).Points {
				if p.Name == point {
					return m.Address + p.Offset
				}
			}
			t.Fatalf("model %d has no %s", m.ID, point)
			return 0
		}
		r := s.registers
		for _, tt := range []struct {
			name    string
			address uint16
			values  []uint16
			want    error
		}{
			{"the state of charge", at(r.base, "SoC"), []uint16{1}, modbus.IllegalAddress},
			{"a scale factor", at(r.controls, "WSet_SF"), []uint16{1}, modbus.IllegalAddress},
			{"reactive power", at(r.controls, "VarSetEna"), []uint16{1}, modbus.IllegalAddress},
			{"a string", r.bank.Address + 28 + 29, []uint16{2}, modbus.IllegalAddress},
			{"half of a number", at(r.controls, "WSet"), []uint16{1}, modbus.IllegalAddress},
			{"the other half", at(r.controls, "WSet") + 1, []uint16{1}, modbus.IllegalAddress},
			{"a neighbour too many", at(r.controls, "WSetEnaRvrt"), []uint16{0, 0, 60, 0, 0}, modbus.IllegalAddress},
			{"outside", 1, []uint16{1}, modbus.IllegalAddress},
			{"neither on nor off", at(r.controls, "WSetEna"), []uint16{2}, modbus.IllegalValue},
			{"not implemented", at(r.controls, "WSetMod"), []uint16{0xFFFF}, modbus.IllegalValue},
			{"too much power", at(r.controls, "WSet"), []uint16{1, 0x86A1}, modbus.IllegalValue},
			{"an order without a meaning", at(r.control, "OpCtl"), []uint16{4}, modbus.IllegalValue},
			{"a state without a meaning", at(r.base, "SetInvState"), []uint16{4}, modbus.IllegalValue},
			{"contactors nowhere", at(r.base, "SetOp"), []uint16{3}, modbus.IllegalValue},
			{"most power", at(r.controls, "WSet"), []uint16{1, 0x86A0}, nil},
			{"heartbeat", at(r.base, "CtrlHb"), []uint16{7}, nil},
			{"heartbeat of the controller", at(r.control, "ControllerHb"), []uint16{1, 7}, nil},
		} {
			before := r.image.Registers()
			err := wire{s}.WriteRegisters(t.Context(), tt.address, tt.values)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
			}
			got, err := wire{s}.ReadHolding(t.Context(), 40000, 2)
			if err != nil || got[0] != 0x5375 {
				t.Errorf("%s: afterwards got %04x, %v", tt.name, got, err)
			}
			if changed := !slices.Equal(before, r.image.Registers()); changed != (tt.want == nil) {
				t.Errorf("%s: the registers changed: %t", tt.name, changed)
			}
			if tt.want == nil {
				if got, _ := (wire{s}).ReadHolding(t.Context(), tt.address, uint16(len(tt.values))); !slices.Equal(got, tt.values) {
					t.Errorf("%s: read back %04x, want %04x", tt.name, got, tt.values)
				}
			}
		}
		if err := (device{s}).ReadHolding(t.Context(), modbus.Call{Unit: 2}, 40000, make([]uint16, 2)); !errors.Is(err, modbus.GatewayTarget) {
			t.Errorf("another unit: got %v", err)
		}
	})
}

func TestUnknownNames(t *testing.T) {
	s := offline(t, Config{})
	if err := s.Fault("frosen", true); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("got %v, want an error that names those that there are", err)
	}
	if _, err := newSystem(Config{Faults: []string{"x"}}); err == nil {
		t.Error("an unknown fault at the start is not refused")
	}
	if _, err := newSystem(Config{Profile: "x"}); err == nil {
		t.Error("an unknown profile is not refused")
	}
	if _, err := newSystem(Config{Base: 65000}); err == nil {
		t.Error("a map that runs past the last register is not refused")
	}
}

func TestCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, Config{})
		for _, tt := range []struct {
			line string
			ok   func(m battery.Measurement) bool
		}{
			{"soc 22", func(m battery.Measurement) bool { return m.SoC == 22 }},
			{"soh=95", func(m battery.Measurement) bool { return m.SoH == 95 }},
			{"current -11.5", func(m battery.Measurement) bool { return m.Current == -11.5 }},
			{"temperature 46", func(m battery.Measurement) bool {
				r := m.Temperatures()
				return math.Abs(r.Max-46) < 1e-9 && math.Abs(r.Min-41.4) < 1e-9
			}},
			{"contactors open", func(m battery.Measurement) bool { return m.Connection == battery.Disconnected }},
			{"contactors closed", func(m battery.Measurement) bool { return m.Connection == battery.Precharging }},
			{"fault alarm imbalance", func(m battery.Measurement) bool { return len(m.Alarms) == 1 && len(m.Warnings) == 1 }},
			{"clear alarm", func(m battery.Measurement) bool { return len(m.Alarms) == 0 && len(m.Warnings) == 1 }},
			{"clear", func(m battery.Measurement) bool { return len(m.Alarms)+len(m.Warnings) == 0 }},
		} {
			if tt.ok(s.Measure()) {
				t.Errorf("%s: it was so before", tt.line)
			}
			c, err := Parse(tt.line)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Do(c); err != nil || !tt.ok(s.Measure()) {
				t.Errorf("%s: got %v, %v", tt.line, s.Status(), err)
			}
		}
	})
	for _, line := range []string{"", " ", "soc", "soc x", "soc 101", "soc NaN", "soc 1 2", "temperature 200", "dance 3", "fault", "fault x", "clear x", "contactors ajar", "contactors"} {
		if _, err := Parse(line); err == nil {
			t.Errorf("%q: got no error", line)
		}
	}
}
