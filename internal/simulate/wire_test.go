package simulate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/simulate"
	"github.com/interlock-energy/ota/otatest"
)

// python is Debian's, which has the modules of its packages; another one in PATH has not.
const python = "/usr/bin/python3"

// pythonWith skips the test, or fails it where all tools should be, without a module.
func pythonWith(t *testing.T, module string) {
	t.Helper()
	if err := exec.Command(python, "-c", "import "+module).Run(); err == nil {
		return
	}
	if os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatalf("%s cannot import %s: add its package to the Makefile", python, module)
	}
	t.Skipf("NOT TESTED: %s cannot import %s; make test installs it", python, module)
}

func onLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("pseudo terminals are made on Linux only")
	}
}

// start serves a battery of 57.5 % at -2.5 A.
func start(t *testing.T, cfg simulate.Config) *simulate.System {
	t.Helper()
	cfg.Battery.Start = simulate.Warmth(28.7)
	cfg.Battery.Start.SoC, cfg.Battery.Start.Current = new(57.5), new(-2.5)
	cfg.Log = func(err error) { t.Errorf("the server ended: %v", err) }
	s, err := simulate.Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// read reads the battery as a device would.
func read(t *testing.T, client *modbus.Client) (sunspec.Battery, error) {
	t.Helper()
	unit := client.Unit(1)
	d, err := sunspec.Discover(t.Context(), unit, sunspec.Search{})
	if err != nil {
		return sunspec.Battery{}, err
	}
	return sunspec.ReadBattery(t.Context(), unit, d)
}

func dial(t *testing.T, s *simulate.System, timeout time.Duration) *modbus.Client {
	t.Helper()
	client, err := modbus.Dial(t.Context(), s.Where("sunspec"), modbus.Config{Timeout: timeout, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func TestModbusTCP(t *testing.T) {
	s := start(t, simulate.Config{SunSpec: "127.0.0.1:0"})
	client := dial(t, s, 20*time.Second)
	b, err := read(t, client)
	if err != nil {
		t.Fatal(err)
	}
	if b.SoC.Value != 57.5 || b.A.Value != -2.5 || b.State.Name != "CONNECTED" {
		t.Errorf("got %+v", b)
	}
	if err := s.Set(battery.Settings{SoC: new(22.0)}); err != nil {
		t.Fatal(err)
	}
	if b, err := read(t, client); err != nil || b.SoC.Value != 22 {
		t.Errorf("got %v %%, %v; want 22", b.SoC.Value, err)
	}
	if _, err := client.Unit(2).ReadHolding(t.Context(), 40000, 2); !errors.Is(err, modbus.GatewayTarget) {
		t.Errorf("another unit: got %v", err)
	}

	// Silent: the connection is accepted, and nothing comes.
	if err := s.Fault("silent", true); err != nil {
		t.Fatal(err)
	}
	quiet := dial(t, s, 200*time.Millisecond)
	if _, err := read(t, quiet); !errors.Is(err, modbus.ErrNoAnswer) {
		t.Errorf("silent: got %v, want no answer", err)
	}
	s.Clear()
	if b, err := read(t, dial(t, s, 20*time.Second)); err != nil || b.SoC.Value != 22 {
		t.Errorf("cleared: got %v %%, %v", b.SoC.Value, err)
	}
}

func TestModbusRTU(t *testing.T) {
	onLinux(t)
	link := filepath.Join(t.TempDir(), "rtu")
	s := start(t, simulate.Config{RTU: simulate.Line{Path: "pty", Link: link}})
	if s.Where("sunspec-rtu") != link {
		t.Fatalf("got %v", s.Endpoints())
	}
	for range 2 { // a second client finds it as the first one did
		port, err := serial.Open(serial.Config{Path: link, Baud: 115200})
		if err != nil {
			t.Fatal(err)
		}
		client := modbus.NewRTU(port, modbus.Config{Timeout: 20 * time.Second})
		b, err := read(t, client)
		if err != nil || b.SoC.Value != 57.5 || b.CellMax.Value != 3.342 {
			t.Errorf("got %+v, %v", b, err)
		}
		client.Close()
	}
	s.Close()
	if _, err := os.Lstat(link); err == nil {
		t.Error("the link is still there")
	}
}

// hear waits until a listener has heard a whole battery.
func hear(t *testing.T, bus can.Bus) broadcast.State {
	t.Helper()
	d, err := broadcast.New("pylon-lv", broadcast.Options{RatedCurrent: 150})
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, err := bus.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Add(f, time.Now()); err != nil {
			t.Fatal(err)
		}
		if st := d.State(); st.Complete() && st.AlarmsKnown && st.Maker != "" {
			return st
		}
	}
}

func heard(t *testing.T, st broadcast.State) {
	t.Helper()
	if soc, a := st.Of(broadcast.SoC).Value, st.Of(broadcast.Current).Value; math.Abs(soc-57.5) > 0.5 || math.Abs(a-2.5) > 0.21 {
		t.Errorf("got %v %%, %v A", soc, a)
	}
	if st.Maker != "INTRLOCK" || len(st.Alarms) != 0 || st.Charge != broadcast.On {
		t.Errorf("got %+v", st)
	}
}

func TestSLCAN(t *testing.T) {
	onLinux(t)
	s := start(t, simulate.Config{SLCAN: simulate.Line{Path: "pty"}})
	port, err := serial.Open(serial.Config{Path: s.Where("slcan"), Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	bus, err := can.OpenSLCAN(t.Context(), port, can.SLCANConfig{Bitrate: 500_000})
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	heard(t, hear(t, bus))
}

func TestCANTCP(t *testing.T) {
	s := start(t, simulate.Config{CANTCP: "127.0.0.1:0"})
	for range 2 { // two listeners at once
		bus := can.NewTCP13(s.Where("can-tcp"), can.TCP13Config{})
		defer bus.Close()
		heard(t, hear(t, bus))
	}

	// As it is on the wire, without a decoder of ours: frame 355 with SoC and SoH.
	conn, err := net.Dial("tcp", s.Where("can-tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 13)
	for {
		if _, err := io.ReadFull(conn, buf); err != nil {
			t.Fatal(err)
		}
		if string(buf[:5]) == "\x04\x00\x00\x03\x55" {
			break
		}
	}
	if got, want := fmt.Sprintf("% x", buf[5:]), "3a 00 63 00 00 00 00 00"; got != want { // 58 %, 99 %
		t.Errorf("frame 355: got %s, want %s", got, want)
	}
}

func TestHTTP(t *testing.T) {
	s := start(t, simulate.Config{HTTP: "127.0.0.1:0"})
	url := s.Where("http")
	ask := func() (status int, reading struct {
		SoC, Current *float64
		Valid        bool
		Time         time.Time
	}) {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == 200 {
			if err := json.NewDecoder(resp.Body).Decode(&reading); err != nil {
				t.Fatal(err)
			}
		}
		return resp.StatusCode, reading
	}
	put := func(body string) {
		t.Helper()
		req, err := http.NewRequest("PUT", url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode >= 300 {
			t.Fatalf("got %v, %v", resp, err)
		}
		resp.Body.Close()
	}
	on := func(name string, on bool) {
		t.Helper()
		if err := s.Fault(name, on); err != nil {
			t.Fatal(err)
		}
	}
	if status, r := ask(); status != 200 || math.Abs(*r.SoC-57.5) > 0.01 || *r.Current != -2.5 || !r.Valid {
		t.Errorf("got %d %+v", status, r)
	}
	put(`{"current": 11}`)
	on("sign-flip", true)
	if _, r := ask(); *r.Current != -11 {
		t.Errorf("sign-flip: got %v A", *r.Current)
	}
	on("sign-flip", false)
	on("soc-missing", true)
	if _, r := ask(); r.SoC != nil {
		t.Errorf("soc-missing: got %v", *r.SoC)
	}
	on("soc-missing", false)
	on("stale", true)
	put(`{"current": 90}`)
	_, first := ask()
	_, second := ask()
	if *second.Current != 11 || !second.Time.Equal(first.Time) {
		t.Errorf("stale: got %v A, then %v, of %v, then %v", *first.Current, *second.Current, first.Time, second.Time)
	}
	on("stale", false)
	put(`{"absent": true}`)
	if status, _ := ask(); status != 503 {
		t.Errorf("absent: got %d", status)
	}
	put(`{"absent": false}`)
	on("exception", true)
	if status, _ := ask(); status != 500 {
		t.Errorf("exception: got %d", status)
	}
}

func TestScript(t *testing.T) {
	script, err := simulate.ParseScript("0s soc=22; 1ms fault frozen")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, simulate.Config{SunSpec: "127.0.0.1:0", Script: script})
	client := dial(t, s, 20*time.Second)
	for len(s.Active()) == 0 {
		if _, err := read(t, client); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := read(t, client); err != nil || b.SoC.Value != 22 {
		t.Errorf("got %v %%, %v", b.SoC.Value, err)
	}
}

// TestStartFails: what was opened is closed again.
func TestStartFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := otatest.FreeAddr(t)
	for name, cfg := range map[string]simulate.Config{
		"taken":   {SunSpec: address, HTTP: l.Addr().String()},
		"no port": {SunSpec: address, RTU: simulate.Line{Path: filepath.Join(t.TempDir(), "none")}},
		"link":    {SunSpec: address, RTU: simulate.Line{Path: "/dev/null", Link: "x"}},
	} {
		if _, err := simulate.Start(t.Context(), cfg); err == nil {
			t.Errorf("%s: got no error", name)
		}
		again, err := net.Listen("tcp", address)
		if err != nil {
			t.Errorf("%s: the address is still taken: %v", name, err)
			continue
		}
		again.Close()
	}
}

// want are the values of package sunspec's test vectors, as far as they coincide.
const want = `802 SoC 57.5
802 A -2.5
802 CellVMax 3.342
802 CellVMin 3.318
802 State 3
802 AHRtg 312
803 ModTmpMax 28.7
803 ModTmpMin 24.1
803 StrSt 3
804 registers 256
804 modules 13
models 1 701 704 713 714 715 802 803 804
704 write ok -20000
001 write 2
`

func TestPymodbus(t *testing.T) {
	pythonWith(t, "pymodbus.client")
	s := start(t, simulate.Config{SunSpec: "127.0.0.1:0"})
	host, port, err := net.SplitHostPort(s.Where("sunspec"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, "testdata/sunspec.py", "tcp", host, port).CombinedOutput()
	if err != nil || string(out) != want {
		t.Errorf("got %s, %v; want %s", out, err, want)
	}
}

func TestPymodbusRTU(t *testing.T) {
	onLinux(t)
	pythonWith(t, "pymodbus.client")
	pythonWith(t, "serial")
	s := start(t, simulate.Config{RTU: simulate.Line{Path: "pty"}})
	out, err := exec.Command(python, "testdata/sunspec.py", "rtu", s.Where("sunspec-rtu")).CombinedOutput()
	if err != nil || string(out) != want {
		t.Errorf("got %s, %v; want %s", out, err, want)
	}
}

func TestMbpoll(t *testing.T) {
	mbpoll := otatest.Tool(t, "mbpoll")
	s := start(t, simulate.Config{SunSpec: "127.0.0.1:0"})
	_, port, err := net.SplitHostPort(s.Where("sunspec"))
	if err != nil {
		t.Fatal(err)
	}
	// -0: addresses as on the wire, and 802 SoC is where package sunspec finds it.
	d, err := sunspec.Discover(t.Context(), dial(t, s, 20*time.Second).Unit(1), sunspec.Search{})
	if err != nil {
		t.Fatal(err)
	}
	at := d.Find(802)[0].Address + 11
	out, err := exec.Command(mbpoll, "-m", "tcp", "-p", port, "-a", "1", "-0", "-r", fmt.Sprint(at), "-t", "4", "-1", "127.0.0.1").CombinedOutput()
	if err != nil || !regexp.MustCompile(fmt.Sprintf(`\[%d\]:\s+575\b`, at)).Match(out) {
		t.Errorf("got %s, %v; want 575 at %d", out, err, at)
	}
}

func TestPythonCAN(t *testing.T) {
	onLinux(t)
	pythonWith(t, "can")
	pythonWith(t, "serial")
	s := start(t, simulate.Config{SLCAN: simulate.Line{Path: "pty"}})
	cmd := exec.Command(python, "testdata/slcan.py", s.Where("slcan"))
	out, err := cmd.CombinedOutput()
	if err != nil || !regexp.MustCompile(`^soc 58\nvolts 53\.2[78]\namps 2\.[3-7]\ndegrees 26\.4\n$`).Match(out) {
		t.Errorf("got %s, %v", out, err)
	}
}

// TestConcurrent: readers, writers and people at once, and an end in the middle.
func TestConcurrent(t *testing.T) {
	s := start(t, simulate.Config{SunSpec: "127.0.0.1:0", CANTCP: "127.0.0.1:0", HTTP: "127.0.0.1:0"})
	client := dial(t, s, 20*time.Second)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 10 {
				if _, err := read(t, client); err != nil && !errors.Is(err, sunspec.ErrTorn) {
					t.Error(err)
				}
				if err := s.Set(battery.Settings{SoC: new(float64(20 + i))}); err != nil {
					t.Error(err)
				}
				if err := s.Fault([]string{"frozen", "sign-flip", "soc-stuck", "alarm"}[i], true); err != nil {
					t.Error(err)
				}
				s.Status()
				s.Clear()
			}
		})
	}
	wg.Wait()
	bus := can.NewTCP13(s.Where("can-tcp"), can.TCP13Config{})
	defer bus.Close()
	hear(t, bus)
	s.Close() // with everybody still connected
	s.Close()
	if _, err := net.DialTimeout("tcp", s.Where("sunspec"), time.Second); err == nil {
		t.Error("it still accepts connections")
	}
}
