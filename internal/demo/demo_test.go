package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// buffer is an output that others may look at meanwhile.
type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	wait map[string]chan struct{} // closed once the text was written
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Write(p)
	for text, c := range b.wait {
		if strings.Contains(b.b.String(), text) {
			delete(b.wait, text)
			close(c)
		}
	}
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) has(text string) <-chan struct{} {
	c := make(chan struct{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wait = map[string]chan struct{}{text: c}
	return c
}

// processes lists the processes that have text in their command line.
func processes(t *testing.T, text string) (found []string) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(list) == 0 {
		t.Fatalf("list processes: %d, %v", len(list), err)
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		if err == nil && strings.Contains(string(b), text) { // else it is gone meanwhile
			found = append(found, string(b))
		}
	}
	return found
}

// An interrupt in the middle of a download leaves neither processes nor files.
func TestInterrupt(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &buffer{}
	downloading := out.has("DOWNLOADING")
	ended := make(chan error, 1)
	go func() {
		_, err := Run(ctx, Config{Out: out})
		ended <- err
	}()
	select {
	case <-downloading:
	case err := <-ended:
		t.Fatalf("ended before a download: %v\n%s", err, out)
	}
	tmp := os.Getenv("TMPDIR")
	if len(processes(t, tmp)) != len(Plan()) {
		t.Errorf("firmware that runs: got %q, want %d processes", processes(t, tmp), len(Plan()))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
	if got := processes(t, tmp); len(got) != 0 {
		t.Errorf("processes left over: %q", got)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 0 {
		t.Errorf("left over in %s: %v, %v", tmp, left, err)
	}
}

// A demo that does not get where it should says so, device by device.
func TestTimeout(t *testing.T) {
	var (
		s   Summary
		err error
		dir string
		out *buffer
	)
	// What is too short for the rollout may on a busy machine be too short for its beginning.
	for timeout := 3 * time.Second; timeout < time.Minute && !errors.Is(err, ErrUnexpected); timeout *= 2 {
		dir, out = t.TempDir(), &buffer{}
		s, err = Run(t.Context(), Config{Out: out, Dir: dir, Timeout: timeout})
	}
	if !errors.Is(err, ErrUnexpected) {
		t.Fatalf("got error %v, want %v\n%s", err, ErrUnexpected, out)
	}
	if s.OK || len(s.Devices) != len(Plan()) || s.Devices[0].OK {
		t.Errorf("got summary %+v, want that of a failure", s)
	}
	if !strings.Contains(out.String(), "NOT AS PLANNED") {
		t.Errorf("the output does not say so:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "demo.log")); err != nil {
		t.Errorf("a given directory stays: %v", err)
	}
	if got := processes(t, dir); len(got) != 0 {
		t.Errorf("processes left over: %q", got)
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("got %v, want a refusal", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("got %v, %v, want only the file that was there", list, err)
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Run(t.Context(), Config{Listen: l.Addr().String()}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v, want that the address is in use", err)
	}
}

func TestJudge(t *testing.T) {
	report := func(id string, version string, r ota.Result) ota.Report {
		return ota.Report{ID: id, Version: version, Result: r, Evidence: "5d41"}
	}
	silent := report("1", goodVersion, ota.Succeeded)
	silent.Evidence = ""
	skipped := []ota.Skipped{{Version: brokenOne}}
	good, hot, canaryOne := Plan()[0], Plan()[3], Plan()[4]
	detail := func(p Planned, version string, reports ...ota.Report) api.DeviceDetail {
		return api.DeviceDetail{Device: api.Device{Head: api.Head{Device: p.Device, Version: version}, Group: p.Group}, Reports: reports}
	}
	waiting := detail(hot, oldVersion)
	waiting.Code = ota.ErrBMSUnsafe
	low := detail(hot, oldVersion)
	low.Code = ota.ErrBatteryLow
	back := detail(canaryOne, oldVersion, report("1", brokenOne, ota.Failed))
	back.Skipped = skipped
	moved := back
	moved.Group = "default"
	for _, tt := range []struct {
		name   string
		plan   Planned
		detail api.DeviceDetail
		want   bool
	}{
		{"updated", good, detail(good, goodVersion, report("1", goodVersion, ota.Succeeded)), true},
		{"updated, without evidence", good, detail(good, goodVersion, silent), false},
		{"updated, report lost", good, detail(good, goodVersion), false},
		{"updated, reported twice", good, detail(good, goodVersion, report("1", goodVersion, ota.Succeeded), report("2", goodVersion, ota.Succeeded)), false},
		{"says so, but runs the old one", good, detail(good, oldVersion, report("1", goodVersion, ota.Succeeded)), false},
		{"waits", hot, waiting, true},
		{"waits for something else", hot, low, false},
		{"does not wait", hot, detail(hot, oldVersion), false},
		{"updated although hot", hot, detail(hot, goodVersion, report("1", goodVersion, ota.Succeeded)), false},
		{"came back", canaryOne, back, true},
		{"came back, in the wrong group", canaryOne, moved, false},
		{"came back, and would try again", canaryOne, detail(canaryOne, oldVersion, report("1", brokenOne, ota.Failed)), false},
		{"runs what does not start", canaryOne, detail(canaryOne, brokenOne, report("1", brokenOne, ota.Succeeded)), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.plan.judge(&tt.detail); got.OK != tt.want {
				t.Errorf("got %v, want %v: %+v", got.OK, tt.want, got)
			}
		})
	}
}

// The names in the summary are for scripts.
func TestSummaryJSON(t *testing.T) {
	hot := Plan()[3]
	s := Summary{OK: true, Seconds: 1.5, Devices: []Outcome{{Planned: hot, Got: hot.Want, Status: "UPDATE_AVAILABLE", Reason: "hot", OK: true}}}
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"ok":true,"seconds":1.5,"devices":[{"device":"bess-04","group":"default","story":"is at 47 °C and must not update",` +
		`"expected":{"version":"1.0.0","waits":-10},"actual":{"version":"1.0.0","waits":-10},"status":"UPDATE_AVAILABLE","reason":"hot","ok":true}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestLinkIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := &slowConn{Conn: near, closed: make(chan struct{}), credit: linkBurst, at: time.Now()}
		received := make(chan int)
		go func() {
			n, b := 0, make([]byte, 64<<10)
			for {
				m, err := far.Read(b)
				if n += m; err != nil {
					received <- n
					return
				}
			}
		}()
		begun := time.Now()
		const total = linkBurst + 2*linkRate
		for sent := 0; sent < total; sent += 16 << 10 {
			if _, err := c.Write(make([]byte, 16<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if got := time.Since(begun).Round(50 * time.Millisecond); got != 2*time.Second {
			t.Errorf("%d bytes took %v, want 2 s", total, got)
		}
		stuck := make(chan error)
		go func() {
			_, err := c.Write(make([]byte, 10*linkRate))
			stuck <- err
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-stuck; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write that waits while the connection is closed: got %v, want %v", err, net.ErrClosed)
		}
		if got := <-received; got < total {
			t.Errorf("received %d bytes, want %d", got, total)
		}
	})
}

// The table never wraps, and is redrawn in place. A reason takes the place of the
// battery, or a line of its own, before it is cut.
func TestTable(t *testing.T) {
	d := api.Device{Head: api.Head{Device: "bess-01", Version: "1.0.0", Status: ota.StatusDownloading, Done: 1 << 20, Total: 2 << 20,
		Signals: []ota.Signal{{Name: "soc", Value: 64, Unit: "%"}, {Name: "temperature_max", Value: 24, Unit: "°C"}}},
		Group: "default", Wanted: "1.0.1", Why: "downloading 50 %"}
	low := d
	low.Status, low.Code, low.Why = ota.StatusUpdateAvailable, ota.ErrBatteryLow, "waits: not now: state of charge 22.0 %, want at least 30 %"
	long := low
	long.Why = strings.Repeat("very ", 50) + "low"
	const (
		clear = "\x1b[K\n"
		bar   = "██████████░░░░░░░░░░  50 %"
	)
	for _, tt := range []struct {
		width int
		want  string
	}{
		{130, "DEVICE   GROUP    RUNS   SHOULD RUN  STATUS       BATTERY            1.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       DOWNLOADING  64.0 %  24.0 °C  " + bar + clear + "\x1b[J\x1b[2A" +
			"DEVICE   GROUP    RUNS   SHOULD RUN  STATUS            BATTERY            2.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       UPDATE_AVAILABLE  64.0 %  24.0 °C  waits: state of charge 22.0 %, want at least 30 %" + clear + "\x1b[J\x1b[2A" +
			"DEVICE   GROUP    RUNS   SHOULD RUN  STATUS            BATTERY            3.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       UPDATE_AVAILABLE  very very very very very very very very very very very very very very ver…" + clear + "\x1b[J"},
		{110, "DEVICE   GROUP    RUNS   SHOULD RUN  STATUS       BATTERY            1.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       DOWNLOADING  64.0 %  24.0 °C  " + bar + clear + "\x1b[J\x1b[2A" +
			"DEVICE   GROUP    RUNS   SHOULD RUN  STATUS            BATTERY            2.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       UPDATE_AVAILABLE  waits: state of charge 22.0 %, want at least 30 %" + clear + "\x1b[J\x1b[2A" +
			"DEVICE   GROUP    RUNS   SHOULD RUN  STATUS            BATTERY            3.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       UPDATE_AVAILABLE  very very very very very very very very very very ver…" + clear + "\x1b[J"},
		{80, "DEVICE   GROUP    RUNS   SHOULD RUN  STATUS       BATTERY                 1.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       DOWNLOADING  64.0 %  24.0 °C  " + clear + "         " + bar + clear + "\x1b[J\x1b[3A" +
			"DEVICE   GROUP    RUNS   SHOULD RUN  STATUS            BATTERY            2.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       UPDATE_AVAILABLE  64.0 %  24.0 °C  " + clear +
			"         waits: state of charge 22.0 %, want at least 30 %" + clear + "\x1b[J\x1b[3A" +
			"DEVICE   GROUP    RUNS   SHOULD RUN  STATUS            BATTERY            3.0 s" + clear +
			"bess-01  default  1.0.0  1.0.1       UPDATE_AVAILABLE  64.0 %  24.0 °C  " + clear +
			"         very very very very very very very very very very very very very very…" + clear + "\x1b[J"},
	} {
		t.Run(fmt.Sprint(tt.width), func(t *testing.T) {
			var out bytes.Buffer
			s := newScreen(Config{Out: &out, Terminal: true})
			s.width = func() int { return tt.width }
			for i, d := range []api.Device{d, low, long} {
				s.show(time.Duration(i+1)*time.Second, []api.Device{d})
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWrap(t *testing.T) {
	got := wrap("is at 47 °C and must not update: highest-temperature", 12)
	if diff := cmp.Diff([]string{"is at 47 °C", "and must not", "update:", "highest-temperature"}, got); diff != "" {
		t.Error(diff)
	}
}
