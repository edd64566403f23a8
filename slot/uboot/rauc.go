package uboot

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
)

// rauc is RAUC's convention. A slot is good if it is listed in BOOT_ORDER and has
// attempts left. Names in the order that are not ours, a rescue system's for
// example, stay behind them.
type rauc struct {
	names    [2]string
	attempts int // that a good slot has
}

const varOrder = "BOOT_ORDER"

func (r rauc) name(slot int) string { return r.names[slot] }

func (r rauc) variable(slot int) string { return "BOOT_" + r.names[slot] + "_LEFT" }

// left returns the attempts of a slot. Where nothing is said the script counts from
// its default. What is no number boots for no script.
func (r rauc) left(e *Env, slot int) int64 {
	v, ok := e.Value(r.variable(slot))
	if !ok {
		return int64(r.attempts)
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(v), "0x"), 16, 31)
	if err != nil {
		return 0
	}
	return int64(n)
}

func (r rauc) setLeft(e *Env, slot, n int) {
	if v, ok := e.Value(r.variable(slot)); ok && v != "" && r.left(e, slot) == int64(n) && (n > 0 || strings.Trim(v, "0") == "") {
		return // also if it is written in another way
	}
	e.set(r.variable(slot), strconv.FormatInt(int64(n), 16))
}

// order returns the names in the order of their turn. Without one it is the script's default.
func (r rauc) order(e *Env) []string {
	v, ok := e.Value(varOrder)
	if !ok {
		return r.names[:]
	}
	return strings.Fields(v)
}

// setOrder puts our slots first, and keeps the names of others behind them.
func (r rauc) setOrder(e *Env, slots ...int) {
	var want []string
	for _, slot := range slots {
		want = append(want, r.names[slot])
	}
	was := r.order(e)
	for _, name := range was {
		if name != r.names[0] && name != r.names[1] {
			want = append(want, name)
		}
	}
	if _, ok := e.Value(varOrder); !ok || !slices.Equal(was, want) {
		e.set(varOrder, strings.Join(want, " "))
	}
}

func (r rauc) bootable(e *Env, slot int) bool {
	return slices.Contains(r.order(e), r.names[slot]) && r.left(e, slot) > 0
}

func (r rauc) next(e *Env) int {
	for _, name := range r.order(e) {
		if i := slices.Index(r.names[:], name); i >= 0 && r.left(e, i) > 0 {
			return i
		}
	}
	return -1
}

func (r rauc) used(e *Env, slot int) bool { return r.left(e, slot) == 0 }

func (r rauc) only(e *Env, slot int) {
	r.setOrder(e, slot)
	r.setLeft(e, 1-slot, 0)
	r.setLeft(e, slot, r.attempts)
}

func (r rauc) once(e *Env, running int) {
	r.setOrder(e, 1-running, running)
	r.setLeft(e, 1-running, 1)
	r.setLeft(e, running, r.attempts)
}

// markGood gives the running slot all its attempts. The other one stays behind it, as
// a last resort, if it could boot and is not the one that was to be tried.
func (r rauc) markGood(e *Env, running int) {
	if other := 1 - running; r.bootable(e, other) && tried(r, e) != other {
		r.setOrder(e, running, other)
		r.setLeft(e, running, r.attempts)
	} else {
		r.only(e, running)
	}
	e.set(varTry, "")
}

// back keeps the running slot in the order, with no attempts left. The script gives
// it some once nothing else has any: what did not get healthy is better than nothing.
func (r rauc) back(e *Env, running int) {
	r.setOrder(e, 1-running, running)
	r.setLeft(e, running, 0)
	r.setLeft(e, 1-running, r.attempts)
}

func (r rauc) starts() int { return r.attempts }

// counted compares with what the last change of this package left behind: all
// attempts for a slot that is good, as many as were configured then, and one for a
// slot that is tried. Both copies of the environment were the same then, so that one
// with less says that somebody has counted, also if another program has refilled it.
func (r rauc) counted(e, older *Env, running int) ota.Rollback {
	name, left, full := r.variable(running), r.left(e, running), int64(r.attempts)
	_, id, starts := seen(e)
	if id == "" {
		return ota.Rollback{State: ota.RollbackUnknown, Why: "this slot was never marked good here before: the next start will show whether U-Boot counts"}
	}
	if starts > 0 {
		full = int64(starts)
	}
	if tried(r, e) == running {
		full = 1
	}
	if left < full {
		return ota.Rollback{State: ota.RollbackProven, Why: fmt.Sprintf("U-Boot counted this start: %s is %d, and was %d", name, left, full)}
	}
	if left > full || older != nil && r.left(older, running) < full {
		return ota.Rollback{State: ota.RollbackUnknown, Why: fmt.Sprintf("another program has set %s to %d at this start, so that U-Boot's count cannot be seen", name, left)}
	}
	return ota.Rollback{State: ota.RollbackBroken, Why: fmt.Sprintf("U-Boot did not count this start, or could not save that: %s is still %d", name, left)}
}
