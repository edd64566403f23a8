package agent_test

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/inbox"
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
