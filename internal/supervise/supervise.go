// Package supervise runs the image in a file slot as a process: the firmware of
// the demo, of developers, and of devices whose firmware is one program. The
// agent uses it to play the bootloader.
//
// Start with [Start]. What firmware must do to be run this way:
//
//   - Be executable by itself: a program for this machine, or a script with a #!
//     line. No arguments are given.
//   - Write "interlock-firmware VERSION" as the first line of its standard
//     output, within [Config.Timeout]: that says that it started, and as what.
//   - Run until its standard input ends, then stop what it controls and exit.
//     The input ends when the agent wants it to, and also when the agent dies
//     without a word, so that no firmware is left that nobody watches.
//
// What is promised: firmware that exits, or says something else, or nothing, has
// not started, and the error begins with the last lines that it wrote. [Firmware.Stop]
// returns when the process is gone, after a SIGKILL if need be.
//
// The slot's own file is executed, not a copy: what was verified in the slot is
// what runs. For that the file gets the executable bits, and its file system
// must not be mounted noexec.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
)

// Greeting is how the first line begins; the version follows after a space.
const Greeting = "interlock-firmware"

// Config says what to run. The zero value of every field but Path works.
type Config struct {
	Path    string        // the slot's file
	Timeout time.Duration // until the first line; default 10 s
	Grace   time.Duration // between asking it to stop and SIGKILL; default 5 s
	Env     []string      // of the firmware, as "NAME=value"; default: this process's
	Dir     string        // its working directory; default: this process's
	Log     *slog.Logger  // gets what it writes, line by line, at level debug; default slog.Default()
}

// Firmware is running firmware. Its methods may be called from any goroutine.
type Firmware struct {
	cfg     Config
	version string
	cmd     *exec.Cmd
	stdin   io.Closer
	said    *tail
	done    chan struct{}
	err     error // after done

	mu      sync.Mutex
	stopped bool // on request
}

// errBusy is what remains of ETXTBSY after the retries.
var errBusy = errors.New("somebody has it open for writing")

// Start starts the firmware and waits until it has said its version. An error
// means that nothing runs. Ending ctx stops the start, not firmware that runs.
func Start(ctx context.Context, cfg Config) (*Firmware, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	f, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start firmware: %w (%s)", err, cfg.Path) // what is long, and says least, comes last
	}
	return f, nil
}

func start(ctx context.Context, cfg Config) (*Firmware, error) {
	if err := makeExecutable(cfg.Path); err != nil {
		return nil, err
	}
	first := make(chan string, 1)
	f, err := launch(ctx, cfg, first)
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(cfg.Timeout)
	defer timeout.Stop()
	select {
	case line := <-first:
		f.version, err = parseGreeting(line)
	case <-f.done:
		select {
		case line := <-first: // said and gone
			err = fmt.Errorf("ended at once, after the line %q: %w", line, f.why())
		default:
			err = fmt.Errorf("ended before it said its version: %w", f.why())
		}
	case <-timeout.C:
		err = fmt.Errorf("did not say %q within %v", Greeting+" VERSION", cfg.Timeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		f.Stop()
		return nil, fmt.Errorf("%s, and %w", f.said, err)
	}
	return f, nil
}

// makeExecutable looks at what cannot work before it is tried, for a better message.
func makeExecutable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is %v, and only a regular file can be executed", info.Mode().Type())
	}
	if info.Size() == 0 {
		return errors.New("it is empty")
	}
	if info.Mode().Perm()&0o111 == 0o111 {
		return nil
	}
	if err := os.Chmod(path, info.Mode().Perm()|0o111); err != nil {
		return fmt.Errorf("make it executable: %w", err)
	}
	return nil
}

// launch starts the process. Somebody may still have the file open for writing
// for a moment although our own descriptor is closed: a child that another
// goroutine has forked and that has not executed anything yet. Then the kernel
// says ETXTBSY, and a little later not (https://go.dev/issue/22315).
func launch(ctx context.Context, cfg Config, first chan<- string) (*Firmware, error) {
	for try := 1; ; try++ {
		f := &Firmware{cfg: cfg, said: &tail{}, done: make(chan struct{})}
		cmd := exec.Command(cfg.Path)
		cmd.Env, cmd.Dir = cfg.Env, cfg.Dir
		cmd.SysProcAttr = ownGroup() // Ctrl-C at the terminal is for the agent, which stops the firmware in order
		cmd.Stdout = &lines{to: func(line string) {
			select {
			case first <- line: // has room for one
			default:
			}
			f.said.add(line)
			cfg.Log.Debug("firmware says", "line", line)
		}}
		cmd.Stderr = &lines{to: func(line string) {
			f.said.add(line)
			cfg.Log.Debug("firmware complains", "line", line)
		}}
		cmd.WaitDelay = time.Second // processes that it left behind may hold its output open
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		if err = cmd.Start(); err == nil {
			f.cmd, f.stdin = cmd, stdin
			go f.wait()
			return f, nil
		}
		stdin.Close()
		if !errors.Is(err, syscall.ETXTBSY) {
			return nil, explain(err)
		}
		if try == 20 {
			return nil, fmt.Errorf("%w, for %d tries: %w", errBusy, try, err)
		}
		pause := time.NewTimer(time.Duration(try) * 5 * time.Millisecond)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil, ctx.Err()
		case <-pause.C:
		}
	}
}

// explain says what the system's short words mean here.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("it is neither a program for this machine nor a script with a #! line: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("it may not be executed: is its file system mounted noexec? Then put the slots elsewhere: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the file is there, but the interpreter or loader that it names is not: %w", err)
	}
	return err
}

func parseGreeting(line string) (version string, err error) {
	version, ok := strings.CutPrefix(line, Greeting+" ")
	if !ok {
		return "", fmt.Errorf("its first line is %.100q, want %q", line, Greeting+" VERSION")
	}
	if err := ota.CheckVersion(version); err != nil {
		return "", fmt.Errorf("its first line is %.100q: %w", line, err)
	}
	return version, nil
}

// wait reaps the process.
func (f *Firmware) wait() {
	err := f.cmd.Wait()
	f.signal(syscall.SIGKILL) // what it started must not go on without it
	f.stdin.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.stopped:
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		f.err = err
	default:
		f.err = errors.New("exit status 0, although its input had not ended")
	}
	close(f.done)
}

func (f *Firmware) why() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Version is what the firmware said that it is.
func (f *Firmware) Version() string { return f.version }

// Done is closed when the process is gone.
func (f *Firmware) Done() <-chan struct{} { return f.done }

// Err says why the firmware ended by itself, with the last lines that it wrote.
// It is nil while it runs, and after Stop.
func (f *Firmware) Err() error {
	if err := f.why(); err != nil {
		return fmt.Errorf("firmware %s ended: %s: %w", f.version, f.said, err)
	}
	return nil
}

// Stop ends the standard input and sends SIGTERM, and SIGKILL after
// [Config.Grace]. It returns when the process is gone, and may be called twice.
func (f *Firmware) Stop() {
	f.mu.Lock()
	select {
	case <-f.done:
		f.mu.Unlock()
		return
	default:
	}
	f.stopped = true
	f.mu.Unlock()
	f.stdin.Close()
	f.signal(syscall.SIGTERM)
	grace := time.NewTimer(f.cfg.Grace)
	defer grace.Stop()
	select {
	case <-f.done:
		return
	case <-grace.C:
	}
	f.cfg.Log.Warn("firmware does not stop, killing it", "version", f.version, "after", f.cfg.Grace)
	f.signal(syscall.SIGKILL)
	<-f.done
}
