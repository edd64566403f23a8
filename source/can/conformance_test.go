package can_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// The suite for sources, in real time: a tester has brought the release.
func TestConformance(t *testing.T) {
	otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
		dir, state := t.TempDir(), t.TempDir()
		return otatest.SourceUnderTest{
			New: func(t *testing.T, release *otatest.SignedRelease) ota.Source {
				var verify ota.Verify
				if release != nil {
					verify = release.Verify
				}
				set := func(r *rig) {
					r.box.Dir, r.config.StateDir = dir, state
					r.config.Share, r.config.STmin, r.config.BlockSize = 100, -1, 255
					r.config.Log, r.box.Log = slog.New(slog.DiscardHandler), slog.New(slog.DiscardHandler)
				}
				if release != nil { // comes in simulated time: ISO-TP gives up after a second
					synctest.Test(t, func(t *testing.T) {
						if r := newRig(t, verify, set); r.inbox.State().Phase != inbox.Requested {
							x := r.tester()
							defer x.leave()
							x.push(r, release.Bundle, 4093)
						}
					})
				}
				r := newRig(t, verify, func(r *rig) { set(r); r.real = true })
				return r.Source
			},
			Break: func(t *testing.T) {
				files, err := filepath.Glob(filepath.Join(dir, "*"))
				if err != nil || len(files) == 0 {
					t.Fatal(fmt.Errorf("files of the inbox: %v, %w", files, err))
				}
				for _, name := range files {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}
