package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
)

// shelf is a source that holds one release, or an error.
type shelf struct {
	release *ota.Manifest
	err     error // of Latest
	openErr error
	reports []ota.Report
}

func (s *shelf) Latest(context.Context) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	return json.Marshal(s.release)
}

func (s *shelf) Open(_ context.Context, m *ota.Manifest, _ *ota.Image, offset int64) (io.ReadCloser, error) {
	switch {
	case s.openErr != nil:
		return nil, s.openErr
	case s.release == nil || s.release.Version != m.Version:
		return nil, fmt.Errorf("%w: it is not here", ota.ErrServer)
	}
	return io.NopCloser(strings.NewReader(s.release.Notes[offset:])), nil
}

func (s *shelf) Report(_ context.Context, r ota.Report) error {
	if s.err != nil {
		return s.err
	}
	s.reports = append(s.reports, r)
	return nil
}

func verifyJSON(b []byte) (*ota.Manifest, error) {
	m := new(ota.Manifest)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ota.ErrValidation, err)
	}
	if m.Notes == "forged" {
		return nil, fmt.Errorf("%w: no signature holds", ota.ErrValidation)
	}
	m.Digest = m.Version
	return m, nil
}

func newMulti(a *Agent, sources ...*shelf) *multi {
	m := &multi{verify: verifyJSON, enter: a.alive.enter, log: slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1),
		fits: func(m *ota.Manifest) bool { return a.judge(m, "1.0.0") == nil }, skipped: a.skipped, inHand: a.inHand, checked: func(error) {}}
	for i, s := range sources {
		m.sources = append(m.sources, named{name: fmt.Sprintf("source%d", i+1), Source: s})
	}
	return m
}

