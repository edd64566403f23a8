package isotp

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

const text = "0123456789ABCDEFGHIJ" // 20 bytes: a first frame and two more

// TestSends is what goes over the wire, for each kind of address.
func TestSends(t *testing.T) {
	zero := byte(0)
	for _, c := range []struct {
		name    string
		address Address
		config  Config
		pdu     string
		want    []string // "<" marks what the peer says
	}{
		{"single", Normal(0x7E0, 0x7E8), Config{}, "\x3e\x80", []string{"7E0#023E80CCCCCCCCCC"}},
		{"single, full", Normal(0x7E0, 0x7E8), Config{}, "1234567", []string{"7E0#0731323334353637"}},
		{"unpadded", Normal(0x7E0, 0x7E8), Config{Unpadded: true}, "\x3e\x80", []string{"7E0#023E80"}},
		{"padded with 0", Normal(0x7E0, 0x7E8), Config{Padding: &zero}, "\x3e\x80", []string{"7E0#023E800000000000"}},
		{"first", Normal(0x7E0, 0x7E8), Config{}, text, []string{
			"7E0#1014303132333435", "<7E8#300000", "7E0#2136373839414243", "7E0#224445464748494A"}},
		{"eight bytes", Normal(0x7E0, 0x7E8), Config{}, text[:8], []string{
			"7E0#1008303132333435", "<7E8#300000CCCCCCCCCC", "7E0#213637CCCCCCCCCC"}},
		{"eight bytes, unpadded", Normal(0x7E0, 0x7E8), Config{Unpadded: true}, text[:8], []string{
			"7E0#1008303132333435", "<7E8#300000", "7E0#213637"}},
		{"blocks of one", Normal(0x7E0, 0x7E8), Config{}, text, []string{
			"7E0#1014303132333435", "<7E8#300100", "7E0#2136373839414243", "<7E8#300100", "7E0#224445464748494A"}},
		{"wait", Normal(0x7E0, 0x7E8), Config{}, text[:8], []string{
			"7E0#1008303132333435", "<7E8#310000", "<7E8#310000", "<7E8#300000", "7E0#213637CCCCCCCCCC"}},
		{"fixed", Fixed29(0x10, 0xF1), Config{}, text[:8], []string{
			"18DA10F1#1008303132333435", "<18DAF110#300000", "18DA10F1#213637CCCCCCCCCC"}},
		{"functional", Functional(0x7DF), Config{}, "\x3e\x80", []string{"7DF#023E80CCCCCCCCCC"}},
		{"functional, fixed", Functional29(0x33, 0xF1), Config{Unpadded: true}, "\x3e\x80", []string{"18DB33F1#023E80"}},
		{"extended", Normal(0x7E0, 0x7E8).WithBytes(0x55, 0xAA), Config{Unpadded: true}, text[:13], []string{
			"7E0#55100D3031323334", "<7E8#AA300000", "7E0#5521353637383941", "7E0#55224243"}},
		{"extended, seven bytes", Normal(0x7E0, 0x7E8).WithBytes(0x55, 0xAA), Config{Unpadded: true}, text[:7], []string{
			"7E0#5510073031323334", "<7E8#BB300000", "<7E8#AA300000", "7E0#55213536"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus, peer := line()
				conn := channel(t, bus, c.address, c.config)
				done := make(chan error, 1)
				go func() { done <- conn.Send(t.Context(), []byte(c.pdu)) }()
				for _, frame := range c.want {
					synctest.Wait()
					if said, ok := strings.CutPrefix(frame, "<"); ok {
						peer.says(t, said)
						continue
					}
					peer.hears(t, frame)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				peer.silent(t)
			})
		})
	}
}

