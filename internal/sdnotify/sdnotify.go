// Package sdnotify tells systemd how a service is: ready, stopping, alive. It is
// for the agent and the server.
//
// Start with FromEnv(os.Getenv). Without systemd nothing happens and nothing
// fails. The protocol is sd_notify(3) and sd_watchdog_enabled(3).
//
// What is promised: a [Feeder] keeps the watchdog quiet only while the program's
// main loop makes progress, so a program that hangs is restarted.
package sdnotify

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// States for [Notifier.Notify].
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Watchdog = "WATCHDOG=1"
)

// Status returns the state that shows text in systemctl status.
func Status(text string) string {
	return "STATUS=" + strings.Join(strings.Fields(text), " ") // a newline would begin another state
}

// Notifier sends states. The zero Notifier sends none.
type Notifier struct {
	Socket   string        // path, or @name for an abstract one; empty: none
	Watchdog time.Duration // systemd restarts the service after this long without Watchdog; 0: never
}

// FromEnv reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. A watchdog that
// is meant for another process, or whose time is not a number, is none.
func FromEnv(getenv func(string) string) Notifier {
	n := Notifier{Socket: getenv("NOTIFY_SOCKET")}
	if pid := getenv("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		if usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 && usec < 1<<50 {
			n.Watchdog = time.Duration(usec) * time.Microsecond
		}
	}
	return n
}

// Notify sends states in one message. It waits at most a second.
func (n Notifier) Notify(states ...string) error {
	if n.Socket == "" || len(states) == 0 {
		return nil
	}
	if n.Socket[0] != '/' && n.Socket[0] != '@' {
		return fmt.Errorf("notify systemd: socket %q is neither a path nor an abstract name", n.Socket)
	}
	// Package net takes the @ of an abstract name as systemd writes it.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.Socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	if _, err := c.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// Feeder feeds the watchdog as long as somebody calls Alive.
type Feeder struct {
	notifier Notifier
	limit    time.Duration
	begin    time.Time
	last     atomic.Int64 // of Alive, in nanoseconds since begin
}

// NewFeeder returns a feeder that stops feeding when Alive was not called for
// limit; 0 or less is the watchdog's own time. Until then the start counts as a
// call, so limit must be longer than the longest honest step of the main loop.
// A program that hangs is restarted after at most limit and the watchdog's time.
func NewFeeder(n Notifier, limit time.Duration) *Feeder {
	if limit <= 0 {
		limit = n.Watchdog
	}
	return &Feeder{notifier: n, limit: limit, begin: time.Now()}
}

// Alive says that the main loop has made progress. It is cheap and may be called
// from any goroutine, but only from where progress is made.
func (f *Feeder) Alive() { f.last.Store(int64(time.Since(f.begin))) }

// Hungry reports whether the watchdog is not fed, because Alive was last called
// too long ago.
func (f *Feeder) Hungry() bool {
	return time.Since(f.begin)-time.Duration(f.last.Load()) > f.limit
}

// Run feeds until ctx ends, three times in the watchdog's time, so that one
// message may get lost. Without a watchdog it only waits. A message that cannot
// be sent is given to failed, which may be nil, and the next is tried.
func (f *Feeder) Run(ctx context.Context, failed func(error)) {
	if f.notifier.Watchdog <= 0 || f.notifier.Socket == "" {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(max(f.notifier.Watchdog/3, time.Microsecond))
	defer tick.Stop()
	for {
		if !f.Hungry() {
			if err := f.notifier.Notify(Watchdog); err != nil && failed != nil {
				failed(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
