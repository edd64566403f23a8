// Package media takes releases from a stick, a card or a folder: USB drives, SD
// cards, and any directory into which somebody copies a bundle file.
//
// For service technicians: put a bundle with a name that ends in ".bundle" on
// the stick, at most three folders deep, and put the stick in. For device
// builders: start with [New], give the source to the manager, and run
// [Source.Run] beside it, which wakes the manager when a medium comes.
//
// What the package promises:
//
//   - A medium is hostile. Only regular files are opened, never a FIFO or a
//     device; no symbolic link leads out of it; what is looked at is bounded in
//     depth, number and size; names are quoted before they are shown.
//   - The newest bundle that verifies and fits this unit is offered, whatever
//     the order of files and media. A bundle that does not is passed over. If
//     none is left, the error says what is wrong with each, the first eight by name.
//   - An image is read through one descriptor, out of a file whose envelope was
//     found to be that of the release. A file that is put in its place is not
//     mixed in.
//   - A medium that is pulled is a broken connection: it is tried again.
//   - A medium that hangs does not: cancelling the context returns at once.
//
// Nothing is ever written to a medium.
package media

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// Extension is how the names of bundle files end, in any letter case. A file
// that is configured by its full name may have any.
const Extension = ".bundle"

// What is looked at on one medium, at most.
const (
	maxDepth   = 3    // folders; the medium's own is the first
	maxEntries = 1000 // files and folders
	maxBundles = 64   // opened and verified
	maxMedia   = 64   // directories that a pattern matches
)

// Config says where to look and for what.
type Config struct {
	// Path is a bundle file, a directory, or a pattern (see [filepath.Match])
	// that matches such, for example /media/*. What is not there is no update.
	Path string

	Product  string     // bundles for other products are passed over
	Hardware string     // and those for other hardware; default: "", which takes only releases for all
	Version  string     // that runs now; a bundle of this version is no update; default: "", which takes any
	Verify   ota.Verify // bundles that do not verify are passed over

	// Fits says why a release is not for this unit: because of its rules, its age, or
	// what runs. Bundles with an error are passed over; [ota.ErrNoUpdate] is for those
	// that are nothing new. Default: nil, and all that is not said above fits.
	Fits func(*ota.Manifest) error
	// Last says of a release that it is offered only if there is no other, for
	// example because it has failed here. Default: nil, none is.
	Last func(*ota.Manifest) bool

	Poll time.Duration // how often Run looks whether a medium has come; default 2 s
	Log  *slog.Logger  // default: slog.Default()
}

// Source is an [ota.Source] and an [ota.Waker]. Its methods may be called from
// any goroutine.
type Source struct {
	cfg  Config
	wake chan struct{}
	turn chan struct{} // holds one token: who has it may touch the media

	mu   sync.Mutex
	last found // what Latest returned last, where Open looks first
}

var (
	_ ota.Source = (*Source)(nil)
	_ ota.Waker  = (*Source)(nil)
)

// New checks cfg and returns the source. It does not look at media.
func New(cfg Config) (*Source, error) {
	wrong := func(format string, a ...any) (*Source, error) {
		return nil, fmt.Errorf("configure the media source: "+format, a...)
	}
	if cfg.Path == "" {
		return wrong("path is missing; want a bundle file, a directory, or a pattern like /media/*")
	}
	if _, err := filepath.Match(cfg.Path, ""); err != nil {
		return wrong("path %q: %w", cfg.Path, err)
	}
	if err := ota.CheckName(cfg.Product); err != nil {
		return wrong("product: %w", err)
	}
	if cfg.Version != "" {
		if err := ota.CheckVersion(cfg.Version); err != nil {
			return wrong("running version: %w", err)
		}
	}
	if cfg.Verify == nil {
		return wrong("Verify is missing; it must be given, also where signatures are not wanted")
	}
	if cfg.Poll < 0 {
		return wrong("poll interval is %v, want 0 or more", cfg.Poll)
	}
	if cfg.Poll == 0 {
		cfg.Poll = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Source{cfg: cfg, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s, nil
}

// Latest implements [ota.Source]. A medium that has nothing, or nothing but the
// running version, is [ota.ErrNoUpdate]. If there are bundles and none can be
// taken, the error says for each why; it wraps [ota.ErrConnectivity] if one
// could not be read, else [ota.ErrValidation] or [ota.ErrIncompatible].
func (s *Source) Latest(ctx context.Context) ([]byte, error) {
	best, err := apart(ctx, s, func() (found, error) { return s.newest(ctx) })
	if err != nil {
		return nil, fmt.Errorf("look for bundles at %q: %w", s.cfg.Path, err)
	}
	s.mu.Lock()
	s.last = best
	s.mu.Unlock()
	return append([]byte(nil), best.signed...), nil
}

// Open implements [ota.Source]. If the file that it knows is not there any more,
// or has another release in it, it looks for m everywhere.
func (s *Source) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	op := fmt.Sprintf("open %s of %s at byte %d", im.Component, m.Version, offset)
	if offset < 0 || offset > im.Size {
		return nil, fmt.Errorf("%s: %w: the image has %d bytes", op, ota.ErrInternal, im.Size)
	}
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	r, err := apart(ctx, s, func() (*reader, error) { return s.open(ctx, last, m, im, offset) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	r.done, r.cause = ctx.Done(), func() error { return context.Cause(ctx) }
	return r, nil
}

// apart does work that a hanging medium can hold for as long as the kernel
// likes, and returns when ctx ends. Until the work ends no other begins, so that
// a medium that hangs costs one goroutine, not one for every try.
func apart[T io.Closer](ctx context.Context, s *Source, work func() (T, error)) (T, error) {
	var none T
	select {
	case <-ctx.Done():
		return none, gone(context.Cause(ctx))
	case <-s.turn:
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		v, err := work()
		s.turn <- struct{}{}
		select {
		case done <- result{v, err}:
		case <-ctx.Done():
			if err == nil {
				v.Close()
			}
		}
	}()
	select {
	case <-ctx.Done():
		return none, gone(context.Cause(ctx))
	case r := <-done:
		return r.v, r.err
	}
}

// gone classifies what a medium did not, so that it is tried again.
func gone(err error) error { return fmt.Errorf("%w: %w", ota.ErrConnectivity, err) }
