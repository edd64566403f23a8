package push_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/push"
)

// fake is a stand-in for a device: it says what the script says, one entry for each
// question, and the last one for ever. The devices of overmodbus and overcan are tested
// with the real sources.
type fake struct {
	script   []answer
	asked    int
	sent     bool
	installs int
	install  []error // for the first calls
	aborts   int
	abort    []error // for the first calls
	sendErr  error
	identity error
	deaf     int // how often it does not hear the question who it is
	asks     int // how often that came
}

type answer struct {
	status push.Status
	err    error
}

func (d *fake) Identify(context.Context) (push.Identity, error) {
	if d.asks++; d.asks <= d.deaf {
		return push.Identity{}, lineLost.err
	}
	return push.Identity{Protocol: "fake 1.0", Device: "bess-7", Running: "1.0.0"}, d.identity
}
func (d *fake) Plan(n int64) push.Plan { return push.Plan{Bytes: n, Line: "a fake", Rate: 100} }
func (d *fake) Status(context.Context) (push.Status, error) {
	a := d.script[min(d.asked, len(d.script)-1)]
	d.asked++
	return a.status, a.err
}
func (d *fake) Precheck(context.Context) error { return nil }
func (d *fake) Send(_ context.Context, f *push.File, tell push.Tell) error {
	d.sent = true
	tell.Done(f.Size / 2)
	tell.Done(f.Size / 2)
	tell.Done(f.Size)
	return d.sendErr
}
func (d *fake) Install(context.Context) error {
	d.installs++
	if d.installs <= len(d.install) {
		return d.install[d.installs-1]
	}
	return nil
}
func (d *fake) Abort(context.Context) error {
	d.aborts++
	if d.aborts <= len(d.abort) {
		return d.abort[d.aborts-1]
	}
	return nil
}
func (d *fake) Close() error { return nil }

func is(s push.State) answer { return answer{status: push.Status{State: s, Version: "1.1.0"}} }

func because(s push.State, r push.Result, reason string) answer {
	return answer{status: push.Status{State: s, Result: r, Reason: reason, Version: "1.1.0", Running: "1.0.0"}}
}

var lineLost = answer{err: fmt.Errorf("read the status: %w: no answer in 1s", push.ErrLine)}

func bundleFile() *push.File {
	return &push.File{Name: "new.bundle", Size: 1000, Manifest: &ota.Manifest{Product: "bess", Version: "1.1.0"}}
}

// How an update ends is what the device says, and nil means proven.
func TestRunEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script []answer
		opts   push.Options
		want   error // wrapped
		text   string
		took   time.Duration // at least
	}{
		{name: "proven", script: []answer{is(push.Idle), is(push.Verified), is(push.WaitSafe), is(push.Installing), is(push.Restarting), is(push.Trial), is(push.Confirmed)}},
		{name: "proven, over a restart", script: []answer{is(push.Idle), is(push.Restarting), lineLost, lineLost, lineLost, lineLost, lineLost, lineLost, is(push.Trial), is(push.Confirmed)}, took: 10 * time.Second},
		{name: "staged", script: []answer{is(push.Idle), is(push.Failed)}, opts: push.Options{StageOnly: true}},
		{name: "rolled back", script: []answer{is(push.Idle), is(push.Trial), because(push.RolledBack, 20, "the health check failed: no battery")}, want: push.ErrRolledBack, text: "1.0.0: the health check failed: no battery"},
		{name: "failed", script: []answer{is(push.Idle), because(push.Failed, 8, "another product: other")}, want: ota.ErrIncompatible, text: "another product: other"},
		{name: "failed, without a word", script: []answer{is(push.Idle), because(push.Failed, 7, "")}, want: ota.ErrValidation, text: "a hash is wrong"},
		{name: "failed, and nobody knows why", script: []answer{is(push.Idle), because(push.Failed, 0, "")}, text: "does not say why"},
		{name: "aborted", script: []answer{is(push.Idle), because(push.Aborted, 0, "by the operator")}, want: ota.ErrAborted, text: "by the operator"},
		{name: "forgotten", script: []answer{is(push.Idle), is(push.Trial), is(push.Idle)}, want: ota.ErrLost, text: "push it again"},
		{name: "somebody else's", script: []answer{is(push.Idle), is(push.WaitSafe), {status: push.Status{State: push.Confirmed, Version: "2.0.0"}}}, want: push.ErrOccupied, text: "2.0.0"},
		{name: "the gate says no for ever", script: []answer{is(push.Idle), because(push.WaitSafe, 10, "state of charge 22.0 %, want at least 30 %")},
			opts: push.Options{Timeout: time.Hour}, want: ota.ErrBatteryLow, text: "22.0 %", took: time.Hour},
		{name: "a window", script: []answer{is(push.Idle), because(push.WaitSafe, 16, "outside of the window")}, opts: push.Options{Timeout: time.Hour}, want: ota.ErrNotNow, text: "window", took: time.Hour},
		{name: "time is over on trial", script: []answer{is(push.Idle), is(push.Trial)}, opts: push.Options{Timeout: time.Minute}, want: push.ErrUnfinished, text: "on trial 1.1.0", took: time.Minute},
		{name: "never comes back", script: []answer{is(push.Idle), is(push.Restarting), lineLost}, opts: push.Options{Timeout: time.Minute}, want: push.ErrUnfinished, text: "restarting", took: time.Minute},
		{name: "an answer is lost before it begins", script: []answer{lineLost, is(push.Idle), is(push.Confirmed)}},
		{name: "an answer that is none", script: []answer{is(push.Idle), {err: errors.New("exception 2")}}, text: "exception 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fake{script: tt.script}
				begin := time.Now()
				err := push.Run(t.Context(), d, bundleFile(), tt.opts)
				switch {
				case tt.want == nil && tt.text == "" && err != nil:
					t.Errorf("got %v, want nil", err)
				case (tt.want != nil || tt.text != "") && err == nil:
					t.Errorf("got nil, want %v, %q", tt.want, tt.text)
				case tt.want != nil && !errors.Is(err, tt.want), err != nil && !strings.Contains(err.Error(), tt.text):
					t.Errorf("got %v, want %v with the text %q", err, tt.want, tt.text)
				}
				if took := time.Since(begin); took < tt.took {
					t.Errorf("ended after %v, want at least %v", took, tt.took)
				}
				if wants := !tt.opts.StageOnly; (d.installs > 0) != wants {
					t.Errorf("got %d installations asked for, want any: %v", d.installs, wants)
				}
			})
		})
	}
}

