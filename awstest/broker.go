package awstest

import (
	"crypto/tls"
	"testing"
)

// Broker is an MQTT broker on loopback that behaves like AWS IoT Core's: MQTT 3.1.1
// and 5 over mutual TLS. Safe for use by several goroutines.
type Broker struct {
}

// StartBroker starts a broker on free ports, with these services behind it. It ends
// with the test.
func StartBroker(t testing.TB, ca *CA, services ...Service) *Broker { t.Helper(); return &Broker{} }

// Addr is host:port of the MQTT port (AWS: 8883). It stays the same over a Restart.
func (b *Broker) Addr() string { return "" }

// ALPNAddr is host:port of the second port (AWS: 443), which takes only
// connections that ask for the protocol x-amzn-mqtt-ca by ALPN.
func (b *Broker) ALPNAddr() string { return "" }

// TLS is a client's configuration for a thing, for either port.
func (b *Broker) TLS(thing string) *tls.Config { return nil }

// Stop ends the broker in an orderly way; clients of MQTT 5 are told.
func (b *Broker) Stop() {}

// Kill ends the broker as a power cut does: all connections end without a word,
// nobody listens, sessions are forgotten. Start brings it back.
func (b *Broker) Kill() {}

// Start lets a stopped broker listen again, on the same ports. A running one stays.
func (b *Broker) Start() {}

// Restart is Stop and Start.
func (b *Broker) Restart() {}

// Drop cuts the connection of one client without a word, or, with "", all. The
// broker runs on and keeps the sessions.
func (b *Broker) Drop(client string) {}

// Connected says whether a client is connected now.
func (b *Broker) Connected(client string) bool { return false }

// Publish sends to subscribers as AWS, or another client, would. QoS 1.
func (b *Broker) Publish(topic string, payload []byte) {}

// Fault has every PUBLISH pass through f, in both directions; nil ends that. f is
// called by one goroutine at a time.
func (b *Broker) Fault(f func(Packet) Fate) {}

// Log is every PUBLISH that went over the broker since the start of the test, with
// its fate.
func (b *Broker) Log() []Packet { return nil }
