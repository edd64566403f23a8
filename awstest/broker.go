package awstest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// alpn is the protocol's name on port 443 (AWS IoT Core developer guide, "Device
// communication protocols").
const alpn = "x-amzn-mqtt-ca"

// Broker is an MQTT broker on loopback that behaves like AWS IoT Core's: MQTT 3.1.1
// and 5 over mutual TLS. The client id must be the common name of the certificate, and a client
// may use the $aws topics of the thing of that name only, and everything outside
// $aws. Safe for use by several goroutines.
type Broker struct {
	ca       *CA
	tls, top *tls.Config // of the two ports
	clients  func(thing string) *tls.Config
	fatal    func(format string, args ...any)
	services []Service
	box      *outbox

	mu    sync.Mutex
	addrs [2]string     // "": not chosen yet
	now   *run          // nil: down
	down  chan struct{} // closed when the last run has ended

	tapMu sync.Mutex // apart from mu: the wire asks while others start and stop
	fault func(Packet) Fate
	log   []Packet
}

// run is the broker from a Start to the end.
type run struct {
	server    *mqtt.Server
	open      []net.Listener
	accepting sync.WaitGroup // the ports
	wires     map[*wire]bool // guarded by the broker's mu
	down      chan struct{}
}

// StartBroker starts a broker on free ports, with these services behind it. It ends
// with the test.
func StartBroker(t testing.TB, ca *CA, services ...Service) *Broker {
	t.Helper()
	b := &Broker{
		ca: ca, tls: ca.serverTLS(t), fatal: t.Errorf, services: services,
		clients: func(thing string) *tls.Config { return ca.ClientTLS(t, thing) },
		down:    make(chan struct{}),
	}
	close(b.down)
	b.top = b.tls.Clone()
	b.top.NextProtos = []string{alpn}
	b.top.VerifyConnection = func(s tls.ConnectionState) error {
		if s.NegotiatedProtocol != alpn {
			return fmt.Errorf("this port is for %s by ALPN, and the client asked for nothing", alpn)
		}
		return nil
	}
	b.box = newOutbox(b.deliver)
	for _, s := range services {
		s.Attach(b.box.post)
	}
	b.Start()
	if b.Addr() == "" {
		t.FailNow() // Start has said why
	}
	t.Cleanup(func() {
		b.Stop()
		b.box.close()
	})
	return b
}

// Addr is host:port of the MQTT port (AWS: 8883). It stays the same over a Restart.
func (b *Broker) Addr() string { return b.addr(0) }

// ALPNAddr is host:port of the second port (AWS: 443), which takes only
// connections that ask for the protocol x-amzn-mqtt-ca by ALPN.
func (b *Broker) ALPNAddr() string { return b.addr(1) }

func (b *Broker) addr(i int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addrs[i]
}

// TLS is a client's configuration for a thing, for the port of Addr; for ALPNAddr
// add NextProtos.
func (b *Broker) TLS(thing string) *tls.Config { return b.clients(thing) }

// Start lets a stopped broker listen again, on the same ports. A running one stays.
func (b *Broker) Start() {
	<-b.ended()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != nil {
		return
	}
	if err := b.start(); err != nil {
		b.fatal("start the test's broker: %v", err)
	}
}

// ended is closed if the broker runs, or as soon as it has let go of its ports.
func (b *Broker) ended() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil {
		return b.down
	}
	running := make(chan struct{})
	close(running)
	return running
}

func (b *Broker) start() error {
	r := &run{wires: map[*wire]bool{}, down: make(chan struct{})}
	r.server = mqtt.New(&mqtt.Options{
		Capabilities:           capabilities(),
		Logger:                 slog.New(slog.DiscardHandler),
		SysTopicResendInterval: 86400, // its own statistics are of no use here
	})
	if err := r.server.AddHook(&hook{broker: b, server: r.server}, nil); err != nil {
		return err
	}
	for i, config := range []*tls.Config{b.tls, b.top} {
		l, err := listenAgain(b.addrs[i])
		if err != nil {
			for _, l := range r.open {
				l.Close()
			}
			return err
		}
		b.addrs[i] = l.Addr().String()
		if err := r.listen(b, fmt.Sprint("port", i), tls.NewListener(l, config)); err != nil {
			return err
		}
	}
	b.now, b.down = r, r.down
	return r.server.Serve()
}

