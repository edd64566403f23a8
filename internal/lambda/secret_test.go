package lambda

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const testARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:signing-AbCdEf"

// manager is a stand-in for Secrets Manager that checks the signature by making
// it again.
func manager(t *testing.T, status int, answer string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if got, want := string(body), `{"SecretId":"`+testARN+`"}`; got != want || r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue" {
			t.Errorf("asked %s for %s, want %s of GetSecretValue", r.Header.Get("X-Amz-Target"), got, want)
		}
		at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil {
			t.Error(err)
		}
		again, err := http.NewRequest(r.Method, "http://"+r.Host+r.URL.String(), bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"Content-Type", "X-Amz-Target"} {
			again.Header.Set(name, r.Header.Get(name))
		}
		sum := sha256.Sum256(body)
		creds := aws.Credentials{AccessKeyID: "AKIAFUNCTION", SecretAccessKey: "own", SessionToken: "session"}
		if err := v4.NewSigner().SignHTTP(context.Background(), creds, again, hex.EncodeToString(sum[:]), "secretsmanager", "eu-central-1", at); err != nil {
			t.Error(err)
		}
		if got, want := r.Header.Get("Authorization"), again.Header.Get("Authorization"); got != want {
			t.Errorf("signed %s, want %s", got, want)
		}
		if r.Header.Get("X-Amz-Security-Token") != "session" {
			t.Error("the function's session token is not sent")
		}
		w.WriteHeader(status)
		io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestSigningKey(t *testing.T) {
	value := `{"ARN":"x","Name":"y","SecretString":"{\"key_id\":\"AKIASIGN\",\"secret\":\"s3cret\"}"}`
	for _, tt := range []struct {
		name   string
		env    map[string]string
		status int // of Secrets Manager; 0: it is not asked
		answer string
		id     string // of the key; empty: none
		err    string
	}{
		{name: "none"},
		{name: "given", env: map[string]string{EnvSigningID: "AKIASIGN", EnvSigningSecret: "s3cret"}, id: "AKIASIGN"},
		{name: "half", env: map[string]string{EnvSigningID: "AKIASIGN"}, err: EnvSigningSecret},
		{name: "both", env: map[string]string{EnvSigningID: "a", EnvSigningSecret: "b", EnvSigningARN: testARN}, err: "none of them"},
		{name: "temporary", env: map[string]string{EnvSigningID: "ASIASIGN", EnvSigningSecret: "s3cret"}, err: "temporary"},
		{name: "secret", env: map[string]string{EnvSigningARN: testARN}, status: 200, answer: value, id: "AKIASIGN"},
		{name: "denied", env: map[string]string{EnvSigningARN: testARN}, status: 400, answer: `{"__type":"AccessDeniedException","Message":"not allowed"}`, err: "AccessDeniedException not allowed"},
		{name: "broken", env: map[string]string{EnvSigningARN: testARN}, status: 503, answer: `<html>`, err: "status 503"},
		{name: "not JSON", env: map[string]string{EnvSigningARN: testARN}, status: 200, answer: `{"SecretString":"s3cret"}`, err: `"key_id" and "secret"`},
		{name: "not all", env: map[string]string{EnvSigningARN: testARN}, status: 200, answer: `{"SecretString":"{\"secret\":\"s3cret\"}"}`, err: `"key_id" and "secret"`},
		{name: "no ARN", env: map[string]string{EnvSigningARN: "signing"}, err: "has not the form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{"AWS_ACCESS_KEY_ID": "AKIAFUNCTION", "AWS_SECRET_ACCESS_KEY": "own", "AWS_SESSION_TOKEN": "session"}
			for k, v := range tt.env {
				env[k] = v
			}
			if tt.status != 0 {
				env["AWS_ENDPOINT_URL_SECRETS_MANAGER"] = manager(t, tt.status, tt.answer).URL
			}
			p, err := signingKey(t.Context(), func(name string) string { return env[name] }, http.DefaultTransport)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("got %v, want an error with %q and no secret", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p == nil {
				if tt.id != "" {
					t.Errorf("no key, want %s", tt.id)
				}
				return
			}
			c, err := p.Retrieve(t.Context())
			if err != nil || c.AccessKeyID != tt.id || c.SecretAccessKey != "s3cret" || c.SessionToken != "" {
				t.Errorf("key %s (%v), want %s without a session token", c.AccessKeyID, err, tt.id)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		err  string // empty: taken
	}{
		{"nothing", nil, EnvBucketName},
		{"document", map[string]string{EnvBucketName: "b-1", EnvFirmwareKey: "fw/firmware.bin", EnvFirmwareVersion: "1.0.1"}, ""},
		{"layout", map[string]string{EnvBucketName: "b-1"}, ""},
		{"layout below a prefix", map[string]string{EnvBucket: "s3://b-1/fw"}, ""},
		{"both", map[string]string{EnvBucketName: "b-1", EnvBucket: "s3://b-1/fw"}, "both"},
		{"a path for a name", map[string]string{EnvBucketName: "b-1/fw"}, "the bucket's name alone"},
		{"no s3", map[string]string{EnvBucket: "b-1"}, "s3://bucket/prefix"},
		{"key without version", map[string]string{EnvBucketName: "b-1", EnvFirmwareKey: "fw.bin"}, EnvFirmwareVersion},
		{"version without key", map[string]string{EnvBucketName: "b-1", EnvFirmwareVersion: "1"}, EnvFirmwareKey},
		{"bad key", map[string]string{EnvBucketName: "b-1", EnvFirmwareKey: "a//b", EnvFirmwareVersion: "1"}, EnvFirmwareKey},
		{"all", map[string]string{EnvBucket: "s3://b-1/fw", EnvOpen: "true", EnvURLLifetime: "900", EnvPoll: "60", EnvMaxURL: "0", EnvBasePath: "/ota",
			EnvSigningID: "AKIASIGN", EnvSigningSecret: "s3cret"}, ""},
		{"lifetime", map[string]string{EnvBucketName: "b-1", EnvURLLifetime: "1h"}, EnvURLLifetime},
		{"lifetime too long", map[string]string{EnvBucketName: "b-1", EnvURLLifetime: "604801"}, "168h"},
		{"poll", map[string]string{EnvBucketName: "b-1", EnvPoll: "0"}, EnvPoll},
		{"max", map[string]string{EnvBucketName: "b-1", EnvMaxURL: "-1"}, EnvMaxURL},
		{"quiet", map[string]string{EnvBucketName: "b-1", EnvLogIdle: "false"}, ""},
		{"quiet?", map[string]string{EnvBucketName: "b-1", EnvLogIdle: "no"}, EnvLogIdle},
		{"open", map[string]string{EnvBucketName: "b-1", EnvOpen: "yes please"}, EnvOpen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("AWS_REGION", "eu-central-1") // the SDK reads it by itself
			a, err := FromEnvironment(t.Context(), func(name string) string { return tt.env[name] }, nil)
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				if a.Handler == nil || a.BasePath != tt.env[EnvBasePath] {
					t.Errorf("adapter %+v, want a handler below %q", a, tt.env[EnvBasePath])
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v, want an error with %q", err, tt.err)
			}
		})
	}
}
