package otatest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

var _ durable.FS = (*Disk)(nil)

// OpenFile implements [durable.FS].
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	name = path.Clean(name)
	fail := func(err error) (durable.File, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	n, there := d.names[name]
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case there && flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return fail(syscall.EEXIST)
	case there && n.dir && writable:
		return fail(syscall.EISDIR)
	case there && flag&os.O_TRUNC != 0 && n.cache.size > 0:
		if err := d.truncate(n, name, 0); err != nil {
			return fail(err)
		}
	case !there && flag&os.O_CREATE == 0:
		return fail(syscall.ENOENT)
	case !there:
		if err := d.parent(name); err != nil {
			return fail(err)
		}
		n = &node{mode: perm}
		err := d.effect("create "+name, operation{do: func() error {
			d.change(map[string]*node{name: n}, path.Dir(name))
			return nil
		}})
		if err != nil {
			return fail(err)
		}
	}
	f := &file{d: d, n: n, name: name, flag: flag, boot: d.boot}
	if n.erase > 0 {
		return &flashFile{f}, nil
	}
	return f, nil
}

// parent reports whether the directory that holds name is there.
func (d *Disk) parent(name string) error {
	p, ok := d.names[path.Dir(name)]
	switch {
	case !path.IsAbs(name):
		return syscall.EINVAL
	case !ok:
		return syscall.ENOENT
	case !p.dir:
		return syscall.ENOTDIR
	}
	return nil
}

// Rename implements [durable.FS]. Directories cannot be renamed.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	from, to = path.Clean(from), path.Clean(to)
	fail := func(err error) error { return &os.LinkError{Op: "rename", Old: from, New: to, Err: err} }
	n, ok := d.names[from]
	if !ok {
		return fail(syscall.ENOENT)
	}
	if err := d.parent(to); err != nil {
		return fail(err)
	}
	if n.dir {
		return fail(fmt.Errorf("of a directory: %w by this fake", errors.ErrUnsupported))
	}
	if old, ok := d.names[to]; ok && old.dir {
		return fail(syscall.EISDIR)
	}
	effect := operation{do: func() error {
		if from != to {
			d.change(map[string]*node{from: nil, to: n}, path.Dir(from), path.Dir(to))
		}
		return nil
	}}
	if d.names[path.Dir(to)].fat && from != to {
		effect = d.renameOnFAT(n, from, to)
	}
	if err := d.effect("rename "+from+" "+to, effect); err != nil {
		return fail(err)
	}
	return nil
}

// Remove implements [durable.FS].
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	name = path.Clean(name)
	n, err := d.find("remove", name)
	if err != nil {
		return err
	}
	if n.dir {
		for other := range d.names {
			if path.Dir(other) == name { // also true of the root
				return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
			}
		}
	}
	err = d.effect("remove "+name, operation{do: func() error {
		d.change(map[string]*node{name: nil}, path.Dir(name))
		return nil
	}})
	if err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// Mkdir implements [durable.FS].
func (d *Disk) Mkdir(name string, perm fs.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	name = path.Clean(name)
	fail := func(err error) error { return &fs.PathError{Op: "mkdir", Path: name, Err: err} }
	if _, ok := d.names[name]; ok {
		return fail(syscall.EEXIST)
	}
	if err := d.parent(name); err != nil {
		return fail(err)
	}
	err := d.effect("mkdir "+name, operation{do: func() error {
		d.change(map[string]*node{name: {dir: true, fat: d.names[path.Dir(name)].fat, mode: perm | fs.ModeDir}}, path.Dir(name))
		return nil
	}})
	if err != nil {
		return fail(err)
	}
	return nil
}

// SyncDir implements [durable.FS].
func (d *Disk) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	name = path.Clean(name)
	n, err := d.find("sync", name)
	if err != nil {
		return err
	}
	if !n.dir {
		return &fs.PathError{Op: "sync", Path: name, Err: syscall.ENOTDIR}
	}
	err = d.effect("syncdir "+name, operation{
		do: func() error {
			rest := d.changes[:0:0]
			for _, ch := range d.changes {
				if !ch.in(name) {
					rest = append(rest, ch)
					continue
				}
				for name, n := range ch.set {
					if n == nil {
						delete(d.stable, name)
					} else {
						d.stable[name] = n
					}
				}
			}
			d.changes = rest
			return nil
		},
		torn: func(_ Cut, r *rand.Rand) {
			for _, ch := range d.changes {
				ch.torn = ch.in(name) && r.IntN(2) == 1
			}
		},
	})
	if err != nil {
		return &fs.PathError{Op: "sync", Path: name, Err: err}
	}
	return nil
}

func (ch *nameChange) in(dir string) bool {
	for _, d := range ch.dirs {
		if d == dir {
			return true
		}
	}
	return false
}

// Free implements [durable.FS].
func (d *Disk) Free(name string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	if _, err := d.find("statfs", name); err != nil {
		return 0, err
	}
	return d.room(), nil
}

// Stat implements [durable.FS].
func (d *Disk) Stat(name string) (fs.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	n, err := d.find("stat", name)
	if err != nil {
		return nil, err
	}
	return info{path.Base(path.Clean(name)), n.cache.size, n.mode, n.dir}, nil
}

