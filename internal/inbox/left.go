package inbox

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/interlock-energy/ota/internal/durable"
)

// Holds reports whether the release with this digest may be, or have been, in the inbox that is at dir and
// that nobody has open: what cannot be read may be anything. fsys nil: [durable.OS].
func Holds(fsys durable.FS, dir, digest string) bool {
	if fsys == nil {
		fsys = durable.OS{}
	}
	b := &Inbox{cfg: Config{FS: fsys, Dir: dir}}
	p, err := b.readJournal()
	if errors.Is(err, fs.ErrNotExist) {
		return false // the journal is the first of a transfer on the disk
	}
	s := parseJournal(p).state
	return err != nil || s == nil || s.Digest == digest
}

// Remove removes the inbox at dir, which nobody has open, with all that was received, and
// returns the bytes that this has freed. Other files in dir stay, and dir with them, which
// is an error. A power cut leaves the inbox as it was, or empty for the next [Open]; then
// Remove goes on. An inbox that is not there is none. fsys nil: [durable.OS].
func Remove(fsys durable.FS, dir string) (freed int64, err error) {
	if fsys == nil {
		fsys = durable.OS{}
	}
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("remove the inbox %s: %w", dir, err)
	}
	// The journal first, durably: data without it is rubbish, for the next Open too, while a
	// journal without its data is a transfer that was lost.
	var journal, rest, others []string
	for _, e := range entries {
		switch name := e.Name(); {
		case e.IsDir():
			others = append(others, name)
		case name == journalName || name == journalNew:
			journal = append(journal, name)
		case name == envelopeName || name == envelopeName+".tmp" || dataNumber(name) >= 0, name == journalName+asideSuffix, name == envelopeName+asideSuffix:
			rest = append(rest, name)
		default:
			others = append(others, name)
		}
	}
	for _, names := range [][]string{journal, rest} {
		n, err := removeAll(fsys, dir, names)
		if freed += n; err != nil {
			return freed, fmt.Errorf("remove the inbox %s: %w", dir, err)
		}
	}
	if len(others) > 0 {
		return freed, fmt.Errorf("remove the inbox %s: %s in it is not of an inbox, and stays; move it elsewhere", dir, strings.Join(others, ", "))
	}
	if err := fsys.Remove(dir); err != nil {
		return freed, fmt.Errorf("remove the inbox %s: %w", dir, err)
	}
	if err := fsys.SyncDir(filepath.Dir(dir)); err != nil {
		return freed, fmt.Errorf("remove the inbox %s: %w", dir, err)
	}
	return freed, nil
}

// removeAll removes files of a directory, durably.
func removeAll(fsys durable.FS, dir string, names []string) (freed int64, err error) {
	for _, name := range names {
		name = filepath.Join(dir, name)
		size := int64(0)
		if info, err := fsys.Stat(name); err == nil {
			size = info.Size()
		}
		if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		freed += size
	}
	return freed, fsys.SyncDir(dir) // also of what was removed before a power cut
}
