package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
)

// A release goes into a real S3 bucket, and out of it by the URL of a job, as it
// was.
func TestPublishToS3(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	for _, v := range server.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "a.bundle")
	do := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		e := &env{stdout: &out, stderr: &errs, getenv: os.Getenv, now: time.Now}
		if code := run(t.Context(), args, e); code != want {
			t.Fatalf("interlock %s: exit code %d, want %d: %s", strings.Join(args, " "), code, want, &errs)
		}
		return out.String(), errs.String()
	}
	image := filepath.Join(dir, "fw.img")
	if err := os.WriteFile(image, bytes.Repeat([]byte("firmware"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	do(exitOK, "keygen", "--out", filepath.Join(dir, "keys"))
	do(exitOK, "build", "--product", "bess", "--version", "1.0.0", "--image", "controller="+image, "--key", filepath.Join(dir, "keys", "private.pem"), "--out", file)

	t.Setenv("INTERLOCK_BUCKET", "s3://"+server.Bucket+"/ota")
	if out, _ := do(exitOK, "publish", "--key", filepath.Join(dir, "keys", "public.pem"), file); !strings.Contains(out, "current in default") {
		t.Errorf("publish: got %q", out)
	}
	if out, _ := do(exitOK, "releases", "list"); !strings.Contains(out, "checked") {
		t.Errorf("releases list: got %q", out)
	}
	do(exitOK, "devices", "token", "bess-05")
	if out, _ := do(exitOK, "tokens", "list"); !strings.Contains(out, "bess-05") {
		t.Errorf("tokens list: got %q", out)
	}

	var job struct {
		Interlock struct{ Product, Version, Digest, Bundle string }
	}
	read := func(args ...string) {
		t.Helper()
		out, _ := do(exitOK, append([]string{"releases", "job", "1.0.0"}, args...)...)
		if err := json.Unmarshal([]byte(out), &job); err != nil || job.Interlock.Product != "bess" || job.Interlock.Version != "1.0.0" || len(job.Interlock.Digest) != 64 {
			t.Fatalf("job: got %s, %v", out, err)
		}
	}
	read()
	if b := job.Interlock.Bundle; !strings.HasPrefix(b, "${aws:iot:s3-presigned-url-v2:"+server.Endpoint+"/"+server.Bucket+"/ota/bundles/") || !strings.HasSuffix(b, "}") || strings.Contains(b, "?") {
		t.Errorf("job: got %s, want a placeholder", b)
	}
	read("--presigned")
	resp, err := server.Client().Get(job.Interlock.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		t.Errorf("download: %s, %d bytes, %v, want the bundle of %d", resp.Status, len(got), err, len(want))
	}

	// What people get wrong.
	if _, stderr := do(exitFailed, "releases", "list", "--in", "s3://no-such-bucket/ota"); !strings.Contains(stderr, `there is no bucket "no-such-bucket"`) {
		t.Errorf("wrong bucket: got %q", stderr)
	}
	if _, stderr := do(exitUsage, "releases", "list", "--in", "s3://"); !strings.Contains(stderr, "s3://bucket/prefix") {
		t.Errorf("no bucket: got %q", stderr)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
	if _, stderr := do(exitDenied, "publish", file); !strings.Contains(stderr, "check the credentials") {
		t.Errorf("wrong key: got %q", stderr)
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:1")
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	if _, stderr := do(exitUnreachable, "publish", file); !strings.Contains(stderr, "connection refused") {
		t.Errorf("no server: got %q", stderr)
	}
}

func TestJobURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://my-fw.s3.eu-central-1.amazonaws.com/ota/bundles/ab?X-Amz-Signature=1": "${aws:iot:s3-presigned-url-v2:https://s3.eu-central-1.amazonaws.com/my-fw/ota/bundles/ab}",
		"https://my.fw.s3.cn-north-1.amazonaws.com.cn/bundles/ab":                      "${aws:iot:s3-presigned-url-v2:https://s3.cn-north-1.amazonaws.com.cn/my.fw/bundles/ab}",
		"https://s3.eu-central-1.amazonaws.com/my-fw/bundles/ab?X=1":                   "${aws:iot:s3-presigned-url-v2:https://s3.eu-central-1.amazonaws.com/my-fw/bundles/ab}",
		"https://127.0.0.1:7070/bucket/bundles/ab?X=1":                                 "${aws:iot:s3-presigned-url-v2:https://127.0.0.1:7070/bucket/bundles/ab}",
	} {
		if got, err := jobURL(in); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", in, got, err, want)
		}
	}
}
