package can_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/bustest"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can"
)

// scapy's UDS client, over SLCAN on both sides, brings a bundle: the first one goes in
// the middle, the second goes on where that stopped.
func TestScapy(t *testing.T) {
	otatest.Tool(t, "scapy")      // of python3-scapy
	otatest.Tool(t, "can_logger") // of python3-can
	otatest.Tool(t, "openssl")
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 6000)
	dir := t.TempDir()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	file, key := filepath.Join(dir, "bundle"), filepath.Join(dir, "key.pem")
	for name, b := range map[string][]byte{file: release.Bundle, key: private} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	anna, err := can.ParseTester("anna", public)
	if err != nil {
		t.Fatal(err)
	}

	ours, theirs := wire(t)
	box, err := inbox.Open(inbox.Config{Dir: t.TempDir(), Verify: release.Verify})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	s, err := can.New(can.Config{
		Link: can.Link{SLCAN: ours}, ID: 0x7E0, MaxBlock: 1002, Testers: []can.Tester{anna}, StateDir: t.TempDir(), Inbox: box,
		State:    func() api.CheckinRequest { return api.CheckinRequest{Head: api.Head{Device: "bess-7"}} },
		Precheck: func(context.Context) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	from, again := regexp.MustCompile("^from [0-9]+"), false // ISO-TP gives up after a second of real time, sessions end after five
	run := func(begin string, args ...string) string {
		t.Helper()
		for try := 1; ; try++ {
			cmd := exec.CommandContext(ctx, "/usr/bin/python3", append([]string{"testdata/tester.py", theirs, file, key}, args...)...) // of Debian: the one in PATH may have no scapy
			var complaints bytes.Buffer
			cmd.Stderr = &complaints
			out, err := cmd.Output()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 && try < 8 {
				t.Logf("scapy got no answer, and begins again: %.200s", &complaints)
				again = true
				continue
			}
			if err != nil {
				t.Fatalf("scapy: %v\n%s%s", err, out, &complaints)
			}
			if again { // it may have begun anywhere
				return from.ReplaceAllString(string(out), "from "+begin)
			}
			return string(out)
		}
	}
	if got, want := run("0", "2000"), "from 0\n"; got != want {
		t.Errorf("the first tester: got %q, want %q", got, want)
	}
	if got := box.State().Received; got != 2000 {
		t.Errorf("%d bytes are there, want 2000", got)
	}
	want := "from 2000\n0202 00\nFF01 00\nF001 00\nstate 06\n"
	if got := run("2000"); got != want {
		t.Errorf("the second tester: got %q, want %q", got, want)
	}
	(&rig{t: t, Source: s}).offered(release)
}

// wire is a bus between two SLCAN adapters, of which it returns the ports: what one host sends
// comes out at the other.
func wire(t *testing.T) (ours, theirs string) {
	t.Helper()
	one, ours := bustest.PTY(t)
	two, theirs := bustest.PTY(t)
	a, b := bus.NewAdapter(one, bus.AdapterConfig{}), bus.NewAdapter(two, bus.AdapterConfig{})
	t.Cleanup(func() { a.Close(); b.Close() })
	pass := func(from, to *bus.Adapter) {
		for {
			f, err := from.Receive(context.Background())
			if err != nil {
				return
			}
			_ = to.Send(context.Background(), f) // nobody listens there: as on a bus
		}
	}
	go pass(a, b)
	go pass(b, a)
	return ours, theirs
}
