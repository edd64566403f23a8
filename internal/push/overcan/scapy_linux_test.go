package overcan_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/otatest"
)

// hub connects two adapters: a bus of two nodes, each at a pseudo terminal.
func hub(t *testing.T) (one, two string) {
	t.Helper()
	var ends [2]*can.Adapter
	var paths [2]string
	for i := range ends {
		device, path := bustest.PTY(t)
		ends[i], paths[i] = can.NewAdapter(device, can.AdapterConfig{}), path
	}
	for i := range ends {
		from, to := ends[i], ends[1-i]
		t.Cleanup(func() { from.Close() })
		go func() {
			for {
				f, err := from.Receive(context.Background())
				if err != nil {
					return
				}
				_ = to.Send(context.Background(), f)
			}
		}()
	}
	return paths[0], paths[1]
}

// A controller that is made of scapy gets a file over two SLCAN adapters.
func TestScapyECU(t *testing.T) {
	otatest.Tool(t, "can_logger") // comes with python3-can
	otatest.Tool(t, "scapy")      // comes with python3-scapy
	ours, theirs := hub(t)
	ecu := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/ecu.py", theirs) // of Debian: the one in PATH may have no scapy
	ecu.Stderr = os.Stderr
	end, err := ecu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ecu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ecu.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	if up, err := said.ReadString('\n'); up != "up\n" {
		t.Fatalf("the controller says %q, %v", up, err)
	}
	image := random(3, 10_007)
	d, err := overcan.New(overcan.Config{Line: overcan.Line{To: "slcan:" + ours, Address: overcan.Address{TX: 0x7E0, RX: 0x7E8}}, Margin: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	began := time.Now()
	if err := d.SendPlain(t.Context(), bytes.NewReader(image), int64(len(image)), overcan.Plain{Address: 0x0800_4000}, push.Tell{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes in %v", len(image), time.Since(began))
	got, err := said.ReadString('\n')
	if want := fmt.Sprintf("08004000 %d %d %x", len(image), len(image), sha256.Sum256(image)); err != nil || strings.TrimSpace(got) != want {
		t.Errorf("the controller got %q (%v), want %q", got, err, want)
	}
	end.Close()
	if err := ecu.Wait(); err != nil {
		t.Errorf("the controller: %v", err)
	}
}
