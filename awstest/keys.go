package awstest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Key is a set of AWS credentials.
type Key struct {
	AccessKeyID, SecretAccessKey, SessionToken string
	Expires                                    time.Time // zero: never
}

// Keys are the credentials that are known to the account. Safe for use by several
// goroutines.
type Keys struct {
	mu    sync.Mutex
	known map[string]Key
}

// NewKeys makes an account without credentials.
func NewKeys() *Keys { return &Keys{known: map[string]Key{}} }

// Issue makes new temporary credentials that expire then (zero: lasting ones
// without a session token).
func (k *Keys) Issue(expires time.Time) Key {
	key := Key{AccessKeyID: "AKIA" + rand.Text()[:16], SecretAccessKey: secret(30), Expires: expires}
	if !expires.IsZero() {
		key.AccessKeyID = "ASIA" + key.AccessKeyID[4:]
		key.SessionToken = secret(240) // with + and /, as real ones
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known[key.AccessKeyID] = key
	return key
}

func secret(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return base64.StdEncoding.EncodeToString(b)
}

// Revoke makes credentials unknown.
func (k *Keys) Revoke(accessKeyID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, accessKeyID)
}

func (k *Keys) lookup(accessKeyID string) (Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.known[accessKeyID]
	return key, ok
}

// CredentialOptions configure a [CredentialProvider].
type CredentialOptions struct {
	Aliases []string         // known role aliases; none: any
	TTL     time.Duration    // 0: an hour, as AWS. AWS allows 15 minutes to 12 hours; a test anything
	Now     func() time.Time // nil: time.Now
}

// CredentialProvider is AWS IoT Core's: GET /role-aliases/{alias}/credentials over
// mutual TLS gives temporary credentials (developer guide, "Authorizing direct
// calls to AWS services using AWS IoT Core credential provider"). The header
// x-amzn-iot-thingname may be left out; if it is there, it must be the thing of the
// certificate.
type CredentialProvider struct {
	URL string // https://127.0.0.1:port

	keys *Keys
	o    CredentialOptions

	mu       sync.Mutex
	outage   int
	requests int
}

// StartCredentialProvider starts it; it ends with the test. What it issues is
// known to keys.
func StartCredentialProvider(t testing.TB, ca *CA, keys *Keys, o CredentialOptions) *CredentialProvider {
	t.Helper()
	if o.TTL == 0 {
		o.TTL = time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &CredentialProvider{keys: keys, o: o}
	server := httptest.NewUnstartedServer(p)
	server.TLS = ca.serverTLS(t)
	server.Config.ErrorLog = quiet
	server.StartTLS()
	t.Cleanup(server.Close)
	p.URL = server.URL
	return p
}

// Outage makes it answer with this HTTP status (500, 503, 403, 429) until it is 0.
func (p *CredentialProvider) Outage(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outage = status
}

// Requests is how many it got.
func (p *CredentialProvider) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// ServeHTTP answers a device.
func (p *CredentialProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.requests++
	outage := p.outage
	p.mu.Unlock()
	alias, ok := strings.CutPrefix(r.URL.Path, "/role-aliases/")
	alias, found := strings.CutSuffix(alias, "/credentials")
	thing := r.Header.Get("x-amzn-iot-thingname")
	switch {
	case outage != 0:
		deny(w, outage, http.StatusText(outage))
	case !ok || !found || strings.Contains(alias, "/") || r.Method != http.MethodGet:
		deny(w, http.StatusNotFound, "Not Found")
	case len(p.o.Aliases) > 0 && !slices.Contains(p.o.Aliases, alias):
		deny(w, http.StatusNotFound, "Role alias does not exist")
	case thing != "" && thing != r.TLS.PeerCertificates[0].Subject.CommonName:
		deny(w, http.StatusForbidden, "Access Denied")
	default:
		key := p.keys.Issue(p.o.Now().Add(p.o.TTL).Truncate(time.Second))
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"credentials": map[string]string{
			"accessKeyId": key.AccessKeyID, "secretAccessKey": key.SecretAccessKey,
			"sessionToken": key.SessionToken, "expiration": key.Expires.UTC().Format(time.RFC3339),
		}})
	}
}

func deny(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": text})
}
