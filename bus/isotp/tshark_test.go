package isotp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/otatest"
)

// TestTshark: Wireshark reads in our frames, of both roles, what we mean, and puts the
// same PDU together.
func TestTshark(t *testing.T) {
	tool := otatest.Tool(t, "tshark")
	for _, c := range []struct {
		address Address
		config  Config
		n       int
	}{
		{Normal(0x7E0, 0x7E8), Config{}, 3},
		{Normal(0x7E0, 0x7E8), Config{BlockSize: 8, STmin: 300 * time.Microsecond}, 300},
		{Normal(0x7E0, 0x7E8), Config{Unpadded: true}, 4095},
		{Fixed29(0x10, 0xF1), Config{STmin: 5 * time.Millisecond}, 62},
	} {
		frames := transferred(t, c.address, c.config, c.n)
		var want []string
		left, sn := c.n, 0
		for _, f := range frames {
			switch {
			case f.ID == c.address.rx:
				want = append(want, fmt.Sprintf("0x03;;;;0x00;0x%02x;%d;;;", c.config.BlockSize, encodeSTmin(c.config.STmin)))
			case c.n <= 7:
				want = append(want, fmt.Sprintf("0x00;%d;;;;;;;;", c.n))
			case left == c.n:
				want = append(want, fmt.Sprintf("0x01;;%d;;;;;;;", c.n))
				left -= 6
			default:
				sn = (sn + 1) % 16
				left -= 7
				whole := ""
				if left <= 0 {
					whole = fmt.Sprint(c.n)
				}
				want = append(want, fmt.Sprintf("0x02;;;0x%02x;;;;%s;;", sn, whole))
			}
		}
		path := filepath.Join(t.TempDir(), "isotp.pcap")
		if err := os.WriteFile(path, capture(frames), 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"-n", "-r", path, "-d", "can.subdissector,iso15765", "-T", "fields", "-E", "separator=;", "-E", "occurrence=f"}
		for _, field := range []string{"iso15765.message_type", "iso15765.data_length", "iso15765.frame_length", "iso15765.sequence_number",
			"iso15765.flow_status", "iso15765.flow_control.bs", "iso15765.flow_control.stmin", "iso15765.reassembled.length", "_ws.malformed", "_ws.expert.message"} {
			args = append(args, "-e", field)
		}
		cmd := exec.Command(tool, args...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // nobody's settings
		out, err := cmd.Output()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = errors.New(string(exit.Stderr))
			}
			t.Fatalf("%s: %v", cmd, err)
		}
		got := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(got) != len(want) {
			t.Fatalf("tshark read %d frames, want %d", len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%d bytes, frame %d, %v: tshark read %q, want %q", c.n, i, frames[i], got[i], want[i])
			}
		}
	}
}

// transferred are the frames of a PDU, those of both ends, in their order.
func transferred(t *testing.T, a Address, c Config, n int) []can.Frame {
	t.Helper()
	var frames []can.Frame
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		record := func(_ int, f can.Frame) verdict {
			mu.Lock()
			defer mu.Unlock()
			frames = append(frames, f)
			return arrives
		}
		one, other := line()
		one.fate, other.fate = record, record
		sender := channel(t, one, a, c)
		receiver := channel(t, other, a.Peer(), c)
		if err := sender.Send(t.Context(), pdu(n, 0)); err != nil {
			t.Fatal(err)
		}
		gets(t, receiver, pdu(n, 0))
	})
	return slices.Clone(frames)
}

// capture is Wireshark's file format with LINKTYPE_CAN_SOCKETCAN (227).
func capture(frames []can.Frame) []byte {
	le, be := binary.LittleEndian, binary.BigEndian
	file := le.AppendUint32(nil, 0xA1B2C3D4)
	file = le.AppendUint16(le.AppendUint16(file, 2), 4)
	file = le.AppendUint32(append(file, make([]byte, 8)...), 65535)
	file = le.AppendUint32(file, 227)
	for _, f := range frames {
		file = le.AppendUint32(append(file, make([]byte, 8)...), 16)
		file = le.AppendUint32(file, 16)
		id := f.ID
		if f.Extended {
			id |= 1 << 31
		}
		file = be.AppendUint32(file, id)
		file = append(append(file, f.Len, 0, 0, 0), f.Data[:]...)
	}
	return file
}