// ReadDir implements [durable.FS].
func (d *Disk) ReadDir(name string) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive()
	name = path.Clean(name)
	n, err := d.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	var entries []fs.DirEntry
	for _, p := range sortedKeys(d.names) {
		if n := d.names[p]; p != "/" && path.Dir(p) == name {
			entries = append(entries, fs.FileInfoToDirEntry(info{path.Base(p), n.cache.size, n.mode, n.dir}))
		}
	}
	return entries, nil
}

type info struct {
	name string
	size int64
	mode fs.FileMode
	dir  bool
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }

// file is an open file of a [Disk].
type file struct {
	d      *Disk
	n      *node
	name   string
	flag   int
	boot   int
	closed bool
}

func (f *file) usable(op string) error {
	f.d.alive()
	if f.closed || f.boot != f.d.boot {
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	}
	return nil
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("read"); err != nil {
		return 0, err
	}
	fail := func(err error) (int, error) { return 0, &fs.PathError{Op: "read", Path: f.name, Err: err} }
	switch {
	case f.n.dir:
		return fail(syscall.EISDIR)
	case f.flag&os.O_WRONLY != 0:
		return fail(syscall.EBADF)
	case off < 0:
		return fail(syscall.EINVAL)
	}
	from := &f.n.cache
	if f.flag&durable.Direct != 0 { // the kernel writes what is dirty before it reads past the cache
		medium := f.n.medium
		if len(f.n.pending) > 0 {
			medium = medium.clone()
		}
		for _, ch := range f.n.pending {
			ch.apply(&medium)
		}
		from = &medium
	}
	n := from.read(p, off)
	if err := f.d.misread(f.name, f.n, off, n); err != nil {
		return fail(err)
	}
	if f.d.OnRead != nil {
		if err := f.d.OnRead(f.name, off, p[:n]); err != nil {
			return fail(err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("write"); err != nil {
		return 0, err
	}
	fail := func(n int, err error) (int, error) { return n, &fs.PathError{Op: "write", Path: f.name, Err: err} }
	switch {
	case f.flag&(os.O_WRONLY|os.O_RDWR) == 0:
		return fail(0, syscall.EBADF)
	case off < 0:
		return fail(0, syscall.EINVAL)
	case len(p) == 0:
		return 0, nil
	}
	stored := 0
	store := func(n int) error {
		var err error
		room := f.n.cache.size + f.d.room() - off
		if f.n.device > 0 {
			room = f.n.device - off
		}
		if int64(n) > room {
			n, err = int(max(room, 0)), syscall.ENOSPC
		}
		if f.n.erase > 0 {
			if err := f.n.erased(p[:n], off); err != nil {
				return err
			}
		}
		f.n.write(p[:n], off)
		f.n.through()
		f.d.heal(f.n, off, int64(n))
		stored = n
		return err
	}
	err := f.d.effect(fmt.Sprintf("write %s %d+%d", f.name, off, len(p)), operation{
		do:     func() error { return store(len(p)) },
		failed: func(fault Fault) { _ = store(min(fault.Short, len(p))) }, // the fault is the error
		torn:   func(c Cut, r *rand.Rand) { f.n.tear(c, r, p, off); f.n.through() },
	})
	if err != nil {
		return fail(stored, err)
	}
	return stored, nil
}

func (f *file) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("truncate"); err != nil {
		return err
	}
	if f.flag&(os.O_WRONLY|os.O_RDWR) == 0 || size < 0 || f.n.device > 0 {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: syscall.EINVAL}
	}
	if err := f.d.truncate(f.n, f.name, size); err != nil {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: err}
	}
	return nil
}

func (d *Disk) truncate(n *node, name string, size int64) error {
	return d.effect(fmt.Sprintf("truncate %s %d", name, size), operation{do: func() error {
		n.cache.truncate(size)
		n.pending = append(n.pending, change{off: size})
		return nil
	}})
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("sync"); err != nil {
		return err
	}
	n := f.n
	err := f.d.effect("sync "+f.name, operation{
		do: func() error {
			for _, ch := range n.pending {
				ch.apply(&n.medium)
			}
			n.pending = nil
			return nil
		},
		failed: func(Fault) { n.pending = nil },
		torn: func(_ Cut, r *rand.Rand) {
			for i := range n.pending {
				n.pending[i].torn = r.IntN(2) == 1
			}
		},
	})
	if err != nil {
		return &fs.PathError{Op: "sync", Path: f.name, Err: err}
	}
	return nil
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("size"); err != nil {
		return 0, err
	}
	return f.n.cache.size, nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.usable("close"); err != nil {
		return err
	}
	f.closed = true
	return nil
}

// String lists the files with their sizes, for the messages of tests.
func (d *Disk) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, name := range sortedKeys(d.names) {
		if n := d.names[name]; !n.dir {
			fmt.Fprintf(&b, "%s %d\n", name, n.cache.size)
		}
	}
	return b.String()
}

// Content returns what a program would read from the file name, or nil if there
// is no such file. It is for the tests themselves, and works while the power is off.
func (d *Disk) Content(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, ok := d.names[path.Clean(name)]
	if !ok {
		return nil
	}
	b := make([]byte, n.cache.size)
	for i, page := range n.cache.page {
		if page != nil {
			copy(b[i*pageSize:], page[:])
		}
	}
	return b
}
