package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
)

// pushKinds are the kinds of sources that keep what they receive in an inbox. The names of folders
// are made of them, and never change.
var pushKinds = []string{"modbus", "canbus"}

// inboxDir is where a source of this kind keeps what it receives. It depends on nothing else, so
// that a transfer of hours goes on whatever is changed about the source, or the order of sources.
func inboxDir(stateDir, kind string) string { return filepath.Join(stateDir, "inbox-"+kind) }

// removeLeft removes what was received for sources that are not configured any more: up to 256 MiB,
// much on a small device, that nothing would ever look at. It stays as long as the manager, whose
// record is r, has a release of it in hand, or a report of one is still to be sent: then the source may be
// missing by mistake, and what it is to go on with would be lost. Nothing else is touched.
func removeLeft(fsys durable.FS, stateDir string, sources []Source, r *ota.Record, log *slog.Logger) {
	if r.Format > 1 { // of a newer agent: what it has in hand cannot be known here
		return
	}
	for _, kind := range pushKinds {
		if slices.ContainsFunc(sources, func(s Source) bool { k, err := s.kind(); return k == kind || err != nil }) {
			continue
		}
		dir := inboxDir(stateDir, kind)
		if _, err := fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		holds := func(digest string) bool { return digest == "" || inbox.Holds(fsys, dir, digest) }
		switch {
		case r.State != ota.Idle && holds(r.Digest):
			log.Warn("what was received for a source that is not configured stays: it is being installed", "source", kind, "dir", dir, "digest", r.Digest)
			continue
		case slices.ContainsFunc(r.Unsent, func(u ota.Report) bool { return holds(u.Digest) }):
			log.Warn("what was received for a source that is not configured stays: how its installation ended is still to be reported", "source", kind, "dir", dir)
			continue
		}
		freed, err := inbox.Remove(fsys, dir)
		if err != nil {
			log.Error("what was received for a source that is not configured is not all removed, trying again at the next start", "source", kind, "dir", dir, "error", err)
			continue
		}
		log.Info("what was received for a source that is not configured is removed", "source", kind, "dir", dir, "bytes", freed)
	}
}
