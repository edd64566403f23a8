// Package simulate puts a simulated battery system on the buses that a real one
// has: SunSpec over Modbus TCP and RTU, and a management system's broadcast
// frames over SLCAN or a TCP converter. It is for tests of whatever reads or
// controls a battery, and for people without one.
//
// Start with [Start]; [System.Endpoints] says where it can be reached,
// [System.Set] changes the battery and [System.Fault] breaks something.
//
// What is promised: one physical model is behind all buses, so what they say fits
// together unless a fault is on; what a fault does is in the table of [Faults] and
// nowhere else; with the same seed, settings and times, the same values. It has no
// access control: whoever reaches it may change it.
package simulate

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/internal/battery"
)

// Config says what to simulate and where to serve it. What has no address is not
// served.
type Config struct {
	Battery battery.Config

	SunSpec string // TCP address of the Modbus server, "127.0.0.1:0" for any port
	Unit    byte   // Modbus unit; 0: 1
	Base    uint16 // where the SunSpec map begins; 0: 40000
	Cells   bool   // also one model 805 for each module, with every cell
	RTU     Line   // Modbus RTU, the same map

	SLCAN   Line   // CAN frames as an SLCAN adapter sends them
	CANTCP  string // TCP address of a CAN converter with frames of 13 bytes
	Profile string // of the frames, as package broadcast names it; "": pylon-lv

	HTTP string // TCP address of the reading as JSON, and of changes

	Faults []string // on from the beginning
	Script []Step   // what happens by itself; see ParseScript

	Log func(error) // a server that ended; nil: nobody wants to know
}

// Line is a serial line. The zero Line is none.
type Line struct {
	Path   string // a serial device, or "pty": a pseudo terminal is made
	Link   string // with pty: a symbolic link to it, made anew; "": none
	Baud   int    // 0: 9600 for Modbus, 115200 for SLCAN; a pty has no speed
	Parity serial.Parity
}

// Endpoint is where something is served.
type Endpoint struct {
	What   string // "sunspec", "sunspec-rtu", "slcan", "can-tcp", "http"
	Where  string // an address or a path
	Detail string // "unit 1", "profile pylon-lv"
}

// System is a simulated battery system. Its methods may be called from any goroutine.
type System struct {
	battery   *battery.Battery
	profile   *broadcast.Profile
	unit      byte
	base      uint16
	log       func(error)
	endpoints []Endpoint
	stop      context.CancelFunc
	group     sync.WaitGroup

	mu        sync.Mutex
	registers *registers
	faults    map[string]bool
	seen      battery.Measurement // by the management system
	changed   bool                // something was changed by hand since
	fresh     bool                // seen is not in the registers yet
	stuckSoC  float64             // %
	scans     int                 // how often the beginning of the map was read
	written   written
}

// Start begins to serve. It ends when ctx does, or with Close.
func Start(ctx context.Context, cfg Config) (*System, error) {
	s, err := newSystem(cfg)
	if err != nil {
		return nil, fmt.Errorf("start the simulated battery: %w", err)
	}
	ctx, s.stop = context.WithCancel(ctx)
	if err := s.serve(ctx, cfg); err != nil {
		s.Close()
		return nil, fmt.Errorf("start the simulated battery: %w", err)
	}
	return s, nil
}

// newSystem returns a system that is not on any bus.
func newSystem(cfg Config) (*System, error) {
	s := &System{unit: cfg.Unit, base: cfg.Base, log: cfg.Log, stop: func() {}, faults: map[string]bool{}, changed: true,
		written: written{opCtl: opStart, setOp: opConnect, setInvState: invStarted}}
	if s.unit == 0 {
		s.unit = 1
	}
	if s.base == 0 {
		s.base = 40000
	}
	if s.log == nil {
		s.log = func(error) {}
	}
	if cfg.Profile == "" {
		cfg.Profile = usualProfile
	}
	var err error
	if s.profile, err = broadcast.Named(cfg.Profile); err != nil {
		return nil, err
	}
	if s.battery, err = battery.New(cfg.Battery); err != nil {
		return nil, err
	}
	if s.registers, err = newRegisters(s.base, cfg.Cells); err != nil {
		return nil, err
	}
	for _, name := range cfg.Faults {
		if err := s.Fault(name, true); err != nil {
			return nil, err
		}
	}
	return s, s.update()
}

