package can_test

import (
	"encoding/hex"
	"testing"

	"github.com/interlock-energy/ota/bus/can"
)

var (
	_ can.Bus = (*can.SLCAN)(nil)
	_ can.Bus = (*can.Adapter)(nil)
	_ can.Bus = (*can.TCP13)(nil)
	_ can.Bus = (*can.SocketCAN)(nil)
)

// samples are all kinds of frames.
var samples = []can.Frame{
	can.Standard(0x355, 0x58, 0x00, 0x5E, 0x00),
	can.Standard(0), can.Standard(0x7FF, 0xFF), can.Standard(0x100, 1, 2, 3, 4, 5, 6, 7, 8),
	can.Extended(0x12345678, 0x12, 0x34, 0x56, 0x78, 0x00), can.Extended(0), can.Extended(can.MaxExtended, 0xA5), can.Extended(0x355, 1),
	{ID: 0x123, Remote: true}, {ID: 0x123, Remote: true, Len: 8}, {ID: 0x18DAF110, Extended: true, Remote: true, Len: 3},
}

func TestFrame(t *testing.T) {
	want := []string{"355#58005E00", "000#", "7FF#FF", "100#0102030405060708", "12345678#1234567800", "00000000#", "1FFFFFFF#A5", "00000355#01", "123#R", "123#R8", "18DAF110#R3"}
	for i, f := range samples {
		if got := f.String(); got != want[i] {
			t.Errorf("%+v: %s, want %s", f, got, want[i])
		}
		if got, err := can.Parse(want[i]); err != nil || got != f {
			t.Errorf("Parse(%s) = %+v, %v, want %+v", want[i], got, err, f)
		}
	}
	for _, s := range []string{"", "#", "123", "12#", "1234#", "800#", "20000000#", "123#1", "123#112233445566778899", "12G#", "123#R9", "123#R-1", "123#R08", "123#GG", "-12#"} {
		if f, err := can.Parse(s); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", s, f)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, f := range []can.Frame{
		can.Standard(0x800), can.Extended(0x2000_0000), can.Standard(1, make([]byte, 9)...), {Len: 9}, {Remote: true, Len: 1, Data: [8]byte{1}},
		{Len: 1, Data: [8]byte{1, 2}},
	} {
		if f.Validate() == nil {
			t.Errorf("%+v is valid", f)
		}
		_, _ = f.String(), f.Bytes() // and yet nothing breaks
	}
	if got := hex.EncodeToString(can.Standard(1, 2, 3).Bytes()); got != "0203" {
		t.Errorf("bytes %s, want 0203", got)
	}
}

func TestFilters(t *testing.T) {
	filters := can.Filters{{ID: 0x350, Mask: 0x7F0}, {ID: 0x4210, Mask: can.MaxExtended, Extended: true}}
	for _, c := range []struct {
		f    can.Frame
		want bool
	}{
		{can.Standard(0x351), true}, {can.Standard(0x35F), true}, {can.Standard(0x360), false}, {can.Extended(0x351), false},
		{can.Extended(0x4210), true}, {can.Extended(0x4211), false}, {can.Frame{ID: 0x355, Remote: true}, true},
	} {
		if got := filters.Match(c.f); got != c.want {
			t.Errorf("%v: %v, want %v", c.f, got, c.want)
		}
	}
	if !(can.Filters{}).Match(can.Standard(1)) {
		t.Error("no filters let nothing through")
	}
}
