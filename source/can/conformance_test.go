package can_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// The suite for sources: a tester brings the release, on a bus in real time that is
// faster than any.
func TestConformance(t *testing.T) {
	otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
		dir, state := t.TempDir(), t.TempDir()
		return otatest.SourceUnderTest{
			New: func(t *testing.T, release *otatest.SignedRelease) ota.Source {
				var verify ota.Verify
				if release != nil {
					verify = release.Verify
				}
				r := newRig(t, verify, func(r *rig) {
					r.real = true
					r.bus = bustest.NewCAN(bustest.CANConfig{Bitrate: 50_000_000, Tap: r.tap})
					t.Cleanup(func() { r.bus.Close() })
					r.box.Dir, r.config.StateDir = dir, state
					r.config.Bitrate, r.config.Share, r.config.STmin, r.config.BlockSize = 1_000_000, 100, -1, 255
					r.config.Log, r.box.Log = slog.New(slog.DiscardHandler), slog.New(slog.DiscardHandler)
				})
				if release == nil || r.inbox.State().Phase == inbox.Requested {
					return r.Source
				}
				x := r.tester()
				defer x.leave()
				for answer := []byte(nil); answer == nil; answer = x.answer(20 * time.Millisecond) { // until it listens
					if err := x.conn.Send(t.Context(), []byte{0x3E, 0}); err != nil {
						t.Fatal(err)
					}
				}
				for x.answer(20*time.Millisecond) != nil {
				}
				x.push(r, release.Bundle, 4093)
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
