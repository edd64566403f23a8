//go:build vmguest && linux

package canguest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/otatest"
	source "github.com/interlock-energy/ota/source/can"
)

// TestISOTPPush brings a release into a device over a real CAN interface: with the kernel's
// ISO-TP on the tester's side, on the device's, and on both.
func TestISOTPPush(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 30_000)
	name := filepath.Join(t.TempDir(), "update.bundle")
	if err := os.WriteFile(name, release.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := push.Open(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	tester, err := source.ParseTester("anna", public)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name           string
		device, laptop bool // by the kernel
	}{
		{"the tester by the kernel", false, true},
		{"the device by the kernel", true, false},
		{"both by the kernel", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bus := vcan(t)
			own := func(context.Context) (can.Bus, error) { return can.DialSocketCAN(bus, nil) }
			link := source.Link{Interface: bus}
			if !tt.device {
				link = source.Link{Open: own}
			}
			box := startDevice(t, release, link, tester)
			line := overcan.Line{To: bus}
			config := overcan.Config{Line: line, Key: key}
			if !tt.laptop {
				config.Dial = func(ctx context.Context) (uds.Conn, error) {
					b, err := own(ctx)
					if err != nil {
						return nil, err
					}
					return line.Over(b)
				}
			}
			pushInto(t, file, config)
			got := make([]byte, file.Size)
			if st := box.State(); st.Phase != inbox.Verified {
				t.Fatalf("the inbox is %s, want %s", st.Phase, inbox.Verified)
			}
			if _, err := box.ReadAt(got, 0); err != nil || string(got) != string(release.Bundle) {
				t.Errorf("got other bytes than were sent: %v", err)
			}
		})
	}
}

// startDevice is a device on the bus until the test ends.
func startDevice(t *testing.T, release *otatest.SignedRelease, link source.Link, tester source.Tester) *inbox.Inbox {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	box, err := inbox.Open(inbox.Config{Dir: t.TempDir(), Verify: release.Verify, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	head := api.CheckinRequest{Head: api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0"}}
	src, err := source.New(source.Config{Link: link, Inbox: box, Testers: []source.Tester{tester}, StateDir: t.TempDir(), Log: quiet,
		State: func() api.CheckinRequest { return head }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the device: %v", err)
		}
		box.Close()
	})
	return box
}

// pushInto pushes until the device has verified the release.
func pushInto(t *testing.T, file *push.File, config overcan.Config) {
	t.Helper()
	d, err := overcan.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := push.Run(ctx, d, file, push.Options{StageOnly: true}); err != nil {
		t.Fatal(err)
	}
}
