package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// idleManager is one that nobody runs: it takes commands and answers none.
func idleManager(t *testing.T) *ota.Manager {
	t.Helper()
	d, err := ota.New(ota.Config{Product: "bess", Version: "1.0.0", Source: new(inbox.Inbox), Slots: &pair{}, Store: noStore{},
		Verify: func([]byte) (*ota.Manifest, error) { return nil, ota.ErrValidation },
		Gate:   func(context.Context, *ota.Manifest, ota.Moment) error { return ota.ErrNotNow }})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

type noStore struct{}

func (noStore) Load() (ota.Record, error) { return ota.Record{}, nil }
func (noStore) Save(ota.Record) error     { return nil }

// While a release is being taken back, the manager is neither offered it nor asked to install it, for as long
// as it has not answered: also when whoever asked has gone. Another release is not concerned.
func TestWithdrawingHoldsBack(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	digest := rel.Manifest.Digest
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	a.record.Store(&ota.Record{State: ota.Idle})
	p := a.newPushed(requested(t, rel), nil, false)
	p.bus = "modbus"
	if err := p.withdraw(t.Context(), digest); !errors.Is(err, ota.ErrStopped) {
		t.Errorf("without a manager: got %v, want %v", err, ota.ErrStopped)
	}
	offers := func() bool {
		_, err := p.Latest(t.Context())
		return err == nil
	}
	asks := func(digest string) bool {
		_, ok := p.command(control.Peer{}, digest, control.Check)
		return ok
	}
	if !offers() || !asks(digest) || asks("another") || !p.State().Asked {
		t.Errorf("after it could not be taken back: offered %v, asked for %v, another asked for %v, want only the first two", offers(), asks(digest), asks("another"))
	}
	a.mu.Lock()
	a.mgr = idleManager(t)
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.withdraw(ctx, digest); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a manager that does not answer: got %v, want %v", err, context.DeadlineExceeded)
	}
	if offers() || asks(digest) {
		t.Errorf("while nobody knows: offered %v, asked for %v, want neither", offers(), asks(digest))
	}
	if err := p.withdraw(ctx, digest); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ota.ErrBusy) {
		t.Errorf("a second time: got %v, want %v, and not that it is too late", err, context.DeadlineExceeded)
	}
	if err := p.withdraw(t.Context(), "another"); !errors.Is(err, ota.ErrNotNow) || errors.Is(err, ota.ErrBusy) {
		t.Errorf("another release: got %v, want %v, and not that it is too late", err, ota.ErrNotNow)
	}
	full := a.mgr.Withdraw(digest)
	for range 20 {
		full = a.mgr.Withdraw(digest)
	}
	if err := full.Wait(t.Context()); !errors.Is(err, ota.ErrNotNow) || errors.Is(err, ota.ErrBusy) {
		t.Errorf("with too many commands before it: got %v, want %v, and not that it is too late", err, ota.ErrNotNow)
	}
	if a.askFor(t.Context(), &multi{}, p, "modbus") {
		t.Error("who asks for the installation does not come back to see how it ends")
	}
	p.asking.Lock()
	p.withdrawing = "another"
	p.asking.Unlock()
	if !offers() || !asks(digest) {
		t.Error("a release is held back because of another one")
	}
}

// The power failed after the manager had given a release up, and before the inbox heard of it.
func TestWhatHasEndedIsNotOffered(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	p := a.newPushed(requested(t, rel), nil, false)
	a.record.Store(&ota.Record{State: ota.Idle, Unsent: []ota.Report{{ID: "1", Digest: rel.Manifest.Digest, Version: "1.1.0", Result: ota.Aborted}}})
	if _, err := p.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
	}
	if s := p.State(); s.Phase != inbox.Ended || s.Asked {
		t.Errorf("got %+v, want that it has ended", s)
	}
}

// What was installed before the manager was asked to give it up was not taken back, even if the bus has not heard of
// that yet; what has ended in another way will not be installed, which is what was asked for.
func TestInstalledIsNotTakenBack(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	for result, want := range map[ota.Result]error{ota.Succeeded: ota.ErrBusy, ota.Aborted: nil, ota.Failed: nil} {
		a, err := configured(t)
		if err != nil {
			t.Fatal(err)
		}
		p := a.newPushed(requested(t, rel), nil, false)
		a.record.Store(&ota.Record{State: ota.Idle, Unsent: []ota.Report{{ID: "1", Digest: rel.Manifest.Digest, Version: "1.1.0", Result: result}}})
		if err := p.forget(t.Context(), rel.Manifest.Digest); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: got %v, want %v", result, err, want)
		}
		if s := p.State(); s.Phase != inbox.Ended || s.Outcome.Result != result {
			t.Errorf("%s: got %+v, want that it has ended so", result, s)
		}
	}
}
