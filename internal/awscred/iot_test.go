package awscred_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/internal/awscred"
)

// fakeProvider is the credential provider as a fake without a network. It hands
// out credentials that are numbered and valid for an hour.
type fakeProvider struct {
	requests, at atomic.Int64
	delay        time.Duration
	status       atomic.Int64 // of answers that are errors; 0: none
	body         string       // instead of credentials
}

// RoundTrip implements [http.RoundTripper].
func (f *fakeProvider) RoundTrip(r *http.Request) (*http.Response, error) {
	n := f.requests.Add(1)
	if f.at.Add(1) > 1 {
		return nil, errors.New("two requests at a time")
	}
	defer f.at.Add(-1)
	select {
	case <-time.After(f.delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	status, body := int(f.status.Load()), f.body
	if r.URL.String() != "https://x.credentials.iot.eu-central-1.amazonaws.com/role-aliases/logs/credentials" || r.Header.Get("x-amzn-iot-thingname") != "bess-7" {
		status = 404
	}
	switch {
	case status != 0:
		body = `{"message":"Access Denied"}`
	case body == "":
		body = fmt.Sprintf(`{"credentials":{"accessKeyId":"ASIA%d","secretAccessKey":"top secret","sessionToken":"token","expiration":%q}}`,
			n, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}
	if status == 0 {
		status = 200
	}
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Body: io.NopCloser(bytes.NewBufferString(body))}, nil
}

func newIoT(t *testing.T, f *fakeProvider, change ...func(*awscred.IoTConfig)) *awscred.IoT {
	t.Helper()
	cfg := awscred.IoTConfig{Endpoint: "x.credentials.iot.eu-central-1.amazonaws.com", RoleAlias: "logs", Thing: "bess-7", Client: &http.Client{Transport: f}}
	for _, c := range change {
		c(&cfg)
	}
	p, err := awscred.NewIoT(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func key(t *testing.T, p *awscred.IoT) string {
	t.Helper()
	c, err := p.Retrieve(t.Context())
	if err != nil {
		return "error"
	}
	if !c.CanExpire || c.SecretAccessKey != "top secret" || c.SessionToken != "token" {
		t.Errorf("got %+v", c)
	}
	return c.AccessKeyID
}

// TestRenewal asks every minute for three hours: credentials are renewed five
// minutes before they expire, and through an outage of ten minutes the old ones last
// as long as they are valid.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProvider{}
		p := newIoT(t, f)
		begin := time.Now()
		for range 55 {
			if got := key(t, p); got != "ASIA1" {
				t.Fatalf("after %v: got %s, want ASIA1", time.Since(begin), got)
			}
			time.Sleep(time.Minute)
		}
		if got := key(t, p); got != "ASIA2" {
			t.Errorf("after 55 min: got %s, want ASIA2", got)
		}
		time.Sleep(55 * time.Minute)
		f.status.Store(503)
		for range 5 {
			for range 3 { // the first asks, the others are not to
				if got := key(t, p); got != "ASIA2" {
					t.Errorf("in the outage: got %s, want ASIA2, which is still valid", got)
				}
			}
			time.Sleep(time.Minute)
		}
		if got := key(t, p); got != "error" {
			t.Errorf("when they have expired: got %s, want an error", got)
		}
		f.status.Store(0)
		time.Sleep(5 * time.Minute)
		if got := key(t, p); !strings.HasPrefix(got, "ASIA") {
			t.Errorf("after the outage: got %s", got)
		}
	})
}

// TestBackOff: however often credentials are wanted, the provider is asked seldom.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProvider{}
		f.status.Store(403)
		p := newIoT(t, f)
		for range 3600 {
			_, err := p.Retrieve(t.Context())
			if err == nil || !strings.Contains(err.Error(), `403: "Access Denied"`) || !strings.Contains(err.Error(), "iot:AssumeRoleWithCertificate") {
				t.Fatalf("got %v", err)
			}
			time.Sleep(time.Second)
		}
		if n := f.requests.Load(); n < 12 || n > 32 {
			t.Errorf("got %d requests in an hour, want 12 to 32", n)
		}
	})
}

