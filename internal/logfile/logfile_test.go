package logfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/internal/logfile"
)

// TestMain also serves as the process of TestPartialWrite.
func TestMain(m *testing.M) {
	if path := os.Getenv("LOGFILE_TEST_PARTIAL"); path != "" {
		partialWrite(path)
		return
	}
	os.Exit(m.Run())
}

func open(t *testing.T, cfg logfile.Config) *logfile.Writer {
	t.Helper()
	w, err := logfile.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func closed(t *testing.T, w *logfile.Writer) {
	t.Helper()
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// text returns the file with the times of our own notices replaced.
func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`time=\S+`).ReplaceAllString(string(b), "time=T")
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestRotate(t *testing.T) {
	for _, tt := range []struct {
		files int
		want  map[string]string
		names string
	}{
		{1, map[string]string{"log": "line 6\nline 7\n"}, "log"},
		{2, map[string]string{"log": "line 6\nline 7\n", "log.1": "line 4\nline 5\n"}, "log log.1"},
		{3, map[string]string{"log": "line 6\nline 7\n", "log.1": "line 4\nline 5\n", "log.2": "line 2\nline 3\n"}, "log log.1 log.2"},
		{9, map[string]string{"log": "line 6\nline 7\n", "log.3": "line 0\nline 1\n"}, "log log.1 log.2 log.3"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "log")
		w := open(t, logfile.Config{Path: path, MaxSize: 15, Files: tt.files}) // two lines and one byte
		for i := range 8 {
			fmt.Fprintf(w, "line %d\n", i)
		}
		closed(t, w)
		for name, want := range tt.want {
			if got := text(t, filepath.Join(dir, name)); got != want {
				t.Errorf("%d files: %s: got %q, want %q", tt.files, name, got, want)
			}
		}
		if got := names(t, dir); got != tt.names {
			t.Errorf("%d files: got %s, want %s", tt.files, got, tt.names)
		}
	}
}

// TestNoLineIsSplit writes lines of many lengths and finds each of them whole,
// once, in order, in files that are not too large.
func TestNoLineIsSplit(t *testing.T) {
	dir := t.TempDir()
	w := open(t, logfile.Config{Path: filepath.Join(dir, "log"), MaxSize: 1000, Files: 100})
	var want strings.Builder
	for i := range 500 {
		s := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", i*37%200))
		want.WriteString(s)
		io.WriteString(w, s)
	}
	closed(t, w)
	var got string
	for i := 0; ; i++ {
		name := filepath.Join(dir, "log")
		if i > 0 {
			name += fmt.Sprintf(".%d", i)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			break
		}
		if len(b) > 1000 || b[len(b)-1] != '\n' {
			t.Errorf("%s: %d bytes, ends in %q", name, len(b), b[len(b)-1])
		}
		got = string(b) + got
	}
	if got != want.String() {
		t.Errorf("the files together differ from what was written")
	}
}

func TestLines(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	if err := os.WriteFile(path, []byte("half a li"), 0o600); err != nil { // a power cut
		t.Fatal(err)
	}
	w := open(t, logfile.Config{Path: path})
	io.WriteString(w, "no newline")
	io.WriteString(w, "")
	io.WriteString(w, strings.Repeat("y", 100_000))
	closed(t, w)
	want := "half a li\nno newline\n\n" + strings.Repeat("y", 64<<10) + "... (cut, it has 100000 bytes)\n"
	if got := text(t, path); got != want {
		t.Errorf("got %.60q (%d bytes), want %d bytes", got, len(got), len(want))
	}
}

// TestMissingDirectory is a card that is put in late.
func TestMissingDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "card")
		path := filepath.Join(dir, "log")
		w := open(t, logfile.Config{Path: path})
		for i := range 1024 + 1 + 137 { // one is in the goroutine's hands
			fmt.Fprintf(w, "line %d\n", i)
			if i == 0 {
				synctest.Wait()
			}
		}
		if got := w.Lost(); got != 137 {
			t.Errorf("lost: got %d, want 137", got)
		}
		if err := w.Err(); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("Err: got %v", err)
		}
		time.Sleep(time.Hour)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		io.WriteString(w, "back\n")
		closed(t, w)
		got := text(t, path)
		want := "line 1024\ntime=T level=WARN msg=\"137 lines were lost while the log could not be written\"\nback\n"
		if !strings.HasPrefix(got, "line 0\nline 1\n") || !strings.HasSuffix(got, want) || strings.Count(got, "\n") != 1027 {
			t.Errorf("got %d lines, end %q", strings.Count(got, "\n"), got[max(0, len(got)-150):])
		}
	})
}