func TestMultiLatest(t *testing.T) {
	a := &Agent{cfg: Config{Device: Device{Product: "p", Hardware: "b"}}}
	a.record.Store(&ota.Record{SecurityVersion: 2, Skipped: []ota.Skipped{{Digest: "1.9.0"}}})
	release := func(version string, change ...func(*ota.Manifest)) *shelf {
		m := &ota.Manifest{Product: "p", Version: version, SecurityVersion: 2, Notes: version}
		for _, c := range change {
			c(m)
		}
		return &shelf{release: m}
	}
	nothing := &shelf{err: ota.ErrNoUpdate}
	down := &shelf{err: fmt.Errorf("%w: no route", ota.ErrConnectivity)}
	for _, tt := range []struct {
		name    string
		sources []*shelf
		want    string // version
		err     error
	}{
		{"the newer wins", []*shelf{release("1.1.0"), release("1.2.0")}, "1.2.0", nil},
		{"whatever the order", []*shelf{release("1.10.0"), release("1.2.0")}, "1.10.0", nil},
		{"one has nothing", []*shelf{nothing, release("1.1.0")}, "1.1.0", nil},
		{"one is down", []*shelf{down, release("1.1.0")}, "1.1.0", nil},
		{"nothing anywhere", []*shelf{nothing, nothing}, "", ota.ErrNoUpdate},
		{"nothing, and one is down", []*shelf{nothing, down}, "", ota.ErrConnectivity},
		{"the running version does not hide a downgrade", []*shelf{release("1.0.0"), release("0.9.0", func(m *ota.Manifest) { m.AllowDowngrade = true })}, "0.9.0", nil},
		{"a downgrade that is not allowed", []*shelf{release("0.9.0"), release("1.1.0")}, "1.1.0", nil},
		{"other product", []*shelf{release("2.0.0", func(m *ota.Manifest) { m.Product = "q" }), release("1.1.0")}, "1.1.0", nil},
		{"other hardware", []*shelf{release("2.0.0", func(m *ota.Manifest) { m.Hardware = []string{"c"} }), release("1.1.0")}, "1.1.0", nil},
		{"security version too low", []*shelf{release("2.0.0", func(m *ota.Manifest) { m.SecurityVersion = 1 }), release("1.1.0")}, "1.1.0", nil},
		{"updates from something newer", []*shelf{release("2.0.0", func(m *ota.Manifest) { m.MinVersion = "1.5.0" }), release("1.1.0")}, "1.1.0", nil},
		{"expired", []*shelf{release("2.0.0", func(m *ota.Manifest) { m.Expires = time.Unix(1e9, 0) }), release("1.1.0")}, "1.1.0", nil},
		{"failed here before", []*shelf{release("1.9.0"), release("1.1.0")}, "1.1.0", nil},
		{"nothing but what failed here", []*shelf{release("1.9.0"), nothing}, "1.9.0", nil},
		{"failed here is better than never fitting", []*shelf{release("2.0.0", func(m *ota.Manifest) { m.Product = "q" }), release("1.9.0")}, "1.9.0", nil},
		{"forged", []*shelf{release("9.0.0", func(m *ota.Manifest) { m.Notes = "forged" }), release("1.1.0")}, "1.1.0", nil},
		{"forged, and nothing else", []*shelf{release("9.0.0", func(m *ota.Manifest) { m.Notes = "forged" }), nothing}, "", ota.ErrValidation},
		{"only the running one", []*shelf{release("1.0.0"), nothing}, "1.0.0", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			signed, err := newMulti(a, tt.sources...).Latest(t.Context())
			if tt.err != nil {
				if !errors.Is(err, tt.err) {
					t.Errorf("got %q, %v, want %v", signed, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := verifyJSON(signed)
			if err != nil || m.Version != tt.want {
				t.Errorf("got %v, %v, want %s", m, err, tt.want)
			}
		})
	}
}

func TestMultiOpen(t *testing.T) {
	a := &Agent{cfg: Config{Device: Device{Product: "p"}}}
	release := func(version, content string) *ota.Manifest {
		return &ota.Manifest{Product: "p", Version: version, Notes: content}
	}
	read := func(t *testing.T, m *multi, man *ota.Manifest) string {
		t.Helper()
		r, err := m.Open(t.Context(), man, nil, 2)
		if err != nil {
			return err.Error()
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	server := &shelf{release: release("1.1.0", "from the server")}
	stick := &shelf{release: release("1.2.0", "from the stick")}
	m := newMulti(a, server, stick)
	if _, err := m.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	man := &ota.Manifest{Version: "1.2.0", Digest: "1.2.0"}
	if got := read(t, m, man); got != "om the stick" {
		t.Errorf("got %q, want the stick's", got)
	}
	// After a restart nobody has called Latest.
	if got := read(t, newMulti(a, server, stick), man); got != "om the stick" {
		t.Errorf("after a restart: got %q, want the stick's", got)
	}
	// The stick is pulled; the server has the same release by now.
	stick.openErr = fmt.Errorf("%w: it is gone", ota.ErrConnectivity)
	server.release = release("1.2.0", "from the server, too")
	if got := read(t, m, man); got != "om the server, too" {
		t.Errorf("without the stick: got %q, want the server's", got)
	}
	server.openErr = errors.New("no route")
	if _, err := m.Open(t.Context(), man, nil, 0); !errors.Is(err, ota.ErrConnectivity) || !strings.Contains(err.Error(), "source2: ") || !strings.Contains(err.Error(), "; source1: no route") {
		t.Errorf("nowhere: got %v, want both reasons", err)
	}
}

func TestMultiReport(t *testing.T) {
	a := &Agent{}
	one, two := &shelf{}, &shelf{err: errors.New("down")}
	m := &reportingMulti{newMulti(a, one, two), []ota.Reporter{one, two}, a.explain}
	if err := m.Report(t.Context(), ota.Report{ID: "r"}); err == nil {
		t.Error("a report that one of two has not taken counts as delivered")
	}
	two.err = nil
	if err := m.Report(t.Context(), ota.Report{ID: "r"}); err != nil || len(two.reports) != 1 {
		t.Errorf("got %v and %d reports, want one", err, len(two.reports))
	}
	// An operator far away gets to read what the firmware said before it died.
	a.notStarted = "boot slot B: it ended at once; its last lines: [\"no such device\"]"
	if err := m.Report(t.Context(), ota.Report{ID: "s", Result: ota.Failed, Reason: "did not stay up"}); err != nil || one.reports[2].Reason != "did not stay up; "+a.notStarted {
		t.Errorf("got %+v, %v, want both reasons", one.reports, err)
	}
	if err := m.Report(t.Context(), ota.Report{ID: "t", Result: ota.Succeeded}); err != nil || one.reports[3].Reason != "" {
		t.Errorf("got %+v, %v, want no reason for success", one.reports, err)
	}
	set := &sourceSet{multi: m.multi}
	if _, ok := set.asSource().(ota.Reporter); ok {
		t.Error("sources that take no reports look as if they did: reports would be lost or pile up")
	}
}

// TestDue: the next check is due one interval after the last one, or up to a tenth
// more, and a server's wish changes the interval.
func TestDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMulti(&Agent{}, &shelf{})
		checks := make(chan struct{}, 1)
		interval := 24 * time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		go m.due(ctx, checks, func() time.Duration { return interval })
		woken := func(after time.Duration) bool {
			time.Sleep(after)
			synctest.Wait()
			select {
			case <-m.wake:
				return true
			default:
				return false
			}
		}
		if woken(24*time.Hour-time.Second) || !woken(time.Second+interval/10) {
			t.Error("not due after the interval")
		}
		interval = time.Minute // what the server said at that check
		checks <- struct{}{}
		if woken(59*time.Second) || !woken(time.Second+interval/10) {
			t.Error("not due after the server's wish")
		}
		checks <- struct{}{}
		synctest.Wait()
		time.Sleep(50 * time.Second)
		checks <- struct{}{} // somebody checked by hand
		if woken(59*time.Second) || !woken(time.Second+interval/10) {
			t.Error("not due one interval after a check by hand")
		}
		interval = 0
		checks <- struct{}{}
		if woken(1000 * time.Hour) {
			t.Error("due although checks are off")
		}
		cancel()
	})
}

func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &alive{limit: time.Minute}
		time.Sleep(100 * time.Hour) // an idle manager
		if err := l.stuck(); err != nil {
			t.Errorf("idle: got %v", err)
		}
		for range 10 { // many calls, none of them long
			end := l.enter("writing the slot")
			time.Sleep(time.Minute)
			if err := l.stuck(); err != nil {
				t.Errorf("busy: got %v", err)
			}
			end()
		}
		end := l.enter("writing the slot")
		inner := l.enter("asking the gate")
		time.Sleep(61 * time.Second)
		inner()
		if err := l.stuck(); err == nil || err.Error() != "writing the slot has taken 1m1s, and may take 1m0s" {
			t.Errorf("stuck: got %v", err)
		}
		end()
		if err := l.stuck(); err != nil {
			t.Errorf("free again: got %v", err)
		}
	})
}

// A fleet that starts at one moment must not ask at one moment for ever.
func TestChecksSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		const devices, interval = 200, time.Hour
		seen := map[time.Duration]int{}
		var mu sync.Mutex
		begun := time.Now()
		var wg sync.WaitGroup
		for range devices {
			m := &multi{wake: make(chan struct{}, 1)}
			wg.Go(func() { m.due(ctx, nil, func() time.Duration { return interval }) })
			wg.Go(func() {
				for range 3 {
					<-m.wake
				}
				mu.Lock()
				defer mu.Unlock()
				at := time.Since(begun)
				if at < 3*interval || at > 3*interval+3*interval/10 {
					t.Errorf("the third check came after %v, want %v and up to a tenth more", at, 3*interval)
				}
				seen[at.Truncate(time.Minute)]++
			})
		}
		time.Sleep(4 * interval)
		cancel()
		wg.Wait()
		if len(seen) < 10 {
			t.Errorf("%d devices asked within %d different minutes, want 10 or more", devices, len(seen))
		}
	})
}
