package media

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// place is where a file is: a name in a directory that it cannot lead out of.
type place struct{ dir, name string }

func (p place) String() string { return fmt.Sprintf("%q", filepath.Join(p.dir, p.name)) }

// found is a bundle that verified.
type found struct {
	place
	m      *ota.Manifest
	signed []byte
	last   bool // only if there is no other
}

func (found) Close() error { return nil }

// newest returns the bundle to offer.
func (s *Source) newest(ctx context.Context) (found, error) {
	places, problems := s.places(ctx)
	var best found
	for _, p := range places {
		if err := ctx.Err(); err != nil {
			return found{}, gone(err)
		}
		f, err := s.read(p)
		switch {
		case errors.Is(err, fs.ErrNotExist): // went while we looked
		case err != nil:
			problems = append(problems, fmt.Errorf("%v: %w", p, err))
		case best.m == nil || better(f, best):
			best = f
		}
	}
	if best.m != nil {
		for _, err := range problems {
			if !errors.Is(err, ota.ErrNoUpdate) {
				s.cfg.Log.Warn("bundle passed over", "taken", best.m.Version, "error", err)
			}
		}
		return best, nil
	}
	return found{}, verdict(problems)
}

// verdict is the error for media without a bundle to offer.
func verdict(problems []error) error {
	code := ota.ErrNoUpdate
	for _, err := range problems {
		switch c := ota.CodeOf(err); {
		case c == ota.ErrConnectivity:
			code = c
		case c == ota.ErrValidation && code != ota.ErrConnectivity:
			code = c
		case c == ota.ErrIncompatible && code == ota.ErrNoUpdate:
			code = c
		}
	}
	if len(problems) == 0 {
		return fmt.Errorf("%w: no bundle is there", ota.ErrNoUpdate)
	}
	return fmt.Errorf("%w: %s", code, summary(problems))
}

// What an error says of a medium at most: names on it can be long, and many.
const (
	maxProblems = 8
	maxProblem  = 500 // bytes of one
)

