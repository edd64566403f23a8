package der_test

import (
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/simulate"
	"github.com/interlock-energy/ota/plant/der"
)

// TestSimulated quiesces the simulated battery, which was written without this
// package in mind, over Modbus TCP.
func TestSimulated(t *testing.T) {
	for _, test := range []struct {
		name    string
		config  der.Config
		ramp    float64           // 704 WRmp, %/s; 0: none
		prepare []sunspec.Setting // of 704
	}{
		{"no set-point", der.Config{DeadMan: time.Minute}, 50, nil},
		{"set-point, ramp by the converter", der.Config{DeadMan: time.Minute}, 50,
			[]sunspec.Setting{sunspec.Symbolic("WSetMod", "WATTS"), sunspec.Number("WSet", -20_000), sunspec.Symbolic("WSetEna", "ENABLED")}},
		{"set-point, ramp by steps", der.Config{DeadMan: time.Minute, RatedW: 100_000}, 0,
			[]sunspec.Setting{sunspec.Symbolic("WSetMod", "W_MAX_PCT"), sunspec.Number("WSetPct", 60), sunspec.Symbolic("WSetEna", "ENABLED")}},
		{"contactors", der.Config{DeadMan: time.Minute, OpenContactors: true}, 50, nil},
		{"standby by 715", der.Config{NoDeadMan: true, Control: der.Standby715}, 50, nil},
		{"standby by 802", der.Config{NoDeadMan: true, Control: der.Standby802}, 50, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			system, err := simulate.Start(t.Context(), simulate.Config{SunSpec: "127.0.0.1:0"})
			if err != nil {
				t.Fatal(err)
			}
			defer system.Close()
			if err := system.Set(battery.Settings{Current: new(30.0)}); err != nil {
				t.Fatal(err)
			}
			client, err := modbus.Dial(t.Context(), system.Where("sunspec"), modbus.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			unit := client.Unit(1)
			device, err := sunspec.Discover(t.Context(), unit, sunspec.Search{})
			if err != nil {
				t.Fatal(err)
			}
			controls := device.Find(704)[0]
			must(t, sunspec.WritePoints(t.Context(), unit, controls, append(test.prepare, sunspec.Number("WRmp", test.ramp))...))
			read := func() sunspec.Block {
				b, err := sunspec.ReadModel(t.Context(), unit, controls)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			found := read()

			c := test.config
			c.Registers, c.File = unit, filepath.Join(t.TempDir(), "plant-converter")
			c.Timeout, c.Ramp, c.Settle, c.Poll = 30*time.Second, 50, 300*time.Millisecond, 50*time.Millisecond
			c.Progress = func(text string) { t.Log(text) }
			d := open(t, &c)
			must(t, d.Quiesce(t.Context()))
			if got, err := sunspec.ReadBattery(t.Context(), unit, device); err != nil || math.Abs(got.A.Value) > 1 {
				t.Errorf("quiesced: got %v, %v, want at most 1 A", got.A, err)
			}
			must(t, d.Resume(t.Context()))
			if got, err := sunspec.ReadBattery(t.Context(), unit, device); err != nil || got.State.Name != "CONNECTED" {
				t.Errorf("resumed: got %+v, %v", got.State, err)
			}
			now := read()
			for _, p := range sunspec.Define(704).Points {
				was, errWas := found.Integer(p.Name)
				is, errIs := now.Integer(p.Name)
				if p.Writable && (was != is || (errWas == nil) != (errIs == nil)) {
					t.Errorf("%s: got %d, found was %d", p.Name, is, was)
				}
			}
		})
	}
}
