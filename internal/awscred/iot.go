package awscred

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Limits of asking the credential provider.
const (
	early     = 5 * time.Minute  // before they expire, credentials are renewed
	firstWait = 5 * time.Second  // after one failure; doubled with each
	lastWait  = 5 * time.Minute  // at most
	timeout   = 30 * time.Second // of one request
	maxAnswer = 64 << 10         // bytes
)

// alias is the pattern of a role alias (AWS IoT API Reference, CreateRoleAlias).
var alias = regexp.MustCompile(`^[\w=,@-]{1,128}$`)

// IoTConfig says how to reach the AWS IoT credential provider (AWS IoT Developer
// Guide, "Authorizing direct calls to AWS services using AWS IoT Core credential
// provider").
type IoTConfig struct {
	// Endpoint is the account's own, of type iot:CredentialProvider:
	// "PREFIX.credentials.iot.REGION.amazonaws.com", or an https URL.
	Endpoint  string
	RoleAlias string
	// Thing is sent as x-amzn-iot-thingname unless it is empty. It must be the
	// thing that the certificate is attached to.
	Thing string
	// Client does mutual TLS with the device's certificate; required. Redirects
	// are not followed.
	Client *http.Client
	Now    func() time.Time // the wall clock; default [time.Now]
}

// IoT asks the AWS IoT credential provider. Its methods may be called from any
// goroutine.
type IoT struct {
	cfg    IoTConfig
	url    string
	client http.Client

	turn chan struct{} // holds one token: who has it may ask

	mu       sync.Mutex
	have     aws.Credentials
	renew    time.Time // by cfg.Now: from here on, ask for new ones
	err      error     // of the last request; nil: it worked
	failures int
	notUntil time.Time // of time.Now, which cannot be set back
}

// NewIoT checks cfg. It asks for nothing yet.
func NewIoT(cfg IoTConfig) (*IoT, error) {
	const doing = "configure the AWS IoT credential provider"
	if cfg.Client == nil {
		return nil, fmt.Errorf("%s: the HTTP client with the device's certificate is missing", doing)
	}
	if !alias.MatchString(cfg.RoleAlias) {
		return nil, fmt.Errorf("%s: role alias %q: want 1 to 128 letters, digits or any of _=,@-", doing, cfg.RoleAlias)
	}
	endpoint := cfg.Endpoint
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%s: endpoint %q: want a host name, or https:// and a host name", doing, u.Redacted())
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	u.Path = "/role-aliases/" + cfg.RoleAlias + "/credentials"
	p := &IoT{cfg: cfg, url: u.String(), client: *cfg.Client, turn: make(chan struct{}, 1)}
	p.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	p.turn <- struct{}{}
	return p, nil
}

// Retrieve implements [aws.CredentialsProvider]: it returns credentials that are
// valid by the device's clock, and asks for new ones from five minutes before
// those it has expire. After a request that did not work, Retrieve asks again
// only after 5 s, doubled up to 5 min; until then the error is that of the last
// request, unless the credentials are still valid.
func (p *IoT) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if c, err, ok := p.known(); ok {
		return c, err
	}
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
	case <-ctx.Done():
		return aws.Credentials{}, fmt.Errorf("ask for AWS credentials: %w", ctx.Err())
	}
	if c, err, ok := p.known(); ok { // somebody else has just asked
		return c, err
	}
	fresh, err := p.ask(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	if err != nil {
		if ctx.Err() == nil { // who gave up says nothing about the provider
			p.failures++
			p.err, p.notUntil = err, time.Now().Add(wait(p.failures))
		}
		if p.have.HasKeys() && now.Before(p.have.Expires) {
			return p.have, nil
		}
		return aws.Credentials{}, err
	}
	p.have, p.err, p.failures, p.notUntil = fresh, nil, 0, time.Time{}
	p.renew = fresh.Expires.Add(-min(early, fresh.Expires.Sub(now)/4))
	return fresh, nil
}

// known returns what can be answered without asking the provider.
func (p *IoT) known() (aws.Credentials, error, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, waiting := p.cfg.Now(), time.Now().Before(p.notUntil)
	switch {
	case p.have.HasKeys() && now.Before(p.renew),
		p.have.HasKeys() && now.Before(p.have.Expires) && waiting:
		return p.have, nil, true
	case waiting:
		return aws.Credentials{}, p.err, true
	}
	return aws.Credentials{}, nil, false
}

// Invalidate makes the next Retrieve ask for new credentials: a service has said
// that those it was shown are no longer valid, whatever our clock says.
func (p *IoT) Invalidate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have = aws.Credentials{}
}

// wait returns how long to wait after so many failures: a random time of the
// upper half, so that a fleet that was cut off together does not return together.
func wait(failures int) time.Duration {
	d := lastWait
	if failures < 7 {
		d = min(lastWait, firstWait<<(failures-1))
	}
	return d/2 + rand.N(d/2)
}

// answer is that of the credential provider, also if it refuses.
type answer struct {
	Credentials struct {
		AccessKeyID     string    `json:"accessKeyId"`
		SecretAccessKey string    `json:"secretAccessKey"`
		SessionToken    string    `json:"sessionToken"`
		Expiration      time.Time `json:"expiration"`
	} `json:"credentials"`
	Message string `json:"message"`
}

func (p *IoT) ask(ctx context.Context) (c aws.Credentials, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ask for AWS credentials of role alias %s: %w", p.cfg.RoleAlias, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return c, err
	}
	if p.cfg.Thing != "" {
		req.Header.Set("x-amzn-iot-thingname", p.cfg.Thing)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return c, err
	}
	defer res.Body.Close() // only read: nothing can be lost
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c, err
	}
	return p.check(res.Status, res.StatusCode, body)
}

// check reads an answer. Its errors never quote one that may hold secrets.
func (p *IoT) check(status string, code int, body []byte) (c aws.Credentials, err error) {
	var a answer
	bad := json.Unmarshal(body, &a)
	if code != http.StatusOK {
		if a.Message != "" && bad == nil {
			status = fmt.Sprintf("%s: %.200q", status, a.Message)
		}
		return c, fmt.Errorf("the answer is %s: does the certificate's policy allow iot:AssumeRoleWithCertificate, and is it attached to the thing %q?", status, p.cfg.Thing)
	}
	got := a.Credentials
	switch now := p.cfg.Now(); {
	case bad != nil:
		return c, fmt.Errorf("the answer of %d bytes is no JSON of credentials", len(body))
	case got.AccessKeyID == "" || got.SecretAccessKey == "" || got.SessionToken == "":
		return c, errors.New("the answer lacks accessKeyId, secretAccessKey or sessionToken")
	case !now.Before(got.Expiration):
		return c, fmt.Errorf("they expired on %s, and the clock shows %s: is it right?", got.Expiration.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return aws.Credentials{
		AccessKeyID: got.AccessKeyID, SecretAccessKey: got.SecretAccessKey, SessionToken: got.SessionToken,
		Source: "AWS IoT credential provider", CanExpire: true, Expires: got.Expiration,
	}, nil
}
