package logfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// file is the current file and those before it. It is used by one goroutine.
// After an error it is closed, and the next write opens it again.
type file struct {
	path    string
	maxSize int64
	files   int
	retry   time.Duration

	f          *os.File
	size       int64
	rotateNext time.Time // not before this, because rotating failed
}

// write appends text, which is one line, as a whole or not at all.
func (f *file) write(text []byte, sync bool) error {
	fresh := f.f == nil
	err := f.append(text)
	if err != nil && !fresh {
		err = f.append(text) // the file that was open may be of a card that was replaced
	}
	if err != nil {
		return err
	}
	if sync {
		// The line is written, so it is not written again. If the medium has gone,
		// opening the file will tell.
		if f.sync() != nil {
			f.close()
		}
	}
	return nil
}

func (f *file) append(text []byte) error {
	if err := f.open(); err != nil {
		return err
	}
	if f.size > 0 && f.size+int64(len(text)) > f.maxSize {
		if err := f.rotate(int64(len(text))); err != nil {
			return err
		}
	}
	n, err := f.f.Write(text)
	if err != nil {
		if n > 0 {
			f.f.Truncate(f.size) // if half a line stays, open ends it with a newline
		}
		f.close()
		return fmt.Errorf("write the log: %w", err)
	}
	f.size += int64(n)
	return nil
}

// open makes sure that f.f is the file at path: somebody may have deleted it,
// renamed it or cut it short. A stat per line is far cheaper than the write.
func (f *file) open() error {
	if f.f != nil {
		there, err := os.Stat(f.path)
		ours, err2 := f.f.Stat()
		if err == nil && err2 == nil && os.SameFile(there, ours) {
			f.size = there.Size()
			return nil
		}
		f.close()
	}
	h, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	info, err := h.Stat()
	if err != nil {
		h.Close()
		return fmt.Errorf("open the log: %w", err)
	}
	f.f, f.size = h, info.Size()
	if f.size > 0 { // a power cut or a full medium may have left half a line
		end := make([]byte, 1)
		if _, err := h.ReadAt(end, f.size-1); err != nil && !errors.Is(err, io.EOF) {
			f.close()
			return fmt.Errorf("open the log: %w", err)
		}
		if end[0] != '\n' {
			if _, err := h.Write([]byte("\n")); err != nil {
				f.close()
				return fmt.Errorf("open the log: %w", err)
			}
			f.size++
		}
	}
	return nil
}

// rotate makes path.1 of the current file and begins a new one. If renaming
// fails, the current file goes on up to twice its size, and is then started
// over: the newest lines are worth more than the oldest, and the size is
// bounded whatever happens.
func (f *file) rotate(need int64) error {
	var failed error
	if now := time.Now(); !now.Before(f.rotateNext) {
		if failed = f.shift(); failed == nil {
			f.close()
			return f.open()
		}
		f.rotateNext = now.Add(f.retry)
	}
	if f.size+need <= 2*f.maxSize {
		return nil
	}
	if err := f.f.Truncate(0); err != nil {
		f.close()
		return fmt.Errorf("start the log over: %w", err)
	}
	f.size = 0
	why := "the log was started over, because older files cannot be renamed"
	if failed != nil {
		why += ": " + failed.Error()
	}
	text := notice(why)
	if _, err := f.f.Write(text); err != nil {
		f.close()
		return fmt.Errorf("write the log: %w", err)
	}
	f.size = int64(len(text))
	return nil
}

// shift renames path to path.1, path.1 to path.2 and so on, up to the first name
// that is free; the oldest file is overwritten only if none is. So a shift that
// broke off half-way loses nothing when it is done again.
func (f *file) shift() error {
	name := func(i int) string {
		if i == 0 {
			return f.path
		}
		return fmt.Sprintf("%s.%d", f.path, i)
	}
	if f.files == 1 {
		return os.Remove(f.path)
	}
	free := 1
	for ; free < f.files-1; free++ {
		if _, err := os.Lstat(name(free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	for i := free; i > 0; i-- {
		if err := os.Rename(name(i-1), name(i)); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) sync() error {
	if f.f == nil {
		return nil
	}
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("sync the log: %w", err)
	}
	return nil
}

func (f *file) close() {
	if f.f != nil {
		f.f.Close() // nothing is buffered here, and write errors were seen
		f.f = nil
	}
}
