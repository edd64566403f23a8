package cloudwatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/internal/awscred"
	"github.com/interlock-energy/ota/internal/cloudwatch"
)

// account is a device with a certificate and the services of AWS that it needs,
// on loopback: the stand-ins of awstest verify every signature.
type account struct {
	keys  *awstest.Keys
	logs  *awstest.Logs
	creds *awstest.CredentialProvider
	cfg   cloudwatch.Config
}

func newAccount(t *testing.T) *account {
	ca := awstest.NewCA(t)
	a := &account{keys: awstest.NewKeys()}
	a.logs = awstest.StartLogs(t, a.keys, awstest.LogsOptions{TLS: ca})
	a.creds = awstest.StartCredentialProvider(t, ca, a.keys, awstest.CredentialOptions{})
	mutual := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.ClientTLS(t, "bess-7")}}
	t.Cleanup(mutual.CloseIdleConnections)
	iot, err := awscred.NewIoT(awscred.IoTConfig{Endpoint: a.creds.URL, RoleAlias: "logs", Thing: "bess-7", Client: mutual})
	if err != nil {
		t.Fatal(err)
	}
	a.cfg = cloudwatch.Config{
		Stream: "bess-7", Region: a.logs.Region, Endpoint: a.logs.URL, Client: a.logs.Client(),
		Credentials: iot, CreateGroup: true, Retention: 30, Dir: t.TempDir() + "/spool",
	}
	return a
}

func (a *account) operations() string {
	var all []string
	for _, r := range a.logs.Requests() {
		all = append(all, strings.TrimSpace(r.Operation+" "+r.Code))
	}
	return strings.Join(all, ", ")
}

// TestSigned goes the whole way over TLS: credentials for a certificate, a new
// group and stream, compressed bodies, signatures.
func TestSigned(t *testing.T) {
	a := newAccount(t)
	w := open(t, a.cfg)
	for i := range 3000 {
		logger(w).Log(t.Context(), slog.LevelInfo, fmt.Sprintf("line %d", i), "text", "ü <&> \"quoted\"\u2028")
	}
	if err := w.PutDiagnostics("", example); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := a.logs.Events("/bess/logs", "bess-7")
	if len(got) != 3001 {
		t.Fatalf("got %d events, want 3001; %s", len(got), a.operations())
	}
	seen := map[string]bool{}
	for _, e := range got {
		seen[e.Message] = true
		if d := time.Since(e.Timestamp); !strings.Contains(e.Message, "_aws") && (d < -time.Second || d > time.Hour) {
			t.Errorf("event of %v", e.Timestamp)
		}
	}
	if len(seen) != 3001 {
		t.Errorf("got %d different events, want 3001", len(seen))
	}
	if days := a.logs.Retention("/bess/logs"); days != 30 {
		t.Errorf("retention: got %d days, want 30", days)
	}
	for _, r := range a.logs.Requests() {
		if r.Operation == "PutLogEvents" && !r.Gzip {
			t.Errorf("request of %d events is not compressed", r.Events)
		}
	}
}

// TestRevoked: credentials that the service no longer knows are replaced.
func TestRevoked(t *testing.T) {
	a := newAccount(t)
	old, err := a.cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.keys.Revoke(old.AccessKeyID)
	w := open(t, a.cfg)
	logger(w).Info("line 0")
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(a.logs.Events("/bess/logs", "bess-7")); got != 1 || a.creds.Requests() != 2 {
		t.Errorf("got %d events after %d requests for credentials, want 1 and 2; %s", got, a.creds.Requests(), a.operations())
	}
}

// TestOutages restarts through everything that can be wrong with the service; what
// was logged in between arrives in the end, nothing twice.
func TestOutages(t *testing.T) {
	a := newAccount(t)
	outages := []func(){
		func() { a.creds.Outage(503) },
		func() { a.creds.Outage(403) },
		func() { a.creds.Outage(0); a.logs.Outage(500) },
		func() { a.logs.Outage(-1) },
		func() { a.logs.Outage(0); a.logs.Throttle(1) },
		func() {},
	}
	for i, begin := range outages {
		begin()
		if i == 2 { // or the provider's back-off would be waited for
			a.cfg.Credentials = staticKey(a.keys.Issue(time.Now().Add(time.Hour)))
		}
		w := open(t, a.cfg)
		logger(w).Info(fmt.Sprintf("line %d", i))
		if err := w.Close(t.Context()); err != nil {
			t.Errorf("outage %d: %v", i, err)
		}
		s := w.Status()
		if last := i == len(outages)-1; last != (s.Err == nil) || !last && s.Spooled != i+1 {
			t.Errorf("outage %d: got %+v; %s", i, s, a.operations())
		}
	}
	var got []string
	for _, e := range a.logs.Events("/bess/logs", "bess-7") {
		got = append(got, e.Message[strings.Index(e.Message, "line"):strings.Index(e.Message, "line")+6])
	}
	same(t, "lines", got, numbered(0, len(outages)))
}

// staticKey is a key as credentials.
type staticKey awstest.Key

func (k staticKey) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken}, nil
}
