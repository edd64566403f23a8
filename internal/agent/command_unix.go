//go:build unix

package agent

import (
	"os/exec"
	"syscall"
)

// ownGroup makes that cancelling cmd kills its children, too.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
