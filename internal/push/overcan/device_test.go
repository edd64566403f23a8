package overcan_test

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/otatest"
	source "github.com/interlock-energy/ota/source/can"
)

// site is a device with the real source on an emulated bus, a fake of its update manager,
// and a tester, in a bubble of simulated time.
type site struct {
	t       *testing.T
	release *otatest.SignedRelease
	file    *push.File
	key     crypto.Signer

	line   overcan.Line
	can    bustest.CANConfig
	source source.Config
	box    inbox.Config
	bus    *bustest.CAN

	mu   sync.Mutex
	head api.CheckinRequest
	gate error
	log  []pdu // what the tester sent and received
	tell func(pdu)

	mangle func([]byte) []byte // what the device says, if it says something else; nil: as it is
	spoil  func([]byte) []byte // the same for what gets to the device

	inbox *inbox.Inbox
	stop  func()
	dead  bool // the device has no power, and nothing can be closed
}

// bundleFile writes a release to a file and opens it. It must be done outside of a bubble.
func bundleFile(t *testing.T, release *otatest.SignedRelease) *push.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "update.bundle")
	if err := os.WriteFile(name, release.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := push.Open(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

var signing = sync.OnceValues(func() (crypto.Signer, []byte) {
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		panic(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		panic(err)
	}
	return key, public
})

// newSite starts a device. Change may set what the test is about.
func newSite(t *testing.T, release *otatest.SignedRelease, file *push.File, change func(*site)) *site {
	t.Helper()
	key, public := signing()
	quiet := slog.New(slog.DiscardHandler)
	disk := otatest.NewDisk()
	s := &site{t: t, release: release, file: file, key: key, can: bustest.CANConfig{Worst: true}}
	s.head = api.CheckinRequest{Head: api.Head{Device: "bess-7", Product: "bess", Hardware: "rev2", Agent: "0.9.0", Version: "1.0.0"}}
	s.box = inbox.Config{FS: disk, Dir: "/inbox", Verify: release.Verify, Log: quiet}
	s.source = source.Config{
		Link:     source.Link{Open: func(context.Context) (can.Bus, error) { return s.bus.Join("device"), nil }},
		Testers:  testers(t, public),
		FS:       disk,
		StateDir: "/state",
		State:    s.state,
		Precheck: func(context.Context) error { return s.gate },
		Log:      quiet,
	}
	if err := durable.MkdirAll(disk, "/state", 0o700); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	s.bus = bustest.NewCAN(s.can)
	t.Cleanup(func() { s.bus.Close() })
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// testers are those that have the key.
func testers(t *testing.T, public []byte) []source.Tester {
	t.Helper()
	tester, err := source.ParseTester("anna", public)
	if err != nil {
		t.Fatal(err)
	}
	return []source.Tester{tester}
}

// contextUntil ends when so many blocks were sent.
func contextUntil(t *testing.T, s *site, blocks int) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	s.watch(func(p pdu) {
		if p.fromTester && p.data[0] == byte(uds.TransferData) {
			if blocks--; blocks == 0 {
				cancel()
			}
		}
	})
	return ctx, cancel
}

// watch calls tell for each message from now on, and forgets those until now.
func (s *site) watch(tell func(pdu)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell, s.log = tell, nil
}

func (s *site) state() api.CheckinRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

func (s *site) set(change func(*api.CheckinRequest)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.head)
}

// start starts the agent's part; stop and start restart it.
func (s *site) start() {
	s.t.Helper()
	box, err := inbox.Open(s.box)
	if err != nil {
		s.t.Fatal(err)
	}
	s.inbox, s.source.Inbox = box, box
	src, err := source.New(s.source)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("Run: %v", err)
		}
		if err := box.Close(); err != nil && !s.dead {
			s.t.Errorf("close the inbox: %v", err)
		}
	})
}

// restart is a restart of the device, which takes so long.
func (s *site) restart(takes time.Duration) {
	s.stop()
	time.Sleep(takes)
	s.start()
}

