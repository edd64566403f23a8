package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/bustest"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can"
)

// pushedCAN is a device at an SLCAN adapter: the real source and inbox, and a stand-in for the
// manager, which refuses to install anything. Next to it is a controller of another
// maker, at 7E0, which is a fake.
type pushedCAN struct {
	line   string
	bundle string
	image  []byte // in it
	key    string // of the tester
	box    *inbox.Inbox
	ecu    fakeECU

	mu   sync.Mutex
	head api.CheckinRequest
}

func newPushedCAN(t *testing.T) *pushedCAN {
	t.Helper()
	device, path := bustest.PTY(t)
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20000)
	dir := t.TempDir()
	d := &pushedCAN{line: "slcan:" + path, bundle: filepath.Join(dir, "new.bundle"), image: r.Images["controller"], key: filepath.Join(dir, "tester", "private.pem")}
	if err := os.WriteFile(d.bundle, r.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := d.run("keygen", "--out", filepath.Dir(d.key)); code != exitOK {
		t.Fatal(stderr)
	}
	testers, err := can.LoadTesters(filepath.Join(dir, "tester", "public.pem"))
	if err != nil {
		t.Fatal(err)
	}
	refusal := &ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %", Causes: []ota.Cause{ota.CauseSoCLow}}
	d.head.Head = api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0", Status: ota.StatusIdle, Code: refusal.Code, Reason: refusal.Reason}
	quiet := slog.New(slog.DiscardHandler)
	if d.box, err = inbox.Open(inbox.Config{Dir: filepath.Join(dir, "inbox"), Verify: r.Verify, Log: quiet}); err != nil {
		t.Fatal(err)
	}
	adapter := bus.NewAdapter(device, bus.AdapterConfig{})
	ours, theirs := twoNodes(adapter)
	source, err := can.New(can.Config{Link: can.Link{Open: func(context.Context) (bus.Bus, error) { return ours, nil }},
		STmin: -1, Share: 100, BlockSize: 255, Testers: testers, StateDir: dir, Inbox: d.box, State: d.state,
		Precheck: func(context.Context) error { return refusal }, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	mux := isotp.NewMux(theirs)
	conn, err := mux.Open(isotp.Normal(0x7E8, 0x7E0), isotp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := &uds.Server{Handler: &d.ecu, Access: map[uds.Service]uds.Access{}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = source.Run(ctx) })
	running.Go(func() { _ = server.Serve(ctx, uds.Tester{Name: "tester", Conn: conn}) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		mux.Close()
		adapter.Close()
		d.box.Close()
	})
	return d
}

func (d *pushedCAN) state() api.CheckinRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	if st := d.box.State(); st.Phase == inbox.Requested {
		d.head.Status, d.head.UpdateVersion, d.head.UpdateDigest = ota.StatusReadyToApply, st.Version, st.Digest
	}
	return d.head
}

// run runs a command.
func (d *pushedCAN) run(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	e := &env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, now: time.Now}
	code = run(context.Background(), args, e)
	return code, out.String(), errs.String()
}

// node is one of two that share an adapter: both receive all frames.
type node struct {
	*bus.Adapter
	frames chan bus.Frame
}

func twoNodes(a *bus.Adapter) (one, two node) {
	one, two = node{a, make(chan bus.Frame, 4096)}, node{a, make(chan bus.Frame, 4096)}
	go func() {
		for {
			f, err := a.Receive(context.Background())
			if err != nil {
				return
			}
			one.frames <- f
			two.frames <- f
		}
	}()
	return one, two
}

func (n node) Receive(ctx context.Context) (bus.Frame, error) {
	select {
	case f := <-n.frames:
		return f, nil
	case <-ctx.Done():
		return bus.Frame{}, ctx.Err()
	}
}

func (n node) Close() error { return nil }

// fakeECU is a controller of another maker, as far as a download needs one.
type fakeECU struct {
	mu    sync.Mutex
	image bytes.Buffer
	at    uint64
}

func (f *fakeECU) EnterSession(context.Context, uds.Call, uds.Session) error { return nil }

func (f *fakeECU) Download(_ context.Context, _ uds.Call, r uds.DownloadRequest) (uds.Transfer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.image.Reset()
	f.at = r.Address
	return f, nil
}

func (f *fakeECU) Data(_ context.Context, _ uds.Call, block []byte) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.image.Write(block)
	return nil, nil
}

func (f *fakeECU) Exit(context.Context, uds.Call, []byte) ([]byte, error) { return nil, nil }
func (f *fakeECU) Close()                                                 {}

