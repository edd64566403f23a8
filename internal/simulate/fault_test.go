package simulate

import (
	"errors"
	"fmt"
	"math"
	"os"
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

// seen is what is seen of a system on its buses.
type seen struct {
	sunspec sunspec.Battery
	can     broadcast.State
	frames  uint64 // of the last cycle
}

func see(t *testing.T, s *System, d *broadcast.Decoder) seen {
	t.Helper()
	before := d.State().Frames
	st := hear(t, s, d)
	return seen{read(t, s), st, st.Frames - before}
}

// TestFaults: each fault is seen on each bus as its table says, and is gone when it
// is cleared. The battery discharges with 11 A meanwhile.
func TestFaults(t *testing.T) {
	near := func(got, want float64) bool { return math.Abs(got-want) < 0.26 }
	has := func(list []string, part string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
	}
	type check struct {
		what string
		also bool // holds without the fault, and has to hold with it
		ok   func(before, after seen) bool
	}
	rightOnSunSpec := check{"SunSpec says what is so", true, func(b, a seen) bool {
		return near(a.sunspec.A.Value, 11) && a.sunspec.Heartbeat.Value >= b.sunspec.Heartbeat.Value && len(a.sunspec.Alarms) == 0
	}}
	rightOnCAN := check{"CAN says what is so", true, func(b, a seen) bool {
		return a.frames > 0 && near(a.can.Of(broadcast.Current).Value, -11) && len(a.can.Alarms) == 0
	}}
	stands := []check{
		{"802 to 804 stand still", true, func(b, a seen) bool {
			return a.sunspec.Heartbeat == b.sunspec.Heartbeat && a.sunspec.A == b.sunspec.A && a.sunspec.SoC == b.sunspec.SoC
		}},
		{"the converter goes on", false, func(b, a seen) bool {
			return a.sunspec.DERHeartbeat.Value == b.sunspec.DERHeartbeat.Value+60 && near(math.Abs(a.sunspec.OtherA[2].Value), 90)
		}},
	}
	current := func(of float64) []check {
		return []check{
			{"the battery's current", false, func(b, a seen) bool { return near(a.sunspec.A.Value, of) }},
			{"the same sensor elsewhere", of == -11, func(b, a seen) bool {
				return near(math.Abs(a.sunspec.OtherA[0].Value), math.Abs(of)) && near(math.Abs(a.sunspec.OtherA[1].Value), math.Abs(of))
			}},
			{"the converter's current", true, func(b, a seen) bool { return near(math.Abs(a.sunspec.OtherA[2].Value), 11) }},
			{"by the power", true, func(b, a seen) bool { return near(math.Abs(a.sunspec.OtherA[3].Value), 11) }},
			{"CAN", false, func(b, a seen) bool { return near(a.can.Of(broadcast.Current).Value, -of) }},
		}
	}
	for _, tt := range []struct {
		name   string
		change battery.Settings // once it is on
		after  time.Duration
		checks []check
	}{
		{stale, battery.Settings{Current: new(90.0)}, time.Minute, append(stands, check{"no frames", false, func(b, a seen) bool { return a.frames == 0 }})},
		{frozen, battery.Settings{Current: new(90.0)}, time.Minute, append(stands, check{"the same frames", true, func(b, a seen) bool {
			return a.frames > 0 && a.can.Content == b.can.Content && near(a.can.Of(broadcast.Current).Value, -11)
		}})},
		{currentTenth, battery.Settings{}, 0, current(1.1)},
		{currentTenfold, battery.Settings{}, 0, current(110)},
		{signFlip, battery.Settings{}, 0, current(-11)},
		{socStuck, battery.Settings{SoC: new(40.0)}, time.Minute, []check{
			rightOnSunSpec, rightOnCAN,
			{"the battery's SoC", true, func(b, a seen) bool { return a.sunspec.SoC.Value == b.sunspec.SoC.Value }},
			{"the converter's", false, func(b, a seen) bool {
				return near(a.sunspec.OtherSoC[0].Value, 40) && near(a.sunspec.OtherSoC[1].Value, 60)
			}},
			{"CAN", true, func(b, a seen) bool { return a.can.Of(broadcast.SoC).Value == 60 }},
		}},
		{socMissing, battery.Settings{}, 0, []check{
			rightOnSunSpec,
			{"every SoC", false, func(b, a seen) bool {
				return math.IsNaN(a.sunspec.SoC.Value) && math.IsNaN(a.sunspec.OtherSoC[0].Value) && math.IsNaN(a.sunspec.OtherSoC[1].Value)
			}},
			{"CAN", false, func(b, a seen) bool {
				return !a.can.Of(broadcast.SoC).Available() && near(a.can.Of(broadcast.Current).Value, -11)
			}},
		}},
		{overTemp, battery.Settings{}, 30 * time.Second, []check{
			{"on its way", false, func(b, a seen) bool {
				return a.sunspec.TempMax.Value > 52 && a.sunspec.TempMax.Value < 54 && len(a.sunspec.Alarms) == 0 && has(a.sunspec.Warnings, "802 OVER_TEMP_WARNING")
			}},
			{"on its way on CAN", true, func(b, a seen) bool { return len(a.can.Alarms) == 0 && has(a.can.Warnings, "high temperature") }},
		}},
		{overTemp, battery.Settings{}, time.Minute, []check{
			{"the temperature", false, func(b, a seen) bool { return near(a.sunspec.TempMax.Value, 58) && near(a.sunspec.TempMin.Value, 21) }},
			{"the alarm", false, func(b, a seen) bool {
				return has(a.sunspec.Alarms, "802 OVER_TEMP_ALARM") && has(a.sunspec.Alarms, "804 string 1 OVER_TEMP_ALARM")
			}},
			{"CAN", false, func(b, a seen) bool {
				return has(a.can.Alarms, "high temperature") && near(a.can.Of(broadcast.TemperatureMax).Value, (58+21)/2.0)
			}},
		}},
		{contactorOpen, battery.Settings{}, 0, []check{
			{"the connection", false, func(b, a seen) bool {
				c := a.sunspec.Contactors[0]
				return a.sunspec.State.Name == "DISCONNECTED" && c.Known && !c.Closed && c.Enabled
			}},
			{"the alarm", false, func(b, a seen) bool {
				return has(a.sunspec.Alarms, "802 CONTACTOR_ERROR") && has(a.sunspec.Warnings, "CONTACTOR_FAILURE")
			}},
			{"no current, on all instruments", false, func(b, a seen) bool {
				for _, q := range a.sunspec.OtherA {
					if q.Value != 0 {
						return false
					}
				}
				return a.sunspec.A.Value == 0 && a.can.Of(broadcast.Current).Value == 0
			}},
			{"the voltage stays", true, func(b, a seen) bool {
				return near(a.sunspec.V.Value, b.sunspec.V.Value+(b.sunspec.A.Value-a.sunspec.A.Value)*battery.Cells*0.00024)
			}},
			{"the converter", false, func(b, a seen) bool {
				return a.sunspec.InvSt.Name == "OFF" && has(a.sunspec.ConverterAlarms, "DC_DISCONNECT")
			}},
			{"CAN", false, func(b, a seen) bool {
				return len(a.can.Alarms) > 0 && a.can.Charge == broadcast.Off && a.can.Of(broadcast.DischargeLimit).Value == 0
			}},
		}},
		{imbalance, battery.Settings{}, 0, []check{
			{"the cell", false, func(b, a seen) bool { return b.sunspec.CellMin.Value-a.sunspec.CellMin.Value > 0.06 }},
			{"the warning", false, func(b, a seen) bool { return has(a.sunspec.Warnings, "VOLTAGE_IMBALANCE_WARNING") }},
			{"no alarm", true, func(b, a seen) bool { return len(a.sunspec.Alarms)+len(a.can.Alarms) == 0 }},
			{"CAN", false, func(b, a seen) bool { return len(a.can.Warnings) > 0 }},
		}},
		{alarm, battery.Settings{}, 0, []check{
			{"SunSpec", false, func(b, a seen) bool {
				return has(a.sunspec.Alarms, "802 OTHER_ALARM") && has(a.sunspec.Alarms, "713 ERROR")
			}},
			{"CAN", false, func(b, a seen) bool { return len(a.can.Alarms) > 0 }},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := offline(t, Config{Battery: battery.Config{Start: battery.Settings{Current: new(11.0)}}})
				time.Sleep(10 * time.Second)
				d := decoder(t, "pylon-lv")
				before := see(t, s, d)
				if err := s.Fault(tt.name, true); err != nil {
					t.Fatal(err)
				}
				if got := s.Active(); !slices.Equal(got, []string{tt.name}) {
					t.Errorf("got %v active", got)
				}
				if err := s.Set(tt.change); err != nil {
					t.Fatal(err)
				}
				time.Sleep(max(tt.after, time.Second))
				after := see(t, s, d)
				for _, c := range tt.checks {
					if !c.ok(before, after) {
						t.Errorf("%s: not so.\nSunSpec before %+v\nand then %+v\nCAN %+v", c.what, before.sunspec, after.sunspec, after.can)
					}
					if !c.also && c.ok(before, before) {
						t.Errorf("%s: was so before, so that it says nothing about the fault", c.what)
					}
				}

				s.Clear()
				if err := s.Set(battery.Settings{Current: new(11.0)}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute) // to cool down, to charge, to ramp up
				again := see(t, s, d)
				if !rightOnSunSpec.ok(before, again) || !rightOnCAN.ok(before, again) || len(s.Active()) != 0 || len(again.sunspec.Warnings) != 0 {
					t.Errorf("after it was cleared: SunSpec %+v\nCAN %+v", again.sunspec, again.can)
				}
			})
		})
	}
}

