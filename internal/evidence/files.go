package evidence

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

// MaxFile is how large a file may be, in bytes.
const MaxFile = 8 << 20

const (
	nameTime = "20060102T150405Z"
	nameEnd  = ".jsonl"
)

// A name is the time, the version and the attempt. No dash is in the attempt, so that
// the last part is the attempt whatever the version is.
var namePattern = regexp.MustCompile(`^(\d{8}T\d{6}Z)-([0-9A-Za-z._+-]+)-([0-9A-Za-z_]+)\.jsonl$`)

// fileName returns the name of a file that comes after last, "" for none. Names are
// in the order in which files were made, also if the clock was set back: then the
// name's time is the earliest that keeps the order. The lines have the clock's.
func fileName(now time.Time, version, attempt, last string) string {
	now = now.UTC().Truncate(time.Second)
	if f := namePattern.FindStringSubmatch(last); f != nil {
		if t, err := time.Parse(nameTime, f[1]); err == nil && !now.After(t) {
			now = t.Add(time.Second)
		}
	}
	return now.Format(nameTime) + "-" + safe(version, "._+-") + "-" + attemptName(attempt) + nameEnd
}

func attemptName(attempt string) string { return safe(attempt, "_") }

// safe makes a part of a file name of s: letters, digits and what is in also.
func safe(s, also string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(also, r) {
			return r
		}
		return '_'
	}, s)
	if s == "" {
		return "_"
	}
	return s[:min(len(s), 64)]
}

// attemptOf returns the attempt in a file's name, as [attemptName] writes it.
func attemptOf(name string) string {
	if f := namePattern.FindStringSubmatch(name); f != nil {
		return f[3]
	}
	return ""
}

// List returns the names of the evidence in dir, oldest first. A directory that does
// not exist holds none. Links, pipes and devices are none, whatever their names: they
// would show other files to whoever may read evidence, or never end.
func List(fsys durable.FS, dir string) ([]string, error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the evidence in %s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && namePattern.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// ReadFile returns the content of the evidence name in dir, of which the end may
// still be written. A name that is none of evidence is [fs.ErrNotExist].
func ReadFile(fsys durable.FS, dir, name string) ([]byte, error) {
	if !namePattern.MatchString(name) {
		return nil, fmt.Errorf("read evidence %.80q: %w", name, fs.ErrNotExist)
	}
	switch names, err := List(fsys, dir); {
	case err != nil:
		return nil, err
	case !slices.Contains(names, name):
		return nil, fmt.Errorf("read evidence %s: no file of that name is there: %w", name, fs.ErrNotExist)
	}
	return durable.ReadFile(fsys, filepath.Join(dir, name), MaxFile+MaxLine)
}

// split cuts data behind each newline; the last piece may have none. Beyond twice the
// pieces that data can have if all of them are lines, neighbours that are too short for
// a line stay together, so that a file of newlines does not cost a hundred times its size.
func split(data []byte) [][]byte {
	var out [][]byte
	most := 2 * (len(data)/Page + 8)
	from, short := 0, false // of the last piece
	for at := 0; at < len(data); {
		end := len(data)
		if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if short && end-at < Page && len(out) >= most {
			out[len(out)-1] = data[from:end:end]
		} else {
			out = append(out, data[at:end:end])
			from, short = at, end-at < Page
		}
		at = end
	}
	return out
}

// scanned is what a writer has to know of a file that it goes on with.
type scanned struct {
	lines []Line
	good  int64 // bytes of lines
	rest  int64 // bytes behind them
	// damage says that what follows good is no torn line: there are whole lines
	// behind it, which must not be cut off.
	damage string
}

// last returns the last line, or nil.
func (s *scanned) last() *Line {
	if len(s.lines) == 0 {
		return nil
	}
	return &s.lines[len(s.lines)-1]
}

// head is the hash of the last line, or "".
func (s *scanned) head() string {
	if l := s.last(); l != nil {
		return l.Hash()
	}
	return ""
}

// closed reports whether the file's last line ends it.
func (s *scanned) closed() bool {
	l := s.last()
	return l != nil && (l.Kind == KindEnd || l.Kind == KindContinued)
}

func scan(data []byte) scanned {
	var s scanned
	prev := zeroHash
	pieces := split(data)
	for i, raw := range pieces {
		l, err := parse(raw)
		if err == nil && (l.Seq != i+1 || l.Prev != prev) {
			err = fmt.Errorf("it does not follow the line before it")
		}
		if err != nil {
			if s.closed() || slices.ContainsFunc(pieces[i:], func(b []byte) bool { _, err := parse(b); return err == nil }) {
				s.damage = fmt.Sprintf("line %d: %v", i+1, err)
			}
			break
		}
		s.lines = append(s.lines, l)
		s.good += int64(len(raw))
		prev = l.Hash()
	}
	s.rest = int64(len(data)) - s.good
	return s
}

// Parse returns the lines of a file. An error says which line cannot be read; those
// before it are returned. Whether they belong together is for [Verify] to say.
func Parse(data []byte) ([]Line, error) {
	var lines []Line
	for i, raw := range split(data) {
		l, err := parse(raw)
		if err != nil {
			return lines, fmt.Errorf("read line %d: %w", i+1, err)
		}
		lines = append(lines, l)
	}
	return lines, nil
}
