package uboot

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
)

// Scheme is a convention between the boot script and whoever installs updates.
type Scheme string

// The schemes. The names never change.
const (
	// RAUC: BOOT_ORDER lists the slots, and BOOT_<name>_LEFT, hexadecimal, how often
	// each may still be started (RAUC reference, "U-Boot"; its contrib/uboot.sh).
	RAUC Scheme = "rauc"
	// Mender: mender_boot_part and mender_boot_part_hex are the partition, and while
	// upgrade_available is 1 U-Boot counts its starts in bootcount. Above bootlimit,
	// altbootcmd changes the partition (meta-mender, env_mender.h; U-Boot,
	// drivers/bootcount/bootcount_env.c).
	Mender Scheme = "mender"
)

// Variables of our own. The names never change.
const (
	varTry   = "interlock_try"   // the slot last given to Try
	varProbe = "interlock_probe" // what was seen of the bootloader, and at which boot
)

// A scheme reads and changes variables. Slots are 0 and 1, and running is one of
// them. Nothing but e is changed, and to do a thing twice is to do it once.
type scheme interface {
	name(slot int) string
	// next is the slot that starts if the device restarts now, or -1 if the
	// variables do not say.
	next(e *Env) int
	// used reports whether the bootloader has started slot, which was given to Try,
	// as often as it may.
	used(e *Env, slot int) bool
	// only makes slot the one that boots from now on, and the other one not any more.
	only(e *Env, slot int)
	// once makes the other slot boot once, and running from then on.
	once(e *Env, running int)
	markGood(e *Env, running int)
	// back makes the other slot, which is good, boot from now on: the running one is
	// on trial, and was not proven.
	back(e *Env, running int)
	// starts is how often a good slot may start, 0 if that is not counted.
	starts() int
	// counted says what the bootloader did at this boot, whose first look this is.
	// older is the copy that does not count, nil if there is none that can be read.
	counted(e, older *Env, running int) ota.Rollback
}

func newScheme(cfg Config) (scheme, error) {
	switch cfg.Scheme {
	case RAUC, "":
		if cfg.Attempts == 0 {
			cfg.Attempts = 3
		}
		if cfg.Attempts < 1 || cfg.Attempts > 255 {
			return nil, fmt.Errorf("attempts are %d, want 1 to 255", cfg.Attempts)
		}
		return rauc{names: cfg.Names, attempts: cfg.Attempts}, nil
	case Mender:
		if cfg.Parts[0] < 1 || cfg.Parts[1] < 1 || cfg.Parts[0] == cfg.Parts[1] {
			return nil, fmt.Errorf("the slots' partitions are %d and %d, want two numbers from 1 on", cfg.Parts[0], cfg.Parts[1])
		}
		return mender{names: cfg.Names, parts: cfg.Parts}, nil
	}
	return nil, fmt.Errorf("scheme %q, want %q or %q", cfg.Scheme, RAUC, Mender)
}

// tried is the slot last given to Try, or -1.
func tried(s scheme, e *Env) int {
	name, _ := e.Value(varTry)
	for i := range 2 {
		if name == s.name(i) {
			return i
		}
	}
	return -1
}

// trial reports whether the running slot is being tried.
func trial(s scheme, e *Env, running int) bool {
	return tried(s, e) == running && s.next(e) == 1-running
}

// fellBack reports whether the other slot was tried, and the running one came back.
func fellBack(s scheme, e *Env, running int) bool {
	return tried(s, e) == 1-running && s.used(e, 1-running)
}

// try is [ota.Slots] Try of the slot that does not run.
func try(s scheme, e *Env, running int) error {
	if trial(s, e, running) {
		// What runs has not proven itself, and is no place to return to. That it was
		// tried stays written, so that this is the same when it is done again.
		s.back(e, running)
		return nil
	}
	s.once(e, running)
	e.set(varTry, s.name(1-running))
	return nil
}

// prepare makes the other slot unbootable, before it is written.
func prepare(s scheme, e *Env, running int) error {
	if trial(s, e, running) {
		return fmt.Errorf("%w: slot %s is on trial, and slot %s the one to return to: mark the running one good first", ota.ErrFlashWrite, s.name(running), s.name(1-running))
	}
	if !fellBack(s, e, running) {
		e.set(varTry, "")
	}
	s.only(e, running)
	return nil
}

// remember keeps what was, of the bootloader, in the variables as they were before a
// change that wipes it out, and what the change leaves to be counted. What was seen
// is that of the first change in each boot.
func remember(s scheme, e, was, older *Env, running int, id string, whole bool) error {
	state, at, _ := seen(was)
	if at != id {
		state = probe(s, was, older, running, id, whole).State
	}
	if n := s.starts(); n > 0 {
		return e.Set(varProbe, fmt.Sprintf("%s %d %s", state, n, id))
	}
	return e.Set(varProbe, fmt.Sprintf("%s %s", state, id))
}

// seen returns what was remembered, of which boot, and how many starts a good slot had
// left after the last change, 0 if that is not written.
func seen(e *Env) (state ota.RollbackState, id string, starts int) {
	v, _ := e.Value(varProbe)
	first, id, _ := strings.Cut(v, " ")
	if word, rest, ok := strings.Cut(id, " "); ok {
		if n, err := strconv.ParseUint(word, 10, 8); err == nil {
			id, starts = rest, int(n)
		}
	}
	return ota.RollbackState(first), id, starts
}

// probe says what the bootloader did at the boot with this id.
func probe(s scheme, e, older *Env, running int, id string, whole bool) ota.Rollback {
	switch state, at, _ := seen(e); {
	case at != id:
	case state == ota.RollbackProven:
		return ota.Rollback{State: state, Why: "U-Boot counted this start of slot " + s.name(running) + ", and saved that"}
	case state == ota.RollbackBroken:
		return ota.Rollback{State: state, Why: "U-Boot did not count this start of slot " + s.name(running) + ", or could not save that"}
	default:
		return ota.Rollback{State: ota.RollbackUnknown, Why: "the counters were set anew since this start: the next one will show whether U-Boot counts"}
	}
	r := s.counted(e, older, running)
	if r.State == ota.RollbackBroken && !whole {
		return ota.Rollback{State: ota.RollbackUnknown, Why: "a copy of the environment is damaged, and what U-Boot has saved may have been there"}
	}
	return r
}
