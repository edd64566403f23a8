//go:build linux

// Package vm boots the reference device of deploy/reference-device in a virtual
// machine, with the real bootloader, kernel and agent, and lets it take releases
// from a real server.
//
// It is for whoever changes a boot control, a boot script or the agent, and wants
// to see that a device comes back from whatever a release does to it:
//
//	make vm                 every board and every kind of bad release
//	VM=quick make vm        one board, a good release and one that panics
//
// Start with [Build], [StartServer] and [Start]. A [Machine] is one QEMU process,
// always emulated in software; its serial console is read line by line. The package
// promises to end the processes that it started, and only those.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

// A Machine is a running QEMU.
type Machine struct {
	cmd  *exec.Cmd
	done <-chan struct{} // closed when QEMU has ended, and all that it printed is in lines

	mu      sync.Mutex
	lines   []string
	partial []byte
	more    chan struct{} // closed and replaced when there are more lines
	read    int           // lines that Wait has passed
	log     io.Writer
}

// Start powers a machine on. The script machine of the reference device says what
// board, disk and port are; args go to QEMU. The console also goes to log, if that
// is not nil.
func Start(board Board, disk string, port int, log io.Writer, args ...string) (*Machine, error) {
	script, err := scriptPath("machine")
	if err != nil {
		return nil, err
	}
	m := &Machine{more: make(chan struct{}), log: log}
	m.cmd = exec.Command(script, append([]string{string(board), disk, fmt.Sprint(port)}, args...)...)
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open the console of the machine: %w", err)
	}
	m.cmd.Stdout, m.cmd.Stderr = in, in
	m.done, err = start(m.cmd, func() {
		io.Copy(console{m}, out) // until QEMU and its connections have ended
		out.Close()
	})
	in.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("start the machine: %w", err)
	}
	return m, nil
}

// Stop pulls the plug, and returns when the machine is off. What QEMU has handed
// to this machine's kernel is on the disk; for what a real cut loses, see [Replay].
func (m *Machine) Stop() {
	if isClosed(m.done) {
		return // the process id may be somebody else's by now
	}
	syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
	<-m.done
}

// Quit ends QEMU in order, so that all it keeps for itself is in its files. The guest
// notices nothing before it is gone.
func (m *Machine) Quit() {
	if isClosed(m.done) {
		return
	}
	m.cmd.Process.Signal(syscall.SIGTERM)
	<-m.done
}

// Off is closed when the machine is off: after Stop, or with QEMU's -no-reboot
// when the guest restarts.
func (m *Machine) Off() <-chan struct{} { return m.done }

// ErrOff is returned by Wait if the machine went off before.
var ErrOff = errors.New("the machine is off")

// Wait returns the next line of the console that matches, with the groups of the
// expression. Lines before it are passed and not seen again.
func (m *Machine) Wait(ctx context.Context, expr string) ([]string, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("wait for a line: %w", err)
	}
	for {
		m.mu.Lock()
		off := isClosed(m.done) // asked first: after it there are no more lines
		for m.read < len(m.lines) {
			line := m.lines[m.read]
			m.read++
			if groups := re.FindStringSubmatch(line); groups != nil {
				m.mu.Unlock()
				return groups, nil
			}
		}
		more := m.more
		m.mu.Unlock()
		if off {
			return nil, fmt.Errorf("wait for %q on the console: %w; its last lines are\n%s", expr, ErrOff, m.Tail(20))
		}
		select {
		case <-more:
		case <-m.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %q on the console: %w; its last lines are\n%s", expr, ctx.Err(), m.Tail(20))
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Count returns how many lines of the console match so far.
func (m *Machine) Count(expr string) int {
	re := regexp.MustCompile(expr)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, l := range m.lines {
		if re.MatchString(l) {
			n++
		}
	}
	return n
}

// Tail returns the last n lines of the console.
func (m *Machine) Tail(n int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(append(m.lines[max(0, len(m.lines)-n):len(m.lines):len(m.lines)], string(m.partial)), "\n")
}

// console takes what the machine prints.
type console struct{ m *Machine }

func (c console) Write(p []byte) (int, error) {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.log != nil {
		if _, err := m.log.Write(p); err != nil {
			m.log = nil // the console is more important than its copy
		}
	}
	m.partial = append(m.partial, p...)
	for {
		line, rest, ok := bytes.Cut(m.partial, []byte("\n"))
		if !ok {
			break
		}
		m.lines = append(m.lines, strings.Trim(string(line), "\r"))
		m.partial = rest
	}
	close(m.more)
	m.more = make(chan struct{})
	return len(p), nil
}

// scriptPath finds a script of the reference device from wherever in the module
// the program was started.
func scriptPath(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the reference device: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "deploy", "reference-device", name), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the reference device: this is not inside the module github.com/interlock-energy/ota")
		}
		dir = parent
	}
}
