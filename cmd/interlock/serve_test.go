package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
)

// screen is where a command writes while a test reads.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// A server whose files are in a real S3 bucket, from its command line to what is
// in the bucket after a release was published; and what it says if the bucket or
// the flags are wrong.
func TestServeWithABucket(t *testing.T) {
	bucket := s3test.Start(t, s3test.Options{TLS: true})
	for _, v := range append(bucket.Env(), "INTERLOCK_SERVER=", "INTERLOCK_BUCKET=", "INTERLOCK_TOKEN=") {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	do := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &env{stdout: &out, stderr: &errs, getenv: os.Getenv, now: time.Now}); code != want {
			t.Fatalf("interlock %s: exit code %d, want %d: %s", strings.Join(args, " "), code, want, &errs)
		}
		return out.String() + errs.String()
	}
	for _, tt := range []struct {
		args []string
		exit int
		want string
	}{
		{[]string{"--files", "/srv/files"}, exitUsage, "want s3://bucket/prefix"},
		{[]string{"--direct", "always"}, exitUsage, "without --files there is no bucket"},
		{[]string{"--direct", "often"}, exitUsage, "auto"},
		{[]string{"--files", "s3://missing/releases"}, exitFailed, `there is no bucket "missing"`},
		{[]string{"--files", "s3://bucket/a?regio=x"}, exitFailed, `parameter "regio"`},
	} {
		args := append([]string{"serve", "--data", in("data"), "--listen", "127.0.0.1:0"}, tt.args...)
		if got := do(tt.exit, args...); !strings.Contains(got, tt.want) {
			t.Errorf("%q: got %q, want %q in it", tt.args, got, tt.want)
		}
	}
	if _, err := os.Stat(in("data")); err == nil {
		t.Error("there is a data directory, although nothing could start")
	}

	ctx, stop := context.WithCancel(t.Context())
	var out screen
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "--data", in("data"), "--listen", "127.0.0.1:0", "--files", "s3://bucket/releases", "--direct", "always"},
			&env{stdout: &out, stderr: &out, getenv: os.Getenv, now: time.Now})
	}()
	for !strings.Contains(out.String(), "interlock devices token") {
		select {
		case code := <-ended:
			t.Fatalf("it ended with %d: %s", code, out.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if want := "files      s3://bucket/releases (devices fetch images there)\n"; !strings.Contains(out.String(), want) {
		t.Errorf("got %q, want %q in it", out.String(), want)
	}
	t.Setenv("INTERLOCK_SERVER", regexp.MustCompile(`https://\S+`).FindString(out.String()))
	t.Setenv("INTERLOCK_CA", in("data/ca.pem"))
	t.Setenv("INTERLOCK_TOKEN_FILE", in("data/operator.token"))
	if err := os.WriteFile(in("fw.img"), bytes.Repeat([]byte("firmware"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	do(exitOK, "keygen", "--out", in("keys"))
	do(exitOK, "build", "--product", "bess", "--version", "1.0.0", "--image", "controller="+in("fw.img"), "--key", in("keys/private.pem"), "--out", in("a.bundle"))
	do(exitOK, "publish", in("a.bundle"))
	var sizes []int64
	err := filepath.WalkDir(filepath.Join(bucket.Dir, "bucket", "releases"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sizes = append(sizes, info.Size())
		}
		return err
	})
	if err != nil || len(sizes) != 2 || min(sizes[0], sizes[1]) != 800_000 {
		t.Errorf("in the bucket: files of %v bytes, %v; want the bundle and its image of 800000", sizes, err)
	}
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("it ended with %d, want %d: %s", code, exitOK, out.String())
	}
}
