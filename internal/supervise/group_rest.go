//go:build !unix

package supervise

import "syscall"

func ownGroup() *syscall.SysProcAttr { return nil }

func (f *Firmware) signal(s syscall.Signal) {
	if s == syscall.SIGKILL {
		_ = f.cmd.Process.Kill()
	}
}
