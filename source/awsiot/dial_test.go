package awsiot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/source/awsiot"
)

// What is wrong between device and broker is said so that it can be mended.
func TestRefusedConnections(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(r *rig, c *awsiot.Config)
		code   ota.ErrorCode
		says   string
	}{
		{"the broker's CA is another", func(r *rig, c *awsiot.Config) { c.CACert = awstest.NewCA(t).PEM() }, ota.ErrAuthentication, "not signed by the configured CA"},
		{"the device's CA is another", func(r *rig, c *awsiot.Config) {
			cert := awstest.NewCA(t).Thing(t, thing)
			c.ClientCert, c.ClientKey = cert.Cert, cert.Key
		}, ota.ErrAuthentication, "does not accept the client certificate"},
		{"certificate of another thing", func(r *rig, c *awsiot.Config) {
			cert := r.ca.Thing(t, "controller-8")
			c.ClientCert, c.ClientKey = cert.Cert, cert.Key
		}, 0, `let the client id "controller-7" connect`},
		{"clock before the certificate", func(r *rig, c *awsiot.Config) {
			c.Now = func() time.Time { return time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC) }
		}, ota.ErrAuthentication, "the clock says 1970-01-01"},
		{"name", func(r *rig, c *awsiot.Config) {
			c.Dial = dialTo(c.Endpoint)
			c.Endpoint = "other.example"
		}, ota.ErrAuthentication, "is for another name"},
		{"nobody there", func(r *rig, c *awsiot.Config) { r.broker.Kill() }, ota.ErrConnectivity, "refused"},
		{"foreign topics", func(r *rig, c *awsiot.Config) { c.JobsPrefix = "$aws/things/controller-8/jobs" }, 0, "does the policy of its certificate allow"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config(running)
			tt.change(r, &cfg)
			s, _ := start(t, cfg)
			_, err := s.Latest(t.Context())
			code := ota.CodeOf(err)
			if tt.code != 0 && code != tt.code || code != ota.ErrAuthentication && code != ota.ErrConnectivity || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("got %s and %v, want %s and %q", code.Name(), err, tt.code.Name(), tt.says)
			}
		})
	}
}

// On the port of HTTPS the device says that it wants MQTT.
func TestALPN(t *testing.T) {
	r := newRig(t)
	cfg := r.config(running)
	cfg.Endpoint = "localhost:443"
	cfg.Dial = dialTo(r.broker.ALPNAddr())
	s, _ := start(t, cfg)
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
	}
	cfg.Endpoint = "localhost" // port 8883: no protocol is named, and that port does not take it
	s, _ = start(t, cfg)
	if _, err := s.Latest(t.Context()); err == nil || errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("without the protocol's name: got %v, want no connection", err)
	}
}

// dialTo reaches one address, whatever name is asked for.
func dialTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

func TestConfig(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		name   string
		change func(c *awsiot.Config)
		says   string
	}{
		{"endpoint", func(c *awsiot.Config) { c.Endpoint = "https://x.iot.eu-central-1.amazonaws.com/" }, "describe-endpoint"},
		{"thing", func(c *awsiot.Config) { c.Thing = "a/b" }, "thing"},
		{"topic", func(c *awsiot.Config) { c.Topic = "bess/#" }, "topic"},
		{"certificate", func(c *awsiot.Config) { c.ClientCert = nil }, "client certificate"},
		{"key", func(c *awsiot.Config) { c.ClientKey = r.ca.Thing(t, "other").Key }, "private key"},
		{"CA", func(c *awsiot.Config) { c.CACert = []byte("none") }, "CA"},
		{"dir", func(c *awsiot.Config) { c.Dir = "" }, "dir"},
		{"verify", func(c *awsiot.Config) { c.Verify = nil }, "Verify"},
		{"HTTP", func(c *awsiot.Config) { c.HTTP = nil }, "HTTP"},
		{"keepalive", func(c *awsiot.Config) { c.Keepalive = time.Hour }, "keepalive"},
		{"version", func(c *awsiot.Config) { c.Version = "x" }, "version"},
		{"product", func(c *awsiot.Config) { c.Product = "" }, "product"},
	} {
		cfg := r.config(running)
		tt.change(&cfg)
		if _, err := awsiot.New(cfg); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want an error about %q", tt.name, err, tt.says)
		}
	}
}

// The whole way over Eclipse Mosquitto, which is killed in the middle.
func TestMosquitto(t *testing.T) {
	r := newRig(t)
	m := awstest.StartMosquitto(t, r.ca)
	r.jobs = awstest.NewJobs(awstest.JobsOptions{Presign: r.bucket.presign})
	awstest.ServeClient(t, m.Addr(), m.TLS(awstest.ServiceName), r.jobs)
	rel, document := r.release("1.1.0", 100_000)
	r.create("job-1", document)
	cfg := r.config(running)
	cfg.Endpoint = m.Addr()
	s, _ := start(t, cfg)
	signed, err := s.Latest(t.Context())
	if err != nil || !bytes.Equal(signed, rel.Signed) {
		t.Fatalf("got %d bytes and %v", len(signed), err)
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("without a broker: got %v, want %v", err, ota.ErrConnectivity)
	}
	m.Start()
	deliver(t.Context(), t, s, report(rel, ota.Succeeded, ota.ErrNone, ""))
	r.wantFinal("job-1", awstest.Succeeded, "")
}