// TestOneAtATime: many ask, one request is made.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProvider{delay: 3 * time.Second}
		p := newIoT(t, f)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if got := key(t, p); got != "ASIA1" {
					t.Errorf("got %s, want ASIA1", got)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Retrieve(ctx); !errors.Is(err, context.DeadlineExceeded) { // need not wait for others
			t.Errorf("got %v, want a deadline", err)
		}
		all.Wait()
		if n := f.requests.Load(); n != 1 {
			t.Errorf("got %d requests, want 1", n)
		}
		p.Invalidate()
		if got := key(t, p); got != "ASIA2" {
			t.Errorf("after Invalidate: got %s, want ASIA2", got)
		}
	})
}

// TestGivingUp: somebody who has no time is no reason to wait for the others.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeProvider{delay: 10 * time.Second}
		p := newIoT(t, f)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Retrieve(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a deadline", err)
		}
		if got := key(t, p); got != "ASIA2" {
			t.Errorf("got %s, want ASIA2", got)
		}
	})
}

// TestHang: a provider that never answers costs half a minute.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIoT(t, &fakeProvider{delay: 1000 * time.Hour})
		begin := time.Now()
		if got := key(t, p); got != "error" || time.Since(begin) != 30*time.Second {
			t.Errorf("got %s after %v, want an error after 30 s", got, time.Since(begin))
		}
	})
}

// TestAnswers are answers that are no credentials. No error quotes a secret.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for body, want := range map[string]string{
			`<html>top secret`: "no JSON",
			`{"credentials":{"secretAccessKey":"top secret"}}`:                                                                                             "lacks accessKeyId",
			`{"credentials":{"accessKeyId":"A","secretAccessKey":"top secret","sessionToken":"t"}}`:                                                        "expired on 0001",
			`{"credentials":{"accessKeyId":"A","secretAccessKey":"top secret","sessionToken":"t","expiration":"1999-01-01T00:00:00Z"}}`:                    "clock",
			`{"credentials":{"accessKeyId":"A","secretAccessKey":"top secret","sessionToken":"t","expiration":"top secret"}}`:                              "no JSON",
			`{"credentials":{"accessKeyId":"A","secretAccessKey":"top secret","sessionToken":"t` + strings.Repeat("t", 70_000) + `","expiration":"2001"}}`: "no JSON",
		} {
			p := newIoT(t, &fakeProvider{body: body})
			_, err := p.Retrieve(t.Context())
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "top secret") {
				t.Errorf("%.80s: got %v, want %q", body, err, want)
			}
		}
	})
}

func TestNewIoTRefuses(t *testing.T) {
	for want, change := range map[string]func(*awscred.IoTConfig){
		"role alias":  func(c *awscred.IoTConfig) { c.RoleAlias = "a/b" },
		"HTTP client": func(c *awscred.IoTConfig) { c.Client = nil },
		"host name":   func(c *awscred.IoTConfig) { c.Endpoint = "http://x" },
		"xxxxx":       func(c *awscred.IoTConfig) { c.Endpoint = "https://user:pass@x" },
	} {
		cfg := awscred.IoTConfig{Endpoint: "x", RoleAlias: "logs", Client: http.DefaultClient}
		change(&cfg)
		if _, err := awscred.NewIoT(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestMutualTLS asks the stand-in of awstest with a certificate, with one of
// another thing, and with none.
func TestMutualTLS(t *testing.T) {
	ca, keys := awstest.NewCA(t), awstest.NewKeys()
	server := awstest.StartCredentialProvider(t, ca, keys, awstest.CredentialOptions{Aliases: []string{"logs"}})
	ask := func(thing, alias string) error {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.ClientTLS(t, "bess-7")}}
		defer client.CloseIdleConnections()
		if thing == "" {
			client.Transport.(*http.Transport).TLSClientConfig.Certificates = nil
		}
		p, err := awscred.NewIoT(awscred.IoTConfig{Endpoint: server.URL, RoleAlias: alias, Thing: thing, Client: client})
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.Retrieve(t.Context())
		if err == nil && (c.Expired() || c.SessionToken == "" || time.Until(c.Expires) > time.Hour) {
			t.Errorf("got %+v", c)
		}
		return err
	}
	if err := ask("bess-7", "logs"); err != nil {
		t.Error(err)
	}
	for thing, want := range map[string]string{"bess-8": "403", "": "certificate"} {
		if err := ask(thing, "logs"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("as %q: got %v, want %s", thing, err, want)
		}
	}
	if err := ask("bess-7", "other"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("other alias: got %v, want 404", err)
	}
}
