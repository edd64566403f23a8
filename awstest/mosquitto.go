package awstest

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/otatest"
)

// ServiceName is the thing that may read and write everything on [Mosquitto].
const ServiceName = "awstest-services"

// Mosquitto is Eclipse Mosquitto as a process of its own, with mutual TLS: a second
// opinion on MQTT. Things may use their own $aws topics and everything outside $aws.
type Mosquitto struct {
	t       testing.TB
	ca      *CA
	program string
	config  string
	addr    string

	mu     sync.Mutex
	cmd    *exec.Cmd // nil: not running
	exited chan struct{}
}

// StartMosquitto starts the program mosquitto (Debian: mosquitto) on a free port,
// and ends it with the test. Without the program the test is skipped; see otatest.Tool.
func StartMosquitto(t testing.TB, ca *CA) *Mosquitto {
	t.Helper()
	m := &Mosquitto{t: t, ca: ca, program: otatest.Tool(t, "mosquitto")}
	// The program cannot be asked which port it took, so one is chosen for it.
	m.addr = otatest.FreeAddr(t)
	m.configure()
	m.Start()
	t.Cleanup(m.Kill)
	return m
}

func (m *Mosquitto) configure() {
	m.t.Helper()
	dir := m.t.TempDir()
	cert, key := m.ca.Server(m.t, "localhost", "127.0.0.1").WriteFiles(m.t, dir, "server")
	access := filepath.Join(dir, "access")
	writeFile(m.t, access, fmt.Appendf(nil, `user %s
topic readwrite #
topic readwrite $aws/#

pattern readwrite $aws/things/%%u/#
pattern readwrite #
`, ServiceName), 0o600)
	_, port, _ := net.SplitHostPort(m.addr)
	text := fmt.Sprintf(`listener %s 127.0.0.1
cafile %s
certfile %s
keyfile %s
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file %s
message_size_limit %d
max_inflight_messages 100
persistence false
log_dest stderr
`, port, m.ca.WriteFile(m.t, dir), cert, key, access, 2*maxPayload) // a block of 128 KiB in base64 is larger than the limit for devices
	if os.Getuid() == 0 {
		text += "user root\n" // or it could not read the key
	}
	m.config = filepath.Join(dir, "mosquitto.conf")
	writeFile(m.t, m.config, []byte(text), 0o600)
}

// Addr is host:port.
func (m *Mosquitto) Addr() string { return m.addr }

// TLS is a client's configuration for a thing.
func (m *Mosquitto) TLS(thing string) *tls.Config { return m.ca.ClientTLS(m.t, thing) }

// Start starts it again after Kill, on the same port. It returns when it listens.
func (m *Mosquitto) Start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return
	}
	cmd := exec.Command(m.program, "-c", m.config)
	var said lines
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		m.t.Errorf("start mosquitto: %v", err)
		return
	}
	m.cmd, m.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) { _ = cmd.Wait(); close(exited) }(m.exited)
	for {
		if c, err := net.Dial("tcp", m.addr); err == nil {
			c.Close()
			return
		}
		select {
		case <-m.exited:
			m.cmd = nil
			m.t.Errorf("start mosquitto: it ended at once and said:\n%s", said.String())
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kill ends the process at once (SIGKILL): sessions are lost.
func (m *Mosquitto) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	<-m.exited
	m.cmd = nil
}

// Restart is Kill and Start.
func (m *Mosquitto) Restart() {
	m.Kill()
	m.Start()
}

// lines keeps what a program says.
type lines struct {
	mu   sync.Mutex
	text []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