// TestQueueBytes: a thousand lines are bounded in bytes, too.
func TestQueueBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, logfile.Config{Path: filepath.Join(t.TempDir(), "missing", "log")})
		for range 20 {
			io.WriteString(w, strings.Repeat("z", 60_000))
		}
		if got := w.Lost(); got != 3 { // 17 of 60,001 bytes are 1,020,017 of 1,048,576
			t.Errorf("lost: got %d, want 3", got)
		}
		if err := w.Close(t.Context()); err == nil || w.Lost() != 20 {
			t.Errorf("Close: got %v and %d lost, want an error and 20", err, w.Lost())
		}
	})
}

// TestFullMedium uses the device that is always full.
func TestFullMedium(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.Symlink("/dev/full", path); err != nil {
			t.Fatal(err)
		}
		w := open(t, logfile.Config{Path: path})
		io.WriteString(w, "one\n")
		io.WriteString(w, "two\n")
		synctest.Wait()
		if err := w.Err(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Err: got %v, want ENOSPC", err)
		}
		if err := os.Remove(path); err != nil { // somebody makes room
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if err := w.Err(); err != nil {
			t.Errorf("Err with room: %v", err)
		}
		closed(t, w)
		if got, want := text(t, path), "one\ntwo\n"; got != want || w.Lost() != 0 {
			t.Errorf("got %q and %d lost, want %q", got, w.Lost(), want)
		}
	})
}

// TestPartialWrite runs a process whose files may have 1,000 bytes: the kernel
// takes part of a line. Nothing of it may stay.
func TestPartialWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LOGFILE_TEST_PARTIAL="+path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := "closed: true\n"; string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
	line := strings.Repeat("p", 299) + "\n"
	if got := text(t, path); got != strings.Repeat(line, 3) {
		t.Errorf("got %d bytes, want three whole lines of 300", len(got))
	}
}

func partialWrite(path string) {
	signal.Ignore(syscall.SIGXFSZ)
	limit := syscall.Rlimit{Cur: 1000, Max: 1000}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	w, err := logfile.New(logfile.Config{Path: path})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for range 5 {
		io.WriteString(w, strings.Repeat("p", 299))
	}
	fmt.Println("closed:", errors.Is(w.Close(context.Background()), syscall.EFBIG) && w.Lost() == 2)
}

// TestDeleted: the file goes away, is renamed, is cut short by somebody else.
func TestDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		w := open(t, logfile.Config{Path: path})
		write := func(s string) {
			io.WriteString(w, s)
			synctest.Wait()
		}
		write("1\n")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		write("2\n")
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		write("3\n")
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		write("4\n")
		closed(t, w)
		if got, want := text(t, path+".old")+text(t, path), "2\n4\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestRenameFails: path.1 is in the way and cannot be replaced.
func TestRenameFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "log")
		if err := os.MkdirAll(path+".1/full", 0o700); err != nil {
			t.Fatal(err)
		}
		w := open(t, logfile.Config{Path: path, MaxSize: 200, Files: 2})
		largest := int64(0)
		for i := range 60 {
			fmt.Fprintf(w, "this is line %d\n", i)
			synctest.Wait()
			if info, err := os.Stat(path); err != nil {
				t.Fatal(err)
			} else {
				largest = max(largest, info.Size())
			}
		}
		if largest > 400 {
			t.Errorf("the file grew to %d bytes, want at most 400", largest)
		}
		if got := text(t, path); !strings.Contains(got, "started over, because older files cannot be renamed") || !strings.HasSuffix(got, "this is line 59\n") {
			t.Errorf("got %q", got)
		}
		if err := os.RemoveAll(path + ".1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // then it is tried again
		for i := range 20 {
			fmt.Fprintf(w, "that is line %d\n", i)
		}
		closed(t, w)
		if got := text(t, path+".1"); !strings.Contains(got, "th") || w.Lost() != 0 {
			t.Errorf("path.1: got %q, %d lost", got, w.Lost())
		}
	})
}

