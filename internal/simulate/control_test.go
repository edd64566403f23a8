package simulate

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/battery"
)

// plant is a system with the models that control it.
type plant struct {
	*System
	t                               *testing.T
	controls, control, base, ac, dc sunspec.Model
}

func control(t *testing.T, cfg battery.Settings) *plant {
	t.Helper()
	s := offline(t, Config{Battery: battery.Config{Start: cfg}})
	r := s.registers
	return &plant{s, t, r.controls, r.control, r.base, r.ac, r.dc}
}

func (p *plant) write(m sunspec.Model, settings ...sunspec.Setting) {
	p.t.Helper()
	if err := sunspec.WritePoints(p.t.Context(), wire{p.System}, m, settings...); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plant) float(m sunspec.Model, point string) float64 {
	p.t.Helper()
	b, err := sunspec.ReadModel(p.t.Context(), wire{p.System}, m)
	if err != nil {
		p.t.Fatal(err)
	}
	return b.Float(point)
}

func (p *plant) enum(m sunspec.Model, point string) string {
	p.t.Helper()
	b, err := sunspec.ReadModel(p.t.Context(), wire{p.System}, m)
	if err != nil {
		p.t.Fatal(err)
	}
	e, err := b.Enum(point)
	if err != nil {
		p.t.Fatal(err)
	}
	return e.Name
}

func (p *plant) near(m sunspec.Model, point string, want, within float64) {
	p.t.Helper()
	if got := p.float(m, point); math.Abs(got-want) > within {
		p.t.Errorf("%d %s: got %v, want %v give or take %v", m.ID, point, got, want, within)
	}
}

// TestRampDown does what is done before an update: a dead-man, a ramp, and 0 W.
func TestRampDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := control(t, battery.Settings{Current: new(100.0)})
		before := p.float(p.ac, "W")
		if before < 66_000 || before > 69_000 {
			t.Fatalf("got %v W at 100 A", before)
		}
		p.write(p.controls, sunspec.Symbolic("WSetEnaRvrt", "DISABLED"), sunspec.Number("WSetRvrtTms", 60))
		p.write(p.controls, sunspec.Number("WRmp", 10))
		p.write(p.controls, sunspec.Symbolic("WSetMod", "WATTS"), sunspec.Number("WSet", 0))
		p.write(p.controls, sunspec.Symbolic("WSetEna", "ENABLED"))
		p.near(p.ac, "W", before, 1)
		p.near(p.controls, "WSetRvrtRem", 60, 0)

		time.Sleep(2 * time.Second) // 10 % of 100 kW each
		p.near(p.ac, "W", before-20_000, 10)
		p.near(p.dc, "DCA", (before-20_000)/0.98/688, 0.5)
		p.near(p.base, "A", p.float(p.dc, "DCA"), 0.1)
		time.Sleep(5 * time.Second)
		p.near(p.ac, "W", 0, 0)
		p.near(p.dc, "DCA", 0, 0)
		p.near(p.base, "A", 0, 0)
		p.near(p.controls, "WSetRvrtRem", 53, 0)

		// Commands keep the dead-man from acting.
		time.Sleep(50 * time.Second)
		p.write(p.controls, sunspec.Number("WSet", 0))
		time.Sleep(59 * time.Second)
		p.near(p.controls, "WSetRvrtRem", 1, 0)
		p.near(p.ac, "W", 0, 0)

		// Nobody is there any more: the converter goes back by itself, with the ramp.
		time.Sleep(time.Second)
		p.near(p.controls, "WSetRvrtRem", 0, 0)
		if got := p.enum(p.controls, "WSetEna"); got != "DISABLED" {
			t.Errorf("WSetEna: got %s", got)
		}
		time.Sleep(time.Second)
		p.near(p.ac, "W", 10_000, 1000)
		time.Sleep(10 * time.Second)
		p.near(p.ac, "W", before, 200)
		p.near(p.base, "A", 100, 0)
	})
}

