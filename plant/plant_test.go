package plant_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/plant"
)

// log is an action that writes down what it is asked: a fake.
func log(to *[]string, name string, quiesce, resume error) plant.Action {
	return plant.Func{
		QuiesceFunc: func(context.Context) error { *to = append(*to, "quiesce "+name); return quiesce },
		ResumeFunc:  func(context.Context) error { *to = append(*to, "resume "+name); return resume },
	}
}

// TestAll: quiesced in order, up to the first that cannot; resumed in the opposite
// order, all of them.
func TestAll(t *testing.T) {
	broken, stuck, open := errors.New("broken"), errors.New("stuck"), errors.New("open")
	var did []string
	a := plant.All(log(&did, "a", nil, open), log(&did, "b", broken, nil), log(&did, "c", nil, stuck))
	if err := a.Quiesce(t.Context()); err != broken {
		t.Errorf("got %v, want broken", err)
	}
	if want := []string{"quiesce a", "quiesce b"}; !slices.Equal(did, want) {
		t.Errorf("got %q, want %q", did, want)
	}
	did = nil
	err := a.Resume(t.Context())
	if !errors.Is(err, stuck) || !errors.Is(err, open) {
		t.Errorf("got %v, want both", err)
	}
	if want := []string{"resume c", "resume b", "resume a"}; !slices.Equal(did, want) {
		t.Errorf("got %q, want %q", did, want)
	}
	if err := plant.All(plant.Func{}).Resume(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestBound: one that hangs is ended, says so, and leaves the others their time.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("wait for rest: 38.2 kW: %w", context.Cause(ctx))
		}
		rude := func(ctx context.Context) error { <-ctx.Done(); return errors.New("no answer") }
		var did []string
		a := plant.All(log(&did, "a", nil, nil), plant.Bound(time.Minute, plant.Func{QuiesceFunc: rude, ResumeFunc: hangs}))
		began := time.Now()
		err := a.Resume(t.Context())
		if got, want := fmt.Sprint(err), "wait for rest: 38.2 kW: resume: not done within 1m0s"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute || !slices.Equal(did, []string{"resume a"}) {
			t.Errorf("got %v after %s, and %q", err, time.Since(began), did)
		}
		if err := a.Quiesce(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "quiesce: not done within 1m0s: no answer") {
			t.Errorf("got %v", err)
		}
		broken := errors.New("broken")
		if err := plant.Bound(time.Minute, log(&did, "b", broken, nil)).Quiesce(t.Context()); err != broken {
			t.Errorf("got %v, want broken", err)
		}
	})
}

// ExampleAll shows what a manager is given.
func ExampleAll() {
	say := func(text string) func(context.Context) error {
		return func(context.Context) error { fmt.Println(text); return nil }
	}
	action := plant.All(
		plant.Func{QuiesceFunc: say("tell the market"), ResumeFunc: say("back on the market")},
		plant.Bound(time.Minute, plant.Func{QuiesceFunc: say("ramp down"), ResumeFunc: say("ramp up")}),
	)
	action.Quiesce(context.Background())
	action.Resume(context.Background())
	// Output:
	// tell the market
	// ramp down
	// ramp up
	// back on the market
}
