package bustest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
)

// examples are those of V1.1b3, 6: request and answer of each function.
var examples = [][2]string{
	{"01 0013 0013", "01 03 CD6B05"}, {"02 00C4 0016", "02 03 ACDB35"}, {"03 006B 0003", "03 06 022B 0000 0064"}, {"04 0008 0001", "04 02 000A"},
	{"05 00AC FF00", "05 00AC FF00"}, {"06 0001 0003", "06 0001 0003"}, {"0F 0013 000A 02 CD01", "0F 0013 000A"}, {"10 0001 0002 04 000A 0102", "10 0001 0002"},
	{"14 0E 06 0004 0001 0002 06 0003 0009 0002", "14 0C 05 06 0DFE 0020 05 06 33CD 0040"}, {"15 0D 06 0004 0007 0003 06AF 04BE 100D", "15 0D 06 0004 0007 0003 06AF 04BE 100D"},
	{"16 0004 00F2 0025", "16 0004 00F2 0025"}, {"17 0003 0006 000E 0003 06 00FF 00FF 00FF", "17 0C 00FE 0ACD 0001 0003 000D 00FF"}, {"10 0001 0002 04 000A 0102", "90 06"},
}

// TestRTU: frames are found in a stream of them, at no byte too early.
func TestRTU(t *testing.T) {
	for side := range 2 {
		for _, e := range examples {
			pdu, err := hex.DecodeString(strings.ReplaceAll(e[side], " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			frame := modbus.AppendRTU(nil, 7, pdu)
			stream := slices.Concat(frame, frame)
			for n := range len(stream) + 1 {
				got := bustest.RTU(stream[:n], side == 1)
				if got != len(frame) && got != 0 || n >= len(frame) && got != len(frame) {
					t.Errorf("% X: got %d, want %d", stream[:n], got, len(frame))
				}
			}
		}
	}
	if got := bustest.RTU([]byte{1, 0x6D, 1}, false); got >= 0 {
		t.Errorf("an unknown function: got %d, want less than 0", got)
	}
}

func TestLines(t *testing.T) {
	for in, want := range map[string]int{"": 0, "t1230": 0, "t1230\r": 6, "\a": 1, "z\rz\r": 2} {
		if got := bustest.Lines([]byte(in), false); got != want {
			t.Errorf("%q: got %d, want %d", in, got, want)
		}
	}
}

// onRelay has a server and a client at two wires with a relay between them.
func onRelay(t *testing.T, c bustest.RelayConfig, config modbus.Config, do func(t *testing.T, c *modbus.Client, writes *atomic.Int32)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var writes atomic.Int32
		m := &modbus.Memory{OnWrite: func(context.Context, modbus.Call, uint16, []uint16) error { writes.Add(1); return nil }}
		m.SetHolding(1, 0, make([]uint16, 100)...)
		one, two := bustest.NewWire(bustest.WireConfig{Baud: config.Baud}), bustest.NewWire(bustest.WireConfig{Baud: config.Baud})
		master, slave := one.Join("master"), two.Join("slave")
		c.Cut = bustest.RTU
		stop := bustest.Relay(one.Join("relay"), two.Join("relay"), c)
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- (&modbus.Server{Handler: m, Baud: config.Baud}).ServeRTU(ctx, slave, 1) }()
		client := modbus.NewRTU(master, config)
		do(t, client, &writes)
		client.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// TestRelay: each fault does to a request and to an answer what its name says.
func TestRelay(t *testing.T) {
	for _, verdict := range []bustest.Verdict{bustest.Pass, bustest.Lose, bustest.Double, bustest.Swap, bustest.Garble} {
		for _, side := range []string{bustest.Master, bustest.Slave} {
			tap := new(bustest.Tap)
			faults := bustest.Faults{From: side, Hold: 300 * time.Millisecond, Exactly: func(r bustest.Record) bustest.Verdict {
				if r.N == 1 {
					return verdict
				}
				return bustest.Pass
			}}
			onRelay(t, bustest.RelayConfig{Faults: faults, Tap: tap}, modbus.Config{Baud: 9600, Retries: -1, Timeout: 200 * time.Millisecond}, func(t *testing.T, c *modbus.Client, writes *atomic.Int32) {
				failed := 0
				for i := range uint16(4) {
					if err := c.WriteRegister(t.Context(), 1, i, i); err != nil {
						failed++
					}
				}
				time.Sleep(5 * time.Second)
				wantFailed, wantWrites := 1, int32(4)
				switch {
				case verdict == bustest.Pass, verdict == bustest.Double && side == bustest.Slave:
					wantFailed = 0
				case verdict == bustest.Double:
					wantFailed, wantWrites = 0, 5
				case verdict == bustest.Swap:
				case side == bustest.Master:
					wantWrites = 3
				}
				if failed != wantFailed && verdict != bustest.Swap || writes.Load() != wantWrites {
					t.Errorf("%s %q: %d failed, %d writes; want %d and %d", side, verdict, failed, writes.Load(), wantFailed, wantWrites)
				}
				n := 0
				for _, r := range tap.Records() {
					if r.From == side && r.Verdict != bustest.Pass {
						n++
					}
				}
				if want := min(1, len(verdict)); n != want {
					t.Errorf("%s %q: the tap has %d faults, want %d", side, verdict, n, want)
				}
			})
		}
	}
}

// TestAgainModbus: the tap tells blocks that were sent again after their answer had come
// from those whose request, or whose answer, was lost.
func TestAgainModbus(t *testing.T) {
	block := func(pdu []byte) (string, bool) { return fmt.Sprintf("% X", pdu[1:3]), pdu[0] == 6 }
	for _, c := range []struct {
		name   string
		faults bustest.Faults
		twice  bool
		want   []string
	}{
		{name: "once"},
		{name: "twice", twice: true, want: []string{"00 00", "00 01", "00 02"}},
		{name: "requests lost", faults: lost(bustest.Master)},
		{name: "answers lost", faults: lost(bustest.Slave)},
	} {
		tap := new(bustest.Tap)
		onRelay(t, bustest.RelayConfig{Faults: c.faults, Tap: tap}, modbus.Config{Baud: 19200, RepeatWrites: true}, func(t *testing.T, client *modbus.Client, writes *atomic.Int32) {
			for i := range uint16(3) {
				for range map[bool]int{false: 1, true: 2}[c.twice] {
					if err := client.WriteRegister(t.Context(), 1, i, i); err != nil {
						t.Errorf("%s: %v", c.name, err)
					}
				}
			}
		})
		if got := bustest.AgainModbus(tap.Records(), false, block); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v again, want %v", c.name, got, c.want)
		}
		if c.faults.Exactly != nil && len(tap.Records()) < 7 {
			t.Errorf("%s: %d records: nothing was repeated", c.name, len(tap.Records()))
		}
	}
}

// TestAgainLateAnswer: on a serial line an answer that is late, and echoes something else,
// acknowledges nothing; that which echoes the block does.
func TestAgainLateAnswer(t *testing.T) {
	block := func(pdu []byte) (string, bool) { return "block", pdu[1] == 0xE1 }
	write := func(address uint16) []byte {
		pdu, err := modbus.AppendWriteRegisters(nil, address, make([]uint16, 10))
		if err != nil {
			t.Fatal(err)
		}
		return modbus.AppendRTU(nil, 1, pdu)
	}
	for address, want := range map[uint16]int{0xE020: 0, 0xE100: 1} {
		answer := modbus.AppendRTU(nil, 1, write(address)[1:6])
		at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
		got := bustest.AgainModbus([]bustest.Record{
			{From: bustest.Master, Data: write(0xE100), Queued: at(0), At: at(0)},
			{From: bustest.Slave, Data: answer, Queued: at(1), At: at(1)},
			{From: bustest.Master, Data: write(0xE100), Queued: at(2), At: at(2)},
		}, false, block)
		if len(got) != want {
			t.Errorf("after an answer to a write at %#x: got %v again, want %d", address, got, want)
		}
	}
}

// TestAgainDoubled: the second answer to a doubled request, which looks like one to the next
// request, acknowledges nothing but what it is to.
func TestAgainDoubled(t *testing.T) {
	block := func(pdu []byte) (string, bool) { return fmt.Sprint("block ", pdu[len(pdu)-1]), len(pdu) > 6 }
	write := func(n uint16) []byte {
		pdu, err := modbus.AppendWriteRegisters(nil, 0xE100, []uint16{n})
		if err != nil {
			t.Fatal(err)
		}
		return modbus.AppendRTU(nil, 1, pdu)
	}
	now := time.Unix(0, 0)
	rec := func(from string, data []byte, v bustest.Verdict, wait time.Duration) bustest.Record {
		now = now.Add(wait)
		return bustest.Record{From: from, Data: data, Verdict: v, Queued: now, At: now}
	}
	const soon, late = 10 * time.Millisecond, 2 * time.Second
	echo := modbus.AppendRTU(nil, 1, write(0)[1:6])
	records := []bustest.Record{
		rec(bustest.Master, write(1), bustest.Double, soon), rec(bustest.Slave, echo, bustest.Pass, soon),
		rec(bustest.Master, write(2), bustest.Lose, soon), rec(bustest.Slave, echo, bustest.Pass, soon), // the second to 1
		rec(bustest.Master, write(2), bustest.Pass, soon), // the slave goes away
		rec(bustest.Master, write(3), bustest.Pass, late), rec(bustest.Slave, echo, bustest.Pass, soon),
	}
	if got := bustest.AgainModbus(records, false, block); len(got) > 0 {
		t.Errorf("got %v again, want none", got)
	}
	records = append(records, rec(bustest.Master, write(2), bustest.Pass, soon), rec(bustest.Master, write(3), bustest.Pass, soon))
	if got, want := bustest.AgainModbus(records, false, block), []string{"block 3"}; !slices.Equal(got, want) {
		t.Errorf("got %v again, want %v", got, want)
	}
}

// lost loses every second frame of a side.
func lost(side string) bustest.Faults {
	return bustest.Faults{From: side, Exactly: func(r bustest.Record) bustest.Verdict {
		if r.N%2 == 0 {
			return bustest.Lose
		}
		return bustest.Pass
	}}
}

// proxied has a server behind a proxy, in memory or on sockets, and clients that reconnect.
func proxied(t *testing.T, p func(l net.Listener, dial func(context.Context) (net.Conn, error)) *bustest.Proxy, do func(p *bustest.Proxy, dial func(context.Context) (io.ReadWriteCloser, error), writes *atomic.Int32)) {
	t.Helper()
	var writes atomic.Int32
	m := &modbus.Memory{OnWrite: func(context.Context, modbus.Call, uint16, []uint16) error { writes.Add(1); return nil }}
	m.SetHolding(1, 0, make([]uint16, 100)...)
	front, back := bustest.NewNetwork(time.Millisecond), bustest.NewNetwork(time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- (&modbus.Server{Handler: m}).Serve(ctx, back) }()
	proxy := p(front, back.Dial)
	do(proxy, func(ctx context.Context) (io.ReadWriteCloser, error) { return front.Dial(ctx) }, &writes)
	proxy.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestProxyCuts: a connection cut before, within and after the second request or its
// answer; the master comes again, and the tap tells what it sent twice.
func TestProxyCuts(t *testing.T) {
	block := func(pdu []byte) (string, bool) { return fmt.Sprintf("% X", pdu[1:3]), pdu[0] == 6 }
	for _, side := range []string{bustest.Master, bustest.Slave} {
		for verdict, want := range map[bustest.Verdict]struct {
			writes [2]int32 // cut in the request, in the answer
			conns  int
		}{
			bustest.Pass: {[2]int32{3, 3}, 1}, bustest.Cut: {[2]int32{3, 4}, 2}, bustest.CutInner: {[2]int32{3, 4}, 2}, bustest.CutAfter: {[2]int32{4, 3}, 2},
		} {
			synctest.Test(t, func(t *testing.T) {
				tap := new(bustest.Tap)
				proxied(t, func(l net.Listener, dial func(context.Context) (net.Conn, error)) *bustest.Proxy {
					return bustest.NewProxy(l, dial, bustest.ProxyConfig{Tap: tap, Faults: bustest.Faults{From: side, Exactly: func(r bustest.Record) bustest.Verdict {
						if r.N == 1 {
							return verdict
						}
						return bustest.Pass
					}}})
				}, func(p *bustest.Proxy, dial func(context.Context) (io.ReadWriteCloser, error), writes *atomic.Int32) {
					c := modbus.NewTCP(nil, modbus.Config{Redial: dial, RepeatWrites: true})
					defer c.Close()
					for i := range uint16(3) {
						if err := c.WriteRegister(t.Context(), 1, i, i); err != nil {
							t.Errorf("%s %q: %v", side, verdict, err)
						}
					}
					i := 0
					if side == bustest.Slave {
						i = 1
					}
					if got := writes.Load(); got != want.writes[i] && (got != 3 || verdict != bustest.CutAfter) || p.Conns() != want.conns {
						t.Errorf("%s %q: %d writes over %d connections, want %d over %d", side, verdict, got, p.Conns(), want.writes[i], want.conns)
					}
					if got := bustest.AgainModbus(tap.Records(), true, block); len(got) > 0 {
						t.Errorf("%s %q: %v were sent again after their answer", side, verdict, got)
					}
					if err := c.WriteRegister(t.Context(), 1, 1, 1); err != nil {
						t.Error(err)
					}
					if got := bustest.AgainModbus(tap.Records(), true, block); !slices.Equal(got, []string{"00 01"}) {
						t.Errorf("%s %q: got %v again, want the one that was", side, verdict, got)
					}
				})
			})
		}
	}
}

// TestProxyOnSockets: the same proxy on real ones, with random cuts, and bytes as they come.
func TestProxyOnSockets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := new(modbus.Memory)
	m.SetHolding(1, 0, make([]uint16, 300)...)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- (&modbus.Server{Handler: m}).Serve(ctx, l) }()
	for _, raw := range []bool{false, true} {
		tap := new(bustest.Tap)
		p, err := bustest.ProxyTo(l.Addr().String(), bustest.ProxyConfig{Raw: raw, Tap: tap, Faults: bustest.Faults{Seed: 3, Cut: 0.1}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := modbus.Dial(t.Context(), p.Addr(), modbus.Config{RepeatWrites: true, Retries: 100})
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint16(300) {
			if err := c.WriteRegister(t.Context(), 1, i, i+7); err != nil {
				t.Fatalf("raw %v: register %d: %v", raw, i, err)
			}
		}
		c.Close()
		if p.Conns() < 20 {
			t.Errorf("raw %v: %d connections: nothing was cut", raw, p.Conns())
		}
		p.Close()
		if got := m.Holding(1, 0, 300); got[0] != 7 || got[299] != 306 {
			t.Errorf("raw %v: got %v", raw, got)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestDistance: everything takes its time and comes in order, and the end of it too.
func TestDistance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bustest.Distance(10 * time.Millisecond)
		begin := time.Now()
		var sent []byte
		for i := range 100 {
			part := bytes.Repeat([]byte{byte(i)}, 100)
			sent = append(sent, part...)
			a.Write(part)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("writing took %v, want none of it to wait for the other end", took)
		}
		a.Close()
		got, err := io.ReadAll(b)
		if took := time.Since(begin); err != nil || !bytes.Equal(got, sent) || took != 10*time.Millisecond {
			t.Errorf("got %d of %d bytes, %v after %v, want all after 10 ms", len(got), len(sent), err, took)
		}
		b.Close()
	})
}

// TestPTY: package serial at a pseudo terminal with a relay that loses lines.
func TestPTY(t *testing.T) {
	near, nearPath := bustest.PTY(t)
	far, farPath := bustest.PTY(t)
	stop := bustest.Relay(near, far, bustest.RelayConfig{Cut: bustest.Lines, Faults: bustest.Faults{From: bustest.Master, Exactly: func(r bustest.Record) bustest.Verdict {
		if r.N == 1 {
			return bustest.Lose
		}
		return bustest.Pass
	}}})
	defer stop()
	ports := map[string]*serial.Port{}
	for _, path := range []string{nearPath, farPath} {
		port, err := serial.Open(serial.Config{Path: path, Baud: 115200})
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		ports[path] = port
	}
	if _, err := ports[nearPath].Write([]byte("t1000\rt2000\rt3000\r")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 12)
	if _, err := io.ReadFull(ports[farPath], got); err != nil || string(got) != "t1000\rt3000\r" {
		t.Errorf("got %q, %v, want the first and the third line", got, err)
	}
}
