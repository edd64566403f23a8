//go:build linux

package serial_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/bus/serial"
)

// terminal makes a pseudo terminal: the device at the other end of the wire, and the
// path of the port.
func terminal(t *testing.T) (device *os.File, path string) {
	t.Helper()
	device, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil && os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatalf("no pseudo terminals, and everything should be here: %v", err)
	}
	if err != nil {
		t.Skipf("NOT TESTED: no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { device.Close() })
	if err := unix.IoctlSetPointerInt(int(device.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(device.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return device, fmt.Sprintf("/dev/pts/%d", n)
}

func open(t *testing.T, c serial.Config) *serial.Port {
	t.Helper()
	port, err := serial.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	return port
}

// TestEveryByteGoesThrough: nothing is translated, echoed or taken for control.
func TestEveryByteGoesThrough(t *testing.T) {
	device, path := terminal(t)
	port := open(t, serial.Config{Path: path})
	want := make([]byte, 256)
	for i := range want {
		want[i] = byte(i)
	}
	random := make([]byte, 1000)
	rand.Read(random)
	want = append(want, random...)
	for _, way := range []struct {
		name string
		w    io.Writer
		r    io.Reader
	}{{"out", port, device}, {"in", device, port}} {
		if _, err := way.w.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(way.r, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, or the bytes differ", way.name, err)
		}
	}
}

func TestReadTimeout(t *testing.T) {
	device, path := terminal(t)
	port := open(t, serial.Config{Path: path})
	port.SetReadTimeout(20 * time.Millisecond)
	begin := time.Now()
	n, err := port.Read(make([]byte, 8))
	if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) < 20*time.Millisecond {
		t.Errorf("got %d, %v after %v, want %v after 20 ms", n, err, time.Since(begin), os.ErrDeadlineExceeded)
	}
	device.Write([]byte("ab"))
	port.SetReadTimeout(0)
	got := make([]byte, 2)
	if _, err := io.ReadFull(port, got); err != nil || string(got) != "ab" {
		t.Errorf("afterwards: got %q, %v", got, err)
	}
}

func TestDiscard(t *testing.T) {
	device, path := terminal(t)
	port := open(t, serial.Config{Path: path})
	device.Write([]byte("old"))
	if err := port.Discard(); err != nil {
		t.Fatal(err)
	}
	device.Write([]byte("new"))
	got := make([]byte, 3)
	if _, err := io.ReadFull(port, got); err != nil || string(got) != "new" {
		t.Errorf("got %q, %v, want new", got, err)
	}
}

// TestCloseEndsReadAndWrite: neither a line on which nothing comes nor one that takes
// nothing keeps a program.
func TestCloseEndsReadAndWrite(t *testing.T) {
	_, path := terminal(t)
	port, err := serial.Open(serial.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	writing := make(chan struct{})
	go func() {
		_, err := port.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		close(writing)
		_, err := port.Write(make([]byte, 1<<20))
		ended <- err
	}()
	<-writing
	if err := port.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("got nil from what was ended by Close")
		}
	}
	if _, err := port.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read afterwards: got %v, want %v", err, os.ErrClosed)
	}
	if _, err := port.Write(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write afterwards: got %v, want %v", err, os.ErrClosed)
	}
	if err := port.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestDeviceGoesAway(t *testing.T) {
	device, path := terminal(t)
	port := open(t, serial.Config{Path: path})
	device.Close()
	if _, err := port.Read(make([]byte, 1)); err == nil {
		t.Error("got nil, want an error")
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	_, path := terminal(t)
	first := open(t, serial.Config{Path: path})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		config serial.Config
		want   error
		text   string
	}{
		{"in use", serial.Config{Path: path}, serial.ErrBusy, path},
		{"not there", serial.Config{Path: "/dev/ttyNONE7"}, fs.ErrNotExist, "plugged in"},
		{"a file", serial.Config{Path: file}, serial.ErrNotPort, file},
		{"no path", serial.Config{}, nil, "no path"},
		{"parity", serial.Config{Path: path, Parity: "evne"}, nil, `"evne"`},
		{"stop bits", serial.Config{Path: path, StopBits: 3}, nil, "3, want 1 or 2"},
		{"data bits", serial.Config{Path: path, DataBits: 9}, nil, "9, want 5 to 8"},
		{"baud", serial.Config{Path: path, Baud: -1}, nil, "-1"},
	} {
		port, err := serial.Open(c.config)
		if err == nil {
			port.Close()
			t.Errorf("%s: got no error", c.name)
			continue
		}
		if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %v, with %q", c.name, err, c.want, c.text)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, serial.Config{Path: path})
}

func TestSettings(t *testing.T) {
	_, path := terminal(t)
	for _, c := range []struct {
		config serial.Config
		want   serial.Config
		char   time.Duration
	}{
		{serial.Config{}, serial.Config{Baud: 9600, DataBits: 8, Parity: serial.None, StopBits: 1}, 10 * time.Second / 9600},
		{serial.Config{Baud: 19200, Parity: serial.Even}, serial.Config{Baud: 19200, DataBits: 8, Parity: serial.Even, StopBits: 1}, 11 * time.Second / 19200},
		{serial.Config{Baud: 115200, DataBits: 7, Parity: serial.Odd, StopBits: 2}, serial.Config{Baud: 115200, DataBits: 7, Parity: serial.Odd, StopBits: 2}, 11 * time.Second / 115200},
	} {
		c.config.Path, c.want.Path = path, path
		port, err := serial.Open(c.config)
		if err != nil {
			t.Errorf("%+v: %v", c.config, err)
			continue
		}
		if got := port.Config(); got != c.want || port.CharTime() != c.char {
			t.Errorf("got %+v, %v, want %+v, %v", got, port.CharTime(), c.want, c.char)
		}
		wantSpeed(t, path, c.want.Baud)
		port.Close()
	}
}

// wantSpeed asks the system how fast a terminal is.
func wantSpeed(t *testing.T, path string, baud int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EBUSY) {
		return // without root, which is as it should be
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[int]uint32{9600: unix.B9600, 19200: unix.B19200, 115200: unix.B115200}[baud]; settings.Cflag&unix.CBAUD != want {
		t.Errorf("the speed is %#o, want %#o for %d baud", settings.Cflag&unix.CBAUD, want, baud)
	}
}