// TestRevertToSetPoint: the dead-man returns to another set-point if told so.
func TestRevertToSetPoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := control(t, battery.Settings{})
		p.write(p.controls, sunspec.Number("WSet", -20_000), sunspec.Number("WSetRvrt", 5_000))
		p.write(p.controls, sunspec.Symbolic("WSetEnaRvrt", "ENABLED"), sunspec.Number("WSetRvrtTms", 30))
		p.write(p.controls, sunspec.Symbolic("WSetEna", "ENABLED"))
		time.Sleep(29 * time.Second)
		p.near(p.ac, "W", -20_000, 0)
		if a := p.float(p.base, "A"); a > -26 || a < -30 { // charging: less arrives than the grid gives
			t.Errorf("got %v A", a)
		}
		time.Sleep(10 * time.Second)
		p.near(p.ac, "W", 5_000, 0)
		p.near(p.controls, "WSet", 5_000, 0)
		if got := p.enum(p.controls, "WSetEna"); got != "ENABLED" {
			t.Errorf("WSetEna: got %s", got)
		}
	})
}

func TestPercentAndSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := control(t, battery.Settings{})
		p.write(p.controls, sunspec.Number("WRmp", 0)) // no ramp
		p.write(p.controls, sunspec.Number("WSetPct", 12.5))
		p.write(p.controls, sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Symbolic("WSetMod", "W_MAX_PCT"))
		p.near(p.ac, "W", 12_500, 0)
		p.write(p.controls, sunspec.Symbolic("WSetEna", "DISABLED"))
		time.Sleep(time.Second)
		p.near(p.ac, "W", 0, 0)
	})
}

// TestStandby: the converter's states on its way, by either of the two orders.
func TestStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := control(t, battery.Settings{Current: new(30.0)}) // 20 kW: two seconds of ramp
		for _, step := range []struct {
			order     func()
			wait      time.Duration
			inv, base string
		}{
			{func() {}, 0, "RUNNING", "CONNECTED"},
			{func() { p.write(p.control, sunspec.Symbolic("OpCtl", "ENTER_STANDBY")) }, time.Second, "SHUTTING_DOWN", "CONNECTED"},
			{func() {}, 2 * time.Second, "STANDBY", "STANDBY"},
			{func() { p.write(p.control, sunspec.Symbolic("OpCtl", "EXIT_STANDBY")) }, time.Second, "RUNNING", "CONNECTED"},
			{func() { p.write(p.base, sunspec.Symbolic("SetInvState", "INVERTER_STOPPED")) }, 5 * time.Second, "OFF", "STANDBY"},
			{func() { p.write(p.control, sunspec.Symbolic("OpCtl", "EXIT_STANDBY")) }, time.Second, "OFF", "STANDBY"}, // it was stopped
			{func() { p.write(p.base, sunspec.Symbolic("SetInvState", "INVERTER_STARTED")) }, time.Second, "STARTING", "CONNECTED"},
			{func() {}, 5 * time.Second, "RUNNING", "CONNECTED"},
		} {
			step.order()
			time.Sleep(step.wait)
			if inv, base := p.enum(p.ac, "InvSt"), p.enum(p.base, "State"); inv != step.inv || base != step.base {
				t.Errorf("got %s and %s, want %s and %s", inv, base, step.inv, step.base)
			}
		}
		p.near(p.base, "A", 30, 0)
	})
}

// TestContactors: opened and closed by order, with a precharge, and no alarm.
func TestContactors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := control(t, battery.Settings{Current: new(30.0)})
		p.write(p.base, sunspec.Symbolic("SetOp", "DISCONNECT"))
		p.near(p.base, "A", 0, 0)
		if got := p.enum(p.base, "State"); got != "DISCONNECTED" {
			t.Errorf("got %s", got)
		}
		if b := read(t, p.System); len(b.Alarms) != 0 || b.Contactors[0].Closed {
			t.Errorf("got %+v", b)
		}
		p.write(p.base, sunspec.Symbolic("SetOp", "CONNECT"))
		time.Sleep(2 * time.Second)
		if got := p.enum(p.base, "State"); got != "INITIALIZING" {
			t.Errorf("got %s", got)
		}
		p.near(p.base, "A", 0, 0)
		time.Sleep(2 * time.Second)
		if got := p.enum(p.base, "State"); got != "CONNECTED" {
			t.Errorf("got %s", got)
		}
		time.Sleep(3 * time.Second)
		p.near(p.base, "A", 30, 0)
	})
}
