package can

import (
	"encoding/binary"
	"strings"
	"testing"
)

// raw is a struct can_frame.
func raw(id uint32, length byte, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, id)
	b = append(b, length, 0, 0, 0)
	b = append(b, data...)
	return append(b, make([]byte, sizeSocketCAN-len(b))...)
}

// TestSocketCANFrames is the layout in linux/can.h, both ways.
func TestSocketCANFrames(t *testing.T) {
	for _, c := range []struct {
		raw []byte
		f   Frame
	}{
		{raw(0x355, 4, 0x58, 0, 0x5E, 0), Standard(0x355, 0x58, 0, 0x5E, 0)},
		{raw(0x355|0x80000000, 1, 9), Extended(0x355, 9)},
		{raw(0x1FFFFFFF|0x80000000, 0), Extended(MaxExtended)},
		{raw(0x123|0x40000000, 8), Frame{ID: 0x123, Remote: true, Len: 8}},
	} {
		f, e, err := parseSocketCAN(c.raw)
		if f != c.f || e != nil || err != nil {
			t.Errorf("% X: %+v, %v, %v, want %+v", c.raw, f, e, err, c.f)
		}
		if got := appendSocketCAN(nil, c.f); string(got) != string(c.raw) {
			t.Errorf("%v: % X, want % X", c.f, got, c.raw)
		}
	}
	for _, b := range [][]byte{nil, raw(0x355, 4)[:15], append(raw(0x355, 4), make([]byte, 56)...), raw(0x800, 0), raw(0x355, 9)} {
		if f, _, err := parseSocketCAN(b); err == nil {
			t.Errorf("% X: %v, want an error", b, f)
		}
	}
}

// TestSocketCANErrors: what the kernel says of the controller (linux/can/error.h).
func TestSocketCANErrors(t *testing.T) {
	for _, c := range []struct {
		name   string
		raw    []byte
		state  State
		detail string
	}{
		{"bus-off", raw(0x20000000|0x40, 8), StateBusOff, ""},
		{"passive, sending", raw(0x20000000|0x04, 8, 0, 0x20, 0, 0, 0, 0, 128, 0), StatePassive, "counters: sending 128, receiving 0"},
		{"passive, receiving", raw(0x20000000|0x04, 8, 0, 0x10, 0, 0, 0, 0, 0, 130), StatePassive, "counters: sending 0, receiving 130"},
		{"warning", raw(0x20000000|0x04, 8, 0, 0x08), StateWarning, ""},
		{"active again", raw(0x20000000|0x04, 8, 0, 0x40), StateActive, ""},
		{"restarted", raw(0x20000000|0x100, 8), StateActive, "restarted"},
		{"overflow", raw(0x20000000|0x04, 8, 0, 0x01), "", ""},
	} {
		f, e, err := parseSocketCAN(c.raw)
		if err != nil || e == nil || f != (Frame{}) || e.state != c.state || e.detail != c.detail {
			t.Errorf("%s: %v, %+v, %v, want %q, %q", c.name, f, e, err, c.state, c.detail)
		}
	}
}

// TestNoInterface: an interface that is not there is an error that says which.
func TestNoInterface(t *testing.T) {
	if bus, err := DialSocketCAN("nocan7", nil); err == nil {
		bus.Close()
		t.Error("an interface that is not there was opened")
	} else if !strings.HasPrefix(err.Error(), "open CAN interface nocan7:") {
		t.Errorf("DialSocketCAN: %v", err)
	}
}

// FuzzSLCAN: any bytes as lines. A frame comes out only of a line that says exactly
// that frame.
func FuzzSLCAN(f *testing.F) {
	for _, s := range []string{"t355458005E00\r", "T12345678512345678001234\r", "r1238\rR18DAF1103\r", "t3559\ra\a\az\r", "\n\rt8000\r", "t1000abcd\r", "sb256256\rF21\rV1013\r"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var l lines
		ends, got := uint64(0), uint64(0)
		for _, c := range b {
			line, end := l.add(c)
			if c == cr || c == bel {
				ends++
			}
			if !end {
				continue
			}
			got++
			frame, ok := parseLine(line)
			if !ok {
				continue
			}
			if err := frame.Validate(); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			again := appendLine(nil, frame)
			again = again[:len(again)-1]
			if len(line) != len(again) && len(line) != len(again)+4 || !equalFold(line[:len(again)], again) {
				t.Errorf("%q became %q", line, again)
			}
		}
		if l.n > lineMost || got > ends {
			t.Errorf("%d bytes of a line, %d lines of %d", l.n, got, ends)
		}
	})
}

func equalFold(a, b []byte) bool {
	for i := range a {
		x, y := a[i], b[i]
		if x != y && (x < 'a' || x > 'f' || i == 0 || x-'a'+'A' != y) {
			return false
		}
	}
	return true
}

// FuzzTCP13: any bytes as a stream. A stream of frames comes out as it went in, in
// whatever pieces.
func FuzzTCP13(f *testing.F) {
	f.Add([]byte("\x85\x12\x34\x56\x78\x12\x34\x56\x78\x00\x00\x00\x00"), 3)
	f.Add([]byte("\x05\x00\x00\x06\x78\x12\x34\x56\x78\x00\x00\x00\x00\x85\x12\x34\x56\x78\x12\x34\x56\x78\x00\x00\x00\x00"), 13)
	f.Add([]byte("\x19\x00\x00\x06\x78\x12\x34\x56\x78\x00\x00\x00\x00\x44\x00\x00\x01\x23\x00\x00\x00\x00\x00\x00\x00\x00"), 1)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		piece = max(1, piece%64)
		var s stream13
		var out []Frame
		frames := 0
		for i := 0; i < len(b); i += piece {
			s.add(b[i:min(i+piece, len(b))])
			for frame, ok := s.next(); ok; frame, ok = s.next() {
				if err := frame.Validate(); err != nil {
					t.Errorf("%v: %v", frame, err)
				}
				out = append(out, frame)
				frames++
			}
		}
		if got := frames*size13 + int(s.dropped) + len(s.buf); got != len(b) {
			t.Errorf("%d bytes accounted for, of %d", got, len(b))
		}
		var wire []byte
		for _, frame := range out {
			wire = append13(wire, frame)
		}
		var again stream13
		again.add(wire)
		for _, want := range out {
			if got, ok := again.next(); !ok || got != want {
				t.Errorf("%v came out as %v, %v", want, got, ok)
			}
		}
	})
}
