// Package can brings releases over a CAN bus: the device is a UDS server (ISO 14229-1,
// over ISO 15765-2), and a tester sends it a bundle. It is for sites where the bus of the
// battery is all that there is, and for service technicians with an adapter.
//
// Start with [New] and [Source.Run], and give the Source to the manager. What a tester
// says and hears is in package profile, and in docs/fieldbus-can.csv.
//
// What is promised:
//
//   - A tester adds no trust. What it sends is verified as from any other source, and
//     installed when the gate allows it. It may send only after it has shown that it has
//     one of the keys in [Config.Testers]: no keys, no transfer.
//   - A transfer is lost to nobody: a tester that stops, at any service, leaves what was
//     acknowledged, and the next one goes on where it stopped. So does a restart of the
//     agent.
//   - What keeps an update from going on has a code of the standard where there is one,
//     and a sentence in any case (DID FD04).
//   - Requests and answers together take no more of the bus than [Config.Share], for a
//     tester that keeps to flow control (STmin and block size) and waits for its answers.
//     One that does neither is a fault of the bus that no device can mend.
//   - Nothing here restarts the controller. Reset (11 01) asks for the installation, and
//     is answered positively only if the update manager has it in hand or takes it; when
//     the restart happens is the gate's decision. CommunicationControl (28) is answered
//     and silences nobody: this node sends nothing else, and the frames of the battery are
//     not its own. ControlDTCSetting (85) is answered too; there are no trouble codes.
package can

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
)

// Source is an [ota.Source], [ota.Reporter] and [ota.Waker], by its inbox.
type Source struct {
	*inbox.Inbox
	cfg     Config
	server  *uds.Server
	trouble trouble
}

var (
	_ ota.Source   = (*Source)(nil)
	_ ota.Reporter = (*Source)(nil)
	_ ota.Waker    = (*Source)(nil)
)

// longestRun is how long the verification of a bundle may take; a tester is asked for
// patience so long.
const longestRun = 10 * time.Minute

// Backing off from a bus that cannot be opened.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// New checks cfg and opens nothing.
func New(cfg Config) (*Source, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("configure the source on CAN: %w", err)
	}
	s := &Source{Inbox: cfg.Inbox, cfg: cfg}
	s.server = &uds.Server{Handler: newHandler(&s.cfg), Access: cfg.access(), MaxBlock: cfg.MaxBlock, MaxRun: longestRun, Crashes: s.cfg.Crashes}
	if len(cfg.Testers) > 0 {
		s.server.Attempts = attempts{fs: cfg.FS, dir: cfg.StateDir}
	}
	return s, nil
}

