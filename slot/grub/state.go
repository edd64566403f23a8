package grub

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxTry is the count of starts after which grub.cfg skips a slot that is not on trial.
const maxTry = 8

// Names of the variables that are not RAUC's. grub.cfg has them too.
const (
	varTrial = "interlock_trial" // slot last given to Try and not marked good, or "-"
	varBoot  = "interlock_boot"  // of the boot at which a count was reset, see bootTag
	varSeq   = "interlock_seq"   // 1, 2, 3, 1 ...: the newer of two blocks
	varBegin = "interlock_begin" // seal, before all others
	varEnd   = "interlock_end"   // seal, behind all others

	noTrial = "-"
	noBoot  = "00000000" // of the length of a bootTag, so that nothing moves
)

// state is what a block says of the slots.
type state struct {
	seq   int      // 1 to 3; 0 in a block that is alone
	order []string // names of slots, the one to boot first; others than ours are kept
	slots [2]slotState
	trial int    // 0 or 1, or -1
	boot  string // see varBoot
}

type slotState struct {
	ok  bool // whole, and may be started
	try int  // starts since it was marked good, or given to Try: 0 to maxTry
}

// first is the state of a new device.
func first(names [2]string, good int, alone bool) state {
	s := state{seq: 1, order: []string{names[good], names[1-good]}, trial: -1, boot: noBoot}
	s.slots[good].ok = true
	if alone {
		s.seq = 0
	}
	return s
}

// clone is needed because order is shared otherwise.
func (s state) clone() state {
	s.order = slices.Clone(s.order)
	return s
}

func (s state) equal(o state) bool {
	return s.seq == o.seq && slices.Equal(s.order, o.order) && s.slots == o.slots && s.trial == o.trial && s.boot == o.boot
}

// lead puts slot to the front of the order, and keeps that of the others. Both of
// ours are in it afterwards: one that is missing was never set up.
func (s *state) lead(names [2]string, slot int) {
	s.order = slices.DeleteFunc(s.order, func(n string) bool { return n == names[slot] })
	s.order = slices.Insert(s.order, 0, names[slot])
	if !slices.Contains(s.order, names[1-slot]) {
		s.order = append(s.order, names[1-slot])
	}
}

// values returns the variables of s in the order in which a new block has them.
func (s state) values(names [2]string) [][2]string {
	trial := noTrial
	if s.trial >= 0 {
		trial = names[s.trial]
	}
	v := [][2]string{{"ORDER", strings.Join(s.order, " ")}}
	for i, slot := range s.slots {
		ok := "0"
		if slot.ok {
			ok = "1"
		}
		v = append(v, [2]string{names[i] + "_OK", ok}, [2]string{names[i] + "_TRY", fmt.Sprint(slot.try)})
	}
	v = append(v, [2]string{varTrial, trial}, [2]string{varBoot, s.boot})
	if s.seq == 0 {
		return v
	}
	seq := fmt.Sprint(s.seq)
	seal := seq
	for _, kv := range v {
		seal += kv[1] + seq
	}
	v = slices.Insert(v, 0, [2]string{varBegin, seal}, [2]string{varSeq, seq})
	return append(v, [2]string{varEnd, seal})
}

// into returns b with the variables of s.
func (s state) into(b block, names [2]string) block {
	for _, kv := range s.values(names) {
		b = b.set(kv[0], kv[1])
	}
	return b
}

var errSeal = errors.New("its first and last variables do not fit the others, so it was written in part")

// decodeState reads the state of a block. alone says that there is no other one, so
// there is neither sequence number nor seal. Then also what RAUC and its grub.cfg
// take for granted is: variables that are missing are 0 (RAUC, docs/integration.rst).
func decodeState(b block, names [2]string, alone bool) (s state, err error) {
	value := func(name, missing string) string {
		v, ok := b.variable(name)
		switch {
		case ok:
			return v
		case !alone && err == nil:
			err = fmt.Errorf("variable %s is missing", name)
		}
		return missing
	}
	s.order = strings.Fields(value("ORDER", ""))
	for i, name := range names {
		s.slots[i].ok = value(name+"_OK", "0") == "1"
		switch try := value(name+"_TRY", "0"); {
		case len(try) == 1 && try[0] >= '0' && try[0] <= '0'+maxTry:
			s.slots[i].try = int(try[0] - '0')
		case err == nil:
			err = fmt.Errorf("variable %s_TRY is %q, want 0 to %d", name, try, maxTry)
		}
	}
	s.boot = value(varBoot, noBoot)
	s.trial = slices.Index(names[:], value(varTrial, noTrial))
	if err != nil {
		return s, err
	}
	if len(s.order) == 0 {
		return s, errors.New("variable ORDER is missing or empty: set it to the names of the slots, the good one first, and x_OK=1 of that one")
	}
	if !alone {
		err = s.unseal(b, names)
	}
	return s, err
}

// unseal believes a block only if every variable is what values would write.
func (s *state) unseal(b block, names [2]string) error {
	seq, _ := b.variable(varSeq)
	if len(seq) != 1 || seq[0] < '1' || seq[0] > '3' {
		return fmt.Errorf("variable %s is %q, want 1, 2 or 3", varSeq, seq)
	}
	s.seq = int(seq[0] - '0')
	for _, kv := range s.values(names) {
		if got, _ := b.variable(kv[0]); got != kv[1] {
			return fmt.Errorf("variable %s is %q, want %q: %w", kv[0], got, kv[1], errSeal)
		}
	}
	return nil
}

// follows reports whether seq comes right after before: 1, 2, 3, 1.
func follows(seq, before int) bool { return seq == before%3+1 }

// bootTag is what a block keeps of the id of a boot: 8 characters, so that no line
// changes its length.
func bootTag(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:4])
}
