package bmscan_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmscan"
)

// fakeBus is a fake of a CAN link: the test says which frames come and when it breaks,
// and sees what was sent.
type fakeBus struct {
	in     chan any // a can.Frame or an error
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	sent    []sent
	sendErr error
	stuck   bool // a frame that is sent waits until its context ends, and a second longer
	sending int
}

type sent struct {
	at    time.Time
	frame can.Frame
}

func newBus() *fakeBus { return new(fakeBus) } // listen makes its channels

func (b *fakeBus) Receive(ctx context.Context) (can.Frame, error) {
	select {
	case v := <-b.in:
		if f, ok := v.(can.Frame); ok {
			return f, nil
		}
		return can.Frame{}, v.(error)
	case <-ctx.Done():
		return can.Frame{}, ctx.Err()
	case <-b.closed:
		return can.Frame{}, can.ErrClosed
	}
}

func (b *fakeBus) Send(ctx context.Context, f can.Frame) error {
	b.mu.Lock()
	b.sent = append(b.sent, sent{time.Now(), f})
	b.sending++
	err, stuck := b.sendErr, b.stuck
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sending--
	}()
	if stuck {
		<-ctx.Done()
		time.Sleep(time.Second)
		return ctx.Err()
	}
	return err
}

func (b *fakeBus) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

func (b *fakeBus) isClosed() bool {
	select {
	case <-b.closed:
		return true
	default:
		return false
	}
}

// say lets frames come, and waits until they were heard.
func (b *fakeBus) say(frames ...can.Frame) {
	for _, f := range frames {
		b.in <- f
	}
	synctest.Wait()
}

// breakWith breaks the link.
func (b *fakeBus) breakWith(err error) {
	b.in <- err
	synctest.Wait()
}

// sentFrames returns what was sent so far.
func (b *fakeBus) sentFrames() []sent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sent)
}

// opener is a fake of what opens links: one after the other of the list, which are
// buses or errors, and then errors.
type opener struct {
	mu    sync.Mutex
	links []any
	at    []time.Time // when it was asked
}

var errNoAdapter = errors.New("there is no adapter")

func (o *opener) open(context.Context) (can.Bus, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at = append(o.at, time.Now())
	if len(o.links) == 0 {
		return nil, errNoAdapter
	}
	next := o.links[0]
	o.links = o.links[1:]
	if b, ok := next.(can.Bus); ok {
		return b, nil
	}
	return nil, next.(error)
}

func (o *opener) opened() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.at)
}

// warnings counts what a listener warns of.
type warnings struct {
	slog.Handler
	mu sync.Mutex
	n  int
}

func (w *warnings) Enabled(context.Context, slog.Level) bool { return true }

func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Level >= slog.LevelWarn {
		w.n++
	}
	return nil
}

func (w *warnings) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// listen runs a test of a listener to links, in a bubble with a clock of its own. The
// bubble fails if any goroutine is left after Close.
func listen(t *testing.T, c bmscan.Config, links []any, test func(*testing.T, *bmscan.Listener, *opener, *warnings)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		for _, link := range links {
			if b, ok := link.(*fakeBus); ok { // inside of the bubble, whose clock waits for those who wait for them
				b.in, b.closed = make(chan any), make(chan struct{})
			}
		}
		o, w := &opener{links: links}, &warnings{}
		if c.Open == nil {
			c.Open = o.open
		}
		c.Source, c.Log = "can0", slog.New(w)
		if c.Profile == "" {
			c.Profile = "victron"
		}
		l, err := bmscan.Listen(c)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		synctest.Wait()
		test(t, l, o, w)
	})
}

// values are those of a healthy battery at rest.
func values() map[broadcast.Quantity]float64 {
	return map[broadcast.Quantity]float64{broadcast.SoC: 62, broadcast.SoH: 99, broadcast.Voltage: 52.8, broadcast.Current: -1.5,
		broadcast.TemperatureMin: 21, broadcast.TemperatureMax: 24, broadcast.CellMin: 3.297, broadcast.CellMax: 3.304, broadcast.Capacity: 200}
}

// frames are what a battery of a profile sends to say b.
func frames(t *testing.T, profile string, b broadcast.Battery) []can.Frame {
	t.Helper()
	p, err := broadcast.Named(profile)
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.Encode(b, broadcast.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// without leaves frames out.
func without(all []can.Frame, ids ...uint32) []can.Frame {
	return slices.DeleteFunc(slices.Clone(all), func(f can.Frame) bool { return slices.Contains(ids, f.ID) })
}

func read(t *testing.T, l *bmscan.Listener) bms.Reading {
	t.Helper()
	r, err := l.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func soc(t *testing.T, l *bmscan.Listener) float64 {
	t.Helper()
	r := read(t, l)
	return r.Value(bms.SoC)
}
