package awstest

import (
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
}

// NewKeys makes an account without credentials.
func NewKeys() *Keys { return &Keys{} }

// Issue makes new temporary credentials that expire then (zero: lasting ones
// without a session token).
func (k *Keys) Issue(expires time.Time) Key { return Key{} }

// Revoke makes credentials unknown.
func (k *Keys) Revoke(accessKeyID string) {}

// CredentialOptions configure a [CredentialProvider].
type CredentialOptions struct {
	Aliases []string         // known role aliases; none: any
	TTL     time.Duration    // 0: an hour, as AWS. AWS allows 15 minutes to 12 hours; a test anything
	Now     func() time.Time // nil: time.Now
}

// CredentialProvider is AWS IoT Core's: GET /role-aliases/{alias}/credentials over
// mutual TLS gives temporary credentials.
type CredentialProvider struct {
	URL string // https://127.0.0.1:port
}

// StartCredentialProvider starts it; it ends with the test. What it issues is
// known to keys.
func StartCredentialProvider(t testing.TB, ca *CA, keys *Keys, o CredentialOptions) *CredentialProvider {
	t.Helper()
	return &CredentialProvider{}
}

// Outage makes it answer with this HTTP status (500, 503, 403, 429) until it is 0.
func (p *CredentialProvider) Outage(status int) {}

// Requests is how many it got.
func (p *CredentialProvider) Requests() int { return 0 }
