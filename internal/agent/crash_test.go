package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// A bus that panics where nobody below catches it does not end the others, and a person is told of that, of an inbox that
// is broken, and of a bus that is not served.
func TestBusThatPanics(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	a.crashes.Told = func(crash.Crash) {} // these are expected
	on := false
	box, err := inbox.Open(inbox.Config{Dir: t.TempDir(), Verify: rel.Verify, Log: slog.New(slog.DiscardHandler), Crashes: &a.crashes,
		Now: func() time.Time {
			if on {
				panic("on purpose")
			}
			return time.Now()
		}})
	if err != nil {
		t.Fatal(err)
	}
	broken := a.newPushed(box, func(ctx context.Context) error {
		panic("on purpose")
	}, false)
	broken.trouble = func() error { return io.ErrUnexpectedEOF }
	fine := a.newPushed(requested(t, rel), func(ctx context.Context) error { <-ctx.Done(); return nil }, false)
	fine.trouble = func() error { return nil }
	a.sources = &sourceSet{multi: &multi{sources: []named{{name: "modbus", Source: broken}, {name: "canbus", Source: fine}}}}
	if w := strings.Join(a.busWarnings(), "\n"); strings.Contains(w, "canbus") || !strings.Contains(w, "modbus: "+io.ErrUnexpectedEOF.Error()) {
		t.Errorf("got warnings\n%s\nwant one about a bus that is not served", w)
	}
	on = true
	if _, err := box.Begin(inbox.Offer{Size: 1000}); !errors.Is(err, inbox.ErrBroken) {
		t.Errorf("Begin: got %v, want %v", err, inbox.ErrBroken)
	}
	if w := strings.Join(a.busWarnings(), "\n"); !strings.Contains(w, "modbus: "+inbox.ErrBroken.Error()) {
		t.Errorf("got warnings\n%s\nwant one about a broken inbox", w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- fine.Run(ctx) }()
	if _, err := fine.Latest(t.Context()); err != nil {
		t.Errorf("the other bus: got %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the other bus: got %v", err)
	}
	if err := broken.guarded(t.Context()); !errors.Is(err, crash.Err) {
		t.Errorf("serve: got %v, want one that says what panicked", err)
	}
	if w := a.Warnings(); !slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, "an internal error was kept") }) {
		t.Errorf("got warnings %q, want one about the internal error", w)
	}
}

// What asks for an installation in the name of a bus, and panics, ends neither the agent nor the asking.
func TestAskingThatPanics(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	a.crashes.Told = func(crash.Crash) {} // these are expected
	p := a.newPushed(requested(t, rel), nil, false)
	if over := a.asked(t.Context(), nil, p, "modbus"); over { // there are no sources to be told what to offer
		t.Error("it is not asked again")
	}
	if _, all := a.crashes.Last(); all != 1 {
		t.Errorf("%d crashes are noted, want 1", all)
	}
	if err := p.withdraw(t.Context(), "x"); err == nil {
		t.Error("a release was taken back without a manager")
	}
}

// A bus that has ended as it never should is served again.
func TestServedAgain(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{log: slog.New(slog.DiscardHandler)}
		a.crashes.Logger, a.crashes.Told = a.log, func(crash.Crash) {} // expected
		tries := make(chan int, 1)
		tries <- 0
		p := a.newPushed(requested(t, rel), func(ctx context.Context) error {
			n := <-tries + 1
			if tries <- n; n < 3 {
				panic("on purpose")
			}
			<-ctx.Done()
			return nil
		}, false)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		time.Sleep(3 * serveAgain)
		synctest.Wait()
		if n := <-tries; n != 3 {
			t.Errorf("it was served %d times, want 3", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