// TestReceives is what comes out of frames, padded or not, and what is answered.
func TestReceives(t *testing.T) {
	for _, c := range []struct {
		name    string
		address Address
		config  Config
		frames  []string // ">" marks what is answered
		want    string
	}{
		{"single", Normal(0x7E8, 0x7E0), Config{}, []string{"7E0#023E80"}, "\x3e\x80"},
		{"single, padded", Normal(0x7E8, 0x7E0), Config{}, []string{"7E0#023E80AAAAAAAAAA"}, "\x3e\x80"},
		{"not for us", Normal(0x7E8, 0x7E0), Config{}, []string{"7E1#013E", "7DF#013E", "000007E0#013E", "7E0#R3", "7E0#013E"}, "\x3e"},
		{"first", Normal(0x7E8, 0x7E0), Config{}, []string{
			"7E0#1014303132333435", ">7E8#300000CCCCCCCCCC", "7E0#2136373839414243", "7E0#224445464748494A"}, text},
		{"blocks", Normal(0x7E8, 0x7E0), Config{BlockSize: 1, STmin: 200 * time.Microsecond, Unpadded: true}, []string{
			"7E0#1014303132333435", ">7E8#3001F2", "7E0#2136373839414243", ">7E8#3001F2", "7E0#224445464748494A"}, text},
		{"flow control is not ours", Normal(0x7E8, 0x7E0), Config{}, []string{"7E0#300000", "7E0#0131"}, "1"},
		{"fixed", Fixed29(0xF1, 0x10), Config{Unpadded: true}, []string{
			"18DA10F1#1008303132333435", ">18DAF110#300000", "18DA10F1#213637"}, text[:8]},
		{"extended", Normal(0x7E8, 0x7E0).WithBytes(0xAA, 0x55), Config{Unpadded: true}, []string{"7E0#560131",
			"7E0#55100D3031323334", ">7E8#AA300000", "7E0#5521353637383941", "7E0#55224243"}, text[:13]},
		{"functional", Functional(0x7DF).Peer(), Config{}, []string{"7DF#1008303132333435", "7DF#023E80"}, "\x3e\x80"},
		{"too much for a single one", Normal(0x7E8, 0x7E0), Config{}, []string{"7E0#0531323334", "7E0#0831323334353637", "7E0#0131"}, "1"},
		{"none of a kind", Normal(0x7E8, 0x7E0), Config{}, []string{"7E0#", "7E0#4031", "7E0#F031", "7E0#00", "7E0#0F31323334353637", "7E0#0131"}, "1"},
		{"first ones that are none", Normal(0x7E8, 0x7E0), Config{}, []string{
			"7E0#10143031323334", "7E0#1007303132333435", "7E0#100000000FFF3031", "7E0#1000000000073031", "7E0#0131"}, "1"},
		{"consecutive ones of nothing", Normal(0x7E8, 0x7E0), Config{}, []string{"7E0#2136373839414243", "7E0#0131"}, "1"},
		{"too short in the middle", Normal(0x7E8, 0x7E0), Config{Unpadded: true}, []string{
			"7E0#1014303132333435", ">7E8#300000", "7E0#21363738394142", "7E0#2136373839414243", "7E0#224445464748494A"}, text},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus, peer := line()
				conn := channel(t, bus, c.address, c.config)
				for _, frame := range c.frames {
					if answer, ok := strings.CutPrefix(frame, ">"); ok {
						peer.hears(t, answer)
						continue
					}
					peer.says(t, frame)
				}
				gets(t, conn, []byte(c.want))
				synctest.Wait()
				peer.silent(t)
			})
		})
	}
}

func TestSTmin(t *testing.T) {
	for _, c := range []struct {
		b    byte
		want time.Duration
	}{
		{0, 0}, {1, time.Millisecond}, {0x7F, 127 * time.Millisecond}, {0xF1, 100 * time.Microsecond}, {0xF9, 900 * time.Microsecond},
		{0x80, 127 * time.Millisecond}, {0xF0, 127 * time.Millisecond}, {0xFA, 127 * time.Millisecond}, {0xFF, 127 * time.Millisecond},
	} {
		if got := decodeSTmin(c.b); got != c.want {
			t.Errorf("%#x: got %v, want %v", c.b, got, c.want)
		}
	}
	for d := time.Duration(0); d <= mostSTmin; d += 33 * time.Microsecond {
		got := decodeSTmin(encodeSTmin(d))
		if step := got - d; step < 0 || step >= time.Millisecond || d < 900*time.Microsecond && step >= 100*time.Microsecond {
			t.Errorf("%v is sent as %v, want it rounded up", d, got)
		}
	}
}

