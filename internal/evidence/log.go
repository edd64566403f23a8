package evidence

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

// Config is what a [Log] needs to know.
type Config struct {
	FS  durable.FS // default: that of the system
	Dir string     // made when the first line is written, 0700

	Device, Product, Agent string // for the first line of each file

	Keep     int              // files that are kept; default 100
	KeepSize int64            // bytes of all of them; default 256 MiB
	MaxFile  int64            // bytes of one; default, and at most, [MaxFile]
	Now      func() time.Time // the device's clock; default time.Now
	Log      *slog.Logger     // default: slog.Default
}

// Log is the evidence of one device. Its methods may be called from any goroutine.
// One Log at a time may write a directory.
type Log struct {
	cfg Config

	mu      sync.Mutex
	attempt string // "": none is under way
	version string
	out     *out // nil: not open
	gate    series
	health  series
	lost    Gap   // lines that could not be written; Lost 0: none
	failing error // why the last line could not be written, nil once one was
	last    Head
}

// Head says where the evidence stands.
type Head struct {
	File  string `json:"file"`            // its name; "": nothing was written yet
	Hash  string `json:"hash"`            // of the last line
	Lines int    `json:"lines"`           // in the file
	Error string `json:"error,omitempty"` // why nothing can be written now
}

// out is the file that is written.
type out struct {
	f      durable.File
	name   string
	seq    int
	head   string
	size   int64 // of the lines that are on the medium
	broken bool  // what follows size is not known
}

// Open returns the evidence of a device. It touches nothing: an error of the medium
// shows when a line is written.
func Open(cfg Config) *Log {
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if cfg.Keep <= 0 {
		cfg.Keep = 100
	}
	if cfg.KeepSize <= 0 {
		cfg.KeepSize = 256 << 20
	}
	if cfg.MaxFile <= 0 || cfg.MaxFile > MaxFile {
		cfg.MaxFile = MaxFile
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Log{cfg: cfg}
}

// Begin goes on with the attempt's file, or makes it. It reports whether this Log,
// or an earlier one, had begun the attempt before. What Begin could not do the next
// Write tries again.
func (l *Log) Begin(attempt, version string) (before bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if attempt == "" {
		return false, errors.New("begin the evidence: the attempt has no name")
	}
	if l.attempt == attempt {
		return true, nil
	}
	l.flush()
	l.close()
	l.attempt, l.version = attempt, version
	names, err := List(l.cfg.FS, l.cfg.Dir)
	for _, n := range names {
		before = before || attemptOf(n) == attemptName(attempt)
	}
	if err == nil {
		err = l.open()
	}
	return before, l.noted(err, false)
}

// Attempt returns the attempt that is under way, "" for none.
func (l *Log) Attempt() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.attempt
}

// Write appends a line, of body's fields. When it returns nil, the line is on the
// medium. After an error the line is lost; a gap line will say so. Without an attempt
// it does nothing.
func (l *Log) Write(kind Kind, body any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attempt == "" {
		return nil
	}
	l.flush()
	return l.write(kind, body)
}

// End writes the last line of the attempt.
func (l *Log) End(how string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attempt == "" {
		return nil
	}
	l.flush()
	if err := l.write(KindEnd, End{How: how}); err != nil {
		return err // Settle tries again
	}
	l.close()
	l.attempt = ""
	return nil
}

// Settle ends the newest file, if nobody has, and it is not the one of current: its
// attempt ended while this could not be written. how says how it ended.
func (l *Log) Settle(current string, how func(attempt string) string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attempt != "" && l.attempt != current {
		l.flush()
		l.close()
		l.attempt = ""
	}
	names, err := List(l.cfg.FS, l.cfg.Dir)
	if err != nil || len(names) == 0 {
		return err
	}
	name := names[len(names)-1]
	data, err := ReadFile(l.cfg.FS, l.cfg.Dir, name)
	if err != nil {
		return fmt.Errorf("end the evidence: %w", err)
	}
	s := scan(data)
	l.last = Head{File: name, Hash: s.head(), Lines: len(s.lines)}
	if attempt := attemptOf(name); attempt == attemptName(current) || s.closed() || s.damage != "" || len(s.lines) == 0 {
		return nil
	}
	var o Opened
	if err := s.lines[0].Decode(&o); err != nil {
		return err
	}
	l.attempt, l.version = o.Attempt, o.Version
	err = l.resume(name, &s)
	if err == nil {
		err = l.write(KindEnd, End{How: how(o.Attempt)})
	}
	l.close()
	l.attempt = ""
	return err
}

