package simulate

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/plant/der"
)

// TestQuiesce: the plant is brought to rest and back, as a device does it before and
// after an update.
func TestQuiesce(t *testing.T) {
	for name, change := range map[string]func(*der.Config){
		"set-point":    func(*der.Config) {},
		"standby, 715": func(c *der.Config) { c.Control, c.DeadMan, c.NoDeadMan = der.Standby715, 0, true },
		"standby, 802": func(c *der.Config) { c.Control, c.DeadMan, c.NoDeadMan = der.Standby802, 0, true },
		"contactors":   func(c *der.Config) { c.OpenContactors = true },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := offline(t, Config{Battery: battery.Config{Start: battery.Settings{Current: new(80.0)}}})
				cfg := der.Config{Registers: wire{s}, File: filepath.Join(dir, "plant"), DeadMan: 5 * time.Minute}
				change(&cfg)
				converter, err := der.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				if err := converter.Quiesce(t.Context()); err != nil {
					t.Fatal(err)
				}
				if m := s.Measure(); m.Current != 0 || m.ACPower != 0 || (m.Connection == battery.Disconnected) != cfg.OpenContactors {
					t.Errorf("quiesced: got %s", s.Status())
				}
				if err := converter.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Second)
				if m := s.Measure(); m.Current != 80 || m.Controls.Enabled || m.Connection != battery.Connected {
					t.Errorf("resumed: got %s", s.Status())
				}
			})
		})
	}
}
