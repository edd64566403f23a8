//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A run is one installation, measured.
type run struct {
	Wall    time.Duration
	CPU     time.Duration // user and system time of all its processes
	Machine time.Duration // what all processors were busy with anything, workers of the kernel included
	RSS     int64         // bytes, of the largest process at its peak
}

// measure runs a command with all its children, in a process group of its own
// that ends with ctx. The command runs below this same program ("-child measure"),
// because what the kernel accounts to children is only exact if there are no others.
func measure(ctx context.Context, dir string, environ []string, command ...string) (run, error) {
	self, err := os.Executable()
	if err != nil {
		return run{}, err
	}
	out, err := os.CreateTemp(dir, "measured-")
	if err != nil {
		return run{}, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, self, append([]string{"-child", "measure", "-from", out.Name(), "--"}, command...)...)
	cmd.Env = append(os.Environ(), environ...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	unix.Sync() // what others left to write is not ours
	busy := machine()
	err = cmd.Run()
	if ctx.Err() != nil {
		return run{}, context.Cause(ctx)
	}
	if err != nil {
		return run{}, &commandError{command[0], err, said.String()}
	}
	busy = machine() - busy
	var r run
	err = json.NewDecoder(out).Decode(&r)
	r.Machine = busy
	return r, err
}

// commandError is a command that ended with an error, and what it said.
type commandError struct {
	name string
	err  error
	said string
}

func (e *commandError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.said), "\n")
	return fmt.Sprintf("run %s: %v:\n%s", filepath.Base(e.name), e.err, strings.Join(lines[max(0, len(lines)-6):], "\n"))
}

func (e *commandError) Unwrap() error { return e.err }

// measured is the process between. It adopts what the command leaves behind, waits
// for it, and writes a run to the file out.
//
// Its own memory would be counted as the peak of every child: until it executes
// another program, a child that Go starts lives in the memory of its parent, and
// getrusage(2) keeps that. GNU time is small, and reports the peak of what it runs.
func measured(out string, command []string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	path, err := exec.LookPath("time")
	if err != nil {
		return fmt.Errorf("find GNU time (Debian package time): %w", err)
	}
	rss, err := os.CreateTemp(filepath.Dir(out), "rss-")
	if err != nil {
		return err
	}
	defer os.Remove(rss.Name())
	defer rss.Close()
	cmd := exec.Command(path, append([]string{"--quiet", "-f", "%M", "-o", rss.Name(), "--"}, command...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	err = cmd.Run()
	r := run{Wall: time.Since(start)}
	if err != nil {
		return err
	}
	for {
		var use unix.Rusage
		if _, err := unix.Wait4(-1, nil, 0, &use); errors.Is(err, unix.EINTR) {
			continue
		} else if errors.Is(err, unix.ECHILD) {
			break
		} else if err != nil {
			return fmt.Errorf("wait for what the command has left: %w", err)
		}
		r.RSS = max(r.RSS, use.Maxrss<<10)
	}
	var all unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &all); err != nil {
		return err
	}
	r.CPU = time.Duration(unix.TimevalToNsec(all.Utime) + unix.TimevalToNsec(all.Stime))
	text, err := io.ReadAll(rss)
	if err != nil {
		return err
	}
	kilobytes, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("read what GNU time says: %w", err)
	}
	r.RSS = max(r.RSS, kilobytes<<10)
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(out, data, 0o600)
}

// machine returns for how long all processors together have been busy, in steps of
// 10 ms: the first line of /proc/stat without idle and iowait (proc_stat(5)).
func machine() time.Duration {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var sum int64
	for i, field := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 7 { // the name, idle, iowait; steal, and guests, which are in user
			continue
		}
		n, _ := strconv.ParseInt(field, 10, 64)
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond
}

// spent returns the CPU time and the peak memory of a process that runs, with
// the children that it has waited for.
func spent(pid int) (cpu time.Duration, rss int64, err error) {
	var t unix.Timespec
	// The CPU clock of a process: CPUCLOCK_SCHED in include/linux/posix-timers.h.
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// Behind the name in brackets, cutime and cstime are fields 16 and 17 of proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	if len(fields) > 15 {
		user, _ := strconv.ParseInt(fields[13], 10, 64)
		system, _ := strconv.ParseInt(fields[14], 10, 64)
		ticks = user + system
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	if _, peak, ok := strings.Cut(string(status), "VmHWM:"); ok {
		if _, err := fmt.Sscan(peak, &rss); err != nil {
			return 0, 0, fmt.Errorf("read the peak memory of process %d: %w", pid, err)
		}
	}
	return time.Duration(t.Nano()) + time.Duration(ticks)*10*time.Millisecond, rss << 10, nil
}
