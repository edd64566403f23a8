package uboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// DefaultLock is the lock file of fw_setenv (libubootenv, default_lockname).
const DefaultLock = "/var/lock/fw_printenv.lock"

// Config says where things are.
type Config struct {
	// Scheme is the convention of the boot script. Default: RAUC.
	Scheme Scheme

	// Names of the slots, as they are in BOOT_ORDER. Default: A and B.
	Names [2]string

	// Attempts of a slot that is marked good, 1 to 255, for RAUC. Default 3.
	Attempts int

	// Parts are the numbers of the slots' partitions, for Mender: the values of
	// mender_boot_part.
	Parts [2]int

	// Components lists, for each component, the files or block devices of the two
	// slots. A block device must be of this device alone: it is written from its
	// first byte.
	Components map[string][2]string

	// Capacity of a slot that is a file, in bytes. Default: its size and what is
	// free on its file system. A block device is as large as it is.
	Capacity int64

	// Env is where the copies of the environment are, two of them, in the order of
	// fw_env.config. AllowSingle allows one.
	Env         []Place
	AllowSingle bool

	// Flags of a redundant environment. Default: Boolean on raw flash, Incremental
	// elsewhere, as U-Boot and fw_setenv do.
	Flags Flags

	// BigEndian says that the processor is, and so the checksum.
	BigEndian bool

	// Lock is the file that fw_setenv locks. Default: DefaultLock on the real file
	// system, and none elsewhere.
	Lock string

	// Booted tells which slot runs, from the kernel's command line, and an id that
	// changes at every boot, the kernel's boot_id. It must be given.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the device. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	// Log gets warnings of the environment. Default: slog.Default().
	Log *slog.Logger
}

// check refuses what cannot be right.
func (c *Config) check() error {
	if c.Booted == nil {
		return errors.New("Config.Booted is not set: the kernel's command line must say which slot runs")
	}
	for _, name := range c.Names {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return fmt.Errorf("slot name %q, want letters, digits, '.', '_' and '-'", name)
		}
	}
	if c.Names[0] == c.Names[1] {
		return fmt.Errorf("both slots are called %s", c.Names[0])
	}
	switch {
	case len(c.Env) == 1 && !c.AllowSingle:
		return errors.New("the environment has a single copy, which a power cut destroys: build U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT, or set AllowSingle and lose updates' safety")
	case len(c.Env) != 1 && len(c.Env) != 2:
		return fmt.Errorf("the environment has %d places, want 2", len(c.Env))
	}
	switch c.Flags {
	case "", Incremental, Boolean:
	default:
		return fmt.Errorf("flags are %q, want %q or %q", c.Flags, Incremental, Boolean)
	}
	for _, p := range c.Env {
		if p.Path == "" || p.Offset < 0 || p.Size < minSize || p.Size > maxSize {
			return fmt.Errorf("place of the environment: path %q, offset %d, size %d, want a path, an offset from 0 on, and a size from %d to %d", p.Path, p.Offset, p.Size, minSize, maxSize)
		}
	}
	if len(c.Env) == 2 {
		a, b := c.Env[0], c.Env[1]
		if a.Size != b.Size {
			return fmt.Errorf("the copies of the environment have %d and %d bytes, want the same", a.Size, b.Size)
		}
		if a.Path == b.Path && a.Offset < b.Offset+b.Size && b.Offset < a.Offset+a.Size {
			return fmt.Errorf("the copies of the environment at %#x and %#x of %s overlap", a.Offset, b.Offset, a.Path)
		}
	}
	return nil
}

// maxSize is far more than any U-Boot has, and little memory.
const maxSize = 4 << 20
