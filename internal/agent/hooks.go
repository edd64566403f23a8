package agent

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
)

const (
	hookTimeout = 60 * time.Second
	maxEvents   = 64 // that wait for the event hook

	// maxEnv bounds a text for a hook, in bytes. Linux does not start a program with
	// a variable of 128 KiB (MAX_ARG_STRLEN), and names on a hostile stick, which
	// reasons repeat, come to more: resume would not run, and the plant stay quiesced.
	maxEnv = 4 << 10
)

// hooks makes the manager's callbacks out of the configured commands, and of
// what the agent itself wants to know.
func (a *Agent) hooks(ctx context.Context) ota.Hooks {
	h := &a.cfg.Hooks
	out := ota.Hooks{
		Event: func(s ota.Status, c ota.ErrorCode) {
			a.publish(control.KindStatus)
			a.queueEvent(s, c)
		},
		Progress: func(done, total int64) { a.publishProgress(done == total) },
	}
	if len(h.CheckStart.Command) > 0 {
		out.CheckStart = func() bool {
			err := a.runHook(ctx, "check_start", &h.CheckStart)
			if err != nil {
				a.log.Info("the check_start hook does not allow a check now", "error", err)
			}
			return err == nil
		}
	}
	if len(h.Suspend.Command) > 0 || a.plant != nil {
		out.Suspend = a.suspendPlant
	}
	if len(h.Resume.Command) > 0 || a.plant != nil {
		out.Resume = a.resumePlant
	}
	return out
}

func (a *Agent) runHook(ctx context.Context, name string, h *Hook, env ...string) error {
	defer a.alive.enter(name + " hook")()
	began := time.Now()
	_, err := h.Command.run(ctx, time.Duration(orDefault(h.Timeout, Duration(hookTimeout))), append(a.hookEnv(name), env...))
	a.log.Debug("hook", "name", name, "took", time.Since(began).Round(time.Millisecond), "error", err)
	return err
}

// hookEnv is what hooks are told. Names in it never change.
func (a *Agent) hookEnv(name string) []string {
	s := a.Snapshot()
	env := []string{
		"INTERLOCK_HOOK=" + name,
		"INTERLOCK_DEVICE=" + a.cfg.Device.ID,
		"INTERLOCK_PRODUCT=" + a.cfg.Device.Product,
		"INTERLOCK_VERSION=" + s.Running,
		"INTERLOCK_SLOT=" + s.Slot,
		"INTERLOCK_STATUS=" + s.Status.String(),
		"INTERLOCK_CODE=" + strconv.Itoa(int(s.Code)),
		"INTERLOCK_CODE_NAME=" + s.Code.Name(),
		"INTERLOCK_REASON=" + strings.ReplaceAll(s.Reason[:min(len(s.Reason), maxEnv)], "\x00", "?"), // a zero byte would keep the hook from running
	}
	if u := s.Update; u != nil {
		env = append(env, "INTERLOCK_UPDATE_VERSION="+u.Version, "INTERLOCK_UPDATE_DIGEST="+u.Digest)
	}
	return env
}

type event struct{ env []string }

// queueEvent hands a change of status to the event hook, which may take its time.
func (a *Agent) queueEvent(s ota.Status, c ota.ErrorCode) {
	if len(a.cfg.Hooks.Event.Command) == 0 {
		return
	}
	env := append(a.hookEnv("event"), "INTERLOCK_STATUS="+s.String(), "INTERLOCK_CODE="+strconv.Itoa(int(c)), "INTERLOCK_CODE_NAME="+c.Name())
	select {
	case a.events <- event{env}:
	default:
		a.log.Warn("the event hook is too slow, an event is not given to it", "status", s.String())
	}
}

// runEvents runs the event hook for each event, in order, until ctx ends.
func (a *Agent) runEvents(ctx context.Context) {
	h := &a.cfg.Hooks.Event
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-a.events:
			if _, err := h.Command.run(ctx, time.Duration(orDefault(h.Timeout, Duration(hookTimeout))), e.env); err != nil && ctx.Err() == nil {
				a.log.Warn("the event hook failed", "error", err)
			}
		}
	}
}
