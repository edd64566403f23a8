package inbox_test

import (
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
)

// process is the file system as one life of a process sees it: a fake, over the fake disk. When
// the power goes, or the process is killed, all that is still under way in it gets
// errors, and changes nothing any more.
type process struct {
	disk *otatest.Disk

	mu   sync.Mutex
	dead bool
	cut  chan struct{} // closed when dead

	beforeSync atomic.Pointer[func(name string)]
}

var errDead = errors.New("this process has ended")

func newProcess(disk *otatest.Disk) *process { return &process{disk: disk, cut: make(chan struct{})} }

// kill ends the process. The page cache survives.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
	p.disk.Kill()
}

func (p *process) end() {
	if !p.dead {
		p.dead = true
		close(p.cut)
	}
}

func (p *process) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *process) guard(do func() error) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errDead
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *otatest.PowerCut:
			p.end()
			err = errDead
		default:
			panic(r)
		}
	}()
	return do()
}

func (p *process) OpenFile(name string, flag int, perm fs.FileMode) (f durable.File, err error) {
	err = p.guard(func() (err error) { f, err = p.disk.OpenFile(name, flag, perm); return err })
	if err != nil {
		return nil, err
	}
	return &processFile{f, p, name}, nil
}

func (p *process) Rename(from, to string) error {
	return p.guard(func() error { return p.disk.Rename(from, to) })
}
func (p *process) Remove(name string) error {
	return p.guard(func() error { return p.disk.Remove(name) })
}
func (p *process) Mkdir(name string, perm fs.FileMode) error {
	return p.guard(func() error { return p.disk.Mkdir(name, perm) })
}
func (p *process) SyncDir(name string) error {
	return p.guard(func() error { return p.disk.SyncDir(name) })
}
func (p *process) Free(name string) (n int64, err error) {
	err = p.guard(func() (err error) { n, err = p.disk.Free(name); return err })
	return n, err
}
func (p *process) Stat(name string) (i fs.FileInfo, err error) {
	err = p.guard(func() (err error) { i, err = p.disk.Stat(name); return err })
	return i, err
}
func (p *process) ReadDir(name string) (e []fs.DirEntry, err error) {
	err = p.guard(func() (err error) { e, err = p.disk.ReadDir(name); return err })
	return e, err
}

type processFile struct {
	f    durable.File
	p    *process
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
	if hook := f.p.beforeSync.Load(); hook != nil {
		(*hook)(f.name)
	}
	return f.p.guard(func() error { return f.f.Sync() })
}
func (f *processFile) Size() (n int64, err error) {
	err = f.p.guard(func() (err error) { n, err = f.f.Size(); return err })
	return n, err
}
func (f *processFile) Close() error { return f.p.guard(func() error { return f.f.Close() }) }
