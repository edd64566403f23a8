package modbus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/otatest"
)

// python is the system's, for which Debian's python3-pymodbus is.
func python(t *testing.T) string {
	t.Helper()
	const path = "/usr/bin/python3"
	out, err := exec.Command(path, "-c", "import pymodbus.client, pymodbus.server, serial, serial_asyncio").CombinedOutput()
	if err == nil {
		return path
	}
	if os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatalf("pymodbus is missing, and everything should be here: %v: %s", err, out)
	}
	t.Skipf("NOT TESTED: pymodbus is missing; make test installs it")
	return ""
}

// wire joins two pseudo terminals, and returns what they are called.
func wire(t *testing.T) (one, two string) {
	t.Helper()
	socat := otatest.Tool(t, "socat")
	dir := t.TempDir()
	one, two = filepath.Join(dir, "one"), filepath.Join(dir, "two")
	cmd := exec.Command(socat, "pty,raw,echo=0,link="+one, "pty,raw,echo=0,link="+two)
	start(t, cmd)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 4000 {
		_, err1 := os.Stat(one)
		_, err2 := os.Stat(two)
		if err1 == nil && err2 == nil {
			return one, two
		}
		<-tick.C
	}
	t.Fatal("socat made no terminals")
	return
}

// start starts a program that runs until the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// device is what the peers ask: unit 7 with some of everything.
func device() *modbus.Memory {
	m := new(modbus.Memory)
	pattern, ramp := make([]bool, 2000), make([]uint16, 125)
	for i := range pattern {
		pattern[i] = i%3 == 0
	}
	for i := range ramp {
		ramp[i] = uint16(i)
	}
	m.SetCoils(7, 0, pattern...)
	m.SetDiscreteInputs(7, 0, pattern...)
	m.SetHolding(7, 0, ramp...)
	m.SetInput(7, 10, 0xBEEF, 0xCAFE)
	m.SetFIFO(7, 0x4DE, 0x1B8, 0x1284, 3, 4, 5, 6)
	m.SetFile(7, 4, 1, 0x0DFE, 0x20)
	m.SetFile(7, 3, 9, 0x33CD, 0x40)
	return m
}

// serveTCP serves until the test ends, and returns host and port.
func serveTCP(t *testing.T, m *modbus.Memory) (host, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	untilEnd(t, func(ctx context.Context) error { return (&modbus.Server{Handler: m}).Serve(ctx, l) })
	host, port, _ = net.SplitHostPort(l.Addr().String())
	return host, port
}

// serveRTU serves on a port until the test ends.
func serveRTU(t *testing.T, path string, m *modbus.Memory) {
	t.Helper()
	port := open(t, path)
	untilEnd(t, func(ctx context.Context) error {
		return (&modbus.Server{Handler: m, Baud: 115200}).ServeRTU(ctx, port, 7)
	})
}