// Run serves testers until ctx ends, and then returns nil. A bus that is lost, or not
// there yet, is opened again, at most 30 s later.
func (s *Source) Run(ctx context.Context) error {
	pause, told := firstRetry, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := s.guarded(ctx)
		if ctx.Err() != nil {
			break
		}
		s.trouble.set(err)
		if time.Since(began) > 5*firstRetry {
			pause, told = firstRetry, ""
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			s.cfg.Log.Warn("CAN bus for updates not available, trying again", "bus", s.cfg.Link.name(), "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, lastRetry)
	}
	return nil
}

// guarded is serve; a panic is one of its errors.
func (s *Source) guarded(ctx context.Context) (err error) {
	defer s.cfg.Crashes.Catch("serve testers on CAN", func(e error) { err = e })
	return s.serve(ctx)
}

// trouble is why the bus is not served.
type trouble struct {
	mu  sync.Mutex
	err error
}

func (t *trouble) set(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
}

// Trouble returns why the bus is not served just now, nil if it is. It is opened again by itself.
func (s *Source) Trouble() error {
	s.trouble.mu.Lock()
	defer s.trouble.mu.Unlock()
	if s.trouble.err == nil {
		return nil
	}
	return fmt.Errorf("CAN bus %s is not served: %w", s.cfg.Link.name(), s.trouble.err)
}

// serve opens the bus and serves until it is lost.
func (s *Source) serve(ctx context.Context) error {
	l, err := s.cfg.open(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	s.trouble.set(nil)
	s.cfg.Log.Info("listening to testers on CAN", "bus", s.cfg.Link.name(), "address", s.cfg.physical().String(),
		"pause", s.cfg.pause(), "block", s.cfg.BlockSize)
	err = s.server.Serve(ctx, uds.Tester{Name: s.cfg.testerName(), Conn: l.physical, Functional: l.functional})
	if why := l.lost.why(); why != nil {
		return why
	}
	return err
}

// lines are the connections with the tester.
type lines struct {
	physical   uds.Conn
	functional uds.Conn
	lost       *lost
	close      func()
}

// lines makes them.
func (cfg *Config) lines(physical, functional isotp.Conn, end func()) *lines {
	l := &lines{lost: new(lost), close: end}
	heals := cfg.Link.TCP != "" || cfg.Link.Shared != nil && cfg.Link.Shared.Heals() // connects again by itself
	l.physical = cfg.shared(patient{physical, heals, l.lost})
	l.functional = patient{functional, heals, l.lost}
	return l
}

// open opens the bus and the two channels on it.
func (cfg *Config) open(ctx context.Context) (*lines, error) {
	config := isotp.Config{BlockSize: cfg.BlockSize, STmin: cfg.pause(), FramesPerSecond: cfg.rate(), Mend: true, Crashes: cfg.Crashes}
	if cfg.Link.Interface != "" {
		conn, err := isotp.OpenKernel(cfg.Link.Interface, cfg.physical(), config)
		if err == nil {
			return cfg.kernel(conn)
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
	}
	b, err := cfg.Link.open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	mux := isotp.NewMux(b)
	physical, err := mux.Open(cfg.physical(), config)
	if err != nil {
		return nil, errors.Join(err, mux.Close())
	}
	functional, err := mux.Open(cfg.functional(), isotp.Config{Crashes: cfg.Crashes})
	if err != nil {
		return nil, errors.Join(err, mux.Close())
	}
	return cfg.lines(physical, functional, func() { _ = mux.Close() }), nil
}

// kernel adds what is sent to all devices, which needs no ISO-TP, to the kernel's channel.
func (cfg *Config) kernel(conn isotp.Conn) (*lines, error) {
	b, err := bus.DialSocketCAN(cfg.Link.Interface, cfg.filters())
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	mux := isotp.NewMux(b)
	functional, err := mux.Open(cfg.functional(), isotp.Config{Crashes: cfg.Crashes})
	if err != nil {
		return nil, errors.Join(err, mux.Close(), conn.Close())
	}
	return cfg.lines(conn, functional, func() { _, _ = mux.Close(), conn.Close() }), nil
}

// check wants exactly one way to the bus.
func (l Link) check() error {
	n := 0
	for _, given := range []bool{l.Interface != "", l.SLCAN != "", l.TCP != "", l.Shared != nil, l.Open != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%d ways to the bus are given, want one: an interface, a serial adapter, a TCP converter, a shared link or a function that opens it", n)
	}
	return nil
}

func (l Link) name() string {
	if name := l.Interface + l.SLCAN + l.TCP; name != "" {
		return name
	}
	if l.Shared != nil {
		return l.Shared.String()
	}
	return "given"
}

// open opens the bus, with filters and a pace where they can be set.
func (l Link) open(ctx context.Context, cfg *Config) (bus.Bus, error) {
	switch {
	case l.Open != nil:
		return l.Open(ctx)
	case l.Shared != nil:
		return l.Shared.Join(ctx, bus.UserConfig{Filters: cfg.filters(), Pace: cfg.rate()})
	case l.Interface != "":
		return bus.DialSocketCAN(l.Interface, cfg.filters())
	case l.TCP != "":
		return bus.NewTCP13(l.TCP, bus.TCP13Config{Filters: cfg.filters(), Pace: cfg.rate()}), nil
	}
	baud := l.Baud
	if baud == 0 {
		baud = 115200
	}
	port, err := serial.Open(serial.Config{Path: l.SLCAN, Baud: baud})
	if err != nil {
		return nil, err
	}
	return bus.OpenSLCAN(ctx, port, bus.SLCANConfig{Bitrate: cfg.Bitrate, Silent: l.Silent, Filters: cfg.filters(), Pace: cfg.rate()})
}
