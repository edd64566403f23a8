package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is for slow machines, and no expectation.
const patience = 2 * time.Minute

// TestDownloadGoesOnWhereItWas: the real agent downloads from the real server
// through a wire that is cut at any byte, while agent and server are killed in
// turn. The bytes on the wire say whether anything verified was fetched again.
func TestDownloadGoesOnWhereItWas(t *testing.T) {
	const (
		size  = 8 << 20
		chunk = 64 << 10
		cuts  = 24
	)
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	command(t, ".", "go", "build", "-o", bin+"/", "../interlock", ".")
	tool := func(name string) string { return filepath.Join(bin, name) }
	image := firmware("1.0.1", size)
	write(t, dir, "firmware-1.0.0", firmware("1.0.0", 1000))
	write(t, dir, "firmware-1.0.1", image)
	command(t, dir, tool("interlock"), "keygen", "--out", "keys")
	command(t, dir, tool("interlock"), "build", "--product", "bess", "--version", "1.0.1", "--image", "controller=firmware-1.0.1",
		"--key", "keys/private.pem", "--out", "bundle")

	serverAddr := fmt.Sprintf("127.0.0.1:%d", port(t))
	w := newWire(t, serverAddr)
	server := &process{t: t, dir: dir, args: []string{tool("interlock"), "serve", "--data", "server", "--listen", serverAddr, "--public-url", "https://" + w.addr()}}
	server.start()
	defer server.kill()
	until(t, "the server's tokens", func() bool { return exists(dir, "server/device.token") && answers(serverAddr) })
	write(t, dir, "device.yaml", fmt.Appendf(nil, `
device: {id: bess-0001, product: bess}
state_dir: state
source: {kind: https, https: {url: "https://%s", cert_pem_file: server/ca.pem, token_file: server/device.token}}
keys: {files: [keys/public.pem]}
automatic_update: true
startup_delay: 50ms
check_interval: 1s
retry_delay: 100ms
stall_timeout: 10s
retries: 50
battery: {reader: none}
dwell: 0s
validation_time: 0s
slot: {kind: file, dir: slots, run: true, factory: firmware-1.0.0, stop_grace: 1s}
control: {socket: interlockd.sock}
logs: {level: warn}
`, w.addr()))
	command(t, dir, tool("interlock"), "publish", "--server", "https://"+serverAddr, "--ca", "server/ca.pem", "--token-file", "server/operator.token", "bundle")

	agent := &process{t: t, dir: dir, args: []string{tool("interlockd"), "--config", "device.yaml"}}
	agent.start()
	defer agent.kill()
	slot := filepath.Join(dir, "slots/b/controller.img")
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range cuts {
		before := length(slot)
		after := before + rng.Int64N(150_000)
		w.pauseWhen(func() bool { return length(slot) > after })
		if !w.waitPaused(patience) {
			t.Fatalf("cut %d: the slot has %d bytes and does not grow past %d", i+1, length(slot), after)
		}
		settle(slot) // what crossed the wire is on its way into the slot
		switch i % 3 {
		case 0:
			w.reset()
		case 1:
			agent.kill()
			w.reset()
			agent.start()
		case 2:
			server.kill()
			w.reset()
			server.start()
			until(t, "the server", func() bool { return answers(serverAddr) })
		}
		w.resume()
	}
	until(t, "1.0.1 in slot B", func() bool {
		out, _ := exec.Command(tool("interlock"), "device", "status", "--json", "--socket", filepath.Join(dir, "interlockd.sock")).Output()
		return bytes.Contains(out, []byte(`"running": "1.0.1"`)) && bytes.Contains(out, []byte(`"state": "idle"`))
	})
	if got, err := os.ReadFile(slot); err != nil || !bytes.Equal(got, image) {
		t.Errorf("slot B has %d bytes, %v, want the image's %d", len(got), err, len(image))
	}
	sent, most := w.sent(), int64(size+cuts*chunk) // with TLS, check-ins and manifests
	t.Logf("%d bytes of image, %d cuts, %d bytes on the wire from the server (%.1f KiB a cut)", size, cuts, sent, float64(sent-size)/cuts/1024)
	if sent > most {
		t.Errorf("%d bytes on the wire, want at most %d", sent, most)
	}
	if sent < size {
		t.Errorf("%d bytes on the wire: the download did not come this way", sent)
	}
}

