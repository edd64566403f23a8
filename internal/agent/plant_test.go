package agent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/simulate"
)

// buses are the ways from a simulated battery system to an agent, all of them real
// but for the wires: TCP, and pseudo terminals.
var buses = []struct {
	name   string
	serve  func(*simulate.Config)
	reader func(*simulate.System) string // lines of the agent's configuration
}{
	{"SunSpec over TCP", func(c *simulate.Config) { c.SunSpec = "127.0.0.1:0" }, func(s *simulate.System) string {
		return fmt.Sprintf("reader: sunspec, modbus: {address: %q}", s.Where("sunspec"))
	}},
	{"SunSpec over RTU", func(c *simulate.Config) { c.RTU = simulate.Line{Path: "pty"} }, func(s *simulate.System) string {
		return fmt.Sprintf("reader: sunspec, modbus: {serial: {device: %q}}", s.Where("sunspec-rtu"))
	}},
	{"CAN over SLCAN", func(c *simulate.Config) { c.SLCAN, c.Profile = simulate.Line{Path: "pty"}, "victron" }, func(s *simulate.System) string {
		return fmt.Sprintf("reader: can, can: {slcan: {device: %q}, profile: victron, frozen_after: 4s}", s.Where("slcan"))
	}},
	{"CAN over SLCAN, compared with SunSpec", func(c *simulate.Config) {
		c.SLCAN, c.Profile, c.SunSpec = simulate.Line{Path: "pty"}, "victron", "127.0.0.1:0"
	}, func(s *simulate.System) string {
		return fmt.Sprintf("reader: can, can: {slcan: {device: %q}, profile: victron, frozen_after: 4s}, compare: [{reader: sunspec, modbus: {address: %q}, sunspec: {directions: discharging}}]",
			s.Where("slcan"), s.Where("sunspec"))
	}},
}

// refused is what a fault must lead to, by bus: SunSpec, CAN alone, and CAN compared.
// Empty: this bus alone does not show it, and says so in docs/safety.md.
var refused = []struct {
	fault                  string
	sunspec, can, compared string
}{
	{"stale", "heartbeat of SunSpec .* has stood at", "is .*s old, want at most", "is .*s old, want at most"},
	{"frozen", "heartbeat of SunSpec .* has stood at", "heartbeat of CAN .* has stood at", "heartbeat of .* has stood at"},
	{"current-tenth", "current is -?[01].. A by SunSpec .* apart, want at most", "", "current is -?[01].. A by CAN .* apart, want at most"},
	{"current-tenfold", "current -?[78]\\S* A, want at most 10 A", "current -?[78]\\S* A, want at most 10 A", "current -?[78]\\S* A, want at most 10 A"},
	{"sign-flip", "disagree on the direction", "", "disagree on the direction"},
	{"soc-stuck", "state of charge is 2.* %.* apart, want at most 5 %", "", "state of charge is 2.* %.* apart, want at most 5 %"},
	{"soc-missing", "state of charge is not available", "state of charge is not available", "state of charge is not available"},
	{"over-temperature", "highest temperature .* °C, want at most 45 °C", "highest temperature .* °C, want at most 45 °C", "highest temperature .* °C, want at most 45 °C"},
	{"contactor-open", "CONTACTOR_ERROR", "contactor", "contactor"},
	{"alarm", "OTHER_ALARM", "alarm", "alarm"},
	{"silent", "no answer|deadline|timeout|did not answer|within", "is .*s old, want at most", "is .*s old|within|answer"},
	{"half-map", "illegal data address", "", "illegal data address"},
	{"exception", "device failure", "", "device failure"},
	{"slow", "within|deadline|answer", "", "within|deadline|answer"},
}