func open(t *testing.T, path string) *serial.Port {
	t.Helper()
	port, err := serial.Open(serial.Config{Path: path, Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func untilEnd(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestPymodbusClient: an independent client gets from our server what it asks, FC 1 to 6,
// 15, 16 and 20 to 24.
func TestPymodbusClient(t *testing.T) {
	for _, transport := range []string{"tcp", "rtu"} {
		t.Run(transport, func(t *testing.T) {
			python := python(t)
			m := device()
			args := []string{"testdata/client.py", transport}
			if transport == "tcp" {
				host, port := serveTCP(t, m)
				args = append(args, host, port)
			} else {
				one, two := wire(t)
				serveRTU(t, one, m)
				args = append(args, two)
			}
			out, err := exec.Command(python, args...).CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "OK\n") {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%d checks hold", strings.Count(string(out), "ok "))
			if got := m.File(7, 9, 9121, 1)[0]; got != 121 {
				t.Errorf("the last register of the longest record: got %d, want 121", got)
			}
			if got, want := m.File(7, 4, 7, 3), []uint16{0x06AF, 0x04BE, 0x100D}; !slices.Equal(got, want) {
				t.Errorf("file 4: got %x, want %x", got, want)
			}
		})
	}
}

// TestPymodbusServer: our client gets from an independent server what it asks. Of FC 20
// and 24 that server has only the shell, which answers nothing to whatever was asked.
func TestPymodbusServer(t *testing.T) {
	for _, transport := range []string{"tcp", "rtu"} {
		t.Run(transport, func(t *testing.T) {
			python := python(t)
			var one, two string
			args := []string{"testdata/server.py", transport}
			if transport == "rtu" {
				one, two = wire(t)
				args = append(args, two)
			}
			cmd := exec.Command(python, args...)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			start(t, cmd)
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "ready") {
				t.Fatalf("got %q, %v, want ready", line, err)
			}
			go io.Copy(io.Discard, out)
			var c *modbus.Client
			config := modbus.Config{Timeout: 20 * time.Second, Baud: 115200}
			if transport == "tcp" {
				port := strings.TrimSpace(strings.TrimPrefix(line, "ready"))
				if c, err = modbus.Dial(t.Context(), "127.0.0.1:"+port, config); err != nil {
					t.Fatal(err)
				}
			} else {
				c = modbus.NewRTU(open(t, one), config)
			}
			defer c.Close()
			askPymodbus(t, c)
			if transport == "rtu" {
				return // where an answer that does not fit may be a late one, and is waited out
			}
			if got, err := c.ReadFile(t.Context(), 7, 4, 7, 3); !errors.Is(err, modbus.ErrAnswer) {
				t.Errorf("FC20, answered with nothing: got %v, %v, want %v", got, err, modbus.ErrAnswer)
			}
		})
	}
}

func askPymodbus(t *testing.T, c *modbus.Client) {
	ctx := t.Context()
	check := func(what string, got any, err error, want any) {
		t.Helper()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, %v, want %v", what, got, err, want)
		}
	}
	bits, err := c.ReadCoils(ctx, 7, 1, 2)
	check("FC1", bits, err, []bool{false, false})
	bits, err = c.ReadDiscreteInputs(ctx, 7, 3, 9)
	check("FC2", bits, err, []bool{true, false, false, true, false, false, true, false, false})
	all, err := c.ReadCoils(ctx, 7, 0, 1999)
	check("FC1, long", len(all), err, 1999)
	registers, err := c.ReadHolding(ctx, 7, 500, 125)
	check("FC3", registers[0]+registers[124], err, 500+624)
	registers, err = c.ReadInput(ctx, 7, 10, 2)
	check("FC4", registers, err, []uint16{990, 989})
	check("FC5", nil, c.WriteCoil(ctx, 7, 1, true), nil)
	check("FC15", nil, c.WriteCoils(ctx, 7, 2, []bool{true, false, true}), nil)
	bits, err = c.ReadCoils(ctx, 7, 0, 6)
	check("FC5 and 15", bits, err, []bool{true, true, true, false, true, false})
	check("FC6", nil, c.WriteRegister(ctx, 7, 0, 0xABCD), nil)
	check("FC16", nil, c.WriteRegisters(ctx, 7, 1, slices.Repeat([]uint16{7}, 123)), nil)
	registers, err = c.ReadHolding(ctx, 7, 0, 125)
	check("FC6 and 16", registers, err, slices.Concat([]uint16{0xABCD}, slices.Repeat([]uint16{7}, 123), []uint16{124}))
	check("FC22", nil, c.MaskWrite(ctx, 7, 0, 0x00FF, 0x1200), nil)
	registers, err = c.ReadWrite(ctx, 7, 0, 3, 1, []uint16{8, 9})
	check("FC23", registers, err, []uint16{0x12CD, 8, 9})
	check("FC21", nil, c.WriteFile(ctx, 7, 4, 7, []uint16{0x06AF, 0x04BE, 0x100D}), nil)
	if _, err := c.ReadHolding(ctx, 7, 5000, 1); !errors.Is(err, modbus.IllegalAddress) {
		t.Errorf("no such register: got %v, want %v", err, modbus.IllegalAddress)
	}
}

// TestMbpoll: libmodbus reads and writes our server.
func TestMbpoll(t *testing.T) {
	mbpoll := otatest.Tool(t, "mbpoll")
	for _, transport := range []string{"tcp", "rtu"} {
		t.Run(transport, func(t *testing.T) {
			m := device()
			var args []string
			if transport == "tcp" {
				host, port := serveTCP(t, m)
				args = []string{"-m", "tcp", "-p", port, host}
			} else {
				one, two := wire(t)
				serveRTU(t, one, m)
				args = []string{"-m", "rtu", "-b", "115200", "-P", "none", two}
			}
			poll := func(more ...string) string {
				t.Helper()
				out, err := exec.Command(mbpoll, slices.Concat([]string{"-1", "-0", "-a", "7", "-o", "10"}, more[:6], args, more[6:])...).CombinedOutput()
				if err != nil {
					t.Errorf("mbpoll %v: %v\n%s", more, err, out)
				}
				return string(out)
			}
			for _, c := range []struct {
				kind, first, count, want string
			}{
				{"4", "100", "3", `\[100\]:\s+100\s+\[101\]:\s+101\s+\[102\]:\s+102`},
				{"3:hex", "10", "2", `\[10\]:\s+0xBEEF\s+\[11\]:\s+0xCAFE`},
				{"0", "0", "4", `\[0\]:\s+1\s+\[1\]:\s+0\s+\[2\]:\s+0\s+\[3\]:\s+1`},
				{"1", "3", "2", `\[3\]:\s+1\s+\[4\]:\s+0`},
			} {
				if out := poll("-t", c.kind, "-r", c.first, "-c", c.count); !regexp.MustCompile(c.want).MatchString(out) {
					t.Errorf("read type %s: got\n%s\nwant %s", c.kind, out, c.want)
				}
			}
			poll("-t", "4", "-r", "5", "-l", "100", "4711")        // FC 6
			poll("-t", "4", "-r", "6", "-l", "100", "1", "2", "3") // FC 16
			poll("-t", "0", "-r", "1", "-l", "100", "1")           // FC 5
			poll("-t", "0", "-r", "2", "-l", "100", "1", "0", "1") // FC 15
			if got, want := m.Holding(7, 5, 4), []uint16{4711, 1, 2, 3}; !slices.Equal(got, want) {
				t.Errorf("written: got %v, want %v", got, want)
			}
			if got, want := m.Coils(7, 0, 5), []bool{true, true, true, false, true}; !slices.Equal(got, want) {
				t.Errorf("coils written: got %v, want %v", got, want)
			}
		})
	}
}
