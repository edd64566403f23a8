package uboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// A Place is where a copy of the environment is: a line of fw_env.config.
type Place struct {
	Path   string // file, block device or, for raw flash, MTD character device
	Offset int64  // in bytes, 0 or more; on raw flash a multiple of its erase block
	Size   int64  // in bytes, of the copy with its header; as CONFIG_ENV_SIZE of U-Boot
}

// errNoEnv says that no copy is valid.
var errNoEnv = errors.New("no copy of the U-Boot environment is valid, and nothing is written over what may still be repaired: " +
	"restore it, with saveenv in U-Boot or from the factory's image")

// store is the environment in its places.
type store struct {
	fsys   durable.FS
	places []Place // one or two
	layout Layout
	flags  Flags
	lock   string // file; empty: none
}

// copies is what is on the medium.
type copies struct {
	env    [2]*Env // nil: damaged, or there is only one place
	newest int
}

// whole reports whether no copy is damaged.
func (c copies) whole(places int) bool { return c.env[0] != nil && (places == 1 || c.env[1] != nil) }

// older returns the copy that does not count, nil if there is none or it is damaged.
func (c copies) older() *Env { return c.env[1-c.newest] }

// load returns the copies as U-Boot sees them.
func (s *store) load() (c copies, err error) {
	var reasons []error
	damaged := true
	for i := range s.places {
		if c.env[i], err = s.read(i); err != nil {
			reasons = append(reasons, err)
			damaged = damaged && (errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist))
		}
	}
	switch {
	case c.env[0] == nil && c.env[1] == nil && damaged:
		return c, errors.Join(append([]error{errNoEnv}, reasons...)...)
	case c.env[0] == nil && c.env[1] == nil:
		return c, errors.Join(reasons...)
	case c.env[0] == nil:
		c.newest = 1
	case c.env[1] != nil:
		c.newest = Newest(s.flagsOn(s.places[0]), [2]byte{c.env[0].Flags, c.env[1].Flags})
	}
	return c, nil
}

// read returns one copy, past the cache. What cannot be read is asked for once more:
// the older copy must not count because of one disturbed transfer.
func (s *store) read(i int) (*Env, error) {
	p := s.places[i]
	block, err := durable.ReadRange(s.fsys, p.Path, p.Offset, p.Size)
	if err != nil && err != io.EOF && !errors.Is(err, fs.ErrNotExist) {
		block, err = durable.ReadRange(s.fsys, p.Path, p.Offset, p.Size)
	}
	if err == io.EOF {
		err = fmt.Errorf("%w: it ends after %d of %d bytes", ErrDamaged, len(block), p.Size)
	}
	var e *Env
	if err == nil {
		e, err = ParseEnv(block, s.layout)
	}
	if err != nil {
		return nil, fmt.Errorf("copy at %#x of %s: %w", p.Offset, p.Path, err)
	}
	return e, nil
}

// flagsOn is what U-Boot and libubootenv use on the medium if nobody says it.
func (s *store) flagsOn(p Place) Flags {
	if s.flags != "" {
		return s.flags
	}
	if block, err := s.eraseBlock(p); err == nil && block > 0 {
		return Boolean
	}
	return Incremental
}

