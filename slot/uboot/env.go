package uboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
)

// ErrDamaged says that a copy of the environment has a wrong checksum.
var ErrDamaged = errors.New("the environment's checksum is wrong")

// Layout says how a copy of the environment is stored (U-Boot include/env_internal.h,
// environment_t):
//
//	single     crc (4 bytes) | data
//	redundant  crc (4 bytes) | flags (1 byte) | data
//
// crc is CRC-32 (IEEE) over data to the end of the copy, padding included and flags
// not. data is name=value, each ended by a zero byte, and one more zero byte.
type Layout struct {
	Redundant bool // there are two copies, each with flags
	BigEndian bool // byte order of crc: that of the processor
}

func (l Layout) header() int {
	if l.Redundant {
		return 5
	}
	return 4
}

func (l Layout) order() binary.ByteOrder {
	if l.BigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// An Env is the variables in one copy of the environment. The zero Env has none.
type Env struct {
	// Flags of a redundant copy say which of the two is newer; see [Newest].
	Flags byte

	entries []string // as they are stored, in their order; some may have no '='
}

// ParseEnv reads one whole copy, of any size. It returns [ErrDamaged] if the checksum
// is wrong. Everything else it takes as U-Boot does: data without an end goes to the
// end of the copy, and what has no '=' is kept.
func ParseEnv(block []byte, l Layout) (*Env, error) {
	head := l.header()
	if len(block) < minSize {
		return nil, fmt.Errorf("%w: %d bytes are none, want at least %d", ErrDamaged, len(block), minSize)
	}
	data := block[head:]
	if got, want := crc32.ChecksumIEEE(data), l.order().Uint32(block); got != want {
		return nil, fmt.Errorf("%w: it says %#08x, and %d bytes have %#08x", ErrDamaged, want, len(data), got)
	}
	e := &Env{}
	if l.Redundant {
		e.Flags = block[4]
	}
	for len(data) > 0 && data[0] != 0 {
		entry, rest, _ := bytes.Cut(data, []byte{0})
		e.entries = append(e.entries, string(entry))
		data = rest
	}
	return e, nil
}

// minSize is a copy with a header and an end.
const minSize = 8

// Encode returns a copy of size bytes, padded with zeros. It is an error if the
// variables do not fit.
func (e *Env) Encode(size int64, l Layout) ([]byte, error) {
	head := l.header()
	need := int64(head + 1)
	for _, entry := range e.entries {
		need += int64(len(entry)) + 1
	}
	if need > size || size < minSize {
		return nil, fmt.Errorf("the environment is full: its variables need %d bytes, and there are %d", need, size)
	}
	block := make([]byte, size)
	at := head
	for _, entry := range e.entries {
		at += copy(block[at:], entry) + 1
	}
	if l.Redundant {
		block[4] = e.Flags
	}
	l.order().PutUint32(block, crc32.ChecksumIEEE(block[head:]))
	return block, nil
}

// Value returns the value of a variable, and whether it is there. Of several with
// one name the last counts.
func (e *Env) Value(name string) (value string, ok bool) {
	for _, entry := range slices.Backward(e.entries) {
		if n, v, found := strings.Cut(entry, "="); found && n == name {
			return v, true
		}
	}
	return "", false
}

// Set gives a variable a value; an empty one deletes it, as U-Boot's setenv does.
// All others stay as they are, in their places. Names must not be empty or hold '=',
// space or control characters, and values no zero byte.
func (e *Env) Set(name, value string) error {
	unprintable := func(r rune) bool { return r <= ' ' || r == 0x7f || r == '=' }
	if name == "" || strings.IndexFunc(name, unprintable) >= 0 {
		return fmt.Errorf("set variable %q: the name is empty, or has characters that U-Boot does not take", name)
	}
	if strings.IndexByte(value, 0) >= 0 {
		return fmt.Errorf("set variable %s: the value %q has a zero byte", name, value)
	}
	e.set(name, value)
	return nil
}

// set is Set for what is known to be well formed.
func (e *Env) set(name, value string) {
	if was, ok := e.Value(name); ok && was == value && value != "" {
		return
	}
	mine := func(entry string) bool { n, _, found := strings.Cut(entry, "="); return found && n == name }
	at := slices.IndexFunc(e.entries, mine)
	if at < 0 {
		at = len(e.entries)
	}
	// A clone, because copies of an Env share their entries.
	rest := slices.DeleteFunc(slices.Clone(e.entries), mine)
	if value != "" {
		rest = slices.Insert(rest, at, name+"="+value)
	}
	e.entries = rest
}

// All returns the variables by name.
func (e *Env) All() map[string]string {
	all := map[string]string{}
	for _, entry := range e.entries {
		if n, v, found := strings.Cut(entry, "="); found {
			all[n] = v
		}
	}
	return all
}

func (e *Env) clone() *Env { return &Env{e.Flags, e.entries} }

// same reports whether e and o hold the same variables, whatever their flags.
func (e *Env) same(o *Env) bool { return slices.Equal(e.entries, o.entries) }

// Flags says how two copies tell which one is newer. The names never change.
type Flags string

// The two ways there are. U-Boot and libubootenv choose by the kind of the medium.
const (
	// Incremental: the flags count up with every save, and 0 comes after 255. On
	// eMMC, SD, files, NAND and UBI.
	Incremental Flags = "incremental"
	// Boolean: 1 is active, and 0 obsolete. On NOR and data flash.
	Boolean Flags = "boolean"
)

// Flags of a copy with [Boolean] (U-Boot, ENV_REDUND_ACTIVE and _OBSOLETE).
const (
	obsolete = 0
	active   = 1
	unset    = 0xff // erased flash
)

// Newest returns which of two valid copies counts, 0 or 1, from their flags: as
// U-Boot does it (env/common.c, env_check_redund; env/flash.c, env_flash_init), and
// libubootenv. It decides the same for flags that neither should ever have.
func Newest(how Flags, flags [2]byte) int {
	first, second := flags[0], flags[1]
	switch {
	case first == second:
		return 0
	case how == Boolean && first == unset:
		return 0
	case how == Boolean && second == unset:
		return 1
	case how != Boolean && first == 0xff && second == 0:
		return 1
	case how != Boolean && second == 0xff && first == 0:
		return 0
	case second > first:
		return 1
	}
	return 0
}