// TestFaultsOfTheBus are those that concern answers, not values.
func TestFaultsOfTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, Config{})
		discover := func() (int, error) {
			d, err := sunspec.Discover(t.Context(), wire{s}, sunspec.Search{})
			if d == nil {
				return 0, err
			}
			return len(d.Models), err
		}
		on := func(name string) {
			t.Helper()
			s.Clear()
			if err := s.Fault(name, true); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := discover(); n != 9 || err != nil {
			t.Fatalf("got %d models, %v", n, err)
		}

		on(exception)
		if _, err := discover(); !errors.Is(err, modbus.DeviceFailure) {
			t.Errorf("exception: got %v", err)
		}
		if err := (wire{s}).WriteRegisters(t.Context(), s.registers.base.Address+50, []uint16{1}); !errors.Is(err, modbus.DeviceFailure) {
			t.Errorf("exception: writing got %v", err)
		}

		on(halfMap)
		for range 3 {
			if n, err := discover(); n != 7 || !errors.Is(err, modbus.IllegalAddress) {
				t.Errorf("half-map: got %d models, %v; want 7 and an error", n, err)
			}
		}
		half := s.registers.base.Address + 32
		if _, err := (wire{s}).ReadHolding(t.Context(), half-1, 1); err != nil {
			t.Errorf("half-map: the last register that is there: %v", err)
		}
		for _, write := range []bool{false, true} {
			_, err := wire{s}.ReadHolding(t.Context(), half, 1)
			if write {
				err = wire{s}.WriteRegisters(t.Context(), s.registers.base.Address+50, []uint16{1})
			}
			if !errors.Is(err, modbus.IllegalAddress) {
				t.Errorf("half-map: behind it, write %t: got %v", write, err)
			}
		}

		on(halfMapFirst)
		if n, err := discover(); n != 7 || err == nil {
			t.Errorf("half-map-first, first scan: got %d models, %v", n, err)
		}
		if n, err := discover(); n != 9 || err != nil {
			t.Errorf("half-map-first, second scan: got %d models, %v", n, err)
		}

		on(silent)
		if frames, err := s.frames(); len(frames) != 0 || err != nil {
			t.Errorf("silent: got %d frames, %v", len(frames), err)
		}

		for _, name := range []string{stale, frozen} { // the converter hears, the battery does not
			on(name)
			r := s.registers
			if err := (wire{s}).WriteRegisters(t.Context(), r.base.Address+50, []uint16{2}); !errors.Is(err, modbus.DeviceFailure) {
				t.Errorf("%s: opening the contactors: got %v", name, err)
			}
			if err := (wire{s}).WriteRegisters(t.Context(), r.controls.Address+24, []uint16{0, 100}); err != nil {
				t.Errorf("%s: a set-point: got %v", name, err)
			}
		}

		on(slow)
		begin := time.Now()
		if _, err := (wire{s}).ReadHolding(t.Context(), 40000, 2); err != nil || time.Since(begin) != slowness {
			t.Errorf("slow: got %v after %v", err, time.Since(begin))
		}
		s.Clear()
		begin = time.Now()
		if n, err := discover(); n != 9 || err != nil || time.Since(begin) != 0 {
			t.Errorf("cleared: got %d models, %v after %v", n, err, time.Since(begin))
		}
	})
}