func TestAddress(t *testing.T) {
	for _, c := range []struct {
		address    Address
		want, peer string
	}{
		{Normal(0x7E0, 0x7E8), "7E0/7E8", "7E8/7E0"},
		{Fixed29(0x10, 0xF1), "18DA10F1/18DAF110", "18DAF110/18DA10F1"},
		{Normal29(1, 2).WithBytes(3, 4), "00000001:03/00000002:04", "00000002:04/00000001:03"},
		{Functional(0x7DF), "7DF/-", "-/7DF"},
		{Functional29(0x33, 0xF1), "18DB33F1/-", "-/18DB33F1"},
	} {
		if got := c.address.String(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		if got := c.address.Peer().String(); got != c.peer {
			t.Errorf("the peer of %v: got %s, want %s", c.address, got, c.peer)
		}
		if c.address.Peer().Peer() != c.address {
			t.Errorf("the peer of the peer of %v: got %v", c.address, c.address.Peer().Peer())
		}
	}
}

// TestRefusals is what cannot be opened or sent.
func TestRefusals(t *testing.T) {
	bus, _ := line()
	m := NewMux(bus)
	defer m.Close()
	if _, err := m.Open(Normal(0x700, 0x701), Config{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open(Normal(0x710, 0x711).WithBytes(1, 2), Config{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open(Normal(0x710, 0x711).WithBytes(1, 3), Config{}); err != nil {
		t.Errorf("another address on the same identifier: %v", err)
	}
	for _, c := range []struct {
		address Address
		config  Config
		want    string
	}{
		{Normal(0x800, 1), Config{}, "at most 0x7ff"},
		{Normal29(0x2000_0000, 1), Config{}, "at most 0x1fffffff"},
		{Normal(1, 1), Config{}, "differ"},
		{Normal(1, 0x701), Config{}, "receives the same"},
		{Normal(1, 0x701).WithBytes(1, 2), Config{}, "receives the same"},
		{Normal(1, 0x711).WithBytes(1, 2), Config{}, "receives the same"},
		{Normal(1, 2), Config{BlockSize: 256}, "BlockSize is 256"},
		{Normal(1, 2), Config{STmin: 128 * time.Millisecond}, "STmin is 128ms"},
		{Normal(1, 2), Config{MaxPDU: 6}, "MaxPDU is 6"},
		{Normal(1, 2), Config{NBs: -1}, "NBs is -1ns"},
		{Normal(1, 2), Config{FramesPerSecond: 1}, "NCs is 900ms"},
		{Normal(1, 2), Config{FramesPerSecond: -1}, "FramesPerSecond is -1"},
	} {
		if _, err := m.Open(c.address, c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, %+v: got %v, want an error with %q", c.address, c.config, err, c.want)
		}
	}
	for i, c := range []struct {
		address Address
		n       int
	}{{Normal(1, 2), 0}, {Functional(3), 8}, {Functional(4).WithBytes(1, 1), 7}, {Functional(5).Peer(), 1}} {
		conn, err := m.Open(c.address, Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Send(t.Context(), make([]byte, c.n)); !errors.Is(err, ErrLength) {
			t.Errorf("%d: %d bytes to %v: got %v, want %v", i, c.n, c.address, err, ErrLength)
		}
	}
}

// TestEscape: lengths around those that 12 bits and a single frame hold come through.
func TestEscape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line()
		tester := channel(t, a, Normal(0x7E0, 0x7E8), Config{})
		ecu := channel(t, b, Normal(0x7E8, 0x7E0), Config{MaxPDU: 70_000, BlockSize: 7})
		for i, n := range []int{1, 6, 7, 8, 12, 13, 14, 62, 63, 4093, 4094, 4095, 4096, 5000, 65_535, 65_536, 70_000} {
			want := pdu(n, i)
			if err := tester.Send(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			gets(t, ecu, want)
		}
		want := can.Standard(0x7E0, 0x10, 0x00, 0x00, 0x01, 0x11, 0x70, pdu(1, 16)[0], pdu(2, 16)[1])
		if got := a.log[len(a.log)-1-(70_000-2+6)/7]; got != want {
			t.Errorf("the first frame of 70000 bytes: got %v, want %v", got, want)
		}
		if err := tester.Send(t.Context(), make([]byte, 70_001)); !errors.Is(err, ErrOverflow) {
			t.Errorf("more than MaxPDU: got %v, want %v", err, ErrOverflow)
		}
		if err := tester.Send(t.Context(), text2); err != nil {
			t.Fatal(err)
		}
		gets(t, ecu, text2)
		if s := ecu.Stats(); s.Refused != 1 || s.Broken != 0 || s.Received != 18 || s.Stray != 0 {
			t.Errorf("got %+v", s)
		}
	})
}

var text2 = []byte(text)