func TestPushCAN(t *testing.T) {
	d := newPushedCAN(t)
	raw := filepath.Join(t.TempDir(), "module.bin")
	image := bytes.Repeat([]byte("module "), 1500)
	if err := os.WriteFile(raw, image, 0o600); err != nil {
		t.Fatal(err)
	}
	fast := []string{"--share", "100"}
	ecu := append([]string{"--tx", "0x7E0", "--rx", "0x7E8"}, fast...)
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // patterns
	}{
		{"status", []string{"--status"}, exitOK, `(?m)^device +bess-7$(.|\n)*^speaks +UDS, profile 1.0(.|\n)*^state +idle$`, `^$`},
		{"the gate says no", []string{"--precheck"}, exitNotNow, `^$`, `not now: state of charge 22.0 %`},
		{"without a key", []string{d.bundle}, exitDenied, `^$`, `whose keys it knows; give the private key`},
		{"only into the device", append(fast, "--stage-only", "--key", d.key, d.bundle), exitOK, `^bess 1.1.0 is verified in bess-7\n$`, `CAN at 500 kbit/s, 100 % of it`},
		{"again", append(fast, "--stage-only", "--json", "--key", d.key, d.bundle), exitOK, `"event":"plan","plan":{"bytes":0`, `^$`},
		{"the gate does not allow it in time", append(fast, "--timeout", "3s", "--key", d.key, d.bundle), exitNotNow, `^$`, `waiting 1.1.0(.|\n)*in 3s: not now: state of charge 22.0 %`},
		{"status, while it waits", []string{"--status"}, exitOK, `(?m)^state +waiting$`, `^$`},
		{"another maker's controller", append(ecu, "--status"), exitFailed, `^$`, `7E0/7E8 speaks UDS, but is no device that takes bundles`},
		{"a bundle is not for it", append(ecu, d.bundle), exitFailed, `^$`, `is no device that takes bundles`},
		{"a file for it", append(ecu, "--plain", "--address", "0x8000", raw), exitOK, `^10.3 KiB written at 0x8000; the controller does not say whether it works\n$`, `about`},
		{"a file that must be signed", append(ecu, "--plain", "--trust", d.key, raw), exitUnverified, `^$`, `it is no bundle, so nobody has signed it`},
		{"a file that is no bundle", []string{raw}, exitUnverified, `^$`, `module.bin`},
		{"nobody there", append(ecu, "--tx", "0x123", "--rx", "0x124", "--status"), exitUnreachable, `^$`, `no answer`},
		{"no such port", []string{"--to", "slcan:/dev/not-there", "--status"}, exitUnreachable, `^$`, `/dev/not-there`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := d.run(append([]string{"push", "can", "--to", d.line}, tt.args...)...)
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
	d.ecu.mu.Lock()
	if got := d.ecu.image.Bytes(); !bytes.Equal(got, image) || d.ecu.at != 0x8000 {
		t.Errorf("the controller got %d bytes at %#x, want %d at 0x8000", len(got), d.ecu.at, len(image))
	}
	d.ecu.mu.Unlock()

	// Of a bundle it is an image that is written.
	code, _, stderr := d.run(append(append([]string{"push", "can", "--to", d.line}, ecu...), "--plain", d.bundle)...)
	if got := d.ecu.image.Bytes(); code != exitOK || !bytes.Equal(got, d.image) {
		t.Errorf("exit code %d, the controller got %d bytes, want the %d of the image: %s", code, len(got), len(d.image), stderr)
	}
}

// What is wrong in the command line is said before the bus is opened.
func TestPushCANUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--status --tx 0x7E0", "--tx and --rx go together"},
		{"--status --tx 0x7E0 --rx 0x7E0", "two that differ"},
		{"--status --tx 0x7E0 --rx 0x7E8 --target 0x10", "give one pair"},
		{"--status --share 0", "want more than 0"},
		{"--status --share 101", "want 1 to 100"},
		{"--status --bitrate 9600", "bitrate is 9600 bit/s"},
		{"--status --target 256", "target"},
		{"--address 4 x.bundle", "go with --plain"},
		{"--plain --status", "devices of ours"},
		{"--plain", "the file is missing"},
	} {
		var out, errs bytes.Buffer
		e := &env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, now: time.Now}
		code := run(context.Background(), append([]string{"push", "can", "--to", "can99"}, strings.Fields(tt.args)...), e)
		if code != exitUsage || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("%s: got exit code %d and %q, want 2 and %q", tt.args, code, errs.String(), tt.want)
		}
	}
}
