package overcan_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/otatest"
	source "github.com/interlock-energy/ota/source/can"
)

// realDevice is a device with the real source, in real time, at a link.
func realDevice(t *testing.T, release *otatest.SignedRelease, link source.Link) *inbox.Inbox {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	box, err := inbox.Open(inbox.Config{Dir: t.TempDir(), Verify: release.Verify, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	_, public := signing()
	src, err := source.New(source.Config{Link: link, Testers: testers(t, public), StateDir: t.TempDir(), Inbox: box, STmin: -1, Share: 100, BlockSize: 255, MaxBlock: 1000,
		State: func() api.CheckinRequest {
			return api.CheckinRequest{Head: api.Head{Device: "bess-7", Product: "bess", Version: "1.0.0"}}
		}, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = src.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		box.Close()
	})
	return box
}

// send brings the file in over a line, and calls cut once half of it is there.
func send(t *testing.T, file *push.File, to string, cut func()) (troubles int) {
	t.Helper()
	key, _ := signing()
	d, err := overcan.New(overcan.Config{Line: overcan.Line{To: to, Share: 100}, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	once := sync.OnceFunc(cut)
	err = d.Send(t.Context(), file, push.Tell{
		Progress: func(done int64) {
			if done > file.Size/2 {
				once()
			}
		},
		Trouble: func(err error) {
			if err != nil {
				troubles++
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	return troubles
}

// converter is a fake of one from CAN to TCP: what a client sends goes to all others.
type converter struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newConverter(t *testing.T) *converter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &converter{Listener: l, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); c.cut() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	return c
}

func (c *converter) serve(conn net.Conn) {
	c.mu.Lock()
	c.conns[conn] = true
	c.mu.Unlock()
	frame := make([]byte, 13)
	for {
		if _, err := io.ReadFull(conn, frame); err != nil {
			break
		}
		c.mu.Lock()
		for other := range c.conns {
			if other != conn {
				_, _ = other.Write(frame)
			}
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	delete(c.conns, conn)
	c.mu.Unlock()
	conn.Close()
}

// cut breaks all connections.
func (c *converter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		conn.Close()
	}
}

// Over a TCP converter, whose connections break half-way.
func TestTCP(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	file := bundleFile(t, release)
	c := newConverter(t)
	box := realDevice(t, release, source.Link{TCP: c.Addr().String()})
	began := time.Now()
	troubles := send(t, file, "tcp13://"+c.Addr().String(), c.cut)
	t.Logf("%v, trouble told %d times", time.Since(began), troubles)
	if b := box.State(); b.Phase != inbox.Verified {
		t.Errorf("the inbox is %s, want %s", b.Phase, inbox.Verified)
	}
	if troubles == 0 {
		t.Error("the connections broke, and nobody was told")
	}
}

// A serial adapter is unplugged half-way, and plugged in again.
func TestUnplugged(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	file := bundleFile(t, release)
	b := bustest.NewCAN(bustest.CANConfig{Bitrate: 1_000_000}) // in real time
	defer b.Close()
	box := realDevice(t, release, source.Link{Open: func(context.Context) (can.Bus, error) { return b.Join("device"), nil }})
	port := filepath.Join(t.TempDir(), "adapter")
	plug := func(device io.ReadWriteCloser, path string) (unplug func()) {
		adapter, node := can.NewAdapter(device, can.AdapterConfig{}), b.Join("adapter")
		for _, way := range [][2]can.Bus{{adapter, node}, {node, adapter}} {
			go func() {
				for {
					f, err := way[0].Receive(context.Background())
					if err != nil {
						return
					}
					_ = way[1].Send(context.Background(), f)
				}
			}()
		}
		_ = os.Remove(port)
		if err := os.Symlink(path, port); err != nil {
			t.Error(err)
		}
		return func() {
			adapter.Close()
			node.Close()
			_ = os.Remove(port)
		}
	}
	first, firstPath := bustest.PTY(t)
	second, secondPath := bustest.PTY(t)
	unplug := plug(first, firstPath)
	troubles := send(t, file, "slcan:"+port, func() {
		unplug()
		time.AfterFunc(time.Second, func() { plug(second, secondPath) })
	})
	if st := box.State(); st.Phase != inbox.Verified {
		t.Errorf("the inbox is %s, want %s", st.Phase, inbox.Verified)
	}
	if troubles == 0 {
		t.Error("the adapter was unplugged, and nobody was told")
	}
}
