package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/otatest"
)

// pair is a fake of slots of 1000 bytes for one component.
type pair struct {
	ota.Slots
	boot ota.Boot
	err  error
}

func (p *pair) Booted(context.Context) (ota.Boot, error) { return p.boot, p.err }

func (p *pair) Open(_ context.Context, component, slot string) (ota.Slot, error) {
	if component != "controller" || slot != "B" {
		return nil, ota.ErrIncompatible
	}
	return room{}, nil
}

type room struct{ ota.Slot }

func (room) Capacity() int64 { return 1000 }
func (room) Close() error    { return nil }

// A job is ended for what the slots say, too, and not for what they do not know yet.
func TestJudgeJob(t *testing.T) {
	idle := ota.Boot{Slot: "A", Other: "B", ID: "1"}
	onTrial := idle
	onTrial.Trial = true
	release := func(version string, sizes ...int) *ota.Manifest {
		m := otatest.NewSigningKey(t).Release(t, version, sizes...).Manifest
		m.Product = "p"
		return m
	}
	for _, tt := range []struct {
		name    string
		release *ota.Manifest
		slots   *pair
		want    error // or nil
	}{
		{"fits", release("1.1.0", 1000), &pair{boot: idle}, nil},
		{"too large", release("1.1.0", 1001), &pair{boot: idle}, ota.ErrInsufficientSpace},
		{"a component that this device does not have", release("1.1.0", 10, 10), &pair{boot: idle}, ota.ErrIncompatible},
		{"another product", &ota.Manifest{Product: "q", Version: "1.1.0"}, &pair{boot: idle}, ota.ErrIncompatible},
		{"runs", release("1.0.0", 10), &pair{boot: idle}, ota.ErrNoUpdate},
		{"runs, and the bootloader may go back", release("1.0.0", 10), &pair{boot: onTrial}, ota.ErrNotNow},
		{"runs, and nobody knows where", release("1.0.0", 10), &pair{err: ota.ErrIncompatible}, ota.ErrInternal},
		{"nobody knows where to", release("1.1.0", 10), &pair{err: ota.ErrIncompatible}, ota.ErrInternal},
	} {
		a := &Agent{cfg: Config{Device: Device{Product: "p"}}, slots: tt.slots}
		a.record.Store(&ota.Record{State: ota.Idle})
		err := a.judgeJob(tt.release, "1.0.0")
		if tt.want == nil && err != nil || !errors.Is(err, tt.want) && !(tt.want == ota.ErrInternal && ota.CodeOf(err) == tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if tt.want == ota.ErrNotNow && errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("%s: %v ends the job well", tt.name, err)
		}
	}
	// A bootloader that cannot tell a trial, and what the record says.
	for _, state := range []ota.State{ota.Activating, ota.Trial, ota.Soak, ota.RollBack, "unknown"} {
		a := &Agent{cfg: Config{Device: Device{Product: "p"}}, slots: &pair{boot: idle}}
		if state != "unknown" {
			a.record.Store(&ota.Record{State: state})
		}
		if err := a.judgeJob(release("1.0.0", 10), "1.0.0"); !errors.Is(err, ota.ErrNotNow) || errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("runs, and the record is in %s: %v, want ErrNotNow", state, err)
		}
	}
}

// Two sources with one directory would each forget what the other has written down.
func TestOneSourceOfJobs(t *testing.T) {
	cfg := minimal(t)
	cfg.AWS = shelves{}
	cfg.Source, cfg.Sources = nil, []Source{{AWSIoT: &AWSIoT{Endpoint: "a"}}, {AWSIoT: &AWSIoT{Endpoint: "b"}}}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "another aws_iot before it") {
		t.Errorf("got %v, want an error about the second source", err)
	}
}

// shelves is a fake of AWS whose sources are empty.
type shelves struct{ AWS }

func (shelves) NewSource(*AWSIoT, Surroundings) (ota.Source, error) { return &shelf{}, nil }

// caller is a fake of a source whose server wakes the device.
type caller struct {
	shelf
	wake chan struct{}
}

func (c *caller) Wake() <-chan struct{}                          { return c.wake }
func (c *caller) Status(context.Context, api.StatusUpdate) error { return nil }

// stick is a fake of a source at which somebody stands.
type stick struct {
	shelf
	wake chan struct{}
}

func (s *stick) Wake() <-chan struct{} { return s.wake }

// A server that wakes the device all the time makes it look now and then; a person is
// not held up, and a first wake never.
func TestWakesAreSpaced(t *testing.T) {
	for _, remote := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			wake := make(chan struct{}, 1)
			var src ota.Source = &stick{wake: wake}
			if remote {
				src = &caller{wake: wake}
			}
			m := &multi{sources: []named{{name: "s", Source: src}}, wake: make(chan struct{}, 1), spacing: 10 * time.Minute, log: slog.New(slog.DiscardHandler)}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go m.run(ctx)
			checks, first := 0, time.Duration(0)
			begun := time.Now()
			for time.Since(begun) < time.Hour {
				select {
				case wake <- struct{}{}:
				default:
				}
				synctest.Wait()
				select {
				case <-m.wake:
					if checks++; checks == 1 {
						first = time.Since(begun)
					}
				default:
				}
				time.Sleep(time.Second)
			}
			if first != 0 {
				t.Errorf("remote %v: the first check is after %v, want none", remote, first)
			}
			if remote && (checks < 9 || checks > 12) || !remote && checks != 3600 {
				t.Errorf("remote %v: %d checks in an hour", remote, checks)
			}
			close(wake) // nobody spins because of that
			synctest.Wait()
		})
	}
}
