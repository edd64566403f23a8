package grub

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// sector is what a disk writes whole. It matters for a block that is alone.
const sector = 512

// errDamaged says that no block can be believed.
var errDamaged = errors.New("no environment block can be used")

// env is the environment blocks of a device: two, or one that is alone.
type env struct {
	fsys  durable.FS
	names [2]string
	paths []string
}

// copyOf is one block as it is on the medium.
type copyOf struct {
	path  string
	raw   []byte
	block block
	state state
	err   error // why it is not to be believed
}

func (e env) alone() bool { return len(e.paths) == 1 }

// read returns the blocks, past the cache, and which of them counts: of two that are
// whole the newer one, and the first if they are of the same age. grub.cfg decides alike.
func (e env) read() (copies []copyOf, newest int, err error) {
	newest = -1
	var errs []error
	for i, path := range e.paths {
		c := e.readCopy(path)
		copies = append(copies, c)
		switch {
		case c.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", path, c.err))
		case newest < 0 || follows(c.state.seq, copies[newest].state.seq):
			newest = i
		}
	}
	if newest < 0 {
		return copies, newest, fmt.Errorf("%w: %w; GRUB boots its default slot: check that the boot partition is mounted, or make new blocks with the slot that is known to be whole as the good one", errDamaged, errors.Join(errs...))
	}
	return copies, newest, nil
}

func (e env) readCopy(path string) (c copyOf) {
	c.path = path
	info, err := e.fsys.Stat(path)
	if err != nil {
		c.err = err
		return c
	}
	if size := info.Size(); !info.Mode().IsRegular() || size < sector || size > maxBlock {
		c.err = fmt.Errorf("it is %v with %d bytes, want a file of %d to %d", info.Mode().Type(), size, sector, maxBlock)
		return c
	}
	b, err := durable.ReadRange(e.fsys, path, 0, info.Size())
	if c.err = err; c.err == io.EOF {
		c.err = io.ErrUnexpectedEOF
	}
	c.raw = make([]byte, info.Size()) // also of a block that cannot be read: it is written over
	copy(c.raw, b)
	if c.err == nil {
		c.block, c.err = parseBlock(c.raw)
	}
	if c.err == nil {
		c.state, c.err = decodeState(c.block, e.names, e.alone())
	}
	return c
}

// load returns the state that GRUB would find, and an error if a block beside the one
// that counts is damaged.
func (e env) load() (s state, beside error, err error) {
	copies, newest, err := e.read()
	if err != nil {
		return state{trial: -1}, nil, err
	}
	for _, c := range copies {
		beside = errors.Join(beside, c.err)
	}
	return copies[newest].state, beside, nil
}

// update changes the state. When it returns nil, it is on the medium in every block;
// a cut at any moment leaves the old state or the new one. What is there already is
// not written again.
func (e env) update(change func(*state)) error {
	for _, path := range e.paths {
		// A process that was killed may have left its write in the cache alone.
		if err := durable.SyncFile(e.fsys, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pair.FlashError(fmt.Errorf("sync environment block %s: %w", path, err))
		}
	}
	copies, newest, err := e.read()
	if err != nil {
		return err
	}
	s := copies[newest].state.clone()
	change(&s)
	if s.equal(copies[newest].state) {
		same, err := e.everywhere(s, copies, newest)
		if same || err != nil {
			return err
		}
	}
	if !e.alone() {
		s.seq = s.seq%3 + 1
	}
	// The older one first, or the damaged one. Only once that is on the medium, the
	// one that counted until then.
	for i := range copies {
		if i != newest {
			if err := e.write(copies[i], copies[newest], s); err != nil {
				return err
			}
		}
	}
	return e.write(copies[newest], copies[newest], s)
}

// everywhere reports whether all blocks are what writing s would make of them.
func (e env) everywhere(s state, copies []copyOf, newest int) (bool, error) {
	for _, c := range copies {
		want, err := e.encode(c, copies[newest], s)
		if err != nil {
			return false, err
		}
		if c.err != nil || !bytes.Equal(c.raw, want) {
			return false, nil
		}
	}
	return true, nil
}

// encode returns the block c with state s. Variables of others stay as they are in
// it; if it is damaged, they come from newest.
func (e env) encode(c, newest copyOf, s state) ([]byte, error) {
	size := len(c.raw)
	if c.err != nil {
		c.block, size = newest.block, max(size, len(newest.raw))
	}
	b, err := s.into(c.block, e.names).encode(size)
	if err != nil {
		return nil, fmt.Errorf("write environment block %s: %w", c.path, err)
	}
	return b, nil
}

// write brings s into the file of c: in place, because GRUB writes to where it is on
// the disk, and because there must be a block at any moment. A file that is missing,
// or has the size of no block, is made anew.
func (e env) write(c, newest copyOf, s state) error {
	b, err := e.encode(c, newest, s)
	if err != nil {
		return err
	}
	if c.err != nil && len(c.raw) != len(b) {
		err = durable.WriteFile(e.fsys, c.path, b, 0o600)
	} else if err = e.inOneSector(c.raw, b); err == nil {
		err = durable.WriteRange(e.fsys, c.path, 0, b)
	}
	if err != nil {
		return pair.FlashError(fmt.Errorf("write environment block: %w", err))
	}
	return nil
}

// inOneSector refuses to change more than one sector of a block that is alone: a cut
// in between would leave a mixture.
func (e env) inOneSector(old, b []byte) error {
	if !e.alone() {
		return nil
	}
	from, to := 0, len(b)
	for from < to && old[from] == b[from] {
		from++
	}
	for to > from && old[to-1] == b[to-1] {
		to--
	}
	if from < to && from/sector != (to-1)/sector {
		return fmt.Errorf("%s: bytes %d to %d would change, which are in two sectors of %d: make the block anew with ORDER and what belongs to it first, or use two blocks", e.paths[0], from, to-1, sector)
	}
	return nil
}
