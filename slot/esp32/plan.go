package esp32

// factory stands for the factory application where others are numbers of slots.
const factory = -1

// A step is one write of an entry. The entry that was there is gone before the
// new one is valid, so a step that is cut leaves the other entry alone.
type step struct {
	i int
	e Entry
}

// do is c after s.
func (c *control) do(s step) { c.entry[s.i], c.low[s.i] = s.e, false }

// settled returns an entry that boots slot for good, with the number that [seqFor] returns.
func (c *control) settled(slot int, cur uint32) Entry {
	e := NewEntry(seqFor(slot, c.n, cur), Valid)
	e.Label = c.label
	return e
}

// good plans how running becomes what boots from now on. Afterwards both entries
// say so, with the greater number in the one that was written last: either may rot.
// The slot from before needs no entry to be the last resort. The bootloader loads
// it when the running one is damaged, whatever otadata says.
//
// What holds after every step, and while one is cut: an entry that boots running
// for good, once there is one; before that, what was there already. On trial that
// is the way back: see [control.goodStep].
func (c control) good(running int) []step {
	if running == factory {
		return c.clear()
	}
	var steps []step
	for range 5 { // at most four are needed; see TestPlans
		s, ok := c.goodStep(running)
		if !ok {
			break
		}
		steps = append(steps, s)
		c.do(s)
	}
	return steps
}

func (c *control) goodStep(running int) (s step, ok bool) {
	a := c.active()
	if a < 0 {
		return step{0, c.settled(running, 0)}, true
	}
	o, e := 1-a, c.entry[a]
	switch {
	case !c.staysIn(a, running) && c.staysIn(o, running):
		// Something else is about to boot: a try, or an image that does not load.
		return step{a, c.settled(running, c.entry[o].Seq)}, true

	case c.slot(a) == running && !c.stays(a) && c.stays(o):
		// The end of a trial, as esp_ota_mark_app_valid_cancel_rollback does it. Cut
		// in the middle, the other entry boots the slot from before, whole, and the
		// update is lost. To write the other entry first would be worse: at the
		// start after a cut the bootloader aborts this one, and with two entries that
		// do not count it boots the factory application or ota_0, which nobody chose.
		e.State, e.Label = Valid, c.label
		e.CRC = entrySum(e.Seq)
		return step{a, e}, true

	case !c.staysIn(a, running):
		return step{o, c.settled(running, e.Seq)}, true

	case e.Seq > lastSeq:
		if n := c.settled(running, c.entry[o].Seq); c.staysIn(o, running) && n.Seq <= lastSeq {
			return step{a, n}, true
		}
		return step{o, c.settled(running, 0)}, true // below; this one still counts

	case c.staysIn(o, running):
		return s, false
	}
	return step{o, c.settled(running, e.Seq)}, true
}

// clear plans how nothing counts any more, so that the factory application boots:
// the entry that counts comes last, or the other one would for a moment.
func (c control) clear() []step {
	var steps []step
	for range 2 {
		for i, e := range c.entry {
			if e.Whole() && (!c.usable(i) || i != c.active() || !c.usable(1-i)) {
				steps = append(steps, step{i, blank})
				c.do(step{i, blank})
			}
		}
	}
	return steps
}

// try plans how slot boots once, as esp_ota_set_boot_partition does it: the entry
// that does not boot running becomes the one that boots slot.
func (c control) try(running, slot int, as State) []step {
	if slot == factory {
		return c.clear() // it has no entry, so this stays
	}
	a := c.active()
	if running != factory && c.trial(running) {
		// The slot that runs is not good, so that there is only the way back, and
		// that is what the next start takes anyway.
		if c.staysIn(1-a, slot) {
			return nil
		}
		return []step{{1 - a, c.settled(slot, c.entry[a].Seq)}}
	}
	if running == factory {
		if a >= 0 && c.slot(a) == slot && c.entry[a].State == as && !c.entry[1-a].Whole() {
			return nil
		}
		return append(c.clear(), step{0, NewEntry(uint32(slot)+1, as)})
	}
	if a >= 0 && c.slot(a) == slot && c.entry[a].State == as && c.staysIn(1-a, running) {
		return nil
	}
	var steps []step
	back := c.wayBack(running)
	if back < 0 || c.entry[back].Seq > lastSeq {
		steps = c.good(running)
		for _, s := range steps {
			c.do(s)
		}
		back = c.active()
	}
	return append(steps, step{1 - back, NewEntry(seqFor(slot, c.n, c.entry[back].Seq), as)})
}

// wayBack returns the entry that boots running for good if the other is gone, or -1.
func (c *control) wayBack(running int) int {
	for _, i := range []int{c.active(), 1 - c.active()} {
		if i >= 0 && i < 2 && c.staysIn(i, running) {
			return i
		}
	}
	return -1
}
