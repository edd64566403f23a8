package uboot

import (
	"fmt"
	"strconv"

	"github.com/interlock-energy/ota"
)

// mender is Mender's convention. U-Boot counts only while upgrade_available is not 0,
// so a slot that is good may be started as often as it likes, and there is no last
// resort: nothing ever boots the other slot but a try.
type mender struct {
	names [2]string
	parts [2]int
}

const (
	varPart      = "mender_boot_part"     // decimal
	varPartHex   = "mender_boot_part_hex" // U-Boot's commands take hexadecimal
	varAvailable = "upgrade_available"
	varCount     = "bootcount"
	varLimit     = "bootlimit"
)

func (m mender) name(slot int) string { return m.names[slot] }

// number returns a variable as U-Boot's env_get_ulong does: what is no number is 0.
func (m mender) number(e *Env, name string) uint64 {
	v, _ := e.Value(name)
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0
	}
	return n
}

func (m mender) part(e *Env) int {
	for i, part := range m.parts {
		if m.number(e, varPart) == uint64(part) {
			return i
		}
	}
	return -1
}

func (m mender) next(e *Env) int {
	slot := m.part(e)
	limit := m.number(e, varLimit)
	if slot >= 0 && m.number(e, varAvailable) != 0 && limit > 0 && m.number(e, varCount) >= limit {
		return 1 - slot // altbootcmd
	}
	return slot
}

// used is what only altbootcmd leaves behind after a try: MarkGood forgets the try.
func (m mender) used(e *Env, slot int) bool {
	return m.number(e, varAvailable) == 0 && m.part(e) == 1-slot
}

// setPart sets the partition in both ways of writing, and begins to count anew.
func (m mender) setPart(e *Env, slot int, available string) {
	e.set(varPart, strconv.Itoa(m.parts[slot]))
	e.set(varPartHex, strconv.FormatInt(int64(m.parts[slot]), 16))
	e.set(varAvailable, available)
	e.set(varCount, "0")
}

func (m mender) only(e *Env, slot int) { m.setPart(e, slot, "0") }

func (m mender) once(e *Env, running int) {
	m.setPart(e, 1-running, "1")
	e.set(varLimit, "1") // with none, U-Boot would never come back
}

func (m mender) markGood(e *Env, running int) {
	m.only(e, running)
	e.set(varTry, "")
}

// back: Mender's convention has no last resort.
func (m mender) back(e *Env, running int) { m.only(e, 1-running) }

func (m mender) starts() int { return 0 }

func (m mender) counted(e, _ *Env, running int) ota.Rollback {
	if tried(m, e) == running && m.part(e) == running && m.number(e, varAvailable) != 0 {
		if n := m.number(e, varCount); n > 0 {
			return ota.Rollback{State: ota.RollbackProven, Why: fmt.Sprintf("U-Boot counted this start: %s is %d, and was 0", varCount, n)}
		}
		return ota.Rollback{State: ota.RollbackBroken, Why: "U-Boot did not count this start, or could not save that: " + varCount + " is still 0"}
	}
	if fellBack(m, e, running) {
		return ota.Rollback{State: ota.RollbackProven, Why: "U-Boot came back from slot " + m.names[1-running]}
	}
	return ota.Rollback{State: ota.RollbackUnknown, Why: "U-Boot counts only while a slot is on trial: the next update will show whether it does"}
}