// serve opens what cfg has addresses for.
func (s *System) serve(ctx context.Context, cfg Config) error {
	if cfg.SunSpec != "" {
		if err := s.serveModbus(ctx, cfg.SunSpec); err != nil {
			return err
		}
	}
	if cfg.RTU.Path != "" {
		if err := s.serveRTU(ctx, cfg.RTU); err != nil {
			return err
		}
	}
	if cfg.SLCAN.Path != "" {
		if err := s.serveSLCAN(ctx, cfg.SLCAN); err != nil {
			return err
		}
	}
	if cfg.CANTCP != "" {
		if err := s.serveCANTCP(ctx, cfg.CANTCP); err != nil {
			return err
		}
	}
	if cfg.HTTP != "" {
		if err := s.serveHTTP(ctx, cfg.HTTP); err != nil {
			return err
		}
	}
	s.run(ctx, "the script", func() error { return s.follow(ctx, cfg.Script) })
	return nil
}

func (s *System) silent() bool { return s.has(silent) }

func (s *System) listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return quietListener{l, s.silent}, nil
}

// run runs a server and reports why it ended, if that was not the end of all.
func (s *System) run(ctx context.Context, what string, serve func() error) {
	s.group.Go(func() {
		if err := serve(); err != nil && ctx.Err() == nil {
			s.log(fmt.Errorf("serve %s: %w", what, err))
		}
	})
}

func (s *System) serveModbus(ctx context.Context, address string) error {
	l, err := s.listen(ctx, address)
	if err != nil {
		return err
	}
	s.endpoints = append(s.endpoints, Endpoint{"sunspec", l.Addr().String(), fmt.Sprintf("unit %d", s.unit)})
	server := &modbus.Server{Handler: device{s}}
	s.run(ctx, "sunspec", func() error { return server.Serve(ctx, l) })
	return nil
}

func (s *System) serveRTU(ctx context.Context, l Line) error {
	line, where, baud, err := openLine(l, 9600)
	if err != nil {
		return err
	}
	detail := fmt.Sprintf("unit %d", s.unit)
	if baud != 0 {
		detail += fmt.Sprintf(", %d baud", baud)
	}
	s.endpoints = append(s.endpoints, Endpoint{"sunspec-rtu", where, detail})
	server := &modbus.Server{Handler: device{s}, Baud: baud}
	s.run(ctx, "sunspec-rtu", func() error { return server.ServeRTU(ctx, quietLine{line, s.silent}, s.unit) })
	return nil
}

func (s *System) serveSLCAN(ctx context.Context, l Line) error {
	line, where, _, err := openLine(l, 115200)
	if err != nil {
		return err
	}
	s.endpoints = append(s.endpoints, Endpoint{"slcan", where, "profile " + s.profile.Name})
	s.run(ctx, "slcan", func() error {
		return s.serveBus(ctx, can.NewAdapter(quietLine{line, s.silent}, can.AdapterConfig{}))
	})
	return nil
}

func (s *System) serveCANTCP(ctx context.Context, address string) error {
	l, err := s.listen(ctx, address)
	if err != nil {
		return err
	}
	s.endpoints = append(s.endpoints, Endpoint{"can-tcp", l.Addr().String(), "profile " + s.profile.Name})
	context.AfterFunc(ctx, func() { l.Close() })
	s.run(ctx, "can-tcp", func() error { s.converters(ctx, l); return nil })
	return nil
}

func (s *System) serveHTTP(ctx context.Context, address string) error {
	l, err := s.listen(ctx, address)
	if err != nil {
		return err
	}
	s.endpoints = append(s.endpoints, Endpoint{"http", "http://" + l.Addr().String(), "GET, PUT"})
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	s.run(ctx, "http", func() error { return server.Serve(l) })
	return nil
}

// Endpoints lists what is served, in the order of the fields of [Config].
func (s *System) Endpoints() []Endpoint { return slices.Clone(s.endpoints) }

// Where returns the address or path of an endpoint, "" if it is not served.
func (s *System) Where(what string) string {
	for _, e := range s.endpoints {
		if e.What == what {
			return e.Where
		}
	}
	return ""
}

// Set changes the battery, wholly or not at all.
func (s *System) Set(to battery.Settings) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.battery.Set(to); err != nil {
		return err
	}
	s.changed = true
	return nil
}

// Measure returns what is so, whatever faults are on.
func (s *System) Measure() battery.Measurement { return s.battery.Measure() }

// Close ends serving and waits for it.
func (s *System) Close() error {
	s.stop()
	s.group.Wait()
	return nil
}
