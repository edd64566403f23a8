package overmodbus_test

import (
	"errors"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// The answer to INSTALL gets lost because the device restarts, for that or for another
// reason. To the one that is given again it says that there is no session: it is resumed,
// and then it shows that the installation was asked for.
func TestInstallOverARestart(t *testing.T) {
	release, f := file(t, 2500)
	for _, tt := range []struct {
		name   string
		serial int
		before bool // it restarts before it has heard INSTALL
	}{{"TCP", 0, false}, {"TCP, not heard", 0, true}, {"serial", 115200, false}, {"serial, not heard", 115200, true}} {
		bubble(t, tt.name, func(t *testing.T) {
			var g *rig
			heard, restarted := false, make(chan struct{})
			g = newRig(t, release, func(r *rig) {
				r.serial = tt.serial
				r.faults = bustest.Faults{Exactly: func(rec bustest.Record) bustest.Verdict {
					switch {
					case rec.From == bustest.Master && !heard && g.commandIn(rec) == profile.Install:
						heard = true
						if !tt.before {
							return bustest.Pass
						}
					case rec.From == bustest.Master || !heard || tt.before:
						return bustest.Pass
					default: // the first answer after it
						tt.before = true
					}
					go func() {
						defer close(restarted)
						g.restart(time.Second)
					}()
					return bustest.Lose
				}}
			})
			defer g.end()
			d := g.master(1)
			defer d.Close()
			if _, err := d.Identify(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.Send(t.Context(), f, push.Tell{}); err != nil {
				t.Fatal(err)
			}
			err := d.Install(t.Context())
			for range 10 { // as Run does
				if err == nil {
					break
				}
				t.Log(err)
				if !errors.Is(err, push.ErrLine) {
					t.Fatalf("install: got %v, want it asked for", err)
				}
				<-time.After(time.Second)
				err = d.Install(t.Context())
			}
			<-restarted
			if got, want := g.inbox().State().Phase, inbox.Requested; err != nil || got != want {
				t.Errorf("got the inbox %s and %v, want %s", got, err, want)
			}
		})
	}
}

// commandIn is the command that a frame gives; 0: none.
func (g *rig) commandIn(r bustest.Record) profile.Code {
	pdu := r.Data
	switch {
	case g.serial == 0 && len(pdu) > 7:
		pdu = pdu[7:]
	case g.serial != 0 && len(pdu) > 3:
		pdu = pdu[1 : len(pdu)-2]
	}
	q, err := modbus.ParseRequest(pdu)
	if err != nil || q.Function != modbus.WriteRegisters || q.Address != profile.Base+profile.OffsetCommand {
		return 0
	}
	registers := make([]uint16, profile.CommandSize)
	modbus.Registers(registers, q.Data)
	return profile.Code(registers[0])
}