// TestSoCMissingOnCAN: profiles without a mark for it keep the frame to themselves.
func TestSoCMissingOnCAN(t *testing.T) {
	for _, profile := range broadcast.Names() {
		s := offline(t, Config{Profile: profile, Faults: []string{socMissing}})
		st := hear(t, s, decoder(t, profile))
		if v := st.Of(broadcast.SoC); v.Available() || st.Frames == 0 && profile != "original" { // of which every frame has it
			t.Errorf("%s: got SoC %v in %d frames", profile, v.Value, st.Frames)
		}
	}
}

// TestCombined: faults add up, and a fault that is on before anybody asks is seen too.
func TestCombined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, Config{Battery: battery.Config{Start: battery.Settings{Current: new(20.0)}}, Faults: []string{signFlip, currentTenth, socMissing}})
		b := read(t, s)
		if b.A.Value != -2 || !math.IsNaN(b.SoC.Value) {
			t.Errorf("got %v A, %v %%", b.A.Value, b.SoC.Value)
		}
		if err := s.Fault(frozen, true); err != nil {
			t.Fatal(err)
		}
		if err := s.Fault(signFlip, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if b := read(t, s); b.Heartbeat.Value != 1 {
			t.Errorf("frozen in its first second: got heartbeat %d, want 1", b.Heartbeat.Value)
		}
	})
}

// TestEveryFaultIsTested keeps the table of the faults, these tests and the manual together.
func TestEveryFaultIsTested(t *testing.T) {
	tested := []string{stale, frozen, currentTenth, currentTenfold, signFlip, socStuck, socMissing, overTemp, contactorOpen,
		imbalance, alarm, halfMap, halfMapFirst, exception, slow, silent}
	manual, err := os.ReadFile("../../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Faults() {
		if !slices.Contains(tested, f.Name) || f.SunSpec == "" || f.CAN == "" {
			t.Errorf("the fault %s has no test or no description", f.Name)
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |\n", f.Name, f.SunSpec, f.CAN); !strings.Contains(string(manual), row) {
			t.Errorf("docs/simulator.md does not have the row %s", row)
		}
	}
	if len(tested) != len(Faults()) {
		t.Errorf("got %d faults, want %d", len(Faults()), len(tested))
	}
}
