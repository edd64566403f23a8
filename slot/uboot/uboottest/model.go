package uboottest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
)

// variables is the environment in U-Boot's memory.
type variables map[string]string

// encode is env_export of U-Boot: sorted by name, and zeros to the end.
func (v variables) encode(flags byte) []byte {
	b := []byte{0, 0, 0, 0, flags}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		b = append(b, name+"="+v[name]+"\x00"...)
	}
	b = append(b, make([]byte, envSize-len(b))...)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[5:]))
	return b
}

func decode(b []byte) (v variables, flags byte, ok bool) {
	if len(b) != envSize || crc32.ChecksumIEEE(b[5:]) != binary.LittleEndian.Uint32(b) {
		return nil, 0, false
	}
	v = variables{}
	for _, entry := range strings.Split(string(b[5:]), "\x00") {
		if entry == "" {
			break
		}
		name, value, _ := strings.Cut(entry, "=")
		v[name] = value
	}
	return v, b[4], true
}

// loader is U-Boot between its start and that of a slot.
type loader struct {
	Backend
	d     *otatest.Disk
	env   variables
	valid bool
	flags byte
	copy  int // that env came from
}

// boot loads the environment as env_import_redund and env_flash_init do.
func (b Backend) boot(d *otatest.Disk) (*loader, error) {
	u := &loader{Backend: b, d: d, env: variables{}}
	var env [2]variables
	var flags [2]byte
	var ok [2]bool
	for i, p := range b.Places() {
		block, err := durable.ReadRange(d, p.Path, p.Offset, p.Size)
		if err == nil {
			env[i], flags[i], ok[i] = decode(block)
		}
	}
	switch {
	case !ok[0] && !ok[1]: // "bad CRC, using default environment"
		u.flags = 0
		if b.Scheme == uboot.Mender {
			u.env = variables{"bootlimit": "1", "bootcount": "0", "upgrade_available": "0", "mender_boot_part": "2", "mender_boot_part_hex": "2"}
		}
		return u, nil
	case ok[0] && ok[1]:
		if later(b.boolean(), flags[0], flags[1]) {
			u.copy = 1
		}
	case ok[1]:
		u.copy = 1
	}
	u.env, u.flags, u.valid = env[u.copy], flags[u.copy], true
	return u, nil
}

func (b Backend) boolean() bool {
	return b.Flags == uboot.Boolean || b.Flags == "" && b.Medium == Flash
}

// later reports whether the second of two copies is the one.
func later(boolean bool, a, b byte) bool {
	if boolean {
		return a == 0 && b == 1 || b == 0xff && a != 0xff || a != 0xff && b > a
	}
	if a == 255 && b == 0 {
		return true
	}
	if a == 0 && b == 255 {
		return false
	}
	return b > a
}

// save is saveenv. Its error is printed on the console, and the script goes on.
func (u *loader) save() {
	if u.NoCount {
		return
	}
	to := 0
	if u.valid {
		to = 1 - u.copy
	}
	p := u.Places()[to]
	flags := u.flags + 1
	if u.boolean() {
		flags = 1
	}
	if err := u.store(p, u.env.encode(flags)); err != nil {
		return
	}
	if u.boolean() && u.valid {
		old := u.Places()[1-to]
		if err := write(u.d, old.Path, old.Offset+4, []byte{0}); err != nil {
			return
		}
	}
	u.copy, u.flags, u.valid = to, flags, true
}

// store writes a copy; on flash it saves and restores what is behind it (env/flash.c).
func (u *loader) store(p uboot.Place, block []byte) error {
	if u.Medium != Flash {
		return write(u.d, p.Path, p.Offset, block)
	}
	rest, err := durable.ReadRange(u.d, p.Path, p.Offset+p.Size, eraseSize-p.Size)
	if err != nil { // the flash is in the processor's memory: there is always something to be read
		rest = make([]byte, eraseSize-p.Size)
	}
	f, err := u.d.OpenFile(p.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.(durable.Eraser).Erase(p.Offset, eraseSize)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return write(u.d, p.Path, p.Offset, append(block, rest...))
}

func write(d *otatest.Disk, path string, off int64, b []byte) error {
	f, err := d.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, off)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// rauc is the boot script of RAUC's contrib/uboot.sh.
func (u *loader) rauc() (string, error) {
	def := func(name, value string) {
		if u.env[name] == "" {
			u.env[name] = value
		}
	}
	def("BOOT_ORDER", "A B")
	def("BOOT_A_LEFT", "3")
	def("BOOT_B_LEFT", "3")
	for range 2 { // after "reset"
		for _, slot := range strings.Fields(u.env["BOOT_ORDER"]) {
			left, err := strconv.ParseUint(u.env["BOOT_"+slot+"_LEFT"], 16, 32)
			if err != nil || left == 0 {
				continue
			}
			u.env["BOOT_"+slot+"_LEFT"] = fmt.Sprintf("%x", left-1) // setexpr
			u.save()
			return slot, nil
		}
		u.env["BOOT_A_LEFT"], u.env["BOOT_B_LEFT"] = "3", "3"
		u.save()
	}
	return "", fmt.Errorf("no bootable slot in %v", u.env)
}

// mender is bootcount_env.c and autoboot.c of U-Boot, with CONFIG_BOOTCOUNT_ENV, and
// the altbootcmd of meta-mender's env_mender.h.
func (u *loader) mender() (string, error) {
	number := func(name string) int { n, _ := strconv.Atoi(u.env[name]); return n } // env_get_ulong: 0 if it is none
	count := 0
	if number("upgrade_available") != 0 {
		count = number("bootcount")
	}
	count++
	if number("upgrade_available") != 0 {
		u.env["bootcount"] = strconv.Itoa(count)
		u.save()
	}
	if limit := number("bootlimit"); limit > 0 && count > limit {
		if u.env["mender_boot_part"] == "2" {
			u.env["mender_boot_part"], u.env["mender_boot_part_hex"] = "11", "b"
		} else {
			u.env["mender_boot_part"], u.env["mender_boot_part_hex"] = "2", "2"
		}
		u.env["upgrade_available"] = "0"
		u.save()
	}
	switch u.env["mender_boot_part"] + " " + u.env["mender_boot_part_hex"] {
	case "2 2":
		return "A", nil
	case "11 b":
		return "B", nil
	}
	return "", fmt.Errorf("no such partition in %v", u.env)
}