func (b *Broker) add(r *run, w *wire) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != r {
		return false
	}
	r.wires[w] = true
	go func() {
		<-w.gone
		b.mu.Lock()
		delete(r.wires, w)
		b.mu.Unlock()
	}()
	return true
}

// Stop ends the broker in an orderly way; clients of MQTT 5 are told.
func (b *Broker) Stop() {
	b.mu.Lock()
	r := b.now
	b.now = nil
	b.mu.Unlock()
	if r != nil {
		b.finish(r)
	}
	<-b.Down()
}

// finish closes what is no longer the broker.
func (b *Broker) finish(r *run) {
	for _, l := range r.open {
		l.Close()
	}
	r.accepting.Wait()
	for _, cl := range r.server.Clients.GetAll() {
		if !cl.Closed() && cl.Properties.ProtocolVersion == 5 {
			_ = r.server.DisconnectClient(cl, packets.ErrServerShuttingDown)
		}
	}
	b.mu.Lock()
	left := slices.Collect(maps.Keys(r.wires))
	b.mu.Unlock()
	for _, w := range left { // also those that have not become clients yet
		w.Close()
	}
	_ = r.server.Close()
	close(r.down)
}

// Kill ends the broker as a power cut does: all connections end without a word,
// nobody listens, sessions are forgotten. Start brings it back.
func (b *Broker) Kill() {
	b.killed()
	<-b.Down()
}

// killed is the part of Kill that does not wait, so that a connection may ask for
// it while the broker works for it. Nothing passes the wire afterwards.
func (b *Broker) killed() {
	b.mu.Lock()
	r := b.now
	b.now = nil
	if r != nil {
		for w := range r.wires {
			w.mute.Store(true)
			w.Close()
		}
	}
	b.mu.Unlock()
	if r != nil {
		go b.finish(r)
	}
}

// Down is closed as soon as the broker is down: after Stop, Kill, or a fault that
// killed it. Ask again after Start.
func (b *Broker) Down() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.down
}

// Restart is Stop and Start.
func (b *Broker) Restart() {
	b.Stop()
	b.Start()
}

// Drop cuts the connection of one client without a word, or, with "", all. The
// broker runs on and keeps the sessions.
func (b *Broker) Drop(client string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil {
		return
	}
	for w := range b.now.wires {
		if who, _ := w.who.Load().(string); client == "" || who == client {
			w.mute.Store(true)
			w.Close()
		}
	}
}

// Connected says whether a client is connected now.
func (b *Broker) Connected(client string) bool {
	server := b.running()
	if server == nil {
		return false
	}
	cl, ok := server.Clients.Get(client)
	return ok && !cl.Closed()
}

func (b *Broker) running() *mqtt.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil {
		return nil
	}
	return b.now.server
}

// Publish sends to subscribers as AWS, or another client, would. QoS 1. It is
// delivered soon after, in the order of the calls.
func (b *Broker) Publish(topic string, payload []byte) {
	b.box.post(Message{Topic: topic, Payload: slices.Clone(payload)})
}

// Fault has every PUBLISH pass through f, in both directions; nil ends that. f is
// called by one goroutine at a time, and must not call the broker.
func (b *Broker) Fault(f func(Packet) Fate) {
	b.tapMu.Lock()
	defer b.tapMu.Unlock()
	b.fault = f
}

// Log is every PUBLISH that went over the broker since the start of the test, with
// its fate. It keeps the payloads, so they are not to be written to.
func (b *Broker) Log() []Packet {
	b.tapMu.Lock()
	defer b.tapMu.Unlock()
	return slices.Clone(b.log)
}

func (b *Broker) fate(p Packet) Fate {
	b.tapMu.Lock()
	defer b.tapMu.Unlock()
	p.N = len(b.log) + 1
	if b.fault != nil {
		p.Fate = b.fault(p)
	}
	b.log = append(b.log, p)
	return p.Fate
}

var errNotOurs = errors.New("not a connection of the test's broker")

// commonName is that of a connection's certificate, which the handshake has verified.
func commonName(c net.Conn) (string, error) {
	w, ok := c.(*wire)
	if !ok {
		return "", errNotOurs
	}
	secured, ok := w.Conn.(*tls.Conn)
	if !ok {
		return "", errNotOurs
	}
	certs := secured.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return "", errors.New("no certificate")
	}
	return certs[0].Subject.CommonName, nil
}
