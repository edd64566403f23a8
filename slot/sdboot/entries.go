package sdboot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

const (
	sortKey = "interlock"
	maxText = 64 << 10 // bytes of an entry; systemd-boot itself takes more

	plain = ""   // counter of a good slot
	once  = "+1" // of one to be tried
	spare = "+9" // of the running slot, while its good entry is written anew
)

// directory is the entries of the two slots.
type directory struct {
	fsys durable.FS
	cfg  Config
}

// entry is one file. A slot may have several, after a cut.
type entry struct {
	path       string
	good       bool // it has no counter
	left, done int
	text       []byte // nil if it cannot be read
	version    int    // 0 if it has none
	whole      bool   // systemd-boot starts something with it
}

// counters of a name (Boot Loader Specification, "Boot counting").
var counters = regexp.MustCompile(`^\+([0-9]{1,9})(?:-([0-9]{1,9}))?$`)

// parseName returns the entry that a file of this name is, if it is one of the slot
// whose entry is called base. FAT does not tell upper from lower case.
func parseName(name, base string) (e entry, ok bool) {
	name = strings.ToLower(name)
	rest, isEntry := strings.CutSuffix(name, ".conf")
	rest, isOurs := strings.CutPrefix(rest, base)
	if !isEntry || !isOurs {
		return e, false
	}
	if rest == "" {
		e.good = true
		return e, true
	}
	m := counters.FindStringSubmatch(rest)
	if m == nil {
		return e, false
	}
	e.left, _ = strconv.Atoi(m[1]) // 9 digits fit
	if m[2] != "" {
		e.done, _ = strconv.Atoi(m[2])
	}
	return e, true
}

// list returns the entries of both slots.
func (d directory) list() (all [2][]entry, err error) {
	names, err := d.fsys.ReadDir(d.cfg.Dir)
	if err != nil {
		return all, fmt.Errorf("read entries: %w; is the EFI system partition mounted?", err)
	}
	for _, n := range names {
		for i := range all {
			e, ok := parseName(n.Name(), d.cfg.Entries[i].Name)
			if !ok {
				continue
			}
			e.path = filepath.Join(d.cfg.Dir, n.Name())
			if e.text, err = durable.ReadFile(d.fsys, e.path, maxText); err != nil {
				d.cfg.Log.Warn("an entry of systemd-boot cannot be read", "error", err)
			}
			e.version, e.whole = parseText(e.text)
			all[i] = append(all[i], e)
		}
	}
	return all, nil
}

// parseText returns the version of an entry, and whether it loads anything. The last
// version counts. An entry that was written in part may have none.
func parseText(text []byte) (version int, whole bool) {
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) != 2 || f[0] != "version" {
			continue
		}
		if v, err := strconv.Atoi(f[1]); err == nil && v > 0 && v < 1<<30 {
			version = v
		}
	}
	return version, version > 0 && loads.Match(text)
}

// text is the content of the entry of slot i, as it is tried.
func (d directory) text(i, version int) []byte {
	return fmt.Appendf(nil, "%ssort-key %s\nversion %d\n", d.cfg.Entries[i].Text, sortKey, version)
}

// withVersion returns text with another version, and otherwise as it is: it has been
// proven to start the slot.
func withVersion(text []byte, version int) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 0 || string(f[0]) != "version" {
			out = append(out, line...)
		}
	}
	if n := len(out); n > 0 && out[n-1] != '\n' {
		out = append(out, '\n')
	}
	return fmt.Appendf(out, "version %d\n", version)
}

// put makes an entry of slot i. It returns once that is on the medium and was read
// back. On FAT a cut can lose the entry of this name, old and new, so that another
// must be there.
func (d directory) put(i int, counter string, text []byte) error {
	name := filepath.Join(d.cfg.Dir, d.cfg.Entries[i].Name+counter+".conf")
	err := durable.WriteFile(d.fsys, name, text, 0o644)
	if err == nil && !d.holds(name, text) {
		err = fmt.Errorf("entry %s: %w", name, durable.ErrReadBack)
	}
	if err != nil {
		return pair.FlashError(err)
	}
	return nil
}

// holds reports whether a file is text, and nothing more, on the medium.
func (d directory) holds(name string, text []byte) bool {
	got, err := durable.ReadRange(d.fsys, name, 0, int64(len(text))+1)
	return err == io.EOF && bytes.Equal(got, text)
}

// remove removes entries for good.
func (d directory) remove(entries ...entry) error {
	var errs []error
	for _, e := range entries {
		errs = append(errs, d.fsys.Remove(e.path))
	}
	if err := errors.Join(append(errs, d.sync())...); err != nil {
		return pair.FlashError(fmt.Errorf("remove entries: %w", err))
	}
	return nil
}

// sync makes what a process that was killed has done to the names durable.
func (d directory) sync() error { return d.fsys.SyncDir(d.cfg.Dir) }

// highest returns the highest version there is.
func highest(all [2][]entry) (version int) {
	for _, entries := range all {
		for _, e := range entries {
			version = max(version, e.version)
		}
	}
	return version
}

// good returns the entry of a slot that is good, if there is one.
func good(entries []entry) (entry, bool) {
	for _, e := range entries {
		if e.good && e.whole {
			return e, true
		}
	}
	return entry{}, false
}

// usedUp reports whether the slot was tried: systemd-boot has counted its start, and
// nobody has marked it good.
func usedUp(entries []entry) bool {
	used := false
	for _, e := range entries {
		if e.good && e.whole || e.left > 0 {
			return false
		}
		used = used || !e.good && e.done > 0
	}
	return used
}