// Head returns where the evidence stands.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.last
	if l.failing != nil {
		h.Error = l.failing.Error()
	}
	return h
}

// Close writes what was summed up and not written yet, and closes the file. The next
// process goes on with it.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	l.close()
	l.attempt = ""
}

func (l *Log) close() {
	if l.out != nil && l.out.f != nil {
		if err := l.out.f.Close(); err != nil { // every line was synced
			l.cfg.Log.Warn("close the evidence", "error", err)
		}
	}
	l.out, l.gate, l.health = nil, series{}, series{}
}

// noted remembers that the medium does not take evidence, or does again.
func (l *Log) noted(err error, line bool) error {
	if err == nil {
		if l.failing != nil {
			l.cfg.Log.Info("evidence is written again")
		}
		l.failing = nil
		return nil
	}
	if line {
		if l.lost.Lost == 0 {
			l.lost = Gap{Since: l.cfg.Now().Round(0).UTC(), Error: err.Error()}
		}
		l.lost.Lost++
	}
	if l.failing == nil || l.failing.Error() != err.Error() {
		l.cfg.Log.Error("evidence cannot be written", "error", err)
	}
	l.failing = err
	return err
}

// write appends a line, after one that says how many are missing before it.
func (l *Log) write(kind Kind, body any) error {
	err := l.open()
	if err == nil && l.lost.Lost > 0 {
		if err = l.append(KindGap, l.lost); err == nil {
			l.lost = Gap{}
		}
	}
	if err == nil {
		err = l.append(kind, body)
	}
	return l.noted(err, true)
}

// append writes one line and syncs it. Lines are written one by one: of two at once
// a power cut could keep the second alone.
func (l *Log) append(kind Kind, body any) error {
	o := l.out
	b, err := encode(o.seq+1, l.cfg.Now(), kind, o.head, body)
	if err != nil {
		return err
	}
	// Room for the line that says where it goes on.
	if o.size > 0 && kind != KindContinued && kind != KindEnd && o.size+int64(len(b))+Page > l.cfg.MaxFile {
		if err := l.roll(); err != nil {
			return err
		}
		return l.append(kind, body)
	}
	if o.broken {
		if err := l.mend(); err != nil {
			return err
		}
	}
	o.broken = true
	n, err := o.f.WriteAt(b, o.size)
	if err == nil && n != len(b) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(b))
	}
	if err == nil {
		err = o.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write evidence %s: %w", o.name, err)
	}
	o.broken = false
	o.seq, o.head, o.size = o.seq+1, hash(b), o.size+int64(len(b))
	l.last = Head{File: o.name, Hash: o.head, Lines: o.seq}
	return nil
}

// mend opens the file anew and cuts off what a failed write may have left. After a
// failed sync nobody knows what is on the medium: it is all written again.
func (l *Log) mend() error {
	o := l.out
	if o.f != nil {
		_ = o.f.Close() // it has failed before, and is good for nothing more
		o.f = nil
	}
	f, err := l.cfg.FS.OpenFile(filepath.Join(l.cfg.Dir, o.name), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open evidence: %w", err)
	}
	o.f = f
	size, err := f.Size()
	if err == nil && size < o.size {
		err = fmt.Errorf("it is %d bytes, and %d were written: somebody has cut it", size, o.size)
	}
	if err == nil && size > o.size {
		err = f.Truncate(o.size)
	}
	if err != nil {
		return fmt.Errorf("mend evidence %s: %w", o.name, err)
	}
	return nil
}

// roll ends a file that has grown too large, and goes on in another.
func (l *Log) roll() error {
	if err := l.append(KindContinued, End{How: "the file is full, the next one goes on"}); err != nil {
		return err
	}
	gate, health := l.gate, l.health
	l.close()
	l.gate, l.health = gate, health
	return l.open()
}

