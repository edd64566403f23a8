package modbus_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"net/netip"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/bustest"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// onSockets makes a device that is asked by other programs: over TCP on this machine, and
// over RTU on a pseudo terminal, whose path is returned.
func onSockets(t *testing.T, rel *otatest.SignedRelease) (r *rig, address, line string) {
	t.Helper()
	device, line := bustest.PTY(t)
	r = newRig(t, rel, func(c *modbus.Config) {
		c.Listen, c.NetListen = "127.0.0.1:0", nil
		c.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.Lines = []modbus.Line{{}}
		c.Lines[0].Path, c.Lines[0].Baud = "/dev/ttyRS485", 115200
		c.OpenLine = func(modbus.Line) (io.ReadWriteCloser, error) { return device, nil }
	})
	at, err := r.src.Addr(t.Context(), bus.TCP)
	if err != nil {
		t.Fatal(err)
	}
	return r, at.String(), line
}

// TestPymodbus: a master of other makers brings a bundle in, by each function that
// writes bytes, over TCP and RTU.
func TestPymodbus(t *testing.T) {
	const python = "/usr/bin/python3" // the system's, for which Debian's python3-pymodbus is
	if out, err := exec.Command(python, "-c", "import pymodbus.client, serial").CombinedOutput(); err != nil {
		if os.Getenv("INTERLOCK_TOOLS") == "1" {
			t.Fatalf("pymodbus is missing, and everything should be here: %v: %s", err, out)
		}
		t.Skip("NOT TESTED: pymodbus is missing; make test installs it")
	}
	rel := newRelease(t)
	file := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(file, rel.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []string{"tcp", "rtu"} {
		for _, way := range []string{"blocks", "exchange", "records"} {
			t.Run(transport+" "+way, func(t *testing.T) {
				r, address, line := onSockets(t, rel)
				where := address
				if transport == "rtu" {
					where = line
				}
				out, err := exec.Command(python, "testdata/master.py", transport, way, where, file).CombinedOutput()
				if err != nil || !strings.HasSuffix(string(out), "OK\n") {
					t.Fatalf("%v\n%s", err, out)
				}
				offered(t, r.src, rel.Signed)
			})
		}
	}
}

// TestMbpoll: what a technician reads with a program of every toolbox.
func TestMbpoll(t *testing.T) {
	mbpoll := otatest.Tool(t, "mbpoll")
	rel := newRelease(t)
	r, address, line := onSockets(t, rel)
	r.manager(func(h *api.CheckinRequest) {
		h.Status, h.Code = ota.StatusUpdateAvailable, ota.ErrBatteryLow
		h.Signals = []ota.Signal{{Name: "soc", Value: 22.5}}
	})
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	for transport, args := range map[string][]string{
		"tcp": {"-m", "tcp", "-p", port, host},
		"rtu": {"-m", "rtu", "-b", "115200", "-P", "none", line},
	} {
		out, err := exec.Command(mbpoll, append([]string{"-1", "-0", "-a", "1", "-o", "10", "-t", "4", "-r", "57344", "-c", "7"}, args...)...).CombinedOutput()
		if want := `\[57344\]:\s+16965\s+\[57345\]:\s+19782\s+\[57346\]:\s+256\s+\[57347\]:\s+\d+\s+\[57348\]:\s+224\s+\[57349\]:\s+32\s+\[57350\]:\s+60`; err != nil || !regexp.MustCompile(want).Match(out) {
			t.Errorf("%s: identity: %v\n%s\nwant %s", transport, err, out, want)
		}
		out, err = exec.Command(mbpoll, append([]string{"-1", "-0", "-a", "1", "-o", "10", "-t", "3:hex", "-r", "57584", "-c", "4"}, args...)...).CombinedOutput()
		if want := `\[57584\]:\s+0x0002\s+\[57585\]:\s+0xFFF7\s+\[57586\]:\s+0x00E1\s+\[57587\]:\s+0x8000`; err != nil || !regexp.MustCompile(want).Match(out) {
			t.Errorf("%s: display: %v\n%s\nwant %s", transport, err, out, want)
		}
		// Function 6 is no way to write here.
		out, err = exec.Command(mbpoll, append(append([]string{"-1", "-0", "-a", "1", "-o", "10", "-t", "4", "-r", "57376"}, args...), "1")...).CombinedOutput()
		if !strings.Contains(string(out), "Illegal data value") {
			t.Errorf("%s: function 6: %v\n%s\nwant illegal data value", transport, err, out)
		}
	}
}

// TestSerialLineOnly: on a line the device is its unit and nothing else, and writes can
// be forbidden there.
func TestSerialLineOnly(t *testing.T) {
	rel := newRelease(t)
	for name, c := range map[string]struct {
		forbid bool
		want   bus.Exception
	}{"as it is": {false, 0}, "only to read": {true, bus.IllegalFunction}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				device, end := bustest.Pair(bustest.WireConfig{Baud: 19200})
				newRig(t, rel, func(cfg *modbus.Config) {
					cfg.Listen, cfg.Unit, cfg.ForbidRTU = "", 5, c.forbid
					cfg.AllowPlain, cfg.Allow = false, nil
					cfg.Lines = []modbus.Line{{}}
					cfg.Lines[0].Path, cfg.Lines[0].Baud = "/dev/ttyRS485", 19200
					cfg.OpenLine = func(modbus.Line) (io.ReadWriteCloser, error) { return device, nil }
				})
				client := bus.NewRTU(end, bus.Config{Baud: 19200, Retries: -1})
				defer client.Close()
				m := &master{t: t, c: client, unit: 5, base: profile.Base}
				if e := m.command(offer(profile.Open, rel.Bundle)); e != c.want {
					t.Fatalf("OPEN: got %v, want %v", e, c.want)
				}
				if c.forbid {
					if s := m.status(); s.Result != profile.NotAllowed {
						t.Errorf("got %v, want %v", s.Result, profile.NotAllowed)
					}
					return
				}
				m.session = m.status().Session
				// A broadcast is not for us.
				abort := m.with(profile.Abort)
				abort.Seq = 900
				registers := make([]uint16, profile.CommandSize)
				abort.Encode(registers)
				if err := client.WriteRegisters(t.Context(), 0, m.base+profile.OffsetCommand, registers); err != nil {
					t.Fatal(err)
				}
				if s := m.status(); s.State != profile.Opening || s.Seq == 900 {
					t.Errorf("after a broadcast of ABORT: got %v, number %d, want OPENING", s.State, s.Seq)
				}
				m.send(rel.Bundle)
				m.do(m.with(profile.CloseAll))
				m.until(profile.Verified)
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := client.ReadHolding(ctx, 6, m.base, 1); err == nil {
					t.Error("another unit has answered")
				}
			})
		})
	}
}