// manager is a fake of the update manager: it waits until the release is asked for, takes
// its time for each step, restarts the device and reports how it ended.
func (s *site) manager(ctx context.Context, result ota.Result) {
	m := s.release.Manifest
	for {
		changed := s.inbox.Changed()
		if _, err := s.inbox.Latest(ctx); err == nil {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	step := func(status ota.Status, reason string) {
		s.set(func(h *api.CheckinRequest) {
			h.Status, h.Reason, h.UpdateDigest, h.UpdateVersion = status, reason, m.Digest, m.Version
			h.Done, h.Total, h.Course = 1000, 4000, ota.Course{Try: 2, SecondsLeft: 42, ImagesDone: 2}
		})
		time.Sleep(3 * time.Second)
	}
	step(ota.StatusReadyToApply, "state of charge 22.0 %, want at least 30 %")
	step(ota.StatusDownloading, "")
	step(ota.StatusRebooting, "")
	s.restart(40 * time.Second)
	reason := ""
	if result == ota.Succeeded {
		s.set(func(h *api.CheckinRequest) { h.Version, h.Digest = m.Version, m.Digest })
		step(ota.StatusTrial, "")
	} else {
		reason = "the new firmware did not start"
	}
	s.set(func(h *api.CheckinRequest) { h.Status, h.UpdateDigest, h.UpdateVersion = ota.StatusIdle, "", "" })
	r := ota.Report{ID: "a", Digest: m.Digest, Version: m.Version, Result: result, Reason: reason}
	if result != ota.Succeeded {
		r.Code = ota.ErrInternal
	}
	if err := s.inbox.Report(ctx, r); err != nil {
		s.t.Error(err)
	}
}

// tester is a new tester, as after the start of the program, at its own node of the bus.
func (s *site) tester() *overcan.Device {
	s.t.Helper()
	cfg := overcan.Config{Line: s.line, Key: s.key, Dial: func(context.Context) (uds.Conn, error) {
		conn, err := s.line.Over(s.bus.Join("tester"))
		return watched{conn, s}, err
	}}
	d, err := overcan.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { d.Close() })
	return d
}

// watched writes down what a tester sends and receives.
type watched struct {
	uds.Conn
	site *site
}

func (w watched) Receiving() bool { return w.Conn.(interface{ Receiving() bool }).Receiving() }

func (w watched) note(p pdu) {
	w.site.mu.Lock()
	w.site.log = append(w.site.log, p)
	tell := w.site.tell
	w.site.mu.Unlock()
	if tell != nil {
		tell(p)
	}
}

// Send implements uds.Conn.
func (w watched) Send(ctx context.Context, b []byte) error {
	w.note(pdu{true, append([]byte(nil), b...), true})
	if w.site.spoil != nil {
		b = w.site.spoil(append([]byte(nil), b...))
	}
	return w.Conn.Send(ctx, b)
}

// Receive implements uds.Conn.
func (w watched) Receive(ctx context.Context) ([]byte, error) {
	b, err := w.Conn.Receive(ctx)
	if err == nil && w.site.mangle != nil {
		b = w.site.mangle(b)
	}
	if err == nil {
		w.note(pdu{false, append([]byte(nil), b...), true})
	}
	return b, err
}

// messages are those that the tester sent and received.
func (s *site) messages() []pdu {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]pdu(nil), s.log...)
}

// check says whether the device has all of the file, and nothing was sent in vain.
func (s *site) check() {
	s.t.Helper()
	b := s.inbox.State()
	if b.Phase != inbox.Ended && (b.Phase != inbox.Verified && b.Phase != inbox.Requested || b.Received != int64(len(s.release.Bundle))) {
		s.t.Errorf("the inbox is %s with %d of %d bytes: %v", b.Phase, b.Received, len(s.release.Bundle), b.Err)
	}
	log := s.messages()
	again, blocks := sentAgain(log)
	if len(again) > 0 || blocks == 0 {
		s.t.Errorf("%d blocks; sent again: %q\n%v", blocks, again, log)
	}
}

// The whole way: from the first question to the proven firmware, over a restart.
func TestPush(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 3*4096+1234, 777)
	file := bundleFile(t, release)
	for name, tt := range map[string]struct {
		result ota.Result
		want   error
	}{
		"proven":      {ota.Succeeded, nil},
		"rolled back": {ota.RolledBack, push.ErrRolledBack},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, nil)
				done := make(chan struct{})
				go func() { s.manager(t.Context(), tt.result); close(done) }()
				var states []string
				var last int64
				err := push.Run(t.Context(), s.tester(), file, push.Options{Tell: func(e push.Event) {
					switch e.Kind {
					case push.KindState:
						states = append(states, e.Status.String())
					case push.KindProgress:
						last = e.Done
					case push.KindIdentity:
						if e.Identity.Device != "bess-7" || e.Identity.Product != "bess" || e.Identity.Running != "1.0.0" {
							t.Errorf("got %+v", e.Identity)
						}
					}
				}})
				if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				<-done
				s.check()
				if last != file.Size {
					t.Errorf("progress ends at %d, want %d", last, file.Size)
				}
				t.Logf("%q", states)
				for _, want := range []string{"waiting 1.1.0, try 2, goes on in 42 s: state of charge", "installing 1.1.0 25 %, try 2, 42 s left"} {
					if !slices.ContainsFunc(states, func(s string) bool { return strings.HasPrefix(s, want) }) {
						t.Errorf("got states %q, want one that begins with %q", states, want)
					}
				}
				if len(states) < 3 {
					t.Errorf("got states %q, want waiting, restarting and the end at least", states)
				}
			})
		})
	}
}
