package push_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/push"
)

// What is taken back is gone when Withdraw says so, and what is not says why.
func TestWithdraw(t *testing.T) {
	busy := fmt.Errorf("%w: another master", push.ErrOccupied)
	late := push.Fail(push.ErrTooLate, "the device did not take it back: the restart is under way")
	for _, tt := range []struct {
		name   string
		script []answer
		abort  []error
		opts   push.Options
		want   error // wrapped
		text   string
		aborts int
		was    push.State
	}{
		{name: "waiting", script: []answer{is(push.WaitSafe), is(push.Aborted)}, aborts: 1, was: push.WaitSafe},
		{name: "a part", script: []answer{is(push.Receiving), is(push.Idle)}, aborts: 1, was: push.Receiving},
		{name: "being written", script: []answer{is(push.Installing), is(push.Installing), is(push.Aborted)}, aborts: 2, was: push.Installing},
		{name: "nothing", script: []answer{is(push.Idle)}, want: push.ErrNothing, text: "the device says: idle"},
		{name: "before", script: []answer{is(push.Aborted)}, want: push.ErrNothing, text: "aborted"},
		{name: "proven", script: []answer{is(push.Confirmed)}, want: push.ErrNothing, text: "proven"},
		{name: "went back", script: []answer{is(push.RolledBack)}, want: push.ErrNothing, text: "rolled back"},
		{name: "restarting", script: []answer{is(push.Restarting)}, want: push.ErrTooLate, text: "too late to take 1.1.0 back: the device is restarting"},
		{name: "on trial", script: []answer{is(push.Trial)}, want: push.ErrTooLate, text: "on trial"},
		{name: "it moves on", script: []answer{is(push.WaitSafe), is(push.Restarting)}, aborts: 1, was: push.WaitSafe, want: push.ErrTooLate, text: "restarting"},
		{name: "it is through", script: []answer{is(push.Installing), lineLost, is(push.Confirmed)}, aborts: 1, was: push.Installing, want: push.ErrTooLate, text: "proven"},
		{name: "the device says so", script: []answer{is(push.Installing)}, abort: []error{late}, aborts: 1, was: push.Installing, want: push.ErrTooLate, text: "the restart is under way"},
		{name: "occupied", script: []answer{is(push.WaitSafe)}, abort: []error{busy}, aborts: 1, was: push.WaitSafe, want: push.ErrOccupied},
		{name: "answers are lost", script: []answer{lineLost, lineLost, is(push.WaitSafe), lineLost, is(push.WaitSafe), is(push.Aborted)}, abort: []error{lineLost.err}, aborts: 2, was: push.WaitSafe},
		{name: "its answer is lost, and it was done", script: []answer{is(push.WaitSafe), lineLost, is(push.Idle)}, abort: []error{lineLost.err}, aborts: 1, was: push.WaitSafe},
		{name: "it says nothing any more", script: []answer{lineLost}, opts: push.Options{Timeout: time.Minute}, want: push.ErrUnfinished, text: "has not said yet what it does"},
		{name: "the device has gone", script: []answer{is(push.WaitSafe), lineLost}, opts: push.Options{Timeout: time.Minute}, aborts: 1, was: push.WaitSafe, want: push.ErrUnfinished, text: "waiting"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fake{script: tt.script, abort: tt.abort}
				withdrawn := 0
				tt.opts.Tell = func(e push.Event) {
					if e.Kind == push.KindWithdrawn {
						withdrawn++
					}
				}
				was, err := push.Withdraw(t.Context(), d, tt.opts)
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
				}
				if d.aborts != tt.aborts || was.State != tt.was || d.sent || d.installs != 0 {
					t.Errorf("aborted %d times what was %v; sent %v, installed %d times; want %d, %v, and no more", d.aborts, was.State, d.sent, d.installs, tt.aborts, tt.was)
				}
				if told := withdrawn == 1; told != (err == nil) {
					t.Errorf("told %d times that it was taken back, with %v", withdrawn, err)
				}
			})
		})
	}
	if errors.Is(push.ErrTooLate, push.ErrOccupied) || !errors.Is(push.ErrNothing, ota.ErrNoUpdate) {
		t.Error("too late looks like another master, or nothing not like nothing")
	}
}

// What the device says is not said twice.
func TestAbortedOnce(t *testing.T) {
	for reason, want := range map[string]string{"aborted by a person": "aborted by a person", "given up over the bus": "aborted by a person: given up over the bus"} {
		s := push.Status{State: push.Aborted, Reason: reason}
		if got := s.Err(); got == nil || got.Error() != want || !errors.Is(got, ota.ErrAborted) {
			t.Errorf("%q: got %v, want %s", reason, got, want)
		}
	}
}
