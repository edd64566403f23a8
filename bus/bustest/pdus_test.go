package bustest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
)

// frames cuts a PDU as ISO 15765-2 does, with padding.
func frames(id uint32, pdu []byte) (list []can.Frame) {
	pad := func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0xCC}, 8-len(b))...) }
	switch n := len(pdu); {
	case n <= 7:
		return []can.Frame{can.Standard(id, pad(append([]byte{byte(n)}, pdu...))...)}
	case n <= 4095:
		list = append(list, can.Standard(id, append([]byte{0x10 | byte(n>>8), byte(n)}, pdu[:6]...)...))
		pdu = pdu[6:]
	default:
		list = append(list, can.Standard(id, append([]byte{0x10, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, pdu[:2]...)...))
		pdu = pdu[2:]
	}
	for i := 1; len(pdu) > 0; i++ {
		n := min(7, len(pdu))
		list = append(list, can.Standard(id, pad(append([]byte{0x20 | byte(i&15)}, pdu[:n]...))...))
		pdu = pdu[n:]
	}
	return list
}

// TestPDUs: what ISO-TP carried, of several identifiers that alternate, with flow control
// between, one that was given up, and one that lost a frame.
func TestPDUs(t *testing.T) {
	long := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i % 251)
		}
		return b
	}
	var one, two []bustest.Record
	var want [][]byte
	for _, n := range []int{1, 6, 7, 8, 13, 14, 62, 4095, 4096, 5000} {
		want = append(want, long(n))
		for i, f := range frames(0x7E0, long(n)) {
			one = append(one, bustest.Record{From: "tester", Frame: f, N: i})
		}
	}
	for _, f := range frames(0x7E0, long(100))[:5] { // given up
		one = append(one, bustest.Record{From: "tester", Frame: f})
	}
	lost := frames(0x7E0, []byte("this one loses its second frame"))
	want = append(want, []byte("this one loses its second frame"))
	for i, f := range lost {
		one = append(one, bustest.Record{From: "tester", Frame: f, Verdict: []bustest.Verdict{"", bustest.Lose, bustest.Double, "", "", ""}[i]})
	}
	for range len(one) {
		two = append(two, bustest.Record{From: "ECU", Frame: can.Standard(0x7E8, 0x30, 0, 0)}, bustest.Record{From: "BMS", Frame: can.Standard(0x355, 1, 2)})
	}
	var all []bustest.Record
	for i := range one {
		all = append(all, one[i], two[2*i], two[2*i+1])
	}
	got := bustest.PDUs(all, 0x7E0, 0x7E8)
	if len(got) != len(want) {
		t.Fatalf("got %d PDUs, want %d", len(got), len(want))
	}
	for i, r := range got {
		verdict := bustest.Pass
		if i == len(want)-1 {
			verdict = bustest.Lose
		}
		if !bytes.Equal(r.Data, want[i]) || r.Verdict != verdict || r.From != "tester" {
			t.Errorf("PDU %d: got %d bytes, %q of %s, want %d bytes, %q", i, len(r.Data), r.Verdict, r.From, len(want[i]), verdict)
		}
	}
}

// fakeConn says yes to all, until it is closed. It is a fake.
type fakeConn struct{ last []byte }

func (f *fakeConn) Send(_ context.Context, pdu []byte) error {
	if f.last = pdu; len(pdu) == 0 {
		return errors.New("nothing to send")
	}
	return nil
}
func (f *fakeConn) Receive(context.Context) ([]byte, error) { return []byte{f.last[0] + 0x40}, nil }
func (f *fakeConn) Close() error                            { return nil }

func TestWatch(t *testing.T) {
	tap := new(bustest.Tap)
	c := bustest.Watch(new(fakeConn), "tester", "ECU", tap)
	c.Send(t.Context(), []byte{0x3E})
	c.Receive(t.Context())
	c.Send(t.Context(), nil)
	got := fmt.Sprint(tap.Records())
	if want := "[tester #0  3E ECU #0  7E tester #1 lost ]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
