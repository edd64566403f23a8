//go:build linux

package vm

import (
	"os/exec"
	"runtime"
	"syscall"
)

// start starts a command in a process group of its own, so that what it starts ends
// with it, and so that the kernel ends it with this process: a test that is
// interrupted must not leave machines behind. The channel is closed when it has ended,
// after drain, which reads its output, has come back.
func start(cmd *exec.Cmd, drain func()) (<-chan struct{}, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// Pdeathsig is sent when the thread ends that started the process (prctl(2),
		// PR_SET_PDEATHSIG), so this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		drain()
		cmd.Wait()
		close(ended)
	}()
	return ended, <-started
}
