package awscred_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/awscred"
)

func TestFromEnv(t *testing.T) {
	env := map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}
	getenv := func(name string) string { return env[name] }
	want := aws.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "secret"}
	for _, token := range []string{"", "token"} {
		env["AWS_SESSION_TOKEN"], want.SessionToken = token, token
		p, err := awscred.FromEnv(getenv)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p, want)
	}
	for _, missing := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		_, err := awscred.FromEnv(func(name string) string {
			if name == missing {
				return ""
			}
			return env[name]
		})
		if !errors.Is(err, awscred.ErrNone) || strings.Contains(err.Error(), "secret") {
			t.Errorf("without %s: got %v, want ErrNone", missing, err)
		}
	}
}

func check(t *testing.T, p aws.CredentialsProvider, want aws.Credentials) {
	t.Helper()
	got, err := p.Retrieve(t.Context())
	if err != nil {
		t.Error(err)
	}
	got.Source = ""
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const file = "\ufeff[first]\naws_access_key_id=1\naws_secret_access_key=1\n" + `
[other]
aws_access_key_id = AKIAOTHER
aws_secret_access_key = other=secret+/

# [default]
[ default ]
region=eu-central-1
AWS_ACCESS_KEY_ID=AKIA
aws_secret_access_key =   secret  
s3 =
  max_concurrent_requests = 20
[profile third]
aws_access_key_id=3
aws_secret_access_key=3
aws_session_token=t==
[broken]
aws_access_key_id=4
`

func TestFromFile(t *testing.T) {
	path := write(t, file)
	for profile, want := range map[string]aws.Credentials{
		"":      {AccessKeyID: "AKIA", SecretAccessKey: "secret"},
		"other": {AccessKeyID: "AKIAOTHER", SecretAccessKey: "other=secret+/"},
		"first": {AccessKeyID: "1", SecretAccessKey: "1"},
		"third": {AccessKeyID: "3", SecretAccessKey: "3", SessionToken: "t=="},
	} {
		p, err := awscred.FromFile(path, profile)
		if err != nil {
			t.Errorf("%s: %v", profile, err)
			continue
		}
		check(t, p, want)
	}
	for _, profile := range []string{"broken", "missing"} {
		_, err := awscred.FromFile(path, profile)
		if !errors.Is(err, awscred.ErrNone) || !strings.Contains(err.Error(), "["+profile+"]") {
			t.Errorf("%s: got %v, want ErrNone and the profile", profile, err)
		}
	}
	if _, err := awscred.FromFile(path+"x", ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that the file is missing", err)
	}
}

// TestFileIsReplaced changes keys while somebody uses them.
func TestFileIsReplaced(t *testing.T) {
	path := write(t, file)
	p, err := awscred.FromFile(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("[default]\naws_access_key_id=new\naws_secret_access_key=key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, p, aws.Credentials{AccessKeyID: "new", SecretAccessKey: "key"})
}