// TestShiftAgain: a gap in the numbers, as a shift that broke off leaves it, is
// used and costs no file.
func TestShiftAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	for name, s := range map[string]string{"log": "current\n", "log.2": "older\n", "log.3": "oldest\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := open(t, logfile.Config{Path: path, MaxSize: 8, Files: 4})
	io.WriteString(w, "new\n")
	closed(t, w)
	got := text(t, path) + text(t, path+".1") + text(t, path+".2") + text(t, path+".3")
	if want := "new\ncurrent\nolder\noldest\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestBlockedMedium: a pipe that nobody reads takes 64 KiB and then nothing.
func TestBlockedMedium(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	w := open(t, logfile.Config{Path: path})
	log := slog.New(w.Handler())
	for range 5_000 { // would block for ever if it could
		log.Info("a line of some length, so that pipe and queue are full soon")
	}
	if w.Lost() == 0 {
		t.Error("nothing was lost, so nothing was blocked")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: got %v, want the context's error", err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, r)
	if err := w.Close(t.Context()); err != nil && !strings.Contains(err.Error(), "sync") { // a pipe cannot be synced
		t.Error(err)
	}
	r.Close()
}

// TestErrorsAreSynced: a pipe cannot be synced, and then the writer closes it,
// which its reader sees. The deadline only ends a test that has failed.
func TestErrorsAreSynced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	w := open(t, logfile.Config{Path: path})
	log := slog.New(w.Handler())
	log.Info("first")
	r, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log.Error("second")
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(b), "msg=second") {
		t.Errorf("got %q, %v, want both lines and the end", b, err)
	}
	closed(t, w)
}

func TestHandler(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	level := new(slog.LevelVar)
	w := open(t, logfile.Config{Path: path, Level: level})
	log := slog.New(w.Handler())
	log.Debug("no")
	log.Info("one", "k", "v w")
	log.With("a", 1).WithGroup("g").Error("two\nlines", "b", 2)
	level.Set(slog.LevelDebug)
	log.Debug("three")
	closed(t, w)
	log.Error("after the end")
	want := `time=T level=INFO msg=one k="v w"
time=T level=ERROR msg="two\nlines" a=1 g.b=2
time=T level=DEBUG msg=three
`
	if got := text(t, path); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := w.Lost(); got != 1 {
		t.Errorf("lost: got %d, want the one after Close", got)
	}
	closed(t, w) // again
}

type failing struct{ slog.Handler }

func (failing) Handle(context.Context, slog.Record) error { return errors.New("broken") }

func TestTee(t *testing.T) {
	var a, b bytes.Buffer
	options := &slog.HandlerOptions{Level: slog.LevelWarn}
	log := slog.New(logfile.Tee(failing{slog.NewTextHandler(io.Discard, nil)}, nil, slog.NewTextHandler(&a, nil), slog.NewTextHandler(&b, options)))
	log.With("k", 1).Info("info")
	log.Warn("warn")
	if got := a.String(); !strings.Contains(got, "msg=info k=1") || !strings.Contains(got, "msg=warn") {
		t.Errorf("first: got %q", got)
	}
	if got := b.String(); strings.Contains(got, "info") || !strings.Contains(got, "msg=warn") {
		t.Errorf("second: got %q", got)
	}
}

func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := open(t, logfile.Config{Path: path})
	log := slog.New(w.Handler())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				log.Info("x", "i", i, "j", j)
			}
		})
	}
	wg.Wait()
	closed(t, w)
	if got := int64(strings.Count(text(t, path), "msg=x")) + w.Lost(); got != 800 {
		t.Errorf("written and lost: got %d, want 800", got)
	}
}

func TestNew(t *testing.T) {
	for name, cfg := range map[string]logfile.Config{
		"no path": {}, "size": {Path: "x", MaxSize: -1}, "files": {Path: "x", Files: -1}, "retry": {Path: "x", Retry: -1},
	} {
		if _, err := logfile.New(cfg); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func ExampleNew() {
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	w, err := logfile.New(logfile.Config{Path: filepath.Join(dir, "interlockd.log")})
	if err != nil {
		fmt.Println(err)
		return
	}
	log := slog.New(logfile.Tee(slog.NewTextHandler(io.Discard, nil), w.Handler())) // console and card
	log.Info("the agent starts")

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	fmt.Println(w.Close(ctx), w.Lost())
	// Output: <nil> 0
}
