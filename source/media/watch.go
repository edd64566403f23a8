package media

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"
)

// Wake implements [ota.Waker]. It needs Run.
func (s *Source) Wake() <-chan struct{} { return s.wake }

// Run watches for media until ctx ends, whose error it returns. It wakes the
// manager when bundles have come or changed, and have then stayed the same for
// one poll interval, so that a file is not read while it is being copied. What is
// there at the beginning is left to the check at boot.
//
// It looks at the names, times and sizes of the files, at what Latest would look
// at. A listing instead of the kernel's mount table also notices files copied
// into a mounted directory, and works the same on every system.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Poll)
	defer tick.Stop()
	told, _ := s.look(ctx)
	before, moved := told, false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now, ok := s.look(ctx)
		if !ok {
			continue // another has its turn, or the medium hangs
		}
		if now != before {
			before, moved = now, true
			continue
		}
		if !moved && now == told {
			continue
		}
		told, moved = now, false // also the same again: pulled and put back is a wish to be looked at
		if now == nothing {
			s.cfg.Log.Info("the medium with bundles is gone", "path", s.cfg.Path)
			continue
		}
		s.cfg.Log.Info("bundles have come or changed", "path", s.cfg.Path)
		select {
		case s.wake <- struct{}{}:
		default: // the last wake has not been taken yet
		}
	}
}

// nothing is the fingerprint of no bundles.
const nothing = fingerprint(0)

// fingerprint stands for the bundles that are there.
type fingerprint uint64

func (f fingerprint) Close() error { return nil }

func (s *Source) look(ctx context.Context) (fingerprint, bool) {
	f, err := apart(ctx, s, func() (fingerprint, error) {
		places, _ := s.places(ctx)
		if len(places) == 0 {
			return nothing, nil
		}
		h := fnv.New64a()
		for _, p := range places {
			fmt.Fprintf(h, "%q", filepath.Join(p.dir, p.name))
			if info, err := os.Lstat(filepath.Join(p.dir, p.name)); err == nil {
				fmt.Fprint(h, info.Size(), info.ModTime().UnixNano())
			}
		}
		return max(fingerprint(h.Sum64()), 1), nil
	})
	return f, err == nil
}
