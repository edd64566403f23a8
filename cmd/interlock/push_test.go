package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
)

// pushed is a device on Modbus TCP: the real source and inbox, and a stand-in for the
// manager, which refuses to install anything.
type pushed struct {
	address string
	bundle  string
	box     *inbox.Inbox

	mu        sync.Mutex
	head      api.CheckinRequest
	withdrawn error // what the manager says to who takes something back; nil: it gives it up
}

// withdraw is the stand-in's part of taking something back.
func (d *pushed) withdraw(ctx context.Context, digest string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.withdrawn != nil {
		return d.withdrawn
	}
	d.head.Status, d.head.UpdateVersion, d.head.UpdateDigest = ota.StatusAborted, "", ""
	return d.box.Report(ctx, ota.Report{ID: rand.Text(), Digest: digest, Version: "1.1.0", Result: ota.Aborted, Reason: "aborted by a person"})
}

func newPushed(t *testing.T, change ...func(*inbox.Config)) *pushed {
	t.Helper()
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20000)
	d := &pushed{bundle: filepath.Join(t.TempDir(), "new.bundle")}
	if err := os.WriteFile(d.bundle, r.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	refusal := &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %"}
	d.head.Head = api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0"}
	d.head.Status, d.head.Code, d.head.Reason = ota.StatusIdle, refusal.Code, refusal.Reason
	quiet := slog.New(slog.DiscardHandler)
	var err error
	c := inbox.Config{Dir: t.TempDir(), Verify: r.Verify, Log: quiet}
	for _, f := range change {
		f(&c)
	}
	if d.box, err = inbox.Open(c); err != nil {
		t.Fatal(err)
	}
	source, err := modbus.New(modbus.Config{Listen: "127.0.0.1:0", AllowPlain: true, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Inbox: d.box, State: d.state, Precheck: func(context.Context) error { return refusal }, Withdraw: d.withdraw, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		d.box.Close()
	})
	a, err := source.Addr(ctx, bus.TCP)
	if err != nil {
		t.Fatal(err)
	}
	d.address = "tcp://" + a.String()
	return d
}

func (d *pushed) state() api.CheckinRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	if st := d.box.State(); st.Phase == inbox.Requested {
		d.head.Status, d.head.UpdateVersion, d.head.UpdateDigest = ota.StatusReadyToApply, st.Version, st.Digest
	}
	return d.head
}

// push runs the command.
func (d *pushed) push(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	e := &env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, now: time.Now}
	code = run(context.Background(), append([]string{"push", "modbus", "--to", d.address}, args...), e)
	return code, out.String(), errs.String()
}

func TestPushModbus(t *testing.T) {
	d := newPushed(t)
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // patterns
	}{
		{"status", []string{"--status"}, exitOK, `(?m)^device +bess-7$(.|\n)*^state +idle$`, `^$`},
		{"the gate says no", []string{"--precheck"}, exitNotNow, `^$`, `not now: state of charge 22.0 %`},
		{"the gate says no, as JSON", []string{"--precheck", "--json"}, exitNotNow, `^{"allowed":false,"reason":"state of charge 22`, `not now`},
		{"only into the device", []string{"--stage-only", d.bundle}, exitOK, `^bess 1.1.0 is verified in bess-7\n$`, `its signatures are for the device to check`},
		{"again", []string{"--stage-only", "--json", d.bundle}, exitOK, `"event":"plan","plan":{"bytes":0`, `^$`},
		{"the gate does not allow it in time", []string{"--timeout", "3s", d.bundle}, exitNotNow, `^$`, `waiting 1.1.0(.|\n)*in 3s: not now: state of charge 22.0 %(.|\n)*hint: what the device has stays there`},
		{"status, while it waits", []string{"--status"}, exitOK, `(?m)^state +waiting$`, `^$`},
		{"another base", []string{"--status", "--base", "40000"}, exitFailed, `^$`, `base address`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := d.push(tt.args...)
			if code != tt.code {
				t.Errorf("got exit code %d, want %d", code, tt.code)
			}
			if !regexp.MustCompile(tt.stdout).MatchString(stdout) {
				t.Errorf("got on standard output %q, want %q", stdout, tt.stdout)
			}
			if !regexp.MustCompile(tt.stderr).MatchString(stderr) {
				t.Errorf("got on standard error %q, want %q", stderr, tt.stderr)
			}
		})
	}
}