// Trouble and its end are told once, progress only if there is any, and a state whenever
// more than a number in its reason changes.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake{script: []answer{is(push.Idle), because(push.WaitSafe, 0, "dwell time: 58 s left"), because(push.WaitSafe, 0, "dwell time: 57 s left"),
			lineLost, lineLost, is(push.Trial), is(push.Confirmed)}, install: []error{lineLost.err, lineLost.err}}
		var got []string
		err := push.Run(t.Context(), d, bundleFile(), push.Options{Tell: func(e push.Event) {
			text := string(e.Kind)
			switch e.Kind {
			case push.KindState:
				text += " " + e.Status.State.String()
			case push.KindProgress:
				text += fmt.Sprint(" ", e.Done)
			case push.KindPlan:
				text += " " + e.Plan.String()
			}
			got = append(got, text)
		}})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"identity", "plan 1000 B over a fake: about 10 s (the line allows 100 B/s)", "progress 500", "progress 1000",
			"trouble", "back", "state waiting", "numbers", "trouble", "back", "state on trial", "state proven"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if d.installs != 3 {
			t.Errorf("got the installation asked for %d times, want 3: two got no answer", d.installs)
		}
	})
}

// Nothing is sent if nobody answers, or a person does not want to wait so long; and an
// interrupt is an interrupt, whatever was going on.
func TestRunBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := errors.New("too long")
		for name, d := range map[string]*fake{
			"nobody there":                      {identity: push.ErrLine, script: []answer{is(push.Idle)}},
			"not accepted":                      {script: []answer{is(push.Idle)}},
			"another one waits for its battery": {script: []answer{{status: push.Status{State: push.WaitSafe, Version: "1.0.9"}}}},
			"another one is on trial":           {script: []answer{{status: push.Status{State: push.Trial, Version: "1.0.9"}}}},
		} {
			err := push.Run(t.Context(), d, bundleFile(), push.Options{Accept: func(push.Plan) error { return no }})
			if err == nil || d.sent || d.installs > 0 {
				t.Errorf("%s: got %v, sent %v, installs %d, want an error and nothing done", name, err, d.sent, d.installs)
			}
		}
		d := &fake{script: []answer{because(push.WaitSafe, 10, "state of charge 22.0 %")}}
		d.script[0].status.Version = "1.0.9"
		err := push.Run(t.Context(), d, bundleFile(), push.Options{Timeout: time.Minute})
		if !errors.Is(err, push.ErrOccupied) || !strings.Contains(fmt.Sprint(err), "it is waiting 1.0.9: state of charge 22.0 %") || d.sent {
			t.Errorf("another release is in hand: got %v, sent %v, want %v with what it waits for, and nothing sent", err, d.sent, push.ErrOccupied)
		}
		bad := &fake{deaf: 2, script: []answer{is(push.Idle), is(push.Confirmed)}}
		if err := push.Run(t.Context(), bad, bundleFile(), push.Options{}); err != nil || !bad.sent {
			t.Errorf("two questions got lost: got %v, sent %v, want it proven", err, bad.sent)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		err = push.Watch(ctx, &fake{script: []answer{is(push.WaitSafe)}}, "1.1.0", push.Options{Timeout: time.Hour})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	})
}