// open makes sure that the attempt's file is open.
func (l *Log) open() error {
	if l.out != nil {
		return nil
	}
	if err := durable.MkdirAll(l.cfg.FS, l.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the folder for evidence: %w", err)
	}
	names, err := List(l.cfg.FS, l.cfg.Dir)
	if err != nil {
		return err
	}
	o := Opened{Format: Format, Device: l.cfg.Device, Product: l.cfg.Product, Agent: l.cfg.Agent, Attempt: l.attempt, Version: l.version, Part: 1}
	for i, name := range names {
		if attemptOf(name) != attemptName(l.attempt) {
			continue
		}
		data, err := ReadFile(l.cfg.FS, l.cfg.Dir, name)
		if err != nil {
			return err
		}
		s := scan(data)
		newest := i == len(names)-1
		if newest && s.damage == "" && !s.closed() && len(s.lines) > 0 {
			return l.resume(name, &s)
		}
		if newest && s.damage == "" && len(s.lines) == 0 { // its first line did not get onto the medium
			return l.create(name, o, names[:i])
		}
		var was Opened
		if len(s.lines) > 0 && s.lines[0].Decode(&was) == nil {
			o.Part = was.Part
		}
		o.Part++
		switch {
		case s.damage != "":
			o.Damaged = name + ": " + s.damage
		case !newest && !s.closed():
			o.Damaged = name + ": it has no end, and others follow"
		case s.last() != nil && s.last().Kind == KindEnd:
			o.Damaged = name + ": it had ended"
		}
	}
	last := ""
	if len(names) > 0 {
		last = names[len(names)-1]
	}
	l.retain(names)
	return l.create(fileName(l.cfg.Now(), l.version, l.attempt, last), o, names)
}

// create makes a file, or writes the first line of one that a power cut left empty.
func (l *Log) create(name string, o Opened, before []string) error {
	if len(before) > 0 {
		o.Previous = before[len(before)-1]
		data, err := ReadFile(l.cfg.FS, l.cfg.Dir, o.Previous)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s := scan(data)
		o.PreviousHead = headOf(data, &s)
	}
	f, err := l.cfg.FS.OpenFile(filepath.Join(l.cfg.Dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make evidence: %w", err)
	}
	l.out = &out{f: f, name: name, head: zeroHash, broken: true}
	if err = l.append(KindOpened, o); err == nil {
		err = l.cfg.FS.SyncDir(l.cfg.Dir)
	}
	if err != nil {
		_ = l.out.f.Close()
		l.out = nil
		return fmt.Errorf("make evidence: %w", err)
	}
	return nil
}

// resume goes on with a file of which s is known, and cuts off a torn line.
func (l *Log) resume(name string, s *scanned) error {
	// The name may not be durable yet, if the process before was killed.
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return fmt.Errorf("go on with evidence %s: %w", name, err)
	}
	l.out = &out{name: name, seq: len(s.lines), head: s.head(), size: s.good, broken: true}
	l.last = Head{File: name, Hash: l.out.head, Lines: l.out.seq}
	if s.rest == 0 {
		return nil
	}
	if err := l.append(KindRecovered, Recovered{Cut: s.rest}); err != nil {
		l.close()
		return err
	}
	return nil
}

// headOf is the hash of the last whole line, also of a file that is damaged.
func headOf(data []byte, s *scanned) string {
	if s.damage == "" {
		return s.head()
	}
	pieces := split(data)
	for i := len(pieces) - 1; i >= 0; i-- {
		if l, err := parse(pieces[i]); err == nil {
			return l.Hash()
		}
	}
	return ""
}

// retain deletes the oldest files, so that there is room for one more. The newest
// stays: the next one names it and its head.
func (l *Log) retain(names []string) {
	var sizes []int64
	total := l.cfg.MaxFile // of the one that is about to be made
	for _, name := range names {
		size := int64(0)
		if info, err := l.cfg.FS.Stat(filepath.Join(l.cfg.Dir, name)); err == nil {
			size = info.Size()
		}
		sizes = append(sizes, size)
		total += size
	}
	count := len(names) + 1
	for i, name := range names[:max(len(names)-1, 0)] {
		if count <= l.cfg.Keep && total <= l.cfg.KeepSize {
			return
		}
		if err := l.cfg.FS.Remove(filepath.Join(l.cfg.Dir, name)); err != nil {
			l.cfg.Log.Warn("delete old evidence", "file", name, "error", err)
			return // a younger one before it would leave a hole
		}
		count, total = count-1, total-sizes[i]
	}
}