// What was pushed is taken back without the file, until it is too late, and can be pushed again.
func TestPushAbort(t *testing.T) {
	d := newPushed(t)
	late := fmt.Errorf("withdraw release 1.1.0: %w: the restart into it is under way or done", ota.ErrBusy)
	for i, tt := range []struct {
		args           []string
		withdrawn      error
		code           int
		stdout, stderr string // patterns
	}{
		{[]string{"--abort"}, nil, exitNothing, `^$`, `there is nothing to take back: the device says: idle`},
		{[]string{"--stage-only", d.bundle}, nil, exitOK, `verified`, ``},
		{[]string{"--abort"}, nil, exitOK, `^1.1.0 was taken back: bess-7 does not install it\n$`, `verified 1.1.0`},
		{[]string{"--abort"}, nil, exitNothing, `^$`, `nothing to take back`},
		{[]string{"--stage-only", d.bundle}, nil, exitOK, `verified`, ``},
		{[]string{"--abort"}, late, exitFailed, `^$`, `too late to take it back(.|\n)*hint: --status shows how it ends`},
		{[]string{"--status"}, nil, exitOK, `(?m)^state +waiting$`, `^$`},
		{[]string{"--abort", "--json"}, nil, exitOK, `"event":"withdrawn","status":{"state":"waiting"(.|\n)*"version":"1.1.0"`, `^$`},
		{[]string{"--status"}, nil, exitOK, `(?m)^state +aborted$`, `^$`},
		{[]string{"--stage-only", d.bundle}, nil, exitOK, `verified`, ``},
		{[]string{"--abort"}, nil, exitOK, `^1.1.0 was taken back`, `waiting 1.1.0`},
	} {
		d.mu.Lock()
		d.withdrawn = tt.withdrawn
		d.mu.Unlock()
		if i == 5 || i == 10 { // somebody has asked for the installation
			if err := d.box.Request(); err != nil {
				t.Fatal(err)
			}
		}
		code, stdout, stderr := d.push(tt.args...)
		if code != tt.code || !regexp.MustCompile(tt.stdout).MatchString(stdout) || !regexp.MustCompile(tt.stderr).MatchString(stderr) {
			t.Errorf("%v: got exit code %d, %q and %q, want %d, %q and %q", tt.args, code, stdout, stderr, tt.code, tt.stdout, tt.stderr)
		}
	}
}

// untilSaid is standard error that calls then when a text was written to it.
type untilSaid struct {
	bytes.Buffer
	text string
	then func()
}

func (u *untilSaid) Write(b []byte) (int, error) {
	defer func() {
		if strings.Contains(u.String(), u.text) {
			u.then()
		}
	}()
	return u.Buffer.Write(b)
}

// Who interrupts is told whether that ends anything: a device that was asked to install goes on.
func TestPushInterrupted(t *testing.T) {
	d := newPushed(t)
	for _, tt := range []struct{ at, want string }{
		{"over Modbus TCP", `what the device has stays there; the same command goes on`},
		{"waiting 1.1.0", `the device goes on by itself, and installs it as soon as it may; (.|\n)*--abort`},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		errs := &untilSaid{text: tt.at, then: cancel}
		e := &env{stdout: io.Discard, stderr: errs, getenv: func(string) string { return "" }, now: time.Now}
		code := run(ctx, []string{"push", "modbus", "--to", d.address, d.bundle}, e)
		cancel()
		if code != exitInterrupted || !regexp.MustCompile(tt.want).MatchString(errs.String()) {
			t.Errorf("at %q: got exit code %d and %q, want %d and %q", tt.at, code, errs, exitInterrupted, tt.want)
		}
	}
}

