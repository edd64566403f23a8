package can_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/otatest"
)

// open opens the end of a pseudo terminal that is not the device's, raw, as a program
// would a serial port.
func open(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	tio.Iflag, tio.Oflag, tio.Lflag = 0, 0, 0
	tio.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, tio); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

// TestPTY is host and adapter over a real terminal, and the end of it.
func TestPTY(t *testing.T) {
	device, path := bustest.PTY(t)
	adapter := can.NewAdapter(device, can.AdapterConfig{})
	host, err := can.OpenSLCAN(t.Context(), open(t, path), can.SLCANConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		for _, f := range samples {
			if err := host.Send(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			receive(t, adapter, f)
			if err := adapter.Send(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			receive(t, host, f)
		}
	}
	if err := adapter.Close(); err != nil { // unplugged
		t.Error(err)
	}
	if _, err := host.Receive(t.Context()); err == nil || !strings.Contains(err.Error(), "unplugged") {
		t.Errorf("Receive without an adapter: %v, want that it is unplugged", err)
	}
	host.Close()
}

// python runs a script of testdata with python-can, which says what it received.
func python(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	interpreter := "/usr/bin/python3" // of Debian: the one in PATH may have no python-can
	otatest.Tool(t, "can_logger")     // comes with python3-can
	cmd := exec.Command(interpreter, append([]string{filepath.Join("testdata", "slcan.py")}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// fromPython are what testdata/slcan.py sends, in this order.
var fromPython = []can.Frame{
	can.Standard(0x355, 0x58, 0x00, 0x5E, 0x00), can.Standard(0x7FF), can.Extended(0x12345678, 1, 2, 3, 4, 5, 6, 7, 8),
	can.Extended(0x355, 0xA5), {ID: 0x123, Remote: true, Len: 8}, {ID: 0x18DAF110, Extended: true, Remote: true, Len: 3},
}

// TestPythonHost: python-can opens our adapter as it would a real one.
func TestPythonHost(t *testing.T) {
	cmdline := python(t)
	device, path := bustest.PTY(t)
	adapter := can.NewAdapter(device, can.AdapterConfig{})
	defer adapter.Close()
	cmdline.Args = append(cmdline.Args, path)
	var out bytes.Buffer
	cmdline.Stdout = &out
	if err := cmdline.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range fromPython {
		receive(t, adapter, f)
	}
	if rate, open := adapter.Bitrate(); rate != 500_000 || !open {
		t.Errorf("python-can set %d bit/s, open %v", rate, open)
	}
	for _, f := range samples {
		if err := adapter.Send(t.Context(), f); err != nil {
			t.Error(err)
		}
	}
	if err := cmdline.Wait(); err != nil {
		t.Fatal(err)
	}
	heardAll(t, out.String())
}

// TestPythonAdapter: python-can's frames come to our host, and ours to it. It answers
// no commands, as some adapters do not.
func TestPythonAdapter(t *testing.T) {
	cmdline := python(t)
	device, path := bustest.PTY(t)
	cmdline.Args = append(cmdline.Args, path)
	var out bytes.Buffer
	cmdline.Stdout = &out
	if err := cmdline.Start(); err != nil {
		t.Fatal(err)
	}
	host, err := can.OpenSLCAN(t.Context(), device, can.SLCANConfig{Silent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, f := range fromPython {
		receive(t, host, f)
	}
	for _, f := range samples {
		if err := host.Send(t.Context(), f); err != nil {
			t.Error(err)
		}
	}
	if err := cmdline.Wait(); err != nil {
		t.Fatal(err)
	}
	heardAll(t, out.String())
}

// heardAll compares what python-can printed with what was sent to it.
func heardAll(t *testing.T, got string) {
	t.Helper()
	var want strings.Builder
	for _, f := range samples {
		fmt.Fprintln(&want, f)
	}
	if got != want.String() {
		t.Errorf("python-can heard\n%swant\n%s", got, &want)
	}
}
