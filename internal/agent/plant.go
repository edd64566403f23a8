package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmscan"
	"github.com/interlock-energy/ota/gate/bms/bmssunspec"
)

// SunSpec says what is particular about a device's models.
type SunSpec struct {
	Base       *uint16  `yaml:"base"`       // address where they may begin; default 40000, 0 and 50000
	Directions string   `yaml:"directions"` // of a positive current: charging or discharging; ignore: nothing can be said
	Patience   Duration `yaml:"patience"`   // to find the models; default 30s
}

// CAN says where a battery broadcasts, and how. One of Interface, SLCAN and TCP is given.
type CAN struct {
	Interface string `yaml:"interface"` // of Linux, for example can0
	SLCAN     *SLCAN `yaml:"slcan"`     // a serial adapter
	TCP       string `yaml:"tcp"`       // host:port of a converter

	Profile     string   `yaml:"profile"`
	Address     int      `yaml:"address"`       // of a battery of pylon-hv, 0 to 15
	Rated       float64  `yaml:"rated_current"` // A; more than twice of it is not plausible
	Reverse     bool     `yaml:"reverse_current"`
	FirstModule int      `yaml:"first_module"` // for original
	Silent      bool     `yaml:"silent"`       // send no keep-alive: an inverter does
	FrozenAfter Duration `yaml:"frozen_after"` // default 1m
}

// SLCAN is a serial CAN adapter.
type SLCAN struct {
	Device       string `yaml:"device"`
	Baud         int    `yaml:"baud"`          // of the serial line; default 115200
	Bitrate      int    `yaml:"bitrate"`       // of the bus; default 500000
	NeverAnswers bool   `yaml:"never_answers"` // the adapter says nothing to commands, as some do
}

func (a *Agent) newSunSpec(in *Instrument) (bms.Reader, error) {
	unit, err := a.links.unit(in.Modbus)
	if err != nil {
		return nil, fmt.Errorf(".%w", err)
	}
	c := bmssunspec.Config{Registers: unit, Source: fmt.Sprintf("SunSpec at %s unit %d", in.Modbus.name(), unit.ID)}
	if s := in.SunSpec; s != nil {
		if s.Base != nil {
			c.Search = sunspec.Search{Bases: []uint16{*s.Base}}
		}
		c.Directions, c.Patience = bmssunspec.Directions(s.Directions), time.Duration(s.Patience)
	}
	r, err := bmssunspec.New(c)
	if err != nil {
		return nil, fmt.Errorf(": %w", err)
	}
	return r.Read, nil
}

func (a *Agent) newCAN(in *Instrument) (bms.Reader, error) {
	c := in.CAN
	if c == nil {
		return nil, errors.New(".can is missing: where the battery broadcasts, and its profile")
	}
	if c.Address < 0 || c.Address > 15 || c.FirstModule < 0 || c.FirstModule > 255 {
		return nil, fmt.Errorf(".can.address is %d and .can.first_module %d, want 0 to 15 and 0 to 255", c.Address, c.FirstModule)
	}
	options := broadcast.Options{RatedCurrent: c.Rated, ReverseCurrent: c.Reverse, Address: uint8(c.Address), FirstModule: uint8(c.FirstModule)}
	open, source, err := a.openCAN(c, options)
	if err != nil {
		return nil, fmt.Errorf(".can: %w", err)
	}
	config := bmscan.Config{Open: open, Source: fmt.Sprintf("CAN %s on %s", c.Profile, source), Profile: c.Profile, Silent: c.Silent,
		Options: options, FrozenAfter: time.Duration(c.FrozenAfter), Log: a.log}
	if c.Profile == "" {
		return nil, fmt.Errorf(".can.profile is missing; known are %s", strings.Join(broadcast.Names(), ", "))
	}
	l, err := bmscan.New(config)
	if err != nil {
		return nil, fmt.Errorf(".can: %w", err)
	}
	a.listeners = append(a.listeners, l)
	return l.Read, nil
}

// openCAN returns how the battery's reader gets at the bus, and the bus's name for people.
func (a *Agent) openCAN(c *CAN, options broadcast.Options) (open func(context.Context) (can.Bus, error), name string, err error) {
	if err := oneWay(c.Interface, c.SLCAN, c.TCP); err != nil {
		return nil, "", err
	}
	if c.Interface != "" { // which Linux shares
		return func(context.Context) (can.Bus, error) { return can.DialSocketCAN(c.Interface, nil) }, c.Interface, nil
	}
	link, err := a.adapters.share("battery.can", c.SLCAN, c.TCP, 0)
	if err != nil {
		return nil, "", err
	}
	// Of the frames of a transfer beside it none takes the place of the battery's.
	user := can.UserConfig{ListenOnly: c.Silent}
	if profile, err := broadcast.Named(c.Profile); err == nil { // bmscan says what is wrong with it
		user.Filters = profile.Filters(options)
	}
	return func(ctx context.Context) (can.Bus, error) { return link.Join(ctx, user) }, link.String(), nil
}

// oneWay says what is wrong with the ways to a bus that are given.
func oneWay(iface string, adapter *SLCAN, tcp string) error {
	var ways []string
	for _, w := range []struct {
		key   string
		given bool
	}{{"interface", iface != ""}, {"slcan", adapter != nil}, {"tcp", tcp != ""}} {
		if w.given {
			ways = append(ways, w.key)
		}
	}
	switch len(ways) {
	case 0:
		return errors.New("interface, slcan and tcp are missing; one of them says where the bus is")
	case 1:
		return nil
	}
	return fmt.Errorf("%s are given; keep one", strings.Join(ways, " and "))
}

// openPlant starts what listens to the plant; nothing listens before the agent runs,
// for a configuration is also made to be checked. The caller ends it with closePlant.
func (a *Agent) openPlant() {
	for _, l := range a.listeners {
		l.Start()
	}
}

func (a *Agent) closePlant() {
	for _, l := range a.listeners {
		if err := l.Close(); err != nil {
			a.log.Warn("stop listening to the battery", "error", err)
		}
	}
	for _, c := range a.converters {
		if err := c.Close(); err != nil {
			a.log.Warn("leave a converter", "error", err)
		}
	}
	if err := a.links.close(); err != nil {
		a.log.Warn("close the connections to the plant", "error", err)
	}
}
