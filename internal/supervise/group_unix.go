//go:build unix

package supervise

import "syscall"

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// signal reaches the whole group, so that a script's children stop with it. An
// error means that nobody is left. The number stays the group's while anybody is
// in it, also when the firmware itself has been reaped.
func (f *Firmware) signal(s syscall.Signal) {
	_ = syscall.Kill(-f.cmd.Process.Pid, s)
}