// TestPlant: an update waits while the battery says no, for each way to read it and
// everything that can be wrong with it, each with its own reason; and goes on in the
// end. The server, the agent and the protocols are real, the battery is simulated.
func TestPlant(t *testing.T) {
	t.Parallel()
	for _, bus := range buses {
		t.Run(bus.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			current, soc := 8.0, 22.0
			config := simulate.Config{Battery: battery.Config{Noise: true, Start: battery.Settings{SoC: &soc, Current: &current}}}
			bus.serve(&config)
			ctx, stop := context.WithCancel(context.Background())
			t.Cleanup(stop)
			plant, err := simulate.Start(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			s.config = regexp.MustCompile(`(?m)^battery: .*$`).ReplaceAllLiteralString(s.config, "battery: {"+bus.reader(plant)+", max_age: 3s}")
			s.config = strings.Replace(s.config, "dwell: 200ms", "dwell: 2s", 1)
			s.publish("1.0.1", firmware("1.0.1", "", 100_000))
			a, _ := s.start()

			says := func(what, pattern string, code ota.ErrorCode) {
				t.Helper()
				re := regexp.MustCompile(pattern)
				got := wait(t, a, what+": "+pattern, func(s ota.Snapshot) bool { return s.Code == code && re.MatchString(s.Reason) })
				if got.State != ota.Available {
					t.Errorf("%s: state %s, want nothing written", what, got.State)
				}
			}
			set := func(soc, hot, cold, amps float64) {
				t.Helper()
				if err := plant.Set(battery.Settings{SoC: &soc, TemperatureMax: &hot, TemperatureMin: &cold, Current: &amps}); err != nil {
					t.Fatal(err)
				}
			}
			says("22 %", `state of charge 2[12]\S* %, want at least 30 %`, ota.ErrBatteryLow)
			const low = 29 // too little all the time, so that no update slips through between two steps
			set(low, 46, 20, 0)
			says("46 °C", `highest temperature 4[56]\S* °C, want at most 45 °C`, ota.ErrBMSUnsafe)
			set(low, 25, -1, 0)
			says("-1 °C", `lowest temperature -[01]\S* °C, want at least 0 °C`, ota.ErrBMSUnsafe)
			set(low, 25, 22, 11)
			says("11 A", `current -?1[01]\S* A, want at most 10 A`, ota.ErrBMSUnsafe)

			set(low, 25, 22, 8)
			for _, f := range refused {
				pattern := f.sunspec
				switch {
				case strings.Contains(bus.name, "compared"):
					pattern = f.compared
				case strings.HasPrefix(bus.name, "CAN"):
					pattern = f.can
				}
				if pattern == "" {
					continue
				}
				if err := plant.Fault(f.fault, true); err != nil {
					t.Fatal(err)
				}
				if f.fault == "soc-stuck" {
					set(2*low, 25, 22, 8)
				}
				says(f.fault, pattern, ota.ErrBMSUnsafe)
				plant.Clear()
				set(low, 25, 22, 8)
				says("after "+f.fault, `^state of charge 2\d\S* %, want at least 30 %$`, ota.ErrBatteryLow)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "slots", "b", "controller.img")); err == nil {
				t.Error("slot B was written although the battery said no")
			}
			set(29.4, 25, 22, 8)
			set(30.4, 25, 22, 8)
			began := time.Now()
			wait(t, a, "success", ends("1.0.1", ota.Succeeded))
			if took := time.Since(began); took < 2*time.Second {
				t.Errorf("it went on after %v, want the dwell time of 2 s first", took)
			}
		})
	}
}

// TestKilledWhileQuiesced: the agent is killed at one moment after the other between
// quiescing the converter and resuming it. Its next start leaves the plant as it was
// found, at work, and the update ends all the same.
func TestKilledWhileQuiesced(t *testing.T) {
	t.Parallel()
	for _, moment := range []struct {
		name string
		now  func(m battery.Measurement, started bool) bool
	}{
		{"the dead-man is armed", func(m battery.Measurement, _ bool) bool { return m.Controls.RevertAfter > 0 }},
		{"the set-point is ours", func(m battery.Measurement, _ bool) bool { return m.Controls.Enabled }},
		{"on the way down", func(m battery.Measurement, _ bool) bool { return m.Controls.Enabled && m.Current < 6 }},
		{"at rest", func(m battery.Measurement, _ bool) bool { return m.Controls.Enabled && m.Current < 0.5 }},
		{"on trial", func(m battery.Measurement, started bool) bool { return started }},
	} {
		t.Run(moment.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			const amps = 8.0
			current := amps
			plant, err := simulate.Start(t.Context(), simulate.Config{SunSpec: "127.0.0.1:0", Battery: battery.Config{Start: battery.Settings{Current: &current}}})
			if err != nil {
				t.Fatal(err)
			}
			found := plant.Measure().Controls
			modbus := fmt.Sprintf("modbus: {address: %q}", plant.Where("sunspec"))
			s.config = regexp.MustCompile(`(?m)^battery: .*$`).ReplaceAllLiteralString(s.config, "battery: {reader: sunspec, "+modbus+"}") +
				"quiesce: [{name: converter, der: {" + modbus + ", ramp: 1, settle: 500ms}}]\nhealth: [{battery: as_before}]\n"
			s.config = strings.NewReplacer("max_tries: 1", "max_tries: 3", "rollback_timeout: 4s", "rollback_timeout: 30s", "validation_time: 1s", "validation_time: 3s").Replace(s.config)
			started := filepath.Join(s.dir, "started")
			s.publish("1.0.1", firmware("1.0.1", "echo >"+started, 10_000))

			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "INTERLOCK_TEST_AGENT="+s.write("interlockd.yaml", []byte(s.config)))
			cmd.Stderr = testWriter{t}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			quiesced := false
			for began := time.Now(); !quiesced; <-time.After(5 * time.Millisecond) {
				_, err := os.Stat(started)
				if quiesced = moment.now(plant.Measure(), err == nil); !quiesced && time.Since(began) > patience {
					t.Error("the moment did not come")
					break
				}
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if m := plant.Measure(); m.Controls.RevertAfter == 0 {
				t.Error("killed when the plant was not quiesced, so that nothing is shown")
			}

			a, _ := s.start()
			wait(t, a, "success", ends("1.0.1", ota.Succeeded))
			for began := time.Now(); ; <-time.After(20 * time.Millisecond) {
				if m := plant.Measure(); m.Controls == found && m.Current > amps-1 {
					break
				} else if time.Since(began) > patience/3 {
					t.Fatalf("after the update the plant has %+v and %.1f A, want %+v and %.1f A", m.Controls, m.Current, found, amps)
				}
			}
		})
	}
}
