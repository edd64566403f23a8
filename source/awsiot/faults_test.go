package awsiot_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/awsiot"
)

// device drives a source as a manager does, and goes on after whatever happened.
type device struct {
	r   *rig
	rel *otatest.SignedRelease

	// What the manager's record says, which survives as well.
	fetched, ended bool
	result         ota.Result
}

// run brings the update to its end, with as many tries as it takes. It returns an error
// only if ctx ends.
func (d *device) run(ctx context.Context, s *awsiot.Source) error {
	pause := func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
			return nil
		}
	}
	for !d.ended {
		if !d.fetched {
			_, err := s.Latest(ctx)
			if err == nil {
				err = fetch(ctx, s, d.rel)
			}
			if d.fetched = err == nil; !d.fetched {
				if err := pause(); err != nil {
					return err
				}
				continue
			}
		}
		code := ota.ErrNone
		if d.result != ota.Succeeded {
			code = ota.ErrFlashWrite
		}
		if err := s.Report(ctx, report(d.rel, d.result, code, "")); err != nil {
			if err := pause(); err != nil {
				return err
			}
			continue
		}
		d.ended = true
	}
	return nil
}

func statusFor(result ota.Result) awstest.Status {
	if result == ota.Succeeded {
		return awstest.Succeeded
	}
	return awstest.Failed
}

// The broker is lost at every message of an update, in every way: each time the job gets
// the same final status, once.
func TestConnectionLostAtEveryMessage(t *testing.T) {
	for _, result := range []ota.Result{ota.Succeeded, ota.Failed} {
		runs := 0
		for _, action := range []awstest.Action{awstest.CutBefore, awstest.CutAfter, awstest.KillBefore, awstest.KillAfter, awstest.Lose, awstest.Double} {
			for n := 1; ; n++ {
				fell := false
				ok := t.Run(fmt.Sprintf("%s %d %d", result, action, n), func(t *testing.T) { fell = loseAt(t, result, action, n) })
				if !fell || !ok {
					break
				}
				runs++
			}
		}
		t.Logf("%s: %d runs with a loss", result, runs)
		if runs < 30 {
			t.Errorf("%s: %d runs, want a loss at each of 8 messages or more", result, runs)
		}
	}
}

// loseAt makes one run with a loss at message n, and reports whether there was one.
func loseAt(t *testing.T, result ota.Result, action awstest.Action, n int) (fell bool) {
	r := newRig(t)
	seen := 0
	hit := make(chan struct{})
	r.broker.Fault(func(p awstest.Packet) awstest.Fate {
		if seen++; seen == n {
			close(hit)
			return awstest.Fate{Action: action}
		}
		return awstest.Fate{}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // somebody brings the broker back
		select {
		case <-ctx.Done():
			return
		case <-hit:
		}
		if action == awstest.KillBefore || action == awstest.KillAfter {
			<-r.broker.Down()
			r.broker.Start()
		}
	}()
	rel, document := r.release("1.1.0", 10_000)
	r.create("job-1", document)
	cfg := r.config(running)
	cfg.AnswerTimeout = 150 * time.Millisecond // for a message that is lost
	s, _ := start(t, cfg)
	d := &device{r: r, rel: rel, result: result}
	if err := d.run(ctx, s); err != nil {
		t.Fatal(err)
	}
	r.wantFinal("job-1", statusFor(result), "")
	select {
	case <-hit:
		return true
	default:
		return false
	}
}

// The power is cut at every effect on the disk, in every way: each time the next life of
// the device goes on, and the job gets the same final status, once.
func TestPowerCutAtEveryEffect(t *testing.T) {
	runs := 0
	for _, result := range []ota.Result{ota.Succeeded, ota.RolledBack} {
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for at := 1; ; at++ {
				fell := false
				ok := t.Run(fmt.Sprintf("%s %v %d", result, how, at), func(t *testing.T) {
					fell = cutAt(t, result, otatest.Cut{At: at, How: how, Rest: otatest.Subset, Seed: uint64(at)})
				})
				if !ok || !fell {
					break
				}
				runs++
			}
		}
	}
	t.Logf("%d runs with a power cut", runs)
	if runs < 60 {
		t.Errorf("%d runs, want a cut at each of 10 effects or more", runs)
	}
}

