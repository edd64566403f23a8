package agent_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/evidence"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overmodbus"
	"github.com/interlock-energy/ota/otatest"
)

// pushInto puts a bundle into the inbox of a bus, and asks for its installation, as an earlier life of
// the agent would have.
func (s *site) pushInto(kind, version string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, version+".bundle"))
	if err != nil {
		s.t.Fatal(err)
	}
	public, err := os.ReadFile(filepath.Join(s.dir, "key.public.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	keys, err := bundle.ParseKeys(1, public)
	if err != nil {
		s.t.Fatal(err)
	}
	box, err := inbox.Open(inbox.Config{Dir: filepath.Join(s.dir, "state", "inbox-"+kind), Verify: keys.Verify})
	if err != nil {
		s.t.Fatal(err)
	}
	defer box.Close()
	if _, err := box.Begin(inbox.Offer{Size: int64(len(b)), SHA256: sha256.Sum256(b)}); err != nil {
		s.t.Fatal(err)
	}
	if err := box.Put(0, b); err != nil {
		s.t.Fatal(err)
	}
	if err := box.Finish(); err != nil {
		s.t.Fatal(err)
	}
	for box.State().Phase != inbox.Verified {
		select {
		case <-box.Changed():
		case <-s.t.Context().Done():
			s.t.Fatal(box.State())
		}
	}
	if err := box.Request(); err != nil {
		s.t.Fatal(err)
	}
}

// withModbus gives the site a second source, whose masters count as people, and updates only
// with somebody's consent.
func (s *site) withModbus() {
	s.config = strings.Replace(s.config, "automatic_update: true", "automatic_update: false", 1)
	s.config = strings.Replace(s.config, "source:\n  kind: https\n  https: ", "sources:\n- modbus: {listen: '127.0.0.1:0', consent: true}\n- https: ", 1)
}

// Who asks for an installation over a bus that counts as consent need not wait for anybody, and the
// consent is for what was pushed: not for what another source has.
func TestConsentOverABus(t *testing.T) {
	for _, other := range []string{"", "1.2.0"} {
		t.Run("other source has "+other, func(t *testing.T) {
			s := newSite(t)
			s.withModbus()
			s.publish("1.1.0", firmware("1.1.0", "", 10_000))
			s.pushInto("modbus", "1.1.0")
			if other != "" {
				s.publish(other, firmware(other, "", 10_000))
			} else {
				s.file = ""
			}
			a, _ := s.start()
			wait(t, a, "1.1.0 proven", func(n ota.Snapshot) bool {
				return n.State == ota.Idle && n.Running == "1.1.0" && n.Last != nil && n.Last.Result == ota.Succeeded
			})
		})
	}
}

// A release that was pushed, and waits for the battery, is taken back over the bus: nothing is installed
// when the battery is charged, also not by the agent's next life. Pushed again, it is installed. Both where
// whoever pushes counts as a person, and where updates go by themselves.
func TestWithdrawOverABus(t *testing.T) {
	t.Parallel()
	for _, consent := range []bool{true, false} {
		t.Run(fmt.Sprintf("consent %v", consent), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			address := otatest.FreeAddr(t)
			s.withModbus()
			s.config = strings.Replace(s.config, "{listen: '127.0.0.1:0', consent: true}", fmt.Sprintf("{listen: '%s', consent: %v, allow_plain: true, allow: [127.0.0.1]}", address, consent), 1)
			s.config = strings.Replace(s.config, "automatic_update: false", fmt.Sprintf("automatic_update: %v", !consent), 1)
			s.publish("1.1.0", firmware("1.1.0", "", 10_000))
			file, err := push.Open(s.file, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			s.publish("1.0.0", firmware("1.0.0", "", 10_000)) // the server has nothing new
			s.setSoC(22)
			a, stop := s.start()
			wait(t, a, "the first check", func(n ota.Snapshot) bool { return n.Slot != "" && n.Status == ota.StatusIdle })

			master := func() *overmodbus.Device {
				d, err := overmodbus.New(overmodbus.Config{Window: 8, Client: modbus.NewTCP(nil, modbus.Config{Window: 8, Redial: func(ctx context.Context) (io.ReadWriteCloser, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", address)
				}})})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { d.Close() })
				return d
			}
			ctx, interrupt := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			first := master()
			go func() { ended <- push.Run(ctx, first, file, push.Options{}) }()
			wait(t, a, "the gate to refuse", func(n ota.Snapshot) bool {
				return n.State == ota.Available && n.Code == ota.ErrBatteryLow
			})
			interrupt()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Fatalf("push: got %v, want it interrupted", err)
			}
			within, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			was, err := push.Withdraw(within, master(), push.Options{})
			if err != nil || was.Version != "1.1.0" || was.State != push.WaitSafe {
				t.Fatalf("take it back: got %v, %+v, want 1.1.0, which waited", err, was)
			}
			if n := a.Snapshot(); n.State != ota.Idle || n.Last == nil || n.Last.Result != ota.Aborted || len(n.Skipped) != 0 {
				t.Errorf("got %+v, want an end, and nothing that is skipped", n)
			}
			if _, lines := s.evidence(t); !slices.ContainsFunc(lines, func(l evidence.Line) bool {
				if l.Kind != evidence.KindAsked {
					return false
				}
				asked := decode[evidence.Asked](t, l)
				return asked.For == "abort" && asked.By == "modbus"
			}) {
				t.Errorf("no evidence says that a Modbus master has taken it back")
			}
			if _, err := push.Withdraw(within, master(), push.Options{}); !errors.Is(err, push.ErrNothing) {
				t.Errorf("again: got %v, want %v", err, push.ErrNothing)
			}

			s.setSoC(80)
			check := func() {
				t.Helper()
				if err := a.Control().Command(control.Check).Wait(within); !errors.Is(err, ota.ErrNoUpdate) {
					t.Errorf("check: got %v, want %v", err, ota.ErrNoUpdate)
				}
				if n := a.Snapshot(); n.State != ota.Idle || n.Running != "1.0.0" {
					t.Errorf("got %+v, want 1.0.0, and nothing under way", n)
				}
			}
			check()
			stop()
			a, _ = s.start()
			wait(t, a, "the first check of its next life", func(n ota.Snapshot) bool { return n.Slot != "" && n.Status == ota.StatusIdle })
			check()

			if err := push.Run(within, master(), file, push.Options{}); err != nil {
				t.Errorf("pushed again: got %v, want it proven", err)
			}
			if n := a.Snapshot(); n.Running != "1.1.0" {
				t.Errorf("got %+v, want 1.1.0", n)
			}
			if _, err := push.Withdraw(within, master(), push.Options{}); !errors.Is(err, push.ErrNothing) {
				t.Errorf("when it runs: got %v, want %v", err, push.ErrNothing)
			}
			if consent {
				return
			}
			// Firmware that does not start is not forged: its hashes were right.
			s.publish("1.2.0", []byte("#!/bin/sh\nexit 1\n"))
			broken, err := push.Open(s.file, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer broken.Close()
			s.publish("1.0.0", firmware("1.0.0", "", 10_000))
			if err := push.Run(within, master(), broken, push.Options{}); !errors.Is(err, push.ErrRolledBack) || errors.Is(err, ota.ErrValidation) {
				t.Errorf("firmware that does not start: got %v, want %v", err, push.ErrRolledBack)
			}
		})
	}
}
