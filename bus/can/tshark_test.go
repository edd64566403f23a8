package can

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/otatest"
)

// tshark returns what Wireshark reads in a file, a line for each frame.
func tshark(t *testing.T, name string, file []byte, fields ...string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	// AUTOSAR's network management would claim identifier 0.
	args := []string{"-n", "-r", path, "--disable-protocol", "autosar-nm", "-T", "fields", "-E", "separator=/s"}
	for _, field := range fields {
		args = append(args, "-e", field)
	}
	cmd := exec.Command(otatest.Tool(t, "tshark"), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // nobody's settings
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(string(exit.Stderr))
		}
		t.Fatalf("%s: %v", cmd, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// said is what Wireshark should say of f. It shows the unused bytes of remote frames.
func said(f Frame) string {
	flag := map[bool]int{true: 1}
	s := fmt.Sprintf("%d %d %d 0 %d", f.ID, flag[f.Extended], flag[f.Remote], f.Len)
	if f.Len > 0 {
		s += fmt.Sprintf(" %x", f.Data[:f.Len])
	}
	return s
}

var saidFields = []string{"can.id", "can.flags.xtd", "can.flags.rtr", "can.flags.err", "can.len", "data.data", "_ws.malformed", "_ws.expert.message"}

// various are frames of all kinds and lengths, the same each time.
func various() []Frame {
	r := rand.New(rand.NewPCG(1, 2))
	var frames []Frame
	for i := range 1000 {
		f := Frame{ID: r.Uint32N(MaxStandard + 1), Extended: i%2 == 1, Remote: i%7 == 0, Len: uint8(i % (MaxLen + 1))}
		if f.Extended {
			f.ID = r.Uint32N(MaxExtended + 1)
		}
		for j := range f.Len {
			if !f.Remote {
				f.Data[j] = byte(r.Uint32())
			}
		}
		frames = append(frames, f)
	}
	return append(frames, Standard(0), Standard(MaxStandard), Extended(0), Extended(MaxExtended))
}

// capture writes structs can_frame as Wireshark's file format, with the link type
// LINKTYPE_CAN_SOCKETCAN (227), which wants the identifier big-endian.
func capture(structs ...[]byte) []byte {
	le := binary.LittleEndian
	file := le.AppendUint32(nil, 0xA1B2C3D4)
	file = le.AppendUint16(le.AppendUint16(file, 2), 4)
	file = le.AppendUint32(append(file, make([]byte, 8)...), 65535)
	file = le.AppendUint32(file, 227)
	for _, b := range structs {
		file = le.AppendUint32(append(file, make([]byte, 8)...), uint32(len(b)))
		file = le.AppendUint32(file, uint32(len(b)))
		file = binary.BigEndian.AppendUint32(file, binary.NativeEndian.Uint32(b))
		file = append(file, b[4:]...)
	}
	return file
}

// TestTsharkSocketCAN: what goes to the kernel is what Wireshark knows as such.
func TestTsharkSocketCAN(t *testing.T) {
	frames := various()
	var structs [][]byte
	for _, f := range frames {
		structs = append(structs, appendSocketCAN(nil, f))
	}
	lines := tshark(t, "socketcan.pcap", capture(structs...), saidFields...)
	if len(lines) != len(frames) {
		t.Fatalf("tshark read %d frames, want %d", len(lines), len(frames))
	}
	for i, f := range frames {
		if got, want := strings.TrimRight(lines[i], " "), said(f); got != want {
			t.Errorf("frame %d, %v: got %q, want %q", i, f, got, want)
		}
	}
}

// TestTsharkErrors: Wireshark reads the same in the kernel's error frames as we do.
func TestTsharkErrors(t *testing.T) {
	const all = "can.err.busoff can.err.restarted can.err.ctrl.active can.err.ctrl.rx_passive can.err.ctrl.tx_passive can.err.ctrl.rx_warning can.err.ctrl.tx_warning"
	class := func(class uint32, controller byte) []byte { return raw(flagError|class, 8, 0, controller) }
	cases := []struct {
		raw   []byte
		shown string // the one field of all that is set
		state State
	}{
		{class(errBusOff, 0), "can.err.busoff", StateBusOff},
		{class(errRestarted, 0), "can.err.restarted", StateActive},
		{class(errController, 0x40), "can.err.ctrl.active", StateActive},
		{class(errController, 0x10), "can.err.ctrl.rx_passive", StatePassive},
		{class(errController, 0x20), "can.err.ctrl.tx_passive", StatePassive},
		{class(errController, 0x04), "can.err.ctrl.rx_warning", StateWarning},
		{class(errController, 0x08), "can.err.ctrl.tx_warning", StateWarning},
		{class(errController, 0x01), "", ""}, // an overflow
	}
	var structs [][]byte
	for _, c := range cases {
		structs = append(structs, c.raw)
	}
	names := strings.Fields(all)
	lines := tshark(t, "errors.pcap", capture(structs...), names...)
	for i, c := range cases {
		shown := ""
		for j, value := range strings.Split(lines[i], " ") {
			if value == "1" {
				shown += names[j]
			}
		}
		_, e, err := parseSocketCAN(c.raw)
		if err != nil || e.state != c.state || shown != c.shown {
			t.Errorf("% X: got %q, %v and from tshark %q, want %q and %q", c.raw, e.state, err, shown, c.state, c.shown)
		}
	}
}

// TestTsharkLog: what String writes is what Wireshark reads in logs of candump.
func TestTsharkLog(t *testing.T) {
	frames := various()
	var log strings.Builder
	for i, f := range frames {
		fmt.Fprintf(&log, "(%d.000000) can0 %v\n", i, f)
	}
	lines := tshark(t, "can.log", []byte(log.String()), saidFields...)
	if len(lines) != len(frames) {
		t.Fatalf("tshark read %d frames, want %d", len(lines), len(frames))
	}
	for i, f := range frames {
		if got, want := strings.TrimRight(lines[i], " "), said(f); got != want {
			t.Errorf("frame %d, %v: got %q, want %q", i, f, got, want)
		}
	}
}