// A file that the device refuses has one exit code, whatever it does not like about it.
func TestPushRefusedByTheDevice(t *testing.T) {
	for _, why := range []ota.ErrorCode{ota.ErrIncompatible, ota.ErrNoUpdate, ota.ErrValidation} {
		d := newPushed(t, func(c *inbox.Config) {
			c.Verify = func([]byte) (*ota.Manifest, error) { return nil, fmt.Errorf("not this one: %w", why) }
		})
		if code, stdout, stderr := d.push(d.bundle); code != exitUnverified || stdout != "" || !strings.Contains(stderr, "not this one") {
			t.Errorf("%v: got exit code %d, %q and %q, want %d and the device's reason", why, code, stdout, stderr, exitUnverified)
		}
	}
}

// Every line of --json is JSON with a kind, and the device proves the firmware.
func TestPushJSON(t *testing.T) {
	d := newPushed(t)
	go func() { // the manager
		for d.box.State().Phase != inbox.Requested {
			<-d.box.Changed()
		}
		st := d.box.State()
		d.box.Report(context.Background(), ota.Report{ID: "1", Version: st.Version, Digest: st.Digest, Result: ota.Succeeded, Time: time.Now()})
	}()
	code, stdout, stderr := d.push("--json", d.bundle)
	if code != exitOK {
		t.Fatalf("got exit code %d, want 0: %s", code, stderr)
	}
	last := push.Event{}
	for line := range strings.Lines(stdout) {
		var event struct{ Event push.Kind }
		if err := json.Unmarshal([]byte(line), &event); err != nil || event.Event == "" {
			t.Errorf("got the line %q, want JSON with an event: %v", line, err)
		}
		last.Kind = event.Event
	}
	if last.Kind != push.KindState || !strings.Contains(stdout, `"state":"proven"`) {
		t.Errorf("got as the last event %q, want a state: proven\n%s", last.Kind, stdout)
	}
}

