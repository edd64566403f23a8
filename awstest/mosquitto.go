package awstest

import (
	"crypto/tls"
	"testing"
)

// Mosquitto is Eclipse Mosquitto as a process of its own, with mutual TLS: a second
// opinion on MQTT. Things may use their own $aws topics and everything outside $aws.
type Mosquitto struct {
}

// StartMosquitto starts the program mosquitto (Debian: mosquitto) on a free port,
// and ends it with the test. Without the program the test is skipped; see otatest.Tool.
func StartMosquitto(t testing.TB, ca *CA) *Mosquitto { t.Helper(); return &Mosquitto{} }

// Addr is host:port.
func (m *Mosquitto) Addr() string { return "" }

// TLS is a client's configuration for a thing.
func (m *Mosquitto) TLS(thing string) *tls.Config { return nil }

// Kill ends the process at once (SIGKILL): sessions are lost.
func (m *Mosquitto) Kill() {}

// Start starts it again after Kill, on the same port.
func (m *Mosquitto) Start() {}

// Restart is Kill and Start.
func (m *Mosquitto) Restart() {}

// ServeClient puts services behind any broker: it connects as an ordinary client,
// subscribes to their requests and publishes their answers, over again whenever
// the connection is lost, until the test ends. On return it is connected. The
// client's certificate must allow all $aws topics; on [Mosquitto] that is the
// thing [ServiceName].
func ServeClient(t testing.TB, addr string, config *tls.Config, services ...Service) { t.Helper() }

// ServiceName is the thing that may read and write everything on [Mosquitto].
const ServiceName = "awstest-services"
