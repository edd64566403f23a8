//go:build linux

package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWait reads a console that comes in pieces.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		m := &Machine{done: done, more: make(chan struct{})}
		say := func(s string) { fmt.Fprint(console{m}, s) }
		go func() {
			for _, s := range []string{"first\r\nsec", "ond line 2\n\r", "third\nno newline"} {
				time.Sleep(time.Minute)
				say(s)
			}
			time.Sleep(time.Minute)
			close(done)
		}()
		groups, err := m.Wait(t.Context(), `^second line (.)$`)
		if err != nil || groups[1] != "2" {
			t.Fatalf("got %q, %v, want the second line with 2", groups, err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Wait(short, "^third"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v before the line is there, want %v", err, context.DeadlineExceeded)
		}
		if _, err := m.Wait(t.Context(), "^third"); err != nil {
			t.Error(err)
		}
		_, err = m.Wait(t.Context(), "first") // has passed
		if !errors.Is(err, ErrOff) || !strings.Contains(err.Error(), "no newline") {
			t.Errorf("got %v, want %v with the last lines", err, ErrOff)
		}
		if got, want := m.Count("ir"), 2; got != want {
			t.Errorf("got %d lines with ir, want %d", got, want)
		}
	})
}

// TestStart ends a process and what it has started.
func TestStart(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo ready; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	done, err := start(cmd, func() {
		var word string
		fmt.Fscan(out, &word)
		close(said)
		fmt.Fscan(out, &word) // until nobody has the other end any more, the child included
	})
	if err != nil {
		t.Fatal(err)
	}
	<-said
	m := &Machine{cmd: cmd, done: done}
	m.Stop()
	if !isClosed(m.Off()) {
		t.Error("Stop came back before the process had ended")
	}
}
