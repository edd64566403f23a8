package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/otatest"
)

func TestHealth(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			w.WriteHeader(http.StatusNoContent)
		case "/bad":
			http.Error(w, "inverter trips", http.StatusServiceUnavailable)
		case "/hangs":
			<-r.Context().Done()
		}
	}))
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := l.Addr().String()
	defer l.Close()
	closed := otatest.NobodyAddr(t)

	at := func(r bms.Reading) bms.Reader {
		return func(context.Context) (bms.Reading, error) { return r, nil }
	}
	now := bms.Measured(20, 20, 22, 80, time.Now())
	old, odd := now, now
	old.At = now.At.Add(-time.Hour)
	odd.Set(bms.SoC, 180)
	atRest := now
	atRest.Set(bms.SoC, 60)
	atRest.Set(bms.Current, 0)
	const long = Duration(time.Minute)
	const short = Duration(50 * time.Millisecond)
	for _, tt := range []struct {
		name string
		h    Health
		read bms.Reader
		want string // empty: healthy
	}{
		{"command", Health{Command: Command{"true"}}, nil, ""},
		{"command in a shell", Health{Command: Command{"/bin/sh", "-c", "test 1 = 1"}}, nil, ""},
		{"command says no", Health{Command: Command{"/bin/sh", "-c", "echo no bus >&2; exit 4"}}, nil, `exit status 4: "no bus"`},
		{"command is not there", Health{Command: Command{"/no/such/program"}}, nil, "no such file"},
		{"command hangs", Health{Command: Command{"/bin/sh", "-c", "sleep 60"}, Timeout: short}, nil, "within 50ms"},
		{"http", Health{HTTP: web.URL + "/good"}, nil, ""},
		{"http says no", Health{HTTP: web.URL + "/bad"}, nil, `503 Service Unavailable: "inverter trips`},
		{"http hangs", Health{HTTP: web.URL + "/hangs", Timeout: short}, nil, "no answer within 50ms"},
		{"http is not there", Health{HTTP: "http://" + closed}, nil, "connection refused"},
		{"tcp", Health{TCP: open}, nil, ""},
		{"tcp is not there", Health{TCP: closed}, nil, "connection refused"},
		{"battery fresh, under load and low", Health{Battery: "fresh"}, at(now), ""},
		{"battery fresh, but old", Health{Battery: "fresh"}, at(old), "old"},
		{"battery fresh, but implausible", Health{Battery: "fresh"}, at(odd), "180"},
		{"battery fresh, but silent", Health{Battery: "fresh"}, func(context.Context) (bms.Reading, error) { return now, errors.New("bus is down") }, "bus is down"},
		{"battery within limits", Health{Battery: "within_limits"}, at(atRest), ""},
		{"battery not within limits", Health{Battery: "within_limits"}, at(now), "state of charge"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.h.Timeout = orDefault(tt.h.Timeout, long)
			tt.h.Name = "plant"
			c, err := checker(t, tt.read).newCheck(&tt.h, bms.DefaultTolerance())
			if err != nil {
				t.Fatal(err)
			}
			err = healthy(t.Context(), []check{c})
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want healthy", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "health check plant: ") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := checker(t, nil).newCheck(&Health{Battery: "fresh"}, bms.DefaultTolerance()); err == nil {
		t.Error("a battery check was accepted on a device without a battery")
	}

	// All that fail are named, on one line.
	var checks []check
	for _, h := range []Health{{Name: "one", TCP: closed}, {Name: "two", Command: Command{"true"}}, {Name: "three", Command: Command{"false"}}} {
		c, err := checker(t, nil).newCheck(&h, bms.DefaultTolerance())
		if err != nil {
			t.Fatal(err)
		}
		checks = append(checks, c)
	}
	err = healthy(t.Context(), checks)
	if err == nil || !strings.Contains(err.Error(), "check one") || strings.Contains(err.Error(), "two") || !strings.Contains(err.Error(), "check three") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one and three", err)
	}
}

