//go:build linux

package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// A Server is a running "interlock serve" on this machine's loopback, with a data
// directory of its own.
type Server struct {
	Port int

	program string
	url     string
	data    string
	cmd     *exec.Cmd
	done    <-chan struct{}
}

// StartServer starts the server that the device knows. It keeps its data in a new
// directory below dir.
func StartServer(ctx context.Context, d *Device, dir string) (*Server, error) {
	s := &Server{program: d.Program(), data: filepath.Join(dir, "server")}
	if err := os.CopyFS(s.data, os.DirFS(d.file("server"))); err != nil {
		return nil, fmt.Errorf("copy the server's data: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.program, "serve", "--data", s.data, "--listen", "127.0.0.1:0", "--host", "10.0.2.100",
		"--poll-interval", "2s", "--key", d.file("keys/public.pem"))
	s.cmd.Stderr = log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	address := make(chan string, 1)
	s.done, err = start(s.cmd, func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() { // to the end, so that it never has to wait for a reader
			if rest, ok := strings.CutPrefix(lines.Text(), "serving"); ok {
				address <- strings.TrimSpace(rest)
			}
		}
		close(address)
	})
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	s.url = <-address
	u, err := url.Parse(s.url)
	if err == nil {
		s.Port, err = strconv.Atoi(u.Port())
	}
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("start the server: it does not say where it serves; see %s", log.Name())
	}
	return s, nil
}

// Stop ends the server.
func (s *Server) Stop() {
	if !isClosed(s.done) {
		s.cmd.Process.Signal(syscall.SIGTERM)
	}
	<-s.done
}

// Publish gives a bundle to all devices.
func (s *Server) Publish(ctx context.Context, bundle string) error {
	return run(s.client(ctx, "publish", bundle))
}

// Device returns what the server knows of the device.
func (s *Server) Device(ctx context.Context) (api.DeviceDetail, error) {
	var d api.DeviceDetail
	cmd := s.client(ctx, "devices", "show", ID, "--json")
	out, err := cmd.Output()
	if err != nil {
		return d, fmt.Errorf("run %s: %w", cmd, err)
	}
	if err := json.Unmarshal(out, &d); err != nil {
		return d, fmt.Errorf("read what the server says of %s: %w", ID, err)
	}
	return d, nil
}

// Report waits until the server has a report on version.
func (s *Server) Report(ctx context.Context, version string) (ota.Report, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		d, err := s.Device(ctx)
		for _, r := range d.Reports {
			if r.Version == version {
				return r, nil
			}
		}
		select {
		case <-ctx.Done():
			return ota.Report{}, fmt.Errorf("wait for a report on %s: %w; the device says %q, the last answer was: %w", version, ctx.Err(), d.Why, err)
		case <-tick.C:
		}
	}
}

func (s *Server) client(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = append(os.Environ(), "INTERLOCK_SERVER="+s.url, "INTERLOCK_CA="+filepath.Join(s.data, "ca.pem"),
		"INTERLOCK_TOKEN_FILE="+filepath.Join(s.data, "operator.token"))
	return cmd
}