// The plan counts what a device of which it is likely that it has a part of the file
// does not have yet.
func TestPlanOfTheRest(t *testing.T) {
	for name, tt := range map[string]struct {
		status push.Status
		want   int64
	}{
		"nothing there":   {push.Status{}, 1000},
		"a part":          {push.Status{State: push.Receiving, Size: 1008, Received: 400, Version: "1.1.0"}, 600},
		"another release": {push.Status{State: push.Receiving, Size: 1008, Received: 400, Version: "1.0.9"}, 1000},
		"another size":    {push.Status{State: push.Receiving, Size: 9008, Received: 400}, 1000},
		"all of it":       {push.Status{State: push.Verified, Size: 1008, Received: 1008}, 0},
		"it failed":       {push.Status{State: push.Failed, Size: 1008, Received: 1008}, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			got := int64(-1)
			push.Run(t.Context(), &fake{script: []answer{{status: tt.status}}}, bundleFile(), push.Options{Accept: func(p push.Plan) error {
				got = p.Bytes
				return errors.New("enough")
			}})
			if got != tt.want {
				t.Errorf("got %d bytes planned, want %d", got, tt.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		plan   push.Plan
		want   string
		advice bool
	}{
		{push.Plan{Bytes: 1258291, Line: "9600 baud", Rate: 740}, "1.2 MiB over 9600 baud: about 28 min (the line allows 740 B/s)", false},
		{push.Plan{Bytes: 30 << 20, Line: "9600 baud", Rate: 740}, "30.0 MiB over 9600 baud: about 11.8 h (the line allows 740 B/s)", true},
		{push.Plan{Bytes: 100, Line: "CAN"}, "100 B over CAN", false},
		{push.Plan{Bytes: 70 << 10, Line: "CAN", Rate: 1024}, "70.0 KiB over CAN: about 70 s (the line allows 1.0 KiB/s)", false},
	} {
		if got := tt.plan.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if got := tt.plan.Advice() != ""; got != tt.advice {
			t.Errorf("%v: got advice: %v, want %v", tt.plan, got, tt.advice)
		}
	}
}

// TestGoing: what the numbers of a status mean depends on its state.
func TestGoing(t *testing.T) {
	for _, tt := range []struct {
		s    push.Status
		want string
	}{
		{push.Status{State: push.Idle}, "idle"},
		{push.Status{State: push.WaitSafe, Version: "1.1.0", Attempt: 1, Left: 18 * time.Second, Reason: "safe for 12 s of 30 s"}, "waiting 1.1.0, goes on in 18 s: safe for 12 s of 30 s"},
		{push.Status{State: push.WaitSafe, Version: "1.1.0", Left: 70000 * time.Second}, "waiting 1.1.0, goes on in 19.4 h"},
		{push.Status{State: push.Installing, Version: "1.1.0", Done: 0.4, Left: 90 * time.Second}, "installing 1.1.0 40 %, 90 s left"},
		{push.Status{State: push.Installing, Version: "1.1.0", ImagesDone: 1, ImagesFailed: 2, Reason: "slot B is full"}, "installing 1.1.0, at image 2: slot B is full"},
		{push.Status{State: push.Restarting, Version: "1.1.0", Attempt: 2}, "restarting 1.1.0, try 2"},
		{push.Status{State: push.Trial, Version: "1.1.0", Attempt: 2, Left: 42 * time.Second}, "on trial 1.1.0, try 2, proven in 42 s"},
		{push.Status{State: push.Trial, Version: "1.1.0", Result: 20, Left: 42 * time.Second, Reason: "no battery"}, "on trial 1.1.0, goes back in 42 s if this lasts: no battery"},
		{push.Status{State: push.Trial, Version: "1.1.0"}, "on trial 1.1.0"},
	} {
		if got := tt.s.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestNumbers: what only counts is told as that, and only when it has changed.
func TestNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trial := func(left time.Duration) answer {
			a := because(push.Trial, 0, fmt.Sprintf("healthy for %v", 9*time.Second-left))
			a.status.Left = left
			return a
		}
		d := &fake{script: []answer{is(push.Idle), trial(0), trial(9 * time.Second), trial(8 * time.Second), trial(8 * time.Second), is(push.Confirmed)}}
		var got []string
		err := push.Run(t.Context(), d, bundleFile(), push.Options{Tell: func(e push.Event) {
			if e.Status != nil {
				got = append(got, fmt.Sprint(e.Kind, " ", e.Status.Left))
			}
		}})
		if want := []string{"state 0s", "numbers 9s", "numbers 8s", "state 0s"}; err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
}
