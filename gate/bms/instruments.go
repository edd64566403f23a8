package bms

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
)

// state checks what the system does, and who commands it. Every instrument that
// tells must say what is wanted, and one at least must tell.
func (d *decision) state() {
	all := d.r.instruments()
	if d.t.Standby {
		demand(d, all, ota.CauseMode, "mode", "off or standby", func(r *Reading) Mode { return r.Mode }, ModeOff, ModeStandby)
	}
	if want := d.t.Contactors; want != "" {
		demand(d, all, ota.CauseContactors, "state of the contactors", string(want), func(r *Reading) Contactors { return r.Contactors }, want)
	}
	if d.t.RemoteControl {
		demand(d, all, ota.CauseMode, "control", "remote: somebody may work on site", func(r *Reading) Control { return r.Control }, ControlRemote)
	}
}

func demand[T ~string](d *decision, all []*Reading, cause ota.Cause, what, wanted string, of func(*Reading) T, want ...T) {
	told := false
	for _, r := range all {
		got := of(r)
		if got == "" {
			continue
		}
		told = true
		if !slices.Contains(want, got) {
			d.no(cause, "%s%s is %s, want %s", what, r.of(), got, wanted)
		}
	}
	if !told {
		d.no(cause, "%s%s is not known, want %s", what, d.r.of(), wanted)
	}
}

// shownAlarms bounds a refusal: a battery of hundreds of modules that has lost its
// bus raises as many.
const shownAlarms = 8

// alarms refuses every alarm that is raised by anyone and not ignored.
func (d *decision) alarms() {
	for _, r := range d.r.instruments() {
		raised := slices.Sorted(slices.Values(r.Alarms))
		raised = slices.DeleteFunc(slices.Compact(raised), func(a string) bool { return slices.Contains(d.t.IgnoreAlarms, a) })
		more := ""
		if n := len(raised) - shownAlarms; n > 0 {
			raised, more = raised[:shownAlarms], fmt.Sprintf(" and %d more", n)
		}
		if len(raised) > 0 {
			d.no(ota.CauseAlarm, "%s raises alarms: %s%s", r.who(), strings.Join(raised, ", "), more)
		}
	}
	if d.t.RequireAlarms && d.r.NoAlarms {
		d.no(ota.CauseAlarm, "%s cannot tell of alarms", d.r.who())
	}
}

// compared are the quantities in which instruments must agree. All are needed of the
// reading itself, so that what it lacks refuses anyway.
var compared = []Quantity{SoC, TemperatureMin, TemperatureMax, Current}

// others compares the reading with every other instrument, which must itself be
// worth it.
func (d *decision) others() {
	others := d.r.instruments()[1:]
	if len(others) < d.t.MinOthers {
		d.no(ota.CauseDisagreement, "%s has %d other instruments to compare with, want at least %d", d.r.who(), len(others), d.t.MinOthers)
	}
	for _, o := range others {
		its := &decision{r: o, t: d.t, now: d.now}
		its.trust(o, compared)
		common := 0
		for _, u := range units {
			_, there := o.Signals[u.q]
			needed := there && slices.Contains(compared, u.q)
			if its.plausible(u, o.Value(u.q), needed) && needed {
				common++
			}
		}
		switch {
		case len(its.reasons) > 0:
			d.no(ota.CauseDisagreement, "%s cannot be compared: %s", o.who(), strings.Join(its.reasons, ", "))
		case common == 0:
			d.no(ota.CauseDisagreement, "%s cannot be compared: it tells nothing that is compared: state of charge, temperature or current", o.who())
		default:
			d.agree(o)
		}
	}
}

// agree compares the values that both have.
func (d *decision) agree(o *Reading) {
	a := d.t.Agreement.orDefault()
	for _, u := range units {
		mine, its := d.r.Value(u.q), o.Value(u.q)
		limit := a.of(u.q, mine, its)
		if !slices.Contains(compared, u.q) || !finite(mine) || !finite(its) || limit < 0 {
			continue // what is missing or impossible is refused elsewhere
		}
		apart := math.Abs(mine - its)
		by := fmt.Sprintf("%s is %s %s by %s and %s %s by %s", u.name, number(mine, math.NaN(), u.decimals), u.unit, d.r.who(),
			number(its, math.NaN(), u.decimals), u.unit, o.who())
		if u.q == Current {
			same := signs(d.r.Positive, o.Positive)
			magnitudes := math.Abs(math.Abs(mine) - math.Abs(its))
			if same == 0 {
				apart = magnitudes
			} else if apart = math.Abs(mine - same*its); beyond(apart, limit) && !beyond(magnitudes, limit) {
				if same < 0 {
					by += ", whose sign is the other way round"
				}
				d.no(ota.CauseDisagreement, "%s: they disagree on the direction", by)
				continue
			}
		}
		if beyond(apart, limit) {
			d.no(ota.CauseDisagreement, "%s: %s %s apart, want at most %s %s", by, number(apart, limit, u.decimals), u.difference(), exact(limit), u.difference())
		}
	}
}

// signs is 1 where equal signs of a current mean the same, -1 where they mean the
// opposite, and 0 where nobody knows.
func signs(a, b Direction) float64 {
	switch {
	case a == "" || b == "":
		return 0
	case a == b:
		return 1
	case a == Charging && b == Discharging, a == Discharging && b == Charging:
		return -1
	}
	return 0
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// of is by how much two values of q may differ; negative: by anything.
func (a Agreement) of(q Quantity, x, y float64) float64 {
	switch q {
	case SoC:
		return a.SoC
	case TemperatureMin, TemperatureMax:
		return a.Temperature
	case Current:
		if a.Current < 0 {
			return -1
		}
		return max(a.Current, a.CurrentShare*max(math.Abs(x), math.Abs(y)))
	}
	return -1
}

func (a Agreement) orDefault() Agreement {
	set := func(v *float64, standard float64) {
		if *v == 0 {
			*v = standard
		}
	}
	set(&a.SoC, 5)
	set(&a.Temperature, 3)
	set(&a.Current, 2)
	set(&a.CurrentShare, 0.02)
	return a
}

// instruments are r and its others, and theirs.
func (r *Reading) instruments() []*Reading {
	all := []*Reading{r}
	for i := range r.Others {
		all = append(all, r.Others[i].instruments()...)
	}
	return all
}

// who names r in a sentence.
func (r *Reading) who() string {
	if r.Source == "" {
		return "the battery"
	}
	return r.Source
}

// of names the source of a value, if it has a name.
func (r *Reading) of() string {
	if r.Source == "" {
		return ""
	}
	return " of " + r.Source
}
