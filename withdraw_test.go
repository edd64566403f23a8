package ota_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// openedSource counts how often images are opened, and is slow.
type openedSource struct {
	slowSource
	opened int
}

func (s *openedSource) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	s.opened++
	return s.slowSource.Open(ctx, m, im, offset)
}

// TestWithdraw: who asks from afar takes back the release that is meant, and no other.
func TestWithdraw(t *testing.T) {
	refuse := func(at ota.Moment, code error) func(c *ota.Config) {
		return func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, now ota.Moment) error {
				if now == at {
					return code
				}
				return nil
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*ota.Config) // makes the update wait in the state, 5 minutes after the start
		state  ota.State
	}{
		{"available", refuse(ota.BeforeWrite, ota.ErrBatteryLow), ota.Available},
		{"available, nobody has agreed", func(c *ota.Config) { c.Automatic = false }, ota.Available},
		{"fetching, the source is silent", nil, ota.Fetching},
		{"staged", refuse(ota.BeforeRestart, ota.ErrNotNow), ota.Staged},
	} {
		for _, other := range []bool{false, true} {
			name := c.name
			if other {
				name += ", another release is meant"
			}
			t.Run(name, func(t *testing.T) {
				device(t, func(t *testing.T, d *otatest.Device) {
					source := &openedSource{slowSource: slowSource{&d.Source, time.Minute}}
					configure(d, func(cfg *ota.Config) {
						if c.change != nil {
							c.change(cfg)
						} else {
							cfg.Source = source
						}
					})
					background(t, d, func(m *ota.Manager) {
						time.Sleep(5 * time.Minute)
						synctest.Wait()
						before := m.Snapshot()
						if before.State != c.state {
							t.Fatalf("got %s, want %s", before.State, c.state)
						}
						digest, opened := before.Update.Digest, source.opened
						if other {
							digest += "0"
						}
						d.Source.Withdrawn = !other // as who asks for it does
						began := time.Now()
						call := m.Withdraw(digest)
						err := call.Wait(t.Context())
						synctest.Wait()
						after := m.Snapshot()
						switch {
						case !other && (err != nil || after.State != ota.Idle || time.Since(began) > time.Second):
							t.Errorf("got %v, %s after %v, want nil and %s at once", err, after.State, time.Since(began), ota.Idle)
						case other && c.state == ota.Fetching && (!errors.Is(err, ota.ErrStopped) || after.State != c.state):
							t.Errorf("got %v, %s, want an answer only when the transfer is over, which does not happen here", err, after.State)
						case other && c.state != ota.Fetching && (!errors.Is(err, ota.ErrNoUpdate) || after.State != c.state || after.Last != nil):
							t.Errorf("got %v, %s, %+v, want %v, and no change", err, after.State, after.Last, ota.ErrNoUpdate)
						case other && source.opened != opened:
							t.Errorf("the transfer of a release that nobody meant was broken off")
						}
						if other {
							m.Abort() // so that the device has nothing to do
							return
						}
						if len(after.Skipped) != 0 {
							t.Errorf("got %+v as skipped, want nothing: it may be offered again", after.Skipped)
						}
						time.Sleep(10 * time.Minute)
						synctest.Wait()
						if s := m.Snapshot(); s.State != ota.Idle {
							t.Errorf("10 min later: got %s, want %s", s.State, ota.Idle)
						}
					})
					if !other {
						wantRunning(t, d, "1.0.0")
						wantReport(t, d, ota.Aborted, ota.ErrInternal, "aborted by a person")
						powerCycle(t, d, otatest.DropAll)
						wantRunning(t, d, "1.0.0")
					}
				})
			})
		}
	}
	t.Run("with nothing under way", func(t *testing.T) {
		err := command(func(*otatest.Device) {}, func(m *ota.Manager) *ota.Call { return m.Withdraw("") })(t)
		if !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want ErrNoUpdate", err)
		}
	})
	for name, noReboot := range map[string]bool{"while it waits for the next restart": true, "in the trial": false} {
		t.Run(name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				d.Source.Change = func(m *ota.Manifest) { m.NoReboot = noReboot }
				digest := ""
				var call *ota.Call
				configure(d, func(c *ota.Config) { c.Hooks.Started = func(m *ota.Manifest) { digest = m.Digest } })
				d.AtStart = func(m *ota.Manager) {
					if d.Running.Version == "1.0.1" && !noReboot {
						call = m.Withdraw(digest)
					}
				}
				if noReboot {
					time.AfterFunc(5*time.Minute, func() { call = d.Manager().Withdraw(digest) })
				}
				live(t, d)
				if err := call.Wait(t.Context()); digest == "" || !errors.Is(err, ota.ErrBusy) {
					t.Errorf("withdraw %q: got %v, want ErrBusy", digest, err)
				}
				powerCycle(t, d, otatest.DropAll)
				live(t, d)
				wantRunning(t, d, "1.0.1")
			})
		})
	}
}

// TestWithdrawDuringACheck: a withdrawal that comes while a source is asked is carried out after that,
// on what the check has found, and does not break off a check that may be for another release.
func TestWithdrawDuringACheck(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var call *ota.Call
		configure(d, func(c *ota.Config) {
			c.Automatic = false
			c.Source = &asked{&d.Source, func(digest string) { call = d.Manager().Withdraw(digest) }}
		})
		live(t, d)
		if err := call.Wait(t.Context()); err != nil {
			t.Errorf("got %v, want nil", err)
		}
		wantReport(t, d, ota.Aborted, ota.ErrInternal, "aborted by a person")
	})
}

// asked tells when it is asked for the first time what it will offer.
type asked struct {
	*otatest.Source
	tell func(digest string)
}

func (s *asked) Latest(ctx context.Context) ([]byte, error) {
	signed, err := s.Source.Latest(ctx)
	if err == nil && s.tell != nil {
		m, verr := otatest.Verify(signed)
		if verr != nil {
			return nil, verr
		}
		s.tell(m.Digest)
		s.tell, s.Withdrawn = nil, true
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return signed, err
}
