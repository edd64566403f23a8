//go:build linux && vm

package vm

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/internal/vm/canguest"
)

// TestCAN runs the tests of package canguest in a virtual machine with Linux's CAN, and
// is the adapter at its second serial port. CANGUEST has further arguments for them,
// such as "-test.run Battery".
func TestCAN(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := append([]string{dir}, strings.Fields(os.Getenv("CANGUEST"))...)
	if err := run(exec.CommandContext(t.Context(), "canguest/build", build...)); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "ttyS1")
	m, err := Start(GRUB, "none", 0, t.Output(), "-no-reboot", "-kernel", filepath.Join(dir, "kernel"), "-initrd", filepath.Join(dir, "initramfs"),
		"-append", "console=ttyS0 quiet panic=-1 no_timer_check tsc=unstable random.trust_cpu=on",
		"-chardev", "socket,id=can,server=on,wait=on,path="+socket, "-serial", "chardev:can")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	line, err := dialUnix(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	end := newOtherEnd(ctx, line)
	groups, err := m.Wait(ctx, `^guest: exit (\d+)$`)
	if err != nil {
		t.Fatal(err)
	}
	end.close(t)
	if groups[1] != "0" {
		t.Errorf("the tests in the guest ended with %s", groups[1])
	}
	if passed, began := m.Count(`^--- PASS: Test`), m.Count(`^=== RUN +Test[^/]*$`); passed != began || passed == 0 {
		t.Errorf("%d of %d tests passed in the guest", passed, began)
	}
	if skipped := m.Count(`--- SKIP: `) + m.Count(`^guest: no module`); skipped > 0 {
		t.Errorf("%d tests were skipped in the guest, or modules are missing", skipped)
	}
}

// dialUnix connects to QEMU, once it listens.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// otherEnd is an adapter with a battery behind it, and a device; see package canguest.
type otherEnd struct {
	adapter *can.Adapter
	device  chan can.Frame // what comes for it
	done    sync.WaitGroup

	mu        sync.Mutex
	frames    []can.Frame // what the battery says in a cycle
	keepalive int         // frames that came for it
	pdus      int         // that the device has sent back
	broken    []string    // what was wrong with others
	failed    []string
}

func newOtherEnd(ctx context.Context, line net.Conn) *otherEnd {
	o := &otherEnd{adapter: can.NewAdapter(line, can.AdapterConfig{}), device: make(chan can.Frame, 1000)}
	ctx, cancel := context.WithCancel(ctx)
	mux := isotp.NewMux(deviceBus{o})
	o.done.Go(func() {
		defer mux.Close()
		if err := o.sendBack(ctx, mux); err != nil && ctx.Err() == nil {
			o.fail(err)
		}
	})
	o.done.Go(func() {
		defer cancel()
		for {
			f, err := o.adapter.Receive(ctx)
			if err != nil {
				return
			}
			if err := o.heard(ctx, f); err != nil {
				o.fail(err)
			}
		}
	})
	o.done.Go(func() { o.broadcast(ctx) })
	return o
}

func (o *otherEnd) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = append(o.failed, err.Error())
}

func (o *otherEnd) heard(ctx context.Context, f can.Frame) error {
	if !f.Extended && f.ID == canguest.Tester {
		select {
		case o.device <- f:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if !f.Extended || f.ID != canguest.Wanted {
		if f == can.Standard(0x305, 0, 0, 0, 0, 0, 0, 0, 0) {
			o.mu.Lock()
			o.keepalive++
			o.mu.Unlock()
		}
		return o.adapter.Send(ctx, canguest.Echo(f))
	}
	switch rest := f.Data[1:f.Len]; f.Data[0] {
	case canguest.State:
		return o.adapter.Say(ctx, "s"+string(rest)+"\r")
	case canguest.Battery:
		name := broadcast.Names()[rest[0]]
		profile, err := broadcast.Named(name)
		if err != nil {
			return err
		}
		frames, err := profile.Encode(canguest.Says(name), broadcast.Options{})
		o.mu.Lock()
		o.frames = frames
		o.mu.Unlock()
		return err
	default:
		o.mu.Lock()
		o.frames = nil
		o.mu.Unlock()
		return nil
	}
}

// deviceBus is the part of the bus that the device listens to.
type deviceBus struct{ *otherEnd }

func (b deviceBus) Receive(ctx context.Context) (can.Frame, error) {
	select {
	case f := <-b.device:
		return f, nil
	case <-ctx.Done():
		return can.Frame{}, ctx.Err()
	}
}

func (b deviceBus) Send(ctx context.Context, f can.Frame) error { return b.adapter.Send(ctx, f) }

func (b deviceBus) Close() error { return nil }

// sendBack is the device.
func (o *otherEnd) sendBack(ctx context.Context, mux *isotp.Mux) error {
	conn, err := mux.Open(isotp.Normal(canguest.Device, canguest.Tester), canguest.Patient(isotp.Config{MaxPDU: canguest.Most}))
	if err != nil {
		return err
	}
	for {
		pdu, err := conn.Receive(ctx)
		if err == nil {
			err = conn.Send(ctx, pdu)
		}
		if errors.Is(err, can.ErrClosed) || ctx.Err() != nil {
			return err
		}
		o.mu.Lock()
		if err == nil {
			o.pdus++
		} else {
			o.broken = append(o.broken, err.Error()) // the guest tries again
		}
		o.mu.Unlock()
	}
}

// broadcast is faster than a battery's second, for the test's sake.
func (o *otherEnd) broadcast(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		o.mu.Lock()
		frames := o.frames
		o.mu.Unlock()
		for _, f := range frames {
			if err := o.adapter.Send(ctx, f); err != nil {
				return // the guest is off
			}
		}
	}
}

// close says what the guest did wrong, as seen from here.
func (o *otherEnd) close(t *testing.T) {
	t.Helper()
	rate, open := o.adapter.Bitrate()
	if rate != 500_000 || open {
		t.Errorf("the guest left the adapter at %d bit/s, open %v, want 500000, closed", rate, open)
	}
	stats := o.adapter.Stats()
	o.adapter.Close()
	o.done.Wait()
	t.Logf("adapter: %+v, %d keep-alives, %d PDUs sent back; broken %q", stats, o.keepalive, o.pdus, o.broken)
	if len(o.failed) > 0 {
		t.Errorf("the adapter: %s", strings.Join(o.failed, "; "))
	}
	if o.keepalive == 0 {
		t.Error("the battery heard no keep-alive")
	}
	if stats.Garbage > 0 || stats.Lost > 0 {
		t.Errorf("the adapter: %+v, want nothing lost and no garbage", stats)
	}
}
