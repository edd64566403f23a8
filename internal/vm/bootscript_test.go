//go:build linux && vm

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Two copies of U-Boot's environment, as deploy/reference-device/uboot/disk makes them.
const (
	envCopy  = 0x4000
	envOther = 0x10000
)

// TestUBootScript starts the real U-Boot with its script on environments that
// libubootenv wrote, and reads with libubootenv what came of them.
func TestUBootScript(t *testing.T) {
	t.Parallel()
	d := scriptDevice(t, UBoot)
	for _, c := range []struct {
		name   string
		set    string // as fw_setenv -s reads it
		flags  string // of the two copies, set at last
		spoil  string // which copies get a wrong byte
		slot   string // that boots; empty: none, and the device resets
		want   string // some of the environment after it
		writes string // the copy that may have changed
	}{
		{name: "factory", slot: "A", want: "BOOT_A_LEFT=2 BOOT_B_LEFT=0", writes: "2"},
		{name: "a try of B", set: "BOOT_ORDER=B A\nBOOT_B_LEFT=1", slot: "B", want: "BOOT_ORDER=B A BOOT_A_LEFT=3 BOOT_B_LEFT=0"},
		{name: "back from B", set: "BOOT_ORDER=B A\nBOOT_B_LEFT=0", slot: "A", want: "BOOT_ORDER=B A BOOT_A_LEFT=2 BOOT_B_LEFT=0"},
		{name: "none left", set: "BOOT_ORDER=B A\nBOOT_A_LEFT=0", want: "BOOT_ORDER=B A BOOT_A_LEFT=3 BOOT_B_LEFT=3"},
		{name: "B is not in the order", set: "BOOT_ORDER=A\nBOOT_A_LEFT=0\nBOOT_B_LEFT=3", want: "BOOT_A_LEFT=3 BOOT_B_LEFT=3"},
		{name: "attempts are hexadecimal", set: "BOOT_A_LEFT=10", slot: "A", want: "BOOT_A_LEFT=f"},
		{name: "other variables stay", set: "interlock_note=kept as it is\nkernel_addr_r=0\nbootcmd=reset\nslot=B\nflags=7", slot: "A",
			want: "interlock_note=kept as it is kernel_addr_r=0 bootcmd=reset slot=B flags=7 BOOT_A_LEFT=2"},
		{name: "nothing but the order", set: "BOOT_A_LEFT=\nBOOT_B_LEFT=", slot: "A", want: "BOOT_A_LEFT=2 BOOT_B_LEFT=3"},
		{name: "strange names in the order", set: "BOOT_ORDER=C A", slot: "A", want: "BOOT_ORDER=C A BOOT_A_LEFT=2"},
		{name: "first copy broken", spoil: "1", slot: "A", want: "BOOT_A_LEFT=2", writes: "1"},
		{name: "second copy broken", spoil: "2", slot: "A", want: "BOOT_A_LEFT=2", writes: "2"},
		{name: "both copies broken", spoil: "12", slot: "A", writes: "none"},
		{name: "the second is newer", flags: "\x01\x02", slot: "A", writes: "1"},
		{name: "0 is newer than 255", flags: "\xff\x00", slot: "A", writes: "1"},
		{name: "0 is newer than 255, the other way round", flags: "\x00\xff", slot: "A", writes: "2"},
		{name: "254 is newer than 0", flags: "\xfe\x00", slot: "A", writes: "2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			disk := filepath.Join(t.TempDir(), "disk.img")
			if err := run(exec.Command("cp", "--sparse=always", d.Disk(), disk)); err != nil {
				t.Fatal(err)
			}
			place(t, d.file("slot.img"), disk, SlotBAt)
			cfg := fwEnvConfig(t, disk)
			if c.set != "" {
				cmd := exec.Command("fw_setenv", "-c", cfg, "-s", "-")
				cmd.Stdin = strings.NewReader(c.set + "\n")
				if err := run(cmd); err != nil {
					t.Fatal(err)
				}
			}
			for i := range c.flags {
				poke(t, disk, EnvAt+int64(i)*envOther+4, c.flags[i:i+1])
			}
			for _, n := range c.spoil {
				poke(t, disk, EnvAt+int64(n-'1')*envOther+100, "\x5a")
			}
			before := peek(t, disk)
			boots(t, UBoot, disk, c.slot)
			after := peek(t, disk)

			changed := ""
			for i, copy := range []int{0, envOther} {
				if !bytes.Equal(before[copy:copy+envCopy], after[copy:copy+envCopy]) {
					changed += fmt.Sprint(i + 1)
				}
			}
			switch {
			case c.writes == "none" && changed != "":
				t.Errorf("copies %s were written, want none", changed)
			case c.writes != "none" && len(changed) != 1, c.writes != "none" && c.writes != "" && changed != c.writes:
				t.Errorf("copies %q were written, want one: %s", changed, c.writes)
			}
			if c.want != "" || c.writes != "none" {
				out, err := exec.Command("fw_printenv", "-c", cfg).CombinedOutput()
				if err != nil {
					t.Fatalf("fw_printenv: %v\n%s", err, out)
				}
				wantVariables(t, string(out), c.want)
				if bytes.Contains(out, []byte("baudrate=")) {
					t.Errorf("U-Boot's own settings went into the environment:\n%s", out)
				}
			}
		})
	}
}

