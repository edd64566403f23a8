package lambda

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	secretTime = 5 * time.Second // Lambda gives the init 10 s in all
	maxSecret  = 128 << 10       // bytes of an answer; a secret has 65,536 at most ("AWS Secrets Manager quotas")
)

// key is credentials without a session token.
type key struct{ id, secret string }

// Retrieve implements [aws.CredentialsProvider].
func (k key) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret, Source: "signing key"}, nil
}

// signingKey returns the key that presigned URLs are made with, or nil for the
// function's own credentials. Those are a role's, and have a session token of some
// 700 to 1,500 characters, which becomes a part of every URL; a user's key has
// none.
func signingKey(ctx context.Context, getenv func(string) string, transport http.RoundTripper) (aws.CredentialsProvider, error) {
	k, arn := key{getenv(EnvSigningID), getenv(EnvSigningSecret)}, getenv(EnvSigningARN)
	if (k.id == "") != (k.secret == "") || k.id != "" && arn != "" {
		return nil, errSigningKey
	}
	if arn != "" {
		var err error
		if k, err = fetchKey(ctx, getenv, transport, arn); err != nil {
			return nil, fmt.Errorf("get the signing key from Secrets Manager, %s: %w", arn, err)
		}
	}
	if k.id == "" {
		return nil, nil
	}
	if strings.HasPrefix(k.id, "ASIA") { // "IAM identifiers": ASIA is of temporary credentials
		return nil, fmt.Errorf("the signing key %s is a temporary one, which does not work without its session token; want one of a user", k.id)
	}
	return k, nil
}

// arnForm is arn:partition:secretsmanager:region:account:secret:name.
var arnForm = regexp.MustCompile(`^arn:(aws[a-z-]*):secretsmanager:([a-z0-9-]+):[0-9]{12}:secret:\S+$`)

// fetchKey makes the one request GetSecretValue, signed with the function's own
// credentials. (The client of the SDK would add more than a megabyte for it.)
func fetchKey(ctx context.Context, getenv func(string) string, transport http.RoundTripper, arn string) (key, error) {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return key{}, fmt.Errorf("it has not the form arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME")
	}
	region, domain := m[2], "amazonaws.com"
	if m[1] == "aws-cn" {
		domain = "amazonaws.com.cn"
	}
	endpoint := cmp.Or(getenv("AWS_ENDPOINT_URL_SECRETS_MANAGER"), "https://secretsmanager."+region+"."+domain)
	body, err := json.Marshal(map[string]string{"SecretId": arn})
	if err != nil {
		return key{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, secretTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(endpoint, "/")+"/", bytes.NewReader(body))
	if err != nil {
		return key{}, err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "secretsmanager.GetSecretValue")
	own := aws.Credentials{AccessKeyID: getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: getenv("AWS_SESSION_TOKEN")}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, own, req, hex.EncodeToString(sum[:]), "secretsmanager", region, time.Now()); err != nil {
		return key{}, fmt.Errorf("sign the request: %w", err)
	}
	if transport, err = trusting(transport, getenv("AWS_CA_BUNDLE")); err != nil {
		return key{}, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return key{}, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxSecret))
	if err != nil {
		return key{}, err
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Type    string `json:"__type"`
			Message string
		}
		_ = json.Unmarshal(answer, &e) // what is no JSON says as little as this
		return key{}, fmt.Errorf("status %d %s %s; the function's role needs secretsmanager:GetSecretValue for it", resp.StatusCode, clip(e.Type, 80), clip(e.Message, 300))
	}
	return parseKey(answer)
}

// parseKey reads the answer of GetSecretValue. Nothing of it is in an error.
func parseKey(answer []byte) (key, error) {
	var outer struct{ SecretString string }
	var inner struct {
		ID     string `json:"key_id"`
		Secret string `json:"secret"`
	}
	if json.Unmarshal(answer, &outer) != nil || json.Unmarshal([]byte(outer.SecretString), &inner) != nil || inner.ID == "" || inner.Secret == "" {
		return key{}, fmt.Errorf(`the secret is not a JSON object with "key_id" and "secret"`)
	}
	return key{inner.ID, inner.Secret}, nil
}

// trusting adds the CA that AWS_CA_BUNDLE names, as AWS's own programs do.
func trusting(t http.RoundTripper, bundle string) (http.RoundTripper, error) {
	std, ok := t.(*http.Transport)
	if bundle == "" || !ok {
		return t, nil
	}
	pem, err := os.ReadFile(bundle)
	if err != nil {
		return nil, fmt.Errorf("read AWS_CA_BUNDLE: %w", err)
	}
	std = std.Clone()
	std.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !std.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read AWS_CA_BUNDLE: no PEM certificate in %s", bundle)
	}
	return std, nil
}