// summary is problems on one line.
func summary(problems []error) string {
	var texts []string
	for i, err := range problems {
		if i == maxProblems {
			texts = append(texts, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		text := err.Error()
		if len(text) > maxProblem { // a path is at the front, what is wrong with it at the end
			text = text[:maxProblem/2] + "..." + text[len(text)-maxProblem/2:]
		}
		texts = append(texts, strings.ToValidUTF8(text, "?"))
	}
	return strings.Join(texts, "; ")
}

// better is an order that does not depend on where and when bundles were found.
func better(a, b found) bool {
	if a.last != b.last {
		return b.last
	}
	return cmp.Or(
		ota.CompareVersions(a.m.Version, b.m.Version),
		a.m.Created.Compare(b.m.Created),
		strings.Compare(a.m.Digest, b.m.Digest),
		strings.Compare(b.dir, a.dir),
		strings.Compare(b.name, a.name),
	) > 0
}

// read reads one bundle's envelope, verifies it, and reports whether this unit
// can take it.
func (s *Source) read(p place) (found, error) {
	file, b, err := p.open()
	if err != nil {
		return found{}, err
	}
	defer file.Close()
	m, err := s.cfg.Verify(b.Signed())
	if err != nil {
		return found{}, err
	}
	info, err := file.Stat()
	if err != nil {
		return found{}, gone(err)
	}
	if want := bundle.Size(len(b.Signed()), m); info.Size() != want {
		return found{}, fmt.Errorf("%w: has %d bytes, want %d: was the stick pulled while it was copied?", ota.ErrValidation, info.Size(), want)
	}
	switch {
	case m.Product != s.cfg.Product:
		return found{}, fmt.Errorf("%w: is for product %s, this is %s", ota.ErrIncompatible, m.Product, s.cfg.Product)
	case len(m.Hardware) > 0 && !slices.Contains(m.Hardware, s.cfg.Hardware):
		return found{}, fmt.Errorf("%w: is for hardware %v, this is %q", ota.ErrIncompatible, m.Hardware, s.cfg.Hardware)
	case s.cfg.Version != "" && ota.CompareVersions(m.Version, s.cfg.Version) == 0:
		return found{}, fmt.Errorf("%w: version %s is running", ota.ErrNoUpdate, m.Version)
	case s.cfg.Version != "" && m.MinVersion != "" && ota.CompareVersions(s.cfg.Version, m.MinVersion) < 0:
		// Or it would hide the step in between that lies beside it.
		return found{}, fmt.Errorf("%w: updates from %s or newer, this runs %s", ota.ErrIncompatible, m.MinVersion, s.cfg.Version)
	}
	if s.cfg.Fits != nil {
		if err := s.cfg.Fits(m); err != nil {
			return found{}, err
		}
	}
	return found{p, m, b.Signed(), s.cfg.Last != nil && s.cfg.Last(m)}, nil
}

// open opens the file at p if it is a regular one, and reads the envelope.
// Errors but fs.ErrNotExist have a code.
func (p place) open() (*os.File, *bundle.File, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, nil, gone(err)
	}
	defer root.Close()
	// Without O_NONBLOCK, opening a FIFO waits until somebody writes to it.
	file, err := root.OpenFile(p.name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, gone(err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		file.Close()
		return nil, nil, fmt.Errorf("%w: is no regular file (%v)", ota.ErrValidation, info.Mode().Type())
	}
	if err != nil {
		file.Close()
		return nil, nil, gone(err)
	}
	b, err := bundle.Open(file, info.Size())
	if err != nil {
		file.Close()
		if _, ok := errors.AsType[ota.ErrorCode](err); !ok {
			err = gone(err)
		}
		return nil, nil, err
	}
	return file, b, nil
}

// places lists the files that may be bundles, and what could not be looked at.
func (s *Source) places(ctx context.Context) (places []place, problems []error) {
	paths := []string{s.cfg.Path}
	pattern := false
	if _, err := os.Stat(s.cfg.Path); err != nil && strings.ContainsAny(s.cfg.Path, `*?[\`) {
		pattern = true
		paths, err = filepath.Glob(s.cfg.Path)
		if err != nil {
			return nil, []error{err} // New has checked the pattern
		}
		if n := len(paths); n > maxMedia {
			problems = append(problems, fmt.Errorf("%w: %d paths match, only the first %d are looked at", ota.ErrValidation, n, maxMedia))
			paths = paths[:maxMedia]
		}
	}
	for _, path := range paths {
		// A link that is configured is the owner's, one that a pattern matches may
		// be the medium's.
		stat := os.Stat
		if pattern {
			stat = os.Lstat
		}
		info, err := stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			problems = append(problems, gone(err))
		case info.IsDir():
			l := &listing{dir: path}
			l.walk(ctx)
			places, problems = append(places, l.places...), append(problems, l.problems...)
		case info.Mode().IsRegular():
			places = append(places, place{filepath.Dir(path), filepath.Base(path)})
		case !pattern:
			problems = append(problems, fmt.Errorf("%q: %w: is neither a file nor a directory (%v)", path, ota.ErrValidation, info.Mode().Type()))
		}
	}
	return places, problems
}

// listing is a bounded walk over one medium.
type listing struct {
	dir      string
	seen     int
	places   []place
	problems []error
}

func (l *listing) walk(ctx context.Context) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		l.problem(".", err)
		return
	}
	defer root.Close()
	l.folder(ctx, root, ".", 1)
}

// folder returns false if the walk is to end.
func (l *listing) folder(ctx context.Context, root *os.Root, name string, depth int) bool {
	d, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		l.problem(name, err)
		return true
	}
	entries, err := d.ReadDir(maxEntries - l.seen + 1) // never all of a huge folder
	d.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		l.problem(name, err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if ctx.Err() != nil {
			return false
		}
		if l.seen++; l.seen > maxEntries {
			l.problem(name, fmt.Errorf("%w: the medium has more than %d files and folders, the rest is not looked at", ota.ErrValidation, maxEntries))
			return false
		}
		path := filepath.Join(name, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."): // and with them what macOS leaves: ._update.bundle
		case e.IsDir() && depth < maxDepth:
			if !l.folder(ctx, root, path, depth+1) {
				return false
			}
		case e.Type().IsRegular() && strings.EqualFold(filepath.Ext(e.Name()), Extension):
			if len(l.places) == maxBundles {
				l.problem(path, fmt.Errorf("%w: the medium has more than %d bundles, this and later ones are not looked at", ota.ErrValidation, maxBundles))
				return false
			}
			l.places = append(l.places, place{l.dir, path})
		}
	}
	return true
}

func (l *listing) problem(name string, err error) {
	if _, ok := errors.AsType[ota.ErrorCode](err); !ok {
		err = gone(err)
	}
	l.problems = append(l.problems, fmt.Errorf("%q: %w", filepath.Join(l.dir, name), err))
}