func scriptDevice(t *testing.T, board Board) *Device {
	if v := os.Getenv("VM"); v != "" && !strings.Contains(v, string(board)) {
		t.Skipf("VM=%s leaves %s out", v, board)
	}
	return device(t, board)
}

// boots starts a disk, and checks that slot boots, or with no slot that the machine
// resets.
func boots(t *testing.T, board Board, disk, slot string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := Start(board, disk, 9, nil, "-no-reboot") // nobody serves at port 9
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	if slot == "" {
		if _, err := m.Wait(ctx, `^boot: no attempts left`); err != nil {
			t.Fatal(err)
		}
		select {
		case <-m.Off():
		case <-ctx.Done():
			t.Fatalf("the machine does not reset:\n%s", m.Tail(20))
		}
		return
	}
	if _, err := m.Wait(ctx, `^initrd: slot `+slot); err != nil {
		t.Fatal(err)
	}
}

// place writes an image into a disk.
func place(t *testing.T, image, disk string, at int64) {
	t.Helper()
	if err := run(exec.Command("dd", "if="+image, "of="+disk, "bs=512", fmt.Sprint("seek=", at/sector), "conv=notrunc,sparse", "status=none")); err != nil {
		t.Fatal(err)
	}
}

func fwEnvConfig(t *testing.T, disk string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fw_env.config")
	text := fmt.Sprintf("%s %#x %#x\n%s %#x %#x\n", disk, EnvAt, envCopy, disk, EnvAt+envOther, envCopy)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func poke(t *testing.T, name string, off int64, s string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(s), off); err != nil {
		t.Fatal(err)
	}
}

func peek(t *testing.T, disk string) []byte {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, EnvSize)
	if _, err := f.ReadAt(b, EnvAt); err != nil {
		t.Fatal(err)
	}
	return b
}

// wantVariables checks that out, lines of name=value, has all of want, which are
// separated by spaces before a name.
func wantVariables(t *testing.T, out, want string) {
	t.Helper()
	have := " " + strings.Join(strings.Split(strings.TrimSpace(out), "\n"), "\x00 ") + "\x00"
	var variable string
	words := strings.Fields(want)
	for i, w := range words {
		if variable == "" {
			variable = w
		} else {
			variable += " " + w
		}
		if i+1 < len(words) && !strings.Contains(words[i+1], "=") {
			continue
		}
		if !strings.Contains(have, " "+variable+"\x00") {
			t.Errorf("the environment has no %q:\n%s", variable, out)
		}
		variable = ""
	}
}