// eraseBlock returns how much is erased at once where p is, 0 if nothing needs to be.
func (s *store) eraseBlock(p Place) (int64, error) {
	f, err := s.fsys.OpenFile(p.Path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read: nothing can be lost
	if e, ok := f.(durable.Eraser); ok {
		return e.EraseSize(), nil
	}
	return 0, nil
}

// update changes the environment. change is called with the variables, with those of
// the older copy if there is one that is valid, and whether all copies are; it must do
// the same when called again. When update
// returns nil, the change is on the medium, in all copies; a cut at any moment
// leaves the old variables or the new ones. What is there already, in all copies, is
// not written again.
func (s *store) update(change func(e, older *Env, whole bool) error) error {
	if s.lock != "" {
		l, err := takeLock(s.lock)
		if err != nil {
			return err
		}
		defer l.Close() // nothing is written through it
	}
	for _, p := range s.places {
		if err := durable.SyncFile(s.fsys, p.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pair.FlashError(fmt.Errorf("sync %s: %w", p.Path, err))
		}
	}
	c, err := s.load()
	if err != nil {
		return err
	}
	whole := c.whole(len(s.places))
	was, is := c.env[c.newest], c.env[c.newest].clone()
	if err := change(is, c.older(), whole); err != nil {
		return err
	}
	if is.same(was) && whole {
		if len(s.places) == 1 {
			return nil
		}
		// What U-Boot saves is in one copy only. It matters where it is not the same to us.
		other := c.env[1-c.newest].clone()
		if err := change(other, nil, whole); err == nil && other.same(c.env[1-c.newest]) {
			return nil
		}
	}
	if err := s.save(is, was, c.newest); err != nil {
		return pair.FlashError(err)
	}
	return nil
}

// save writes e over the older or damaged copy first, and then, once that is on the
// medium, over the newest, which holds was. So a copy that rots takes nothing along.
func (s *store) save(e, was *Env, newest int) error {
	if len(s.places) == 1 {
		return s.write(0, e)
	}
	other := 1 - newest
	if s.flagsOn(s.places[0]) == Boolean {
		return s.saveBoolean(e, was, newest)
	}
	e.Flags = was.Flags + 1 // as saveenv does, also from 255 to 0
	if err := s.write(other, e); err != nil || e.same(was) {
		return err
	}
	e.Flags++
	return s.write(newest, e)
}

// saveBoolean needs a step more: two active copies would be the first one's turn.
func (s *store) saveBoolean(e, was *Env, newest int) error {
	other := 1 - newest
	if e.same(was) && was.Flags == active { // only a second copy is wanted
		e.Flags = obsolete
		return s.write(other, e)
	}
	e.Flags = active
	if err := s.write(other, e); err != nil {
		return err
	}
	if was.Flags != obsolete {
		if err := s.mark(newest, obsolete); err != nil {
			return err
		}
	}
	if e.same(was) {
		return nil
	}
	e.Flags = obsolete
	return s.write(newest, e)
}

// write writes one copy whole, and reads it back.
func (s *store) write(i int, e *Env) error {
	p := s.places[i]
	block, err := e.Encode(p.Size, s.layout)
	if err != nil {
		return err
	}
	info, err := s.fsys.Stat(p.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(s.places) == 2 && p.Offset == 0 && filepath.Dir(p.Path) == filepath.Dir(s.places[1-i].Path):
		// Beside the other copy: nobody can have forgotten to mount what it is on.
		return durable.WriteFile(s.fsys, p.Path, block, 0o600)
	case err != nil:
		return err
	case info.Mode().IsRegular() && info.Size() < p.Size && p.Offset == 0 && len(s.places) == 2:
		// U-Boot was cut off while it wrote the file anew.
		return durable.WriteFile(s.fsys, p.Path, block, 0o600)
	}
	behind, err := s.behind(i)
	if err != nil {
		return err
	}
	return durable.WriteRange(s.fsys, p.Path, p.Offset, append(block, behind...))
}

// behind returns what shares the last erase block of raw flash with a copy, and must
// be written again with it. What cannot be read there is as erased.
func (s *store) behind(i int) ([]byte, error) {
	p := s.places[i]
	block, err := s.eraseBlock(p)
	if err != nil || block == 0 {
		return nil, err
	}
	end := func(p Place) int64 { return (p.Offset + p.Size + block - 1) / block * block }
	if len(s.places) == 2 {
		if o := s.places[1-i]; o.Path == p.Path && p.Offset < end(o) && o.Offset < end(p) {
			return nil, fmt.Errorf("the copies at %#x and %#x of %s are in one erase block of %d bytes, and would be lost together", p.Offset, o.Offset, p.Path, block)
		}
	}
	rest := bytes.Repeat([]byte{unset}, int(end(p)-p.Offset-p.Size))
	if len(rest) == 0 {
		return nil, nil
	}
	if got, err := durable.ReadRange(s.fsys, p.Path, p.Offset+p.Size, int64(len(rest))); err == nil {
		return got, nil
	}
	for at := 0; at < len(rest); at += flashPage {
		// What cannot be read is lost for its owner already; the way back is not to be.
		piece := rest[at:min(at+flashPage, len(rest))]
		if got, err := durable.ReadRange(s.fsys, p.Path, p.Offset+p.Size+int64(at), int64(len(piece))); err == nil {
			copy(piece, got)
		}
	}
	return rest, nil
}

// flashPage is what most NOR flash writes at once, in bytes.
const flashPage = 256

// mark writes the flags of one copy only: a byte, which on flash goes from 0xFF to 1
// to 0 without being erased.
func (s *store) mark(i int, flags byte) error {
	p := s.places[i]
	f, err := s.fsys.OpenFile(p.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{flags}, p.Offset+4)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		var got []byte
		if got, err = durable.ReadRange(s.fsys, p.Path, p.Offset+4, 1); err == nil && !bytes.Equal(got, []byte{flags}) {
			err = durable.ErrReadBack
		}
	}
	if err != nil {
		return fmt.Errorf("mark the copy at %#x of %s: %w", p.Offset, p.Path, err)
	}
	return nil
}

// How long a lock is waited for. Others hold it for the time of one write.
const (
	lockTimeout = 10 * time.Second
	lockRetry   = 20 * time.Millisecond
)

// takeLock takes the lock that fw_setenv and fw_printenv take (libubootenv,
// libuboot_lock: flock).
func takeLock(name string) (io.Closer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	for {
		l, err := durable.Lock(name)
		if !errors.Is(err, durable.ErrLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w for %v: is a fw_setenv hanging?", err, lockTimeout)
		case <-time.After(lockRetry):
		}
	}
}
