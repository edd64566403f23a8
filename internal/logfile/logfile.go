// Package logfile writes a log into files of bounded size, on a medium that may
// be slow, full, missing or gone: the SD card of a device.
//
// Start with [New], and give [Writer.Handler] to package slog, if need be
// together with the console's by way of [Tee].
//
// What is promised: logging never blocks and never fails its caller. Lines wait
// in a bounded queue for a goroutine that writes them. While the file cannot be
// written they stay there, and the writer tries again; what no longer fits is
// counted, and the file says how many lines are missing and where. A line is
// never split across two files. Lines of level error and above are synced to the
// medium; the others can be lost by a power cut, as the system decides.
package logfile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Bounds of what waits in memory.
const (
	queueLines = 1024
	queueBytes = 1 << 20
	maxLine    = 64 << 10 // bytes; the rest of a longer line is cut off
)

// Config says where the log goes.
type Config struct {
	// Path of the current file; path.1, path.2 and so on are older ones. Its
	// directory is not created: while a card is not mounted, its mount point is a
	// directory of the system's own flash. Best use one that is on the card.
	Path string

	MaxSize int64         // of one file in bytes; default 1 MiB (1,048,576)
	Files   int           // with the current one; default 10
	Level   slog.Leveler  // of [Writer.Handler]; default [slog.LevelInfo]
	Retry   time.Duration // after the file could not be written; default 10 s
}

// Writer writes lines. Its methods may be called from any goroutine.
type Writer struct {
	cfg     Config
	queue   chan line
	closing chan struct{} // closed by Close
	done    chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	closed bool
	queued int   // bytes in queue
	gap    int64 // lines lost since the last one that was queued
	lost   int64 // lines lost in all
	err    error // why the file cannot be written; nil: it can
}

// line is one line with its newline.
type line struct {
	text []byte
	gap  int64 // lines lost before it
	sync bool
}

// New starts a writer. It does not touch the medium itself: a file that cannot
// be opened is no error here, but see [Writer.Err].
func New(cfg Config) (*Writer, error) {
	if cfg.Path == "" {
		return nil, errors.New("write the log: the path is missing")
	}
	if cfg.MaxSize < 0 || cfg.Files < 0 || cfg.Retry < 0 {
		return nil, fmt.Errorf("write the log %s: size %d, files %d, retry %v: want 0 or more", cfg.Path, cfg.MaxSize, cfg.Files, cfg.Retry)
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = 1 << 20
	}
	if cfg.Files == 0 {
		cfg.Files = 10
	}
	if cfg.Retry == 0 {
		cfg.Retry = 10 * time.Second
	}
	if cfg.Level == nil {
		cfg.Level = slog.LevelInfo
	}
	w := &Writer{cfg: cfg, queue: make(chan line, queueLines), closing: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w, nil
}

// Write queues p as one line; a newline is added if there is none. It returns at
// once, always len(p) and nil.
func (w *Writer) Write(p []byte) (int, error) {
	w.add(p, false)
	return len(p), nil
}

func (w *Writer) add(p []byte, sync bool) {
	var text []byte
	if limit := int(min(maxLine, w.cfg.MaxSize)); len(p) > limit {
		text = fmt.Appendf(text, "%s... (cut, it has %d bytes)\n", p[:limit], len(p))
	} else {
		text = append(text, p...)
		if len(p) == 0 || p[len(p)-1] != '\n' {
			text = append(text, '\n')
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed && w.queued+len(text) <= queueBytes {
		select {
		case w.queue <- line{text, w.gap, sync}:
			w.queued += len(text)
			w.gap = 0
			return
		default:
		}
	}
	w.gap++
	w.lost++
}

// Lost returns how many lines were lost so far.
func (w *Writer) Lost() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// Err returns why the file cannot be written at present, or nil.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Close writes what is queued, syncs, and ends the writer. It waits until that
// is done or ctx ends, and returns an error if lines were not written. A file
// that cannot be written is tried once more, not waited for. Lines that come
// later are lost.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.closing)
	}
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		return fmt.Errorf("close the log %s: %d lines are still being written: %w", w.cfg.Path, len(w.queue), ctx.Err())
	}
	if err := w.Err(); err != nil {
		return fmt.Errorf("close the log %s: %w", w.cfg.Path, err)
	}
	return nil
}

// run owns the file.
func (w *Writer) run() {
	defer close(w.done)
	f := &file{path: w.cfg.Path, maxSize: w.cfg.MaxSize, files: w.cfg.Files, retry: w.cfg.Retry}
	defer f.close()
	for {
		select {
		case l := <-w.queue:
			w.write(f, l)
		case <-w.closing:
			w.drain(f)
			return
		}
	}
}

// write writes l, however long that takes. It gives up only when closing.
func (w *Writer) write(f *file, l line) {
	defer func() {
		w.mu.Lock()
		w.queued -= len(l.text)
		w.mu.Unlock()
	}()
	for last := false; ; {
		select {
		case <-w.closing:
			last = true
		default:
		}
		err := w.try(f, &l)
		w.mu.Lock()
		w.err = err
		if err != nil && last {
			w.lost += 1
		}
		w.mu.Unlock()
		if err == nil || last {
			return
		}
		select {
		case <-w.closing:
		case <-time.After(w.cfg.Retry):
		}
	}
}

func (w *Writer) try(f *file, l *line) error {
	if l.gap > 0 {
		if err := f.write(notice(fmt.Sprintf("%d lines were lost while the log could not be written", l.gap)), false); err != nil {
			return err
		}
		l.gap = 0 // said once
	}
	return f.write(l.text, l.sync)
}

// drain writes the rest of the queue. Once the file fails, all that follows is
// lost with it.
func (w *Writer) drain(f *file) {
	var failed error
	unwritten := 0
	for len(w.queue) > 0 { // nothing is added any more
		l := <-w.queue
		if failed == nil {
			failed = w.try(f, &l)
		}
		if failed != nil {
			unwritten++
		}
	}
	w.mu.Lock()
	gap := w.gap
	w.mu.Unlock()
	if failed == nil && gap > 0 {
		failed = w.try(f, &line{text: notice("the log ends here"), gap: gap})
	}
	if failed == nil {
		failed = f.sync()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost += int64(unwritten)
	switch {
	case failed != nil:
		w.err = fmt.Errorf("%d lines are not written: %w", unwritten, failed)
	case w.err != nil: // the line that was being written when Close came
		w.err = fmt.Errorf("a line is not written: %w", w.err)
	}
}

// notice is a line of our own in the form of the others.
func notice(msg string) []byte {
	return fmt.Appendf(nil, "time=%s level=WARN msg=%q\n", time.Now().Format("2006-01-02T15:04:05.000Z07:00"), msg)
}