// What is wrong with a command line, or a file, is said before anything is done on a bus.
func TestPushRefuses(t *testing.T) {
	d := &pushed{address: "tcp://127.0.0.1:1"}
	file := newPushed(t).bundle
	damaged := filepath.Join(t.TempDir(), "bad.bundle")
	if err := os.WriteFile(damaged, []byte("this is no bundle at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		text string
	}{
		{"--status --precheck", exitUsage, "do not go together"},
		{"--status " + file, exitUsage, "take no file"},
		{"--abort " + file, exitUsage, "take no file"},
		{"--abort --precheck", exitUsage, "do not go together"},
		{"--abort --stage-only", exitUsage, "do not go together"},
		{"--abort", exitUnreachable, "connection refused"},
		{"", exitUsage, "no file is given"},
		{"--unit 0 --status", exitUsage, "1 to 247"},
		{"--base zero --status", exitUsage, "--base"},
		{"--base 0xFFF0 --status", exitUsage, "the highest base"},
		{"--window 0 --status", exitUsage, "--window"},
		{"--cert a.pem --status", exitUsage, "for tls://"},
		{"--echo --status", exitUsage, "serial ports"},
		{"--threshold 0 " + file, exitUsage, "--threshold"},
		{damaged, exitUnverified, "do not use this file"},
		{"gone.bundle", exitFailed, "no such file"},
		{file, exitUnreachable, "connection refused"},
	} {
		code, _, stderr := d.push(strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stderr, tt.text) {
			t.Errorf("%s: got exit code %d and %q, want %d and %q", tt.args, code, stderr, tt.code, tt.text)
		}
	}
	for to, text := range map[string]string{"ftp://x": "want tcp://HOST", "tls://x": "needs --cert", "/dev/gone": "adapter plugged in", "tcp://": "want a host"} {
		if _, _, stderr := (&pushed{address: to}).push("--status"); !strings.Contains(stderr, text) {
			t.Errorf("%s: got %q, want %q", to, stderr, text)
		}
	}
}

// More than four hours on a bus only if a person says so.
func TestPushTakesTooLong(t *testing.T) {
	var out bytes.Buffer
	e := &env{stderr: &out}
	for _, tt := range []struct {
		bytes int64
		yes   bool
		ok    bool
		note  bool
	}{{1 << 20, false, true, false}, {3 << 20, false, true, true}, {30 << 20, false, false, false}, {30 << 20, true, true, true}} {
		out.Reset()
		f := pushFlags{Yes: tt.yes}
		err := f.accept(e)(push.Plan{Bytes: tt.bytes, Line: "9600 baud", Rate: 740})
		if (err == nil) != tt.ok || (out.Len() > 0) != tt.note {
			t.Errorf("%d bytes, --yes %v: got %v and the note %q, want it accepted: %v, with a note: %v", tt.bytes, tt.yes, err, &out, tt.ok, tt.note)
		}
		if err != nil && (report(e, err) != exitUsage || !strings.Contains(out.String(), "--yes")) {
			t.Errorf("got %q, want a hint at --yes", &out)
		}
	}
}

// In a log, progress is a line every ten seconds, with a rate of what was sent now and not
// of what the device had before; on a terminal it is a bar.
func TestPushView(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	e := &env{stderr: &out, now: func() time.Time { return now }, getenv: func(string) string { return "" }}
	v := pushView{env: e, file: &push.File{Size: 100 << 10}}
	for done := int64(50 << 10); done <= 100<<10; done += 1 << 10 { // 50 of 100 KiB were there; 1 KiB/s
		v.event(push.Event{Kind: push.KindProgress, Done: done})
		now = now.Add(time.Second)
	}
	v.event(push.Event{Kind: push.KindTrouble, Error: "no answer\x1b[2J"})
	want := `send  60 %  60.0 KiB of 100.0 KiB  1.0 KiB/s  40 s left
send  70 %  70.0 KiB of 100.0 KiB  1.0 KiB/s  30 s left
send  80 %  80.0 KiB of 100.0 KiB  1.0 KiB/s  20 s left
send  90 %  90.0 KiB of 100.0 KiB  1.0 KiB/s  10 s left
send 100 %  100.0 KiB of 100.0 KiB  1.0 KiB/s  in 50 s
trouble, trying on: no answer` + "\ufffd[2J\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	if got, want := v.line(true), "send [============] 100 %  100.0 KiB of 100.0 KiB"; !strings.HasPrefix(got, want) {
		t.Errorf("got the bar %q, want %q and the rate", got, want)
	}
	long := pushView{env: e, file: &push.File{Size: 1023<<20 + 900<<10}, begun: now.Add(-5 * time.Hour), last: 1000<<20 + 900<<10, first: 23 << 20}
	if got := long.line(true); len(got) > 79 {
		t.Errorf("got a bar of %d columns, want at most 79: %q", len(got), got)
	} else {
		t.Log(got)
	}
}

// What a device counts is a line that is written over on a terminal, and never wraps; in a
// log it is a line every ten seconds.
func TestPushViewNumbers(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	e := &env{stderr: &out, now: func() time.Time { return now }, getenv: func(string) string { return "" }}
	v := pushView{env: e, file: &push.File{Size: 100 << 10}}
	trial := push.Status{State: push.Trial, Version: "1.1.0", Left: 30 * time.Second}
	v.event(push.Event{Kind: push.KindState, Status: &trial})
	for range 25 {
		now = now.Add(time.Second)
		s := trial
		s.Left = 30*time.Second - now.Sub(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
		v.event(push.Event{Kind: push.KindNumbers, Status: &s})
	}
	want := "on trial 1.1.0, proven in 30 s\non trial 1.1.0, proven in 20 s\non trial 1.1.0, proven in 10 s\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	wait := push.Status{State: push.WaitSafe, Version: "1.1.0", Reason: strings.Repeat("°", 200)}
	if got := v.count(&wait); len([]rune(got)) != 79 || !strings.HasSuffix(got, "°…") {
		t.Errorf("got %d columns: %q, want 79", len([]rune(got)), got)
	}
	write := push.Status{State: push.Installing, Version: "1.1.0", Done: 0.5, Left: 8 * time.Second}
	if got, want := v.count(&write), "[======      ] installing 1.1.0 50 %, 8 s left"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
