package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/serial"
)

// adapters are the ways to a CAN bus that have room for one: serial adapters, and converters
// that take one connection. Whatever in the configuration names the same one shares it: a small
// device has one, for the battery that broadcasts and for the tester that brings a release.
type adapters struct {
	mu sync.Mutex
	by map[string]*adapter // by device or address
}

type adapter struct {
	bus    *can.Shared
	user   string // who named it first
	others bool   // somebody else did, too
	how    SLCAN  // with defaults; of a converter nothing is set
}

const (
	slcanBaud    = 115200
	slcanBitrate = 500_000
)

// share returns the link that these settings name, for the user with this name; one of slcan
// and tcp is given. bitrate is what else the configuration says of the bus; 0: nothing.
// Nothing is opened.
func (l *adapters) share(user string, slcan *SLCAN, tcp string, bitrate int) (*can.Shared, error) {
	key, section := "tcp "+strings.ToLower(tcp), "tcp"
	var how SLCAN
	if slcan != nil {
		if slcan.Device == "" {
			return nil, errors.New("slcan.device is missing, for example /dev/ttyACM0")
		}
		if slcan.Bitrate != 0 && bitrate != 0 && slcan.Bitrate != bitrate {
			return nil, fmt.Errorf("slcan.bitrate is %d and bitrate %d, and the bus has one; keep one of them", slcan.Bitrate, bitrate)
		}
		how = SLCAN{Device: realPath(slcan.Device), Baud: orDefault(slcan.Baud, slcanBaud),
			Bitrate: orDefault(orDefault(slcan.Bitrate, bitrate), slcanBitrate), NeverAnswers: slcan.NeverAnswers}
		key, section = how.Device, "slcan"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old, ok := l.by[key]
	if !ok {
		if l.by == nil {
			l.by = map[string]*adapter{}
		}
		l.by[key] = &adapter{newShared(slcan, tcp, how), user, false, how}
		return l.by[key].bus, nil
	}
	for _, d := range []struct {
		key         string
		here, there any
	}{{"baud", how.Baud, old.how.Baud}, {"bitrate", how.Bitrate, old.how.Bitrate}, {"never_answers", how.NeverAnswers, old.how.NeverAnswers}} {
		if d.here != d.there {
			return nil, fmt.Errorf("%s.%s is %v, and %s has %v for the same adapter, %s; they share it, so say the same in both", section, d.key, d.here, old.user, d.there, old.bus)
		}
	}
	old.others = old.others || old.user != user
	return old.bus, nil
}

// newShared makes a link of which nothing is open yet.
func newShared(slcan *SLCAN, tcp string, how SLCAN) *can.Shared {
	if slcan == nil {
		return can.NewShared(can.SharedConfig{Name: tcp, Heals: true,
			Open: func(context.Context) (can.Bus, error) { return can.NewTCP13(tcp, can.TCP13Config{}), nil }})
	}
	line := serial.Config{Path: slcan.Device, Baud: how.Baud} // by the name that was given: another may change
	return can.NewShared(can.SharedConfig{Name: slcan.Device, Open: func(ctx context.Context) (can.Bus, error) {
		port, err := serial.Open(line)
		if err != nil {
			return nil, err
		}
		return can.OpenSLCAN(ctx, port, can.SLCANConfig{Bitrate: how.Bitrate, Silent: how.NeverAnswers})
	}})
}

// user names who has the adapter at a serial device; "": nobody.
func (l *adapters) user(device string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.by[realPath(device)]; a != nil {
		return a.user
	}
	return ""
}

// checkLines refuses a serial device that is meant to be a CAN adapter and a Modbus line.
func (a *Agent) checkLines() error {
	for _, device := range a.links.devices() {
		if user := a.adapters.user(device); user != "" {
			return fmt.Errorf("%s: a Modbus client of the plant uses %s, too; %s", user, device, oneOwner)
		}
	}
	return nil
}

// speed is how many bits a second the serial line to an adapter has that others use, too; 0: nobody
// does, or the line has no speed of its own. Adapters that are USB devices themselves, which Linux
// calls ttyACM, take whatever baud is said as it is (USB CDC PSTN 1.2, 6.3.10), and
// converters have no line.
func (l *adapters) speed(s *SLCAN) int {
	if s == nil {
		return 0
	}
	device := realPath(s.Device)
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.by[device]
	if a == nil || !a.others || strings.HasPrefix(filepath.Base(device), "ttyACM") {
		return 0
	}
	return a.how.Baud
}

// realPath is the device behind links such as those in /dev/serial/by-id. What is not
// plugged in has none; then it is the path itself.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}
