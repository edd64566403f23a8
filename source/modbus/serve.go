package modbus

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	bus "github.com/interlock-energy/ota/bus/modbus"
)

// Pauses before a listener or a line that broke is opened again.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
)

// Run serves until the context ends, and returns nil then. Trouble with a listener or
// a line is logged, and it is opened again. Run is called once.
func (s *Source) Run(ctx context.Context) error {
	s.mu.Lock()
	s.run = ctx
	s.mu.Unlock()
	var all sync.WaitGroup
	serve := func(what string, once func(context.Context) error) { all.Go(func() { s.again(ctx, what, once) }) }
	if s.cfg.Listen != "" {
		serve(what(bus.TCP, s.cfg.Listen), func(ctx context.Context) error { return s.serveTCP(ctx, bus.TCP, s.cfg.Listen, nil) })
	}
	if s.cfg.ListenTLS != "" {
		serve(what(bus.TLS, s.cfg.ListenTLS), func(ctx context.Context) error { return s.serveTCP(ctx, bus.TLS, s.cfg.ListenTLS, s.cfg.TLS) })
	}
	for _, l := range s.cfg.Lines {
		serve(what(bus.RTU, l.Path), func(ctx context.Context) error { return s.serveLine(ctx, l) })
	}
	all.Wait()
	s.work.Wait()
	return nil
}

// what is served, for people.
func what(t bus.Transport, where string) string {
	return "Modbus " + strings.ToUpper(string(t)) + " on " + where
}

// again does once, again and again, until the context ends. What worked for a while
// is tried again soon.
func (s *Source) again(ctx context.Context, what string, once func(context.Context) error) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		began := time.Now()
		err := s.guarded(ctx, what, once)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		s.troubled(what, err)
		s.cfg.Log.Warn("not served, it is opened again", "what", what, "error", err, "after", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// guarded does once; a panic is one of its errors.
func (s *Source) guarded(ctx context.Context, what string, once func(context.Context) error) (err error) {
	defer s.cfg.Crashes.Catch("serve "+what, func(e error) { err = e })
	return once(ctx)
}

// troubled notes why something is not served; nil: it is.
func (s *Source) troubled(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.trouble, what)
		return
	}
	if s.trouble == nil {
		s.trouble = map[string]error{}
	}
	s.trouble[what] = err
}

// Trouble returns why a listener or a line is not served just now, nil if all are. It is opened again by
// itself.
func (s *Source) Trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(s.trouble)) {
		return fmt.Errorf("%s is not served: %w", what, s.trouble[what])
	}
	return nil
}

func (s *Source) serveTCP(ctx context.Context, t bus.Transport, address string, config *tls.Config) error {
	l, err := s.cfg.NetListen(ctx, address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	s.addresses[t].set(l.Addr())
	s.troubled(what(t, address), nil)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	return (&bus.Server{Handler: door{s, string(t)}, Crashes: s.cfg.Crashes}).Serve(ctx, l)
}

func (s *Source) serveLine(ctx context.Context, l Line) error {
	port, err := s.cfg.OpenLine(l)
	if err != nil {
		return err
	}
	baud := l.Baud
	if baud == 0 {
		baud = 9600 // as package serial has it
	}
	s.troubled(what(bus.RTU, l.Path), nil)
	server := bus.Server{Handler: door{s, l.Path}, Baud: baud, Echo: l.Echo, Crashes: s.cfg.Crashes}
	return server.ServeRTU(ctx, port, s.cfg.Unit)
}

// address is where a listener listens, once it does.
type address struct {
	ready chan struct{}
	once  sync.Once
	at    net.Addr
}

func newAddress() *address { return &address{ready: make(chan struct{})} }

func (a *address) set(at net.Addr) { a.once.Do(func() { a.at = at; close(a.ready) }) }

// Addr waits until TCP or TLS is listened on for the first time and returns where,
// which is of use with port 0.
func (s *Source) Addr(ctx context.Context, t bus.Transport) (net.Addr, error) {
	a := s.addresses[t]
	if a == nil {
		return nil, fmt.Errorf("address of Modbus source: %s has none", t)
	}
	select {
	case <-a.ready:
		return a.at, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