func cutAt(t *testing.T, result ota.Result, cut otatest.Cut) (fell bool) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 10_000)
	r.create("job-1", document)
	r.disk.Arm(cut)
	d := &device{r: r, rel: rel, result: result}
	for !d.ended {
		disk := &cutFS{disk: r.disk}
		cfg := r.config(running)
		cfg.FS = disk
		s, stop := start(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // the power takes the process with it
			for !disk.off() && ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
			cancel()
		}()
		err := d.run(ctx, s)
		cancel()
		stop()
		if disk.off() {
			fell = true
			r.disk.PowerOn()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.wantFinal("job-1", statusFor(result), "")
	if strings.Contains(r.disk.String(), ".tmp") {
		t.Logf("left behind: %s", r.disk)
	}
	return fell
}

// A process that ends at any moment, and one that begins with nothing of Dir left, end the
// job all the same.
func TestDirLost(t *testing.T) {
	for _, result := range []ota.Result{ota.Succeeded, ota.Failed} {
		t.Run(string(result), func(t *testing.T) {
			r := newRig(t)
			rel, document := r.release("1.1.0", 10_000)
			r.create("job-1", document)
			s, stop := start(t, r.config(running))
			if _, err := s.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := fetch(t.Context(), s, rel); err != nil {
				t.Fatal(err)
			}
			stop()
			r.disk = otatest.NewDisk()
			cfg := r.config(running)
			if result == ota.Succeeded {
				cfg = r.config("1.1.0")
			}
			cfg.Skipped = func(string) (string, bool) { return "it failed", result != ota.Succeeded }
			s, _ = start(t, cfg)
			if err := s.Report(t.Context(), report(rel, result, ota.ErrNone, "")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
				t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
			}
			r.wantFinal("job-1", statusFor(result), "")
		})
	}
}

// A record that is damaged is not the end: the service knows the rest.
func TestDamagedRecord(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 10_000)
	r.create("job-1", document)
	if err := durable.MkdirAll(r.disk, dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(r.disk, dir+"/awsiot.json", []byte(`{"format":1,"hand":`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &device{r: r, rel: rel, result: ota.Succeeded}
	if err := d.run(t.Context(), r.start(running)); err != nil {
		t.Fatal(err)
	}
	r.wantFinal("job-1", awstest.Succeeded, "")
}

// A record that cannot be written holds everything up: nothing is begun that would be forgotten.
func TestDiskFull(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 10_000)
	r.create("job-1", document)
	s := r.start(running)
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.disk.OnEffect = func(int, string) otatest.Fault { return otatest.Fault{Err: errors.New("no space left on device")} }
	if err := fetch(t.Context(), s, rel); err == nil {
		t.Error("the job was begun, though that could not be written down")
	}
	if got := r.execution("job-1").Status; got != awstest.Queued {
		t.Errorf("the job is %s, want it to wait", got)
	}
}

// An answer that is lost is asked for before anything is sent again, and what was to be
// said is said by the next process, too, without being told by the manager.
func TestAnswerLost(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lose  func(p awstest.Packet) bool
		tries int // final statuses that the service has seen
	}{
		{"the request", func(p awstest.Packet) bool { return p.Direction == awstest.ToBroker && isFinal(p) }, 1},
		{"the answer", func(p awstest.Packet) bool {
			return p.Direction == awstest.ToDevice && strings.HasSuffix(p.Topic, "/update/accepted")
		}, 1},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", tt.name, restart), func(t *testing.T) {
				r := newRig(t)
				rel, document := r.release("1.1.0", 10_000)
				r.create("job-1", document)
				cfg := r.config(running)
				cfg.AnswerTimeout = 100 * time.Millisecond
				s, stop := start(t, cfg)
				if _, err := s.Latest(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := fetch(t.Context(), s, rel); err != nil {
					t.Fatal(err)
				}
				lost := false
				r.broker.Fault(func(p awstest.Packet) awstest.Fate {
					if !lost && tt.lose(p) {
						lost = true
						return awstest.Fate{Action: awstest.Lose}
					}
					return awstest.Fate{}
				})
				if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); ota.CodeOf(err) != ota.ErrConnectivity {
					t.Fatalf("without an answer: got %v, want %v", err, ota.ErrConnectivity)
				}
				if restart {
					stop()
					start(t, cfg)
					if _, err := r.jobs.Wait(t.Context(), thing, "job-1", awstest.Succeeded); err != nil {
						t.Fatal(err)
					}
				} else {
					deliver(t.Context(), t, s, report(rel, ota.Succeeded, ota.ErrNone, ""))
				}
				r.wantFinal("job-1", awstest.Succeeded, "")
				tries := 0
				for _, u := range r.jobs.Updates(thing, "job-1") {
					if u.Status.Terminal() {
						tries++
					}
				}
				if tries != tt.tries {
					t.Errorf("the service has seen %d final statuses, want %d", tries, tt.tries)
				}
			})
		}
	}
}

func isFinal(p awstest.Packet) bool {
	return strings.HasSuffix(p.Topic, "/update") && strings.Contains(string(p.Payload), `"SUCCEEDED"`)
}
