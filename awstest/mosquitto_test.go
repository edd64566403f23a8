package awstest

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/otatest"
)

// front is one of the two ways to put services behind a broker.
type front struct {
	name  string
	start func(t *testing.T, ca *CA, services ...Service) (addr string, config func(thing string) *tls.Config)
}

var fronts = []front{
	{"embedded", func(t *testing.T, ca *CA, services ...Service) (string, func(string) *tls.Config) {
		b := StartBroker(t, ca, services...)
		return b.Addr(), b.TLS
	}},
	{"mosquitto", func(t *testing.T, ca *CA, services ...Service) (string, func(string) *tls.Config) {
		m := StartMosquitto(t, ca)
		ServeClient(t, m.Addr(), m.TLS(ServiceName), services...)
		return m.Addr(), m.TLS
	}},
}

// deviceSDK is AWS's own device SDK for JavaScript, installed by
// npm ci --prefix awstest/testdata/device-sdk
func deviceSDK(t *testing.T) (node, script string) {
	t.Helper()
	node = otatest.Tool(t, "node")
	dir := filepath.Join("testdata", "device-sdk")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "aws-iot-device-sdk")); err != nil {
		if os.Getenv("INTERLOCK_TOOLS") == "1" {
			t.Fatalf("AWS's device SDK is missing, and everything should be here: npm ci --prefix awstest/%s: %v", dir, err)
		}
		t.Skipf("NOT TESTED: AWS's device SDK is missing: npm ci --prefix awstest/%s", dir)
	}
	return node, filepath.Join(dir, "client.js")
}

// AWS's own client runs a job from QUEUED to SUCCEEDED, on both brokers. It speaks
// MQTT 3.1.1.
func TestDeviceSDKRunsAJob(t *testing.T) {
	for _, f := range fronts {
		t.Run(f.name, func(t *testing.T) {
			node, script := deviceSDK(t)
			ca, jobs := NewCA(t), NewJobs(JobsOptions{})
			addr, _ := f.start(t, ca, jobs)
			if err := jobs.Create(Job{ID: "update-1", Things: []string{"dev-1"}, Document: `{"version":"2.1.0","n":[1,2]}`}); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cert, key := ca.Thing(t, "dev-1").WriteFiles(t, dir, "dev-1")
			_, port, _ := net.SplitHostPort(addr)
			client := exec.Command(node, script, "localhost", port, ca.WriteFile(t, dir), cert, key, "dev-1")
			var out lines
			client.Stdout, client.Stderr = &out, &out
			stop, err := client.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := client.Start(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- client.Wait(); cancel() }() // too early: nothing to wait for
			e, waited := jobs.Wait(ctx, "dev-1", "update-1")
			stop.Close()
			if err := <-ended; err != nil || waited != nil {
				t.Fatalf("%v, %v: %s", err, waited, out.String())
			}
			if got := out.String(); !strings.Contains(got, `{"id":"update-1","document":{"version":"2.1.0","n":[1,2]},"status":{"status":"QUEUED"`) {
				t.Errorf("the client saw %s", got)
			}
			if e.Status != Succeeded || e.Version != 3 || e.StatusDetails["step"] != "done" {
				t.Errorf("got %+v", e)
			}
			var got []string
			for _, u := range jobs.Updates("dev-1", "update-1") {
				got = append(got, string(u.Status)+" "+u.StatusDetails["step"]+u.Code)
			}
			want(t, got, "IN_PROGRESS installing", "SUCCEEDED done")
		})
	}
}

// The same conversation on the embedded broker and on Mosquitto, also after
// Mosquitto was killed.
func TestServicesOnMosquittoSurviveItsDeath(t *testing.T) {
	ca, jobs := NewCA(t), NewJobs(JobsOptions{})
	m := StartMosquitto(t, ca)
	ServeClient(t, m.Addr(), m.TLS(ServiceName), jobs)
	filters := []string{dev + "notify-next", dev + "+/get/accepted"}
	d, err := connect(t, m.Addr(), m.TLS("dev-1"), "dev-1", filters...)
	if err != nil {
		t.Fatal(err)
	}
	if err := jobs.Create(Job{ID: "j", Things: []string{"dev-1"}, Document: `{}`}); err != nil {
		t.Fatal(err)
	}
	if got := d.next(); !strings.HasPrefix(got, dev+"notify-next {") {
		t.Errorf("got %s", got)
	}
	m.Restart()
	<-d.lost
	if d, err = connect(t, m.Addr(), m.TLS("dev-1"), "dev-1", filters...); err != nil {
		t.Fatal(err)
	}
	// until the services are back nobody answers, so the device asks again
	answered := false
	for range 300 {
		if err := d.send(dev+"$next/get", `{}`); err != nil {
			t.Fatal(err)
		}
		if answered = d.has(); answered {
			break
		}
	}
	if !answered {
		t.Error("after the broker's death the services did not come back within 30 s")
	}
	// mosquitto may take a subscription to another thing's topics, but delivers nothing
	other, err := connect(t, m.Addr(), m.TLS("dev-2"), "dev-2", "$aws/things/dev-2/jobs/notify", dev+"notify")
	if err != nil {
		t.Fatal(err)
	}
	if err := jobs.Create(Job{ID: "both", Things: []string{"dev-1", "dev-2"}, Document: `{}`}); err != nil {
		t.Fatal(err)
	}
	if got := other.next(); !strings.HasPrefix(got, "$aws/things/dev-2/jobs/notify ") {
		t.Errorf("dev-2 got %s", got)
	}
	foreign := m.TLS("dev-1")
	foreign.Certificates = NewCA(t).ClientTLS(t, "dev-1").Certificates
	if _, err := connect(t, m.Addr(), foreign, "dev-1"); err == nil {
		t.Error("a certificate of another authority got in")
	}
}
