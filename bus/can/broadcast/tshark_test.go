package broadcast_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/otatest"
)

// TestTshark: Wireshark sees every profile's frames as whole ones, with the identifiers
// and bytes that were meant. (It knows none of the profiles.)
func TestTshark(t *testing.T) {
	tshark := otatest.Tool(t, "tshark")
	var sent [][]can.Frame
	le := binary.LittleEndian
	file := le.AppendUint32(nil, 0xA1B2C3D4)
	file = le.AppendUint16(le.AppendUint16(file, 2), 4)
	file = le.AppendUint32(append(file, make([]byte, 8)...), 65535)
	file = le.AppendUint32(file, 227) // LINKTYPE_CAN_SOCKETCAN
	r := rand.New(rand.NewPCG(3, 4))
	for _, name := range broadcast.Names() {
		p, err := broadcast.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		frames, err := p.Encode(anyBattery(r, p), broadcast.Options{})
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, frames)
		for _, f := range frames {
			id := f.ID
			if f.Extended {
				id |= 1 << 31
			}
			length := uint32(8 + f.Len)
			file = le.AppendUint32(le.AppendUint32(append(file, make([]byte, 8)...), length), length)
			file = append(binary.BigEndian.AppendUint32(file, id), f.Len, 0, 0, 0)
			file = append(file, f.Bytes()...)
		}
	}
	path := filepath.Join(t.TempDir(), "broadcast.pcap")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tshark, "-n", "-r", path, "-T", "fields", "-E", "separator=|",
		"-e", "can.flags.xtd", "-e", "can.id", "-e", "can.len", "-e", "data.data", "-e", "_ws.malformed", "-e", "_ws.expert.message")
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i, frames := range sent {
		for _, f := range frames {
			if len(lines) == 0 {
				t.Fatal("tshark read fewer frames")
			}
			want := fmt.Sprintf("%d|%d|%d|%x||", map[bool]int{true: 1}[f.Extended], f.ID, f.Len, f.Bytes())
			if lines[0] != want {
				t.Errorf("%s, frame %v: got %q, want %q", broadcast.Names()[i], f, lines[0], want)
			}
			lines = lines[1:]
		}
	}
	if len(lines) > 0 {
		t.Errorf("tshark read %d frames too many", len(lines))
	}
}
