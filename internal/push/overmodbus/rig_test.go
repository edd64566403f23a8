package overmodbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overmodbus"
	"github.com/interlock-energy/ota/otatest"
	sourcemodbus "github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// rig is a device with the real source and inbox on a disk in memory, a line to it with
// faults and a tap, and nobody who pushes yet. It lives in a bubble of synctest.
type rig struct {
	t       *testing.T
	release *otatest.SignedRelease
	disk    durable.FS
	change  []func(*sourcemodbus.Config)

	serial int  // baud; 0: TCP
	exact  bool // a serial line hands over each byte as it comes, which takes long to compute
	poor   bool // what is between knows functions 3 and 16 only
	full   bool // and takes no blocks, for it is busy for ever
	delay  time.Duration
	faults bustest.Faults
	tap    bustest.Tap

	front *bustest.Network // where the master connects
	proxy *bustest.Proxy
	wire  *bustest.Wire // the master's half of a serial line
	far   *bustest.Wire // the device's half, behind the faults
	unrig []func()

	mu   sync.Mutex
	back *bustest.Network // where the device listens; nil: it is away
	box  *inbox.Inbox
	stop func()
	from byte // last number of the address that masters come from
	head api.CheckinRequest
}

// file makes a bundle and opens it. It is done outside of the bubble.
func file(t *testing.T, size int) (*otatest.SignedRelease, *push.File) {
	t.Helper()
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", size)
	name := filepath.Join(t.TempDir(), "new.bundle")
	if err := os.WriteFile(name, r.Bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := push.Open(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return r, f
}

// newRig makes a device that takes the release.
func newRig(t *testing.T, r *otatest.SignedRelease, set func(*rig)) *rig {
	t.Helper()
	g := &rig{t: t, release: r, disk: otatest.NewDisk()}
	g.head.Head = api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0"}
	if set != nil {
		set(g)
	}
	if g.serial == 0 {
		g.front = bustest.NewNetwork(g.delay)
		g.proxy = bustest.NewProxy(g.front, g.dialDevice, bustest.ProxyConfig{Faults: g.faults, Tap: &g.tap})
	} else {
		burst, latency := 62, time.Millisecond // as a USB adapter hands bytes over, with a short latency
		if g.exact {
			burst, latency = 1, 0
		}
		g.wire = bustest.NewWire(bustest.WireConfig{Baud: g.serial, Burst: burst, Latency: latency})
		g.far = bustest.NewWire(bustest.WireConfig{Baud: 1 << 26, Burst: burst, Latency: latency}) // no time is spent behind the relay
		stop := bustest.Relay(g.wire.Join("slave"), g.far.Join("master"), bustest.RelayConfig{Cut: bustest.RTU, Faults: g.faults, Tap: &g.tap})
		g.unrig = append(g.unrig, stop)
	}
	g.start()
	return g
}

// end takes everything down, so that the bubble can end.
func (g *rig) end() {
	g.halt()
	if g.proxy != nil {
		g.proxy.Close()
	}
	for _, f := range g.unrig {
		f()
	}
	synctest.Wait()
}

// start is the beginning of the agent's process.
func (g *rig) start() {
	quiet := slog.New(slog.DiscardHandler)
	box, err := inbox.Open(inbox.Config{FS: g.disk, Dir: "/var/inbox", Verify: g.release.Verify, Log: quiet})
	if err != nil {
		g.t.Error(err)
		return
	}
	back := bustest.NewNetwork(0)
	c := sourcemodbus.Config{Inbox: box, State: g.state, Log: quiet}
	if g.serial == 0 {
		c.Listen, c.AllowPlain, c.Allow = "device:502", true, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		c.NetListen = func(context.Context, string) (net.Listener, error) { return addressed{back, g}, nil }
	} else {
		c.Lines = []sourcemodbus.Line{{}}
		c.Lines[0].Path, c.Lines[0].Baud = "/dev/ttyS0", g.serial
		c.OpenLine = func(sourcemodbus.Line) (io.ReadWriteCloser, error) { return g.far.Join("device"), nil }
	}
	for _, f := range g.change {
		f(&c)
	}
	source, err := sourcemodbus.New(c)
	if err != nil {
		g.t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := source.Run(ctx); err != nil {
			g.t.Error(err)
		}
	}()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.back, g.box = back, box
	g.stop = func() {
		cancel()
		<-done
		box.Close()
	}
}

// halt is the end of the agent's process.
func (g *rig) halt() {
	g.mu.Lock()
	stop := g.stop
	g.back, g.stop = nil, nil
	g.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// restart takes the agent away for a while.
func (g *rig) restart(away time.Duration) {
	g.halt()
	<-time.After(away)
	g.start()
}

func (g *rig) inbox() *inbox.Inbox {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.box
}

func (g *rig) state() api.CheckinRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.head
}

func (g *rig) dialDevice(ctx context.Context) (net.Conn, error) {
	g.mu.Lock()
	back := g.back
	g.mu.Unlock()
	if back == nil {
		return nil, errors.New("connection refused")
	}
	if g.poor {
		return g.gateway(back), nil
	}
	return back.Dial(ctx)
}

// gateway is a connection to a gateway that knows functions 3 and 16 only, and says so in
// the device's name. It ends with the connection.
func (g *rig) gateway(back *bustest.Network) net.Conn {
	ours, theirs := bustest.Distance(0)
	listener := &single{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	listener.conn <- theirs
	client := modbus.NewTCP(nil, modbus.Config{Retries: -1, Redial: func(ctx context.Context) (io.ReadWriteCloser, error) { return back.Dial(ctx) }})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer client.Close()
		(&modbus.Server{Handler: poor{client, g.full}}).Serve(ctx, listener)
	}()
	return closes{ours, cancel}
}

type closes struct {
	net.Conn
	cancel func()
}

func (c closes) Close() error { c.cancel(); return c.Conn.Close() }

// single is a listener for one connection.
type single struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func (s *single) Accept() (net.Conn, error) {
	select {
	case c := <-s.conn:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}
func (s *single) Close() error   { s.once.Do(func() { close(s.done) }); return nil }
func (s *single) Addr() net.Addr { return &net.TCPAddr{} }

// poor is a gateway's handler.
type poor struct {
	client *modbus.Client
	full   bool
}

func (p poor) ReadHolding(ctx context.Context, call modbus.Call, address uint16, dst []uint16) error {
	if err := p.client.ReadHoldingInto(ctx, call.Unit, address, dst); err != nil {
		return err
	}
	if caps := profile.Base + profile.OffsetIdentity + 3; int(address) <= caps && int(address)+len(dst) > caps {
		dst[caps-int(address)] &^= uint16(profile.CapReadBack | profile.CapFiles)
	}
	return nil
}

func (p poor) WriteHolding(ctx context.Context, call modbus.Call, address uint16, values []uint16) error {
	if p.full && address == profile.Base+profile.OffsetData {
		return modbus.DeviceBusy
	}
	return p.client.WriteRegisters(ctx, call.Unit, address, values)
}

// addressed gives connections in memory the address of a master that may write.
type addressed struct {
	*bustest.Network
	rig *rig
}

func (a addressed) Accept() (net.Conn, error) {
	c, err := a.Network.Accept()
	if err != nil {
		return nil, err
	}
	a.rig.mu.Lock()
	defer a.rig.mu.Unlock()
	return fromMaster{c, &net.TCPAddr{IP: net.IPv4(192, 0, 2, a.rig.from), Port: 40000}}, nil
}

type fromMaster struct {
	net.Conn
	addr net.Addr
}

func (c fromMaster) RemoteAddr() net.Addr { return c.addr }

// master is a new process that pushes.
func (g *rig) master(window int) *overmodbus.Device {
	c := modbus.Config{Window: window, Timeout: time.Second}
	var client *modbus.Client
	if g.serial == 0 {
		c.Redial = func(ctx context.Context) (io.ReadWriteCloser, error) { return g.front.Dial(ctx) }
		client = modbus.NewTCP(nil, c)
	} else {
		c.Baud, window = g.serial, 1
		c.Redial = func(context.Context) (io.ReadWriteCloser, error) { return g.wire.Join("master"), nil }
		client = modbus.NewRTU(nil, c)
	}
	d, err := overmodbus.New(overmodbus.Config{Client: client, Window: window, Line: "a test", Rate: overmodbus.RTURate(g.serial, 11)})
	if err != nil {
		g.t.Fatal(err)
	}
	return d
}

// send is one life of a process that pushes the file until the device has verified it.
func (g *rig) send(ctx context.Context, f *push.File, window int) error {
	d := g.master(window)
	defer d.Close()
	return push.Run(ctx, d, f, push.Options{StageOnly: true})
}

// persist sends with the patience of a person who starts the program again if the first
// question gets lost.
func (g *rig) persist(f *push.File, window int) error {
	for range 20 {
		err := g.send(g.t.Context(), f, window)
		if !errors.Is(err, push.ErrLine) {
			return err
		}
		<-time.After(time.Second)
	}
	return errors.New("the device cannot be reached")
}

// whole checks that the device has the file, verified, and that nothing was sent twice
// that had been acknowledged.
func (g *rig) whole(f *push.File) {
	g.t.Helper()
	box := g.inbox()
	st := box.State()
	if st.Phase != inbox.Verified || st.Received != f.Size {
		g.t.Errorf("got the inbox %s with %d bytes, want %s with %d", st.Phase, st.Received, inbox.Verified, f.Size)
	}
	got := make([]byte, f.Size)
	if _, err := box.ReadAt(got, 0); err != nil && err != io.EOF {
		g.t.Error(err)
	}
	if !bytes.Equal(got, g.release.Bundle) {
		g.t.Error("got other bytes than were sent")
	}
	if again := bustest.AgainModbus(g.tap.Records(), g.serial == 0, blockOf); len(again) > 0 {
		g.t.Errorf("sent again although acknowledged: %v", again)
		for _, r := range g.tap.Records() {
			g.t.Logf("%s conn %d %.80s", r.At.Format("05.000"), r.Conn, r)
		}
	}
}

// blockOf names the block that a request writes.
func blockOf(pdu []byte) (string, bool) {
	r, err := modbus.ParseRequest(pdu)
	if err != nil || r.Function != modbus.WriteRegisters || r.Address != profile.Base+profile.OffsetData {
		return "", false
	}
	return fmt.Sprintf("block %d", int(r.Data[2])<<24|int(r.Data[3])<<16|int(r.Data[4])<<8|int(r.Data[5])), true
}

// commands are those that were given on a serial line, by number; what was damaged on the
// way counts as it was sent.
func (g *rig) commands() map[uint16]profile.Code {
	all := map[uint16]profile.Code{}
	for _, r := range g.tap.Records() {
		if r.From != bustest.Master || len(r.Data) < 9+2*profile.CommandSize {
			continue
		}
		q, err := modbus.ParseRequest(r.Data[1 : len(r.Data)-2])
		if err != nil || q.Address != profile.Base+profile.OffsetCommand {
			continue
		}
		registers := make([]uint16, profile.CommandSize)
		modbus.Registers(registers, q.Data)
		all[registers[1]] = profile.Code(registers[0])
	}
	return all
}

// sent is how many blocks were written, and how many requests there were in all.
func (g *rig) sent() (blocks, requests int) {
	for _, r := range g.tap.Records() {
		if r.From != bustest.Master {
			continue
		}
		requests++
		pdu := r.Data
		if g.serial == 0 {
			pdu = pdu[7:]
		} else {
			pdu = pdu[1 : len(pdu)-2]
		}
		if _, ok := blockOf(pdu); ok {
			blocks++
		}
	}
	return blocks, requests
}

// bubble runs a test in simulated time.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}
