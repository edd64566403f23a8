package supervise_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/supervise"
)

// good is what firmware of the demo looks like: builtins of the shell only.
const good = "#!/bin/sh\necho interlock-firmware 1.2.3\nwhile read -r line; do :; done\nexit 0\n"

func image(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "controller.img")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func config(path string) supervise.Config {
	return supervise.Config{Path: path, Timeout: time.Minute, Grace: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
}

func TestStart(t *testing.T) {
	path := image(t, good+strings.Repeat("\x00\xff padding\n", 100000)) // as the images of the demo
	f, err := supervise.Start(t.Context(), config(path))
	if err != nil {
		t.Fatal(err)
	}
	if f.Version() != "1.2.3" {
		t.Errorf("version: got %q, want 1.2.3", f.Version())
	}
	select {
	case <-f.Done():
		t.Fatalf("it ended: %v", f.Err())
	default:
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("mode: got %v, %v, want 0711", info.Mode(), err)
	}
	f.Stop()
	f.Stop()
	<-f.Done()
	if err := f.Err(); err != nil {
		t.Errorf("after Stop: got %v, want no error", err)
	}
}

func TestDoesNotStart(t *testing.T) {
	for _, tt := range []struct{ name, image, want string }{
		{"empty", "", "it is empty"},
		{"no program", "\x7fNOPE\x00\x01\x02", "neither a program"},
		{"no interpreter", "#!/no/such/shell\n", "interpreter or loader that it names is not"},
		{"exits", "#!/bin/sh\necho oh no >&2\nexit 3\n", `start firmware: it wrote "oh no", and ended before it said its version: exit status 3 (`},
		{"says more", "#!/bin/sh\necho one >&2\necho two >&2\nexit 3\n", `it wrote "two" (before that: ["one"]), and ended`},
		{"exits well", "#!/bin/sh\nexit 0\n", "it wrote nothing, and ended before it said its version: exit status 0, although its input had not ended"},
		{"says something else", "#!/bin/sh\necho hello\nread x\n", `its first line is "hello", want "interlock-firmware VERSION"`},
		{"no version", "#!/bin/sh\necho interlock-firmware one\nread x\n", `"one" is not a number`},
		{"a version too late", "#!/bin/sh\necho booting\necho interlock-firmware 1.0.0\nread x\n", `its first line is "booting"`},
		{"floods", "#!/bin/sh\nwhile :; do printf 0123456789; done\n", "within"},
		{"killed", "#!/bin/sh\nkill -9 $$\n", "signal: killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(image(t, tt.image))
			if tt.name == "floods" {
				cfg.Timeout = 300 * time.Millisecond
			}
			f, err := supervise.Start(t.Context(), cfg)
			if err == nil {
				f.Stop()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "start firmware: ") || !strings.HasSuffix(err.Error(), " ("+cfg.Path+")") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := supervise.Start(t.Context(), config(filepath.Join(t.TempDir(), "none"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	if _, err := supervise.Start(t.Context(), config(t.TempDir())); err == nil || !strings.Contains(err.Error(), "only a regular file") {
		t.Errorf("a directory: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := supervise.Start(ctx, config(image(t, "#!/bin/sh\nread x\n"))); !errors.Is(err, context.Canceled) {
		t.Errorf("context ended: got %v", err)
	}
}

// TestOpenForWriting is https://go.dev/issue/22315: the slot was written a
// moment ago, and a descriptor of it lives on in a forked child.
func TestOpenForWriting(t *testing.T) {
	path := image(t, good)
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-time.After(50 * time.Millisecond)
		w.Close()
	}()
	f, err := supervise.Start(t.Context(), config(path))
	if err != nil {
		t.Fatal(err)
	}
	f.Stop()

	held, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := supervise.Start(t.Context(), config(path)); !errors.Is(err, syscall.ETXTBSY) || !strings.Contains(err.Error(), "open for writing") {
		t.Errorf("got %v, want %v", err, syscall.ETXTBSY)
	}
}

func TestCrash(t *testing.T) {
	f, err := supervise.Start(t.Context(), config(image(t, "#!/bin/sh\necho interlock-firmware 1.0.0\nread x\necho core meltdown >&2\nexit 7\n")))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Err(); err != nil {
		t.Errorf("while it runs: got %v", err)
	}
	// The firmware's own end, while nobody asked for it.
	pid := processes(t, "core meltdown")
	if len(pid) != 1 {
		t.Fatalf("got processes %v, want one", pid)
	}
	syscall.Kill(pid[0], syscall.SIGKILL)
	<-f.Done()
	if err := f.Err(); err == nil || !strings.Contains(err.Error(), `firmware 1.0.0 ended: it wrote "interlock-firmware 1.0.0": signal: killed`) {
		t.Errorf("got %v, want signal: killed", err)
	}
	f.Stop()
}

// processes returns the shells whose script contains s.
func processes(t *testing.T, s string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(string(cmdline), "\x00")
		if len(args) < 2 || filepath.Base(args[0]) != "sh" {
			continue
		}
		if script, err := os.ReadFile(args[1]); err == nil && strings.Contains(string(script), s) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestStopKills: firmware that ignores both ways of being asked, with a child
// that does, too. Nobody is left.
func TestStopKills(t *testing.T) {
	mark := fmt.Sprintf("mark %d", os.Getpid())
	script := "#!/bin/sh\n# " + mark + "\ntrap '' TERM\nif [ \"$CHILD\" = 1 ]; then while :; do sleep 1; done; fi\n" +
		"CHILD=1 /bin/sh \"$0\" &\necho interlock-firmware 1.0.0\nwhile :; do sleep 1; done\n"
	f, err := supervise.Start(t.Context(), config(image(t, script)))
	if err != nil {
		t.Fatal(err)
	}
	if got := processes(t, mark); len(got) < 1 {
		t.Fatalf("got processes %v, want at least one", got)
	}
	f.Stop()
	<-f.Done()
	for range 100 { // the child is the system's to reap now
		if len(processes(t, mark)) == 0 {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Errorf("left over: %v", processes(t, mark))
}

// TestLifeline: the agent dies without a word, and the firmware ends by itself.
func TestLifeline(t *testing.T) {
	if os.Getenv("SUPERVISE_AGENT") != "" {
		f, err := supervise.Start(t.Context(), config(os.Getenv("SUPERVISE_AGENT")))
		if err != nil {
			t.Fatal(err)
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		<-f.Done()
	}
	mark := fmt.Sprintf("lifeline %d", os.Getpid())
	path := image(t, good+"# "+mark+"\n")
	agent, err := os.StartProcess(os.Args[0], []string{os.Args[0], "-test.run=^TestLifeline$"},
		&os.ProcAttr{Env: append(os.Environ(), "SUPERVISE_AGENT="+path)})
	if err != nil {
		t.Fatal(err)
	}
	state, err := agent.Wait()
	if err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the agent ended with %v, %v, want SIGKILL", state, err)
	}
	for range 600 {
		if len(processes(t, mark)) == 0 {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Errorf("left over: %v", processes(t, mark))
}

func ExampleStart() {
	dir, err := os.MkdirTemp("", "slot")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "controller.img")
	if err := os.WriteFile(path, []byte(good), 0o644); err != nil {
		fmt.Println(err)
		return
	}
	firmware, err := supervise.Start(context.Background(), supervise.Config{Path: path})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer firmware.Stop()
	fmt.Println("version", firmware.Version(), "runs")
	// Output: version 1.2.3 runs
}
