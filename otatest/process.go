package otatest

import (
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/interlock-energy/ota/internal/durable"
)

// Process is a [durable.FS]: a disk as one life of a process with many goroutines sees it.
// When the power goes, or the process is killed, all that is still under way in it gets
// errors, and changes nothing any more.
type Process struct {
	disk *Disk

	mu   sync.Mutex
	dead bool
	cut  chan struct{} // closed when dead

	// BeforeSync, if there is one, is called before a file is synced.
	BeforeSync atomic.Pointer[func(name string)]
}

var errDead = errors.New("this process has ended")

// NewProcess begins a life.
func NewProcess(disk *Disk) *Process { return &Process{disk: disk, cut: make(chan struct{})} }

// Kill ends the process. The page cache survives.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
	p.disk.Kill()
}

// PowerOff ends it with the power of the disk.
func (p *Process) PowerOff(rest Rest, seed uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
	p.disk.PowerOff(rest, seed)
}

func (p *Process) end() {
	if !p.dead {
		p.dead = true
		close(p.cut)
	}
}

// Ended reports whether it was killed, or the power went.
func (p *Process) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *Process) guard(do func() error) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errDead
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *PowerCut:
			p.end()
			err = errDead
		default:
			panic(r)
		}
	}()
	return do()
}

// OpenFile implements [durable.FS].
func (p *Process) OpenFile(name string, flag int, perm fs.FileMode) (f durable.File, err error) {
	err = p.guard(func() (err error) { f, err = p.disk.OpenFile(name, flag, perm); return err })
	if err != nil {
		return nil, err
	}
	return &processFile{f, p, name}, nil
}

// Rename implements [durable.FS].
func (p *Process) Rename(from, to string) error {
	return p.guard(func() error { return p.disk.Rename(from, to) })
}

// Remove implements [durable.FS].
func (p *Process) Remove(name string) error {
	return p.guard(func() error { return p.disk.Remove(name) })
}

// Mkdir implements [durable.FS].
func (p *Process) Mkdir(name string, perm fs.FileMode) error {
	return p.guard(func() error { return p.disk.Mkdir(name, perm) })
}

// SyncDir implements [durable.FS].
func (p *Process) SyncDir(name string) error {
	return p.guard(func() error { return p.disk.SyncDir(name) })
}

// Free implements [durable.FS].
func (p *Process) Free(name string) (n int64, err error) {
	err = p.guard(func() (err error) { n, err = p.disk.Free(name); return err })
	return n, err
}

// Stat implements [durable.FS].
func (p *Process) Stat(name string) (i fs.FileInfo, err error) {
	err = p.guard(func() (err error) { i, err = p.disk.Stat(name); return err })
	return i, err
}

// ReadDir implements [durable.FS].
func (p *Process) ReadDir(name string) (e []fs.DirEntry, err error) {
	err = p.guard(func() (err error) { e, err = p.disk.ReadDir(name); return err })
	return e, err
}

type processFile struct {
	f    durable.File
	p    *Process
	name string
}

func (f *processFile) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.p.guard(func() (err error) { n, err = f.f.ReadAt(b, off); return err })
	return n, err
}
func (f *processFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.guard(func() (err error) { n, err = f.f.WriteAt(b, off); return err })
	return n, err
}
func (f *processFile) Truncate(size int64) error {
	return f.p.guard(func() error { return f.f.Truncate(size) })
}
func (f *processFile) Sync() error {
	if hook := f.p.BeforeSync.Load(); hook != nil {
		(*hook)(f.name)
	}
	return f.p.guard(func() error { return f.f.Sync() })
}
func (f *processFile) Size() (n int64, err error) {
	err = f.p.guard(func() (err error) { n, err = f.f.Size(); return err })
	return n, err
}
func (f *processFile) Close() error { return f.p.guard(func() error { return f.f.Close() }) }