// TestFreshIsAlive: a heartbeat that is there must move, also if none has to be there.
func TestFreshIsAlive(t *testing.T) {
	r := bms.Measured(20, 20, 22, 80, time.Now())
	r.Beat = &bms.Beat{Count: 7, Within: time.Minute}
	a := checker(t, func(context.Context) (bms.Reading, error) { return r, nil })
	for range 3 {
		if _, err := a.freshBattery(t.Context()); err == nil || !strings.Contains(err.Error(), "not been seen to move") {
			t.Errorf("got %v, want that the heartbeat stands", err)
		}
	}
	r.Beat = &bms.Beat{Count: 8, Within: time.Minute}
	if _, err := a.freshBattery(t.Context()); err != nil {
		t.Errorf("after it moved: %v", err)
	}
}

// TestBaselineIsWhatWasAllowed: what is read for display between the gate's yes and the
// restart is not what the battery is compared with afterwards.
func TestBaselineIsWhatWasAllowed(t *testing.T) {
	soc := 60.0
	a := checker(t, func(context.Context) (bms.Reading, error) { return bms.Measured(soc, 20, 22, 0, time.Now()), nil })
	verify := false
	a.cfg.VerifySignature, a.cfg.Health = &verify, []Health{{Battery: "as_before"}}
	a.witness = newWitness(a)
	t.Cleanup(a.witness.log.Close)
	m := &ota.Manifest{Digest: "d"}
	if err := a.keepBaseline(m); !errors.Is(err, ota.ErrNotNow) {
		t.Errorf("before any yes: got %v, want a refusal", err)
	}
	if err := a.guard.Gate(t.Context(), m, ota.AtRestart); err != nil {
		t.Fatal(err)
	}
	soc = 12
	if _, err := a.guard.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.keepBaseline(m); err != nil {
		t.Fatal(err)
	}
	if r, err := a.readBaseline("d"); err != nil || r.Value(bms.SoC) != 60 {
		t.Errorf("got %v %%, %v, want the 60 %% that were allowed", r.Value(bms.SoC), err)
	}
	if err := a.guard.Gate(t.Context(), m, ota.AtRestart); err == nil {
		t.Fatal("12 % were allowed")
	}
	if err := a.keepBaseline(m); !errors.Is(err, ota.ErrNotNow) {
		t.Errorf("after a no: got %v, want a refusal", err)
	}
}

// TestCommandDeadline: what a command started is killed with it.
func TestCommandDeadline(t *testing.T) {
	beat := filepath.Join(t.TempDir(), "beat")
	c := Command{"/bin/sh", "-c", fmt.Sprintf("trap '' TERM INT; (while :; do echo x >> %s; sleep 0.02; done) & wait", beat)}
	_, err := c.run(t.Context(), 300*time.Millisecond, nil)
	if err == nil || !strings.Contains(err.Error(), "did not end within 300ms and was killed") {
		t.Errorf("got %v, want that it was killed", err)
	}
	for range 200 { // the group dies at once, but not in the same instant
		before, err := os.ReadFile(beat)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(100 * time.Millisecond)
		after, err := os.ReadFile(beat)
		if err != nil {
			t.Fatal(err)
		}
		if len(after) == len(before) {
			return
		}
	}
	t.Error("the command's child goes on")
}

func TestCommandRun(t *testing.T) {
	out, err := Command{"/bin/sh", "-c", "echo $INTERLOCK_HOOK; echo noise >&2"}.run(t.Context(), time.Minute, []string{"INTERLOCK_HOOK=suspend"})
	if err != nil || out != "suspend\n" {
		t.Errorf("got %q, %v, want the variable", out, err)
	}
	// Something that it leaves in the background does not make it fail.
	if _, err := (Command{"/bin/sh", "-c", "sleep 5 & exit 0"}).run(t.Context(), time.Minute, nil); err != nil {
		t.Errorf("with something in the background: %v", err)
	}
	out, err = Command{"/bin/sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x"}.run(t.Context(), time.Minute, nil)
	if err != nil || len(out) != maxOutput {
		t.Errorf("got %d bytes, %v, want the first %d", len(out), err, maxOutput)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Command{"true"}).run(ctx, time.Minute, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// checker is an agent that only has a battery, or none.
func checker(t *testing.T, read bms.Reader) *Agent {
	t.Helper()
	a := &Agent{read: read, log: slog.New(slog.DiscardHandler), cfg: Config{StateDir: t.TempDir()}}
	if read != nil {
		var err error
		if a.guard, err = bms.New(read, bms.Default()); err != nil {
			t.Fatal(err)
		}
	}
	return a
}
