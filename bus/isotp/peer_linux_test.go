package isotp

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/otatest"
)

// pty returns the device end of a pseudo terminal in raw mode, and the path of the other.
func pty(t *testing.T) (*os.File, string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fd), "pty")
	t.Cleanup(func() { device.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	other, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0) // until the program opens it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(other) })
	tio, err := unix.IoctlGetTermios(other, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	tio.Iflag, tio.Oflag, tio.Lflag = 0, 0, 0
	tio.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(other, unix.TCSETS, tio); err != nil {
		t.Fatal(err)
	}
	return device, path
}

// TestScapy: PDUs go to scapy's ISO-TP and back, over SLCAN on a pseudo terminal.
func TestScapy(t *testing.T) {
	otatest.Tool(t, "scapy") // of python3-scapy, which python3-can does not need
	otatest.Tool(t, "can_logger")
	for _, c := range []struct {
		block, stmin int
		lengths      []int
	}{
		{0, 0, []int{1, 7, 8, 62, 4095, 5000}},
		{5, 1, []int{62, 300}},
	} {
		device, path := pty(t)
		adapter := can.NewAdapter(device, can.AdapterConfig{})
		// Python is slow, and the machine may be.
		conn := channel(t, adapter, Normal(0x7E0, 0x7E8), Config{
			MaxPDU: 5000, BlockSize: c.block, STmin: time.Duration(c.stmin) * time.Millisecond, NBs: time.Minute, NCr: time.Minute})
		args := []string{filepath.Join("testdata", "scapy_isotp.py"), path, strconv.Itoa(c.block), strconv.Itoa(c.stmin)}
		for _, n := range c.lengths {
			args = append(args, strconv.Itoa(n))
		}
		cmd := exec.Command("/usr/bin/python3", args...) // of Debian: the one in PATH may have no scapy
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It gives up by itself, and then nobody here must wait for it.
		ctx, cancel := context.WithCancel(t.Context())
		said := make(chan []string, 1)
		go func() {
			var lines []string
			for scanner := bufio.NewScanner(out); scanner.Scan(); {
				lines = append(lines, scanner.Text())
			}
			cancel()
			said <- lines
		}()
		knock(ctx, conn)
		var want []string
		for i, n := range c.lengths {
			there := pdu(n, i)
			if err := conn.Send(ctx, there); err != nil {
				t.Errorf("%v\n%s", err, &complaints)
				break
			}
			back := slices.Clone(there)
			slices.Reverse(back)
			got, err := conn.Receive(ctx)
			for err == nil && string(got) == "!" { // it was asked more than once
				got, err = conn.Receive(ctx)
			}
			if err != nil || !bytes.Equal(got, back) {
				t.Errorf("%d bytes came back as %d, %v\n%s", n, len(got), err, &complaints)
				break
			}
			want = append(want, strconv.Itoa(n))
		}
		in.Close()
		if got := <-said; !slices.Equal(got, want) {
			t.Errorf("scapy said %q, want %q", got, want)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("scapy: %v\n%s", err, &complaints)
		}
	}
}

// knock asks until somebody answers: what is sent while scapy starts is lost.
func knock(ctx context.Context, conn Conn) {
	for ctx.Err() == nil {
		if conn.Send(ctx, []byte("?")) != nil {
			return
		}
		soon, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		_, err := conn.Receive(soon)
		cancel()
		if err == nil {
			return
		}
	}
}
