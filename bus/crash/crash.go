// Package crash keeps a panic where it happens: in one request, one message, one transfer. It is
// for what serves strangers inside of a program that must not end because of one of them, as the
// servers on a field bus do: a master that repeats what made the program panic would
// keep it restarting for ever.
//
// Start with a [Log], or nil, and defer [Log.Catch] where a request begins:
//
//	func (s *Server) answer(request []byte) (answer []byte) {
//		defer s.Crashes.Catch("answer a request", func(error) { answer = refusal })
//
// What is promised: no panic is silent. Each place is logged with its stack, and again once a
// minute for as long as it happens there. What is not: what the runtime ends the process for (a map
// that two goroutines write, a stack that overflows, memory that is used up) is no panic.
//
// A panic is a mistake in the program, and tests and fuzzing are to find it: a test's TestMain
// calls [Strict], and then nothing is caught.
package crash

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Err is what errors wrap that stand for a panic.
var Err = errors.New("internal error, please report it with the log")

// A Crash is a panic that was caught.
type Crash struct {
	Doing string    // what was being done
	Text  string    // the value of the panic
	Where string    // function, file and line
	Stack []byte    // of the goroutine
	Times int       // at this place, this one included
	At    time.Time // when
}

// Log keeps account of panics. Its zero value and nil work: nil is one for the whole process. Its
// methods may be called from any goroutine.
type Log struct {
	Logger *slog.Logger // default: slog.Default()
	// Told, if set, is told of each crash, in the goroutine of the panic. It must return at
	// once. Who is told looks after it: [Strict] does not hold for such a Log.
	Told func(Crash)

	mu     sync.Mutex
	last   Crash
	all    int
	places map[string]*place
}

// place is where panics were.
type place struct {
	times  int
	logged time.Time
}

const (
	logEvery  = time.Minute
	maxPlaces = 64       // more are one
	maxText   = 1 << 10  // bytes of Crash.Text
	maxStack  = 16 << 10 // bytes of Crash.Stack
)

var (
	process Log
	strict  atomic.Bool
)

// Strict lets panics through from now on, in the whole process, as if nobody caught them. It is for
// tests and fuzzing. See [Log.Told].
func Strict() { strict.Store(true) }

// Catch is to be deferred. It ends a panic, keeps account of it, and calls then, unless that is nil, with an
// error that wraps [Err]. Without a panic it does nothing. Deferred after a lock was taken, it
// runs with the lock held.
func (l *Log) Catch(doing string, then func(error)) {
	if strict.Load() && (l == nil || l.Told == nil) {
		return // the panic goes on
	}
	value := recover()
	if value == nil {
		return
	}
	c := Crash{Doing: doing, Text: cut(fmt.Sprint(value), maxText), Where: where(), At: time.Now()}
	c.Stack = debug.Stack()
	c.Stack = c.Stack[:min(len(c.Stack), maxStack)]
	l.note(c)
	if then != nil {
		then(fmt.Errorf("%s: %w: panic: %s", doing, Err, c.Text))
	}
}

// Last returns the newest crash, and how many there were in all.
func (l *Log) Last() (Crash, int) {
	if l == nil {
		l = &process
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.all
}

func (l *Log) note(c Crash) {
	if l == nil {
		l = &process
	}
	c, due := l.count(c)
	if l.Told != nil {
		l.Told(c)
	}
	if !due {
		return
	}
	logger := l.Logger
	if logger == nil {
		logger = slog.Default()
	}
	args := []any{"doing", c.Doing, "panic", c.Text, "where", c.Where, "times", c.Times}
	if c.Times == 1 {
		args = append(args, "stack", string(c.Stack))
	}
	logger.Error("internal error, please report it", args...)
}

// count returns c with how often it was, and whether it is to be logged.
func (l *Log) count(c Crash) (Crash, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.places == nil {
		l.places = map[string]*place{}
	}
	at := c.Where
	if l.places[at] == nil && len(l.places) >= maxPlaces {
		at = ""
	}
	p := l.places[at]
	if p == nil {
		p = new(place)
		l.places[at] = p
	}
	p.times++
	c.Times = p.times
	l.last = c
	l.all++
	since := c.At.Sub(p.logged)
	due := p.times == 1 || since < 0 || since >= logEvery
	if due {
		p.logged = c.At
	}
	return c, due
}

// where finds what panicked: the first caller behind the runtime's own functions that is not of
// this package.
func where() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])]) // without Callers, where and Catch
	for {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s (%s:%d)", f.Function, f.File, f.Line)
		}
		if !more {
			return "unknown"
		}
	}
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
