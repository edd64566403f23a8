package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/control"
)

const config = `device: {id: desk-01, product: demo}
state_dir: state
source: {media: {path: media}}
keys: {files: [key.pem]}
battery: {reader: none}
slot: {kind: file, dir: slots, run: true, factory: factory.img}
control: {socket: agent.sock}
`

// desk is a directory with everything that config needs.
func desk(t *testing.T) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "desk") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"good.yaml":      config,
		"misspelt.yaml":  strings.Replace(config, "battery:", "batery:", 1),
		"nobattery.yaml": strings.Replace(config, "battery: {reader: none}\n", "", 1),
		"key.pem":        string(public),
		"factory.img":    "#!/bin/sh\necho interlock-firmware 1.0.0\nwhile read -r line; do :; done\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCommandLine(t *testing.T) {
	dir := desk(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // contained; empty: nothing
	}{
		{"version", []string{"--version"}, 0, "interlockd ", ""},
		{"help", []string{"--help"}, 0, "", "  --config FILE    configuration FILE, see docs/configuration.md\n"},
		{"nothing", nil, 2, "", "interlockd: --config is missing\nhint: "},
		{"unknown flag", []string{"--confg", "x"}, 2, "", "flag provided but not defined: -confg"},
		{"argument", []string{"--config", file("good.yaml"), "start"}, 2, "", `interlockd: argument "start" is not expected`},
		{"no such file", []string{"--config", file("none.yaml")}, 3, "", "no such file"},
		{"misspelt", []string{"--config", file("misspelt.yaml")}, 3, "", `line 5: unknown key "batery"; did you mean "battery"?`},
		{"no battery", []string{"--config", file("nobattery.yaml")}, 3, "", "battery.reader is missing, and without readings nobody knows whether an update is safe"},
		{"check", []string{"--config", file("good.yaml"), "--check-config"}, 0, "warning: battery.reader is none", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), tt.args, &stdout, &stderr)
			if code != tt.code {
				t.Errorf("exit code: got %d, want %d", code, tt.code)
			}
			for _, s := range []struct{ name, got, want string }{{"stdout", stdout.String(), tt.stdout}, {"stderr", stderr.String(), tt.stderr}} {
				if !strings.Contains(s.got, s.want) || s.want == "" && s.got != "" {
					t.Errorf("%s: got %q, want %q", s.name, s.got, s.want)
				}
			}
			if strings.HasPrefix(stderr.String(), "interlockd: ") && strings.Count(stderr.String(), "\n") != 2 {
				t.Errorf("stderr: got %q, want a sentence and a hint", &stderr)
			}
		})
	}
	if _, err := os.Stat(file("slots")); err == nil {
		t.Error("checking a configuration has made a device")
	}
}

// TestRun is a start and an end under systemd.
func TestRun(t *testing.T) {
	dir := desk(t)
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	told := make(chan string, 1000)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := systemd.Read(buf)
			if err != nil {
				close(told)
				return
			}
			told <- string(buf[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "300000")
	t.Setenv("WATCHDOG_PID", "")

	ctx, stop := context.WithCancel(t.Context())
	var stdout, stderr bytes.Buffer
	code := make(chan int, 1)
	go func() { code <- run(ctx, []string{"--config", filepath.Join(dir, "good.yaml")}, &stdout, &stderr) }()
	want := []string{"READY=1", "WATCHDOG=1", "STATUS="}
	patience := time.After(time.Minute)
	for len(want) > 0 {
		select {
		case s := <-told:
			for i, w := range want {
				if strings.HasPrefix(s, w) {
					want = append(want[:i], want[i+1:]...)
					break
				}
			}
		case c := <-code:
			t.Fatalf("it ended with %d: %s", c, &stderr)
		case <-patience:
			t.Fatalf("systemd was not told %q", want)
		}
	}
	client, err := control.Dial(filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if st, err := client.Status(t.Context()); err != nil || st.Snapshot.Running != "1.0.0" || st.Agent.Device != "desk-01" {
		t.Errorf("got %+v, %v, want firmware 1.0.0 on desk-01", st, err)
	}
	stop()
	if c := <-code; c != exitOK {
		t.Errorf("exit code: got %d, want 0: %s", c, &stderr)
	}
	for s := ""; s != "STOPPING=1"; {
		select {
		case s = <-told:
		case <-patience:
			t.Fatal("systemd was not told that it stops")
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "agent.sock")); err == nil {
		t.Error("the socket was left behind")
	}
	// A record that cannot be had is not a wrong configuration.
	if err := os.Chmod(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stderr.Reset()
	if c := run(t.Context(), []string{"--config", filepath.Join(dir, "good.yaml")}, &stdout, &stderr); c != exitFailed || !strings.Contains(stderr.String(), "open the record in") {
		t.Errorf("without a record: got %d, %s, want %d", c, &stderr, exitFailed)
	}
}