// firmware is a shell script of size bytes that says its version and stays.
func firmware(version string, size int) []byte {
	b := fmt.Appendf(nil, "#!/bin/sh\necho interlock-firmware %s\nwhile read -r x; do :; done\nexit 0\n", version)
	rng := rand.NewChaCha8([32]byte{1})
	fill := make([]byte, max(size-len(b), 0)/2)
	rng.Read(fill)
	return fmt.Appendf(b, "# %x\n", fill)
}

// wire is a TCP proxy that can stop, count and cut.
type wire struct {
	l  net.Listener
	to string

	mu     sync.Mutex
	cond   *sync.Cond
	when   func() bool // pause as soon as this holds
	paused bool
	bytes  int64
	conns  map[net.Conn]bool
}

func newWire(t *testing.T, to string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l, to: to, conns: map[net.Conn]bool{}}
	w.cond = sync.NewCond(&w.mu)
	t.Cleanup(func() { l.Close(); w.reset(); w.resume() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(c)
		}
	}()
	return w
}

func (w *wire) addr() string { return w.l.Addr().String() }

func (w *wire) carry(down net.Conn) {
	up, err := net.Dial("tcp", w.to)
	if err != nil {
		down.Close()
		return
	}
	if tc, ok := down.(*net.TCPConn); ok {
		tc.SetWriteBuffer(16 << 10)
	}
	w.mu.Lock()
	w.conns[down], w.conns[up] = true, true
	w.mu.Unlock()
	go func() { io.Copy(up, down); up.Close() }()
	buf := make([]byte, 8<<10)
	for {
		n, err := up.Read(buf)
		w.mu.Lock()
		for w.paused || w.when != nil && w.when() {
			if !w.paused {
				w.paused = true
				w.cond.Broadcast()
			}
			if !w.conns[down] {
				break
			}
			w.cond.Wait()
		}
		alive := w.conns[down]
		if alive {
			w.bytes += int64(n)
		}
		w.mu.Unlock()
		if !alive {
			break
		}
		if _, werr := down.Write(buf[:n]); err != nil || werr != nil {
			break
		}
		time.Sleep(2 * time.Millisecond) // 4 MB/s: what is under way stays little
	}
	down.Close()
	up.Close()
	w.mu.Lock()
	delete(w.conns, down)
	delete(w.conns, up)
	w.mu.Unlock()
}

func (w *wire) pauseWhen(f func() bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.when = f
}

func (w *wire) waitPaused(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		paused := w.paused
		w.mu.Unlock()
		if paused {
			return true
		}
	}
	return false
}

// reset cuts all connections, so that unread bytes are lost on both sides.
func (w *wire) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		c.Close()
		delete(w.conns, c)
	}
	w.cond.Broadcast()
}

func (w *wire) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused, w.when = false, nil
	w.cond.Broadcast()
}

func (w *wire) sent() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// process is a program that is killed and started again.
type process struct {
	t    *testing.T
	dir  string
	args []string
	cmd  *exec.Cmd
}

func (p *process) start() {
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Dir = p.dir
	log, err := os.OpenFile(filepath.Join(p.dir, filepath.Base(p.args[0])+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill is SIGKILL: nothing is finished, nothing is tidied up.
func (p *process) kill() {
	p.cmd.Process.Signal(syscall.SIGKILL)
	p.cmd.Wait()
	if p.t.Failed() {
		b, _ := os.ReadFile(filepath.Join(p.dir, filepath.Base(p.args[0])+".log"))
		p.t.Logf("%s:\n%s", p.args[0], b[max(0, len(b)-4000):])
	}
}

func command(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}

func settle(file string) {
	for last := int64(-1); ; time.Sleep(100 * time.Millisecond) {
		n := length(file)
		if n == last {
			return
		}
		last = n
	}
}

func length(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

func answers(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		c.Close()
	}
	return err == nil
}

func port(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
