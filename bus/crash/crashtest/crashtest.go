// Package crashtest is for the tests of what catches panics: they are let through, but for
// those that a test makes on purpose.
//
//	func TestMain(m *testing.M) { crashtest.Main(m) }
package crashtest

import (
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/interlock-energy/ota/bus/crash"
)

// Main runs the tests with [crash.Strict]: a mistake is to be found, not mended.
func Main(m *testing.M) {
	crash.Strict()
	os.Exit(m.Run())
}

// Expected is a log for a test that panics on purpose.
func Expected() *crash.Log {
	return &crash.Log{Logger: slog.New(slog.DiscardHandler), Told: func(crash.Crash) {}}
}

// Count is how many panics were caught.
func Count(l *crash.Log) int { _, n := l.Last(); return n }

// Fuse is for fakes: it panics at one of the calls of [Fuse.Burn]. Its zero value never does.
type Fuse struct {
	mu   sync.Mutex
	left int // calls until then; 0: never
}

// Burn panics if it is time.
func (f *Fuse) Burn() {
	f.mu.Lock()
	now := f.left == 1
	f.left = max(0, f.left-1)
	f.mu.Unlock()
	if now {
		panic("on purpose")
	}
}

// Arm has the n-th call from now panic, 0: none. It returns how many calls were left.
func (f *Fuse) Arm(n int) (was int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was, f.left = f.left, n
	return was
}
