package modbus_test

import (
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// TestConformance: a master has pushed the release, and the source is what every source is.
func TestConformance(t *testing.T) {
	otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
		disk := otatest.NewDisk()
		var boxes []*inbox.Inbox
		pushed := false
		return otatest.SourceUnderTest{
			New: func(t *testing.T, rel *otatest.SignedRelease) ota.Source {
				if rel == nil {
					rel = newRelease(t)
					return newRig(t, rel).src
				}
				for _, b := range boxes { // the process before
					b.Close()
				}
				r := &rig{t: t, fs: disk, dir: "/inbox", release: rel}
				r.head.Head = api.Head{Device: "bess-7", Product: "bess"}
				r.start()
				t.Cleanup(r.stop)
				boxes = append(boxes, r.box)
				if !pushed {
					pushed = true
					m := r.master("192.0.2.1")
					m.push(rel.Bundle)
					m.do(m.with(profile.Install))
				}
				return r.src
			},
			Break: func(t *testing.T) { // what was spooled is gone
				entries, err := disk.ReadDir("/inbox")
				if err != nil || len(entries) == 0 {
					t.Fatalf("files of the inbox: %d, %v", len(entries), err)
				}
				for _, e := range entries {
					if err := disk.Remove("/inbox/" + e.Name()); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}
