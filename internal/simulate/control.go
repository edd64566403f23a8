package simulate

import (
	"fmt"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/battery"
)

// written is what a controller wrote and reads back as it was.
type written struct {
	converterHb uint32 // 715 ControllerHb
	opCtl       uint16 // 715 OpCtl
	batteryHb   uint16 // 802 CtrlHb
	setOp       uint16 // 802 SetOp
	setInvState uint16 // 802 SetInvState
}

// Values of 715 OpCtl, 802 SetOp and SetInvState (model definitions).
const (
	opStop, opStart, opEnterStandby, opExitStandby = 0, 1, 2, 3
	opConnect, opDisconnect                        = 1, 2
	invStopped, invStandby, invStarted             = 1, 2, 3
)

// controllable are the points that can be written. Everything else is exception 2.
var controllable = map[uint16][]string{
	704: {"WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetPct", "WSetPctRvrt", "WSetEnaRvrt", "WSetRvrtTms", "WRmp"},
	715: {"ControllerHb", "AlarmReset", "OpCtl"},
	802: {"CtrlHb", "AlmRst", "SetOp", "SetInvState"},
}

// assignment is one point of a write.
type assignment struct {
	model uint16
	name  string
	raw   uint64
}

// assignments cuts registers into whole points that can be written.
func (r *registers) assignments(address uint16, values []uint16) ([]assignment, error) {
	var all []assignment
	for i := 0; i < len(values); {
		p, model, found := r.controllable(int(address) + i)
		if !found || i+int(p.Size()) > len(values) {
			return nil, fmt.Errorf("write register %d: %w", int(address)+i, modbus.IllegalAddress)
		}
		raw := uint64(0)
		for range p.Size() {
			raw = raw<<16 | uint64(values[i])
			i++
		}
		all = append(all, assignment{model, p.Name, raw})
	}
	return all, nil
}

func (r *registers) controllable(address int) (sunspec.Point, uint16, bool) {
	for _, m := range []sunspec.Model{r.controls, r.control, r.base} {
		for _, name := range controllable[m.ID] {
			for _, p := range sunspec.Define(m.ID).Points {
				if p.Name == name && int(m.Address)+int(p.Offset) == address {
					return p, m.ID, true
				}
			}
		}
	}
	return sunspec.Point{}, 0, false
}

// control does what was written, wholly or not at all. The caller holds the lock.
func (s *System) control(all []assignment) error {
	next, set, change := s.written, battery.Settings{}, func(*battery.Controls) {}
	commands := false
	for _, a := range all {
		if a.model == 802 && (s.faults[stale] || s.faults[frozen]) {
			return fmt.Errorf("write %s: the management system does not answer: %w", a.name, modbus.DeviceFailure)
		}
		one, err := a.order(&next, &set)
		if err != nil {
			return err
		}
		if one != nil {
			before := change
			change, commands = func(c *battery.Controls) { before(c); one(c) }, true
		}
	}
	if commands {
		if err := s.battery.Control(change); err != nil {
			return fmt.Errorf("%w: %w", err, modbus.IllegalValue)
		}
	}
	if err := s.battery.Set(set); err != nil { // only an order to the contactors, which is never refused
		return err
	}
	s.written, s.changed = next, true
	return nil
}

// order is what one point tells the converter, if it does; next and set get the rest.
func (a assignment) order(next *written, set *battery.Settings) (func(*battery.Controls), error) {
	wrong := fmt.Errorf("write %d to %s: %w", a.raw, a.name, modbus.IllegalValue)
	toggle := func(set func(c *battery.Controls, on bool)) (func(*battery.Controls), error) {
		if a.raw > 1 {
			return nil, wrong
		}
		return func(c *battery.Controls) { set(c, a.raw == 1) }, nil
	}
	switch a.name {
	case "WSetEna":
		return toggle(func(c *battery.Controls, on bool) { c.Enabled = on })
	case "WSetMod": // 0: percent
		return toggle(func(c *battery.Controls, watts bool) { c.Percent = !watts })
	case "WSetEnaRvrt":
		return toggle(func(c *battery.Controls, on bool) { c.RevertEnabled = on })
	case "WSet":
		return func(c *battery.Controls) { c.W = float64(int32(a.raw)) }, nil
	case "WSetRvrt":
		return func(c *battery.Controls) { c.RevertW = float64(int32(a.raw)) }, nil
	case "WSetPct": // WSetPct_SF is -1
		return func(c *battery.Controls) { c.Pct = float64(int16(a.raw)) / 10 }, nil
	case "WSetPctRvrt":
		return func(c *battery.Controls) { c.RevertPct = float64(int16(a.raw)) / 10 }, nil
	case "WSetRvrtTms":
		return func(c *battery.Controls) { c.RevertAfter = time.Duration(a.raw) * time.Second }, nil
	case "WRmp":
		return func(c *battery.Controls) { c.Ramp = float64(a.raw) }, nil
	case "ControllerHb":
		next.converterHb = uint32(a.raw)
	case "CtrlHb":
		next.batteryHb = uint16(a.raw)
	case "AlmRst", "AlarmReset": // alarms follow the values; there is nothing to reset
	case "SetOp":
		if a.raw != opConnect && a.raw != opDisconnect {
			return nil, wrong
		}
		open := a.raw == opDisconnect
		next.setOp, set.ContactorsOpen = uint16(a.raw), &open
	case "SetInvState":
		order, found := map[uint64]battery.Order{invStopped: battery.Stop, invStandby: battery.Standby, invStarted: battery.Run}[a.raw]
		if !found {
			return nil, wrong
		}
		next.setInvState = uint16(a.raw)
		return func(c *battery.Controls) { c.Order = order }, nil
	case "OpCtl":
		order, found := map[uint64]battery.Order{opStop: battery.Stop, opStart: battery.Run, opEnterStandby: battery.Standby, opExitStandby: battery.Run}[a.raw]
		if !found {
			return nil, wrong
		}
		next.opCtl = uint16(a.raw)
		return func(c *battery.Controls) {
			if a.raw == opStart || c.Order != battery.Stop { // who was stopped has to be started
				c.Order = order
			}
		}, nil
	}
	return nil, nil
}
