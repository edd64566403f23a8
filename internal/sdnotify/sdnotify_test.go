package sdnotify_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/sdnotify"
)

// listen returns a socket as systemd has one.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// waiting returns the messages that have arrived.
func waiting(t *testing.T, c *net.UnixConn) (out []string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err := recv(fd, b)
			if err != nil {
				return true // nothing more
			}
			out = append(out, string(b[:n]))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNotify(t *testing.T) {
	for name, socket := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": "@interlock-sdnotify-test-" + strconv.Itoa(os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			c := listen(t, socket)
			n := sdnotify.Notifier{Socket: socket}
			if err := n.Notify(sdnotify.Ready, sdnotify.Status("checking\nREADY=1")); err != nil {
				t.Fatal(err)
			}
			if got, want := receive(t, c), "READY=1\nSTATUS=checking READY=1"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if err := n.Notify(sdnotify.Stopping); err != nil {
				t.Fatal(err)
			}
			if got, want := receive(t, c), "STOPPING=1"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	if err := (sdnotify.Notifier{}).Notify(sdnotify.Ready); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	for _, socket := range []string{filepath.Join(t.TempDir(), "nobody"), "relative", "vsock:2:1"} {
		if err := (sdnotify.Notifier{Socket: socket}).Notify(sdnotify.Ready); err == nil {
			t.Errorf("%s: got no error", socket)
		}
	}
}

func TestFromEnv(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		socket, usec, pid string
		want              sdnotify.Notifier
	}{
		{"", "", "", sdnotify.Notifier{}},
		{"/run/s", "", "", sdnotify.Notifier{Socket: "/run/s"}},
		{"@s", "30000000", own, sdnotify.Notifier{Socket: "@s", Watchdog: 30 * time.Second}},
		{"@s", "30000000", "", sdnotify.Notifier{Socket: "@s", Watchdog: 30 * time.Second}},
		{"@s", "30000000", "1", sdnotify.Notifier{Socket: "@s"}},
		{"@s", "0", own, sdnotify.Notifier{Socket: "@s"}},
		{"@s", "-5", own, sdnotify.Notifier{Socket: "@s"}},
		{"@s", "soon", own, sdnotify.Notifier{Socket: "@s"}},
		{"@s", "9223372036854775807", own, sdnotify.Notifier{Socket: "@s"}},
	} {
		env := map[string]string{"NOTIFY_SOCKET": tt.socket, "WATCHDOG_USEC": tt.usec, "WATCHDOG_PID": tt.pid}
		if got := sdnotify.FromEnv(func(k string) string { return env[k] }); got != tt.want {
			t.Errorf("%v: got %+v, want %+v", env, got, tt.want)
		}
	}
}

// TestFeeder: a main loop that hangs is not fed for, and is again when it goes on.
func TestFeeder(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	c := listen(t, socket)
	synctest.Test(t, func(t *testing.T) {
		f := sdnotify.NewFeeder(sdnotify.Notifier{Socket: socket, Watchdog: 30 * time.Second}, 60*time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Run(ctx, func(err error) { t.Error(err) })
		}()
		count := func(d time.Duration) int {
			time.Sleep(d)
			synctest.Wait()
			got := waiting(t, c)
			for _, s := range got {
				if s != "WATCHDOG=1" {
					t.Errorf("got %q", s)
				}
			}
			return len(got)
		}
		if got := count(60 * time.Second); got != 7 { // at 0, 10, ... 60 s: the start counts
			t.Errorf("first minute: got %d messages, want 7", got)
		}
		if got := count(10 * time.Minute); got != 0 || !f.Hungry() {
			t.Errorf("main loop hangs: got %d messages, want none", got)
		}
		f.Alive()
		if got := count(60 * time.Second); got != 6 {
			t.Errorf("it went on: got %d messages, want 6", got)
		}
		cancel()
		<-ended
	})
}

func TestFeederWithoutWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			sdnotify.NewFeeder(sdnotify.Notifier{}, 0).Run(ctx, nil)
		}()
		time.Sleep(time.Hour)
		cancel()
		<-ended
	})
}

func TestFeederErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var got []error
		f := sdnotify.NewFeeder(sdnotify.Notifier{Socket: filepath.Join(t.TempDir(), "nobody"), Watchdog: 3 * time.Second}, 0)
		go f.Run(ctx, func(err error) { got = append(got, err) })
		time.Sleep(2500 * time.Millisecond)
		cancel()
		synctest.Wait()
		if len(got) != 3 || !errors.Is(got[0], os.ErrNotExist) {
			t.Errorf("got %v, want three that the socket is missing", got)
		}
	})
}

func ExampleFromEnv() {
	n := sdnotify.FromEnv(os.Getenv)
	n.Socket = "" // as without systemd
	fmt.Println(n.Notify(sdnotify.Ready, sdnotify.Status("waiting for the battery")))
	// Output: <nil>
}
