package crash_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
)

// do panics on purpose, if value says so, and returns what Catch made of it.
func do(l *crash.Log, value any) (err error) {
	defer l.Catch("do it", func(e error) { err = e })
	if value != nil {
		panic(value)
	}
	return nil
}

// hides is a value of a panic that panics when it is printed.
type hides struct{}

func (hides) Error() string { panic("again") }

func TestCatch(t *testing.T) {
	var told []crash.Crash
	l := &crash.Log{Logger: slog.New(slog.DiscardHandler), Told: func(c crash.Crash) { told = append(told, c) }}
	if err := do(l, nil); err != nil {
		t.Errorf("without a panic: got %v", err)
	}
	for i, value := range []any{"a text", errors.New("an error"), strings.Repeat("x", 5000), hides{}} {
		err := do(l, value)
		if !errors.Is(err, crash.Err) || !strings.HasPrefix(err.Error(), "do it: ") {
			t.Errorf("panic(%T): got %v, want one that wraps Err", value, err)
		}
		c, all := l.Last()
		if all != i+1 || c.Times != i+1 || len(c.Text) > 1100 || !strings.Contains(string(c.Stack), "crash_test.do") {
			t.Errorf("panic(%T): got %d in all, %d times, %d bytes of text, stack %.300s", value, all, c.Times, len(c.Text), c.Stack)
		}
		if !strings.Contains(c.Where, "crash_test.do") || !strings.Contains(c.Where, "crash_test.go:") {
			t.Errorf("panic(%T): got place %q", value, c.Where)
		}
	}
	if len(told) != 4 {
		t.Errorf("told %d times, want 4", len(told))
	}
	var none []int
	func() {
		defer l.Catch("index", nil)
		_ = none[len(told)]
	}()
	if c, _ := l.Last(); !strings.Contains(c.Where, "TestCatch.func") || c.Times != 1 {
		t.Errorf("a panic of the runtime: got place %q, %d times", c.Where, c.Times)
	}
}

// TestLogged counts lines: a master that repeats what makes the program panic does not fill the log.
func TestLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		l := &crash.Log{Logger: slog.New(slog.NewTextHandler(&text, nil)), Told: func(crash.Crash) {}}
		for range 1000 {
			_ = do(l, "one")
		}
		if got := strings.Count(text.String(), "\n"); got != 1 || !strings.Contains(text.String(), "stack=") {
			t.Fatalf("after 1000 at once: got %d lines, want 1 with the stack:\n%s", got, text.String())
		}
		time.Sleep(time.Minute)
		_ = do(l, "one")
		if got := text.String(); strings.Count(got, "\n") != 2 || strings.Count(got, "stack=") != 1 || !strings.Contains(got, "times=1001") {
			t.Fatalf("a minute later: got\n%s\nwant a second line, without the stack, that says how often", got)
		}
	})
}

// TestStrict runs in a process of its own, which has to end by the panic.
func TestStrict(t *testing.T) {
	if os.Getenv("CRASH_STRICT") != "" {
		crash.Strict()
		told := 0
		_ = do(&crash.Log{Logger: slog.New(slog.DiscardHandler), Told: func(crash.Crash) { told++ }}, "expected")
		fmt.Println("told", told)
		_ = do(&crash.Log{}, "found")
		fmt.Println("caught")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestStrict$")
	cmd.Env = append(os.Environ(), "CRASH_STRICT=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "told 1") || !strings.Contains(string(out), "panic: found") || strings.Contains(string(out), "caught") {
		t.Errorf("got %v and\n%s\nwant it to end by the second panic", err, out)
	}
}
