package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/evidence"
)

// timeline shows the lines of evidence to people: when, what, and the numbers that a
// decision was made on.
type timeline struct {
	out   io.Writer
	color bool
	begun time.Time
	limit string // shown last: they are shown again when they are others
}

type ink string

const (
	plain ink = ""
	good  ink = "\x1b[32m"
	bad   ink = "\x1b[31m"
	faint ink = "\x1b[2m"
)

// entry is what is shown of a line: a word, a sentence, and details below it.
type entry struct {
	word, text string
	ink        ink
	more       []string
}

func (t *timeline) show(lines []evidence.Line) error {
	for i := range lines {
		l := &lines[i]
		if l.Kind == evidence.KindOpened && t.begun.IsZero() {
			t.begun = l.Time
		}
		n, err := describeLine(l)
		if err != nil {
			return err
		}
		n.more = slices.DeleteFunc(n.more, func(s string) bool {
			if !strings.HasPrefix(s, limitsMark) {
				return false
			}
			same := s == t.limit
			t.limit = s
			return same
		})
		if err := t.print(l.Time, n); err != nil {
			return err
		}
	}
	return nil
}

func (t *timeline) print(at time.Time, n entry) error {
	word := fmt.Sprintf("%-11s", clean(n.word))
	if t.color && n.ink != plain {
		word = string(n.ink) + word + "\x1b[0m"
	}
	if _, err := fmt.Fprintf(t.out, "%s  %8s  %s %s\n", at.UTC().Format(time.TimeOnly), since(at.Sub(t.begun)), word, clean(n.text)); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	for _, m := range n.more {
		m = clean(m)
		if t.color {
			m = string(faint) + m + "\x1b[0m"
		}
		fmt.Fprintf(t.out, "%32s%s\n", "", m)
	}
	return nil
}

const limitsMark = "limits: "

// since writes a time from the beginning on, in the unit that fits.
func since(d time.Duration) string {
	switch s := d.Seconds(); {
	case d < 0:
		return "-" + since(-d)
	case s < 100:
		return fmt.Sprintf("+%.1f s", s)
	case s < 100*60:
		return fmt.Sprintf("+%d:%02d min", int(s)/60, int(s)%60)
	case s < 72*3600:
		return fmt.Sprintf("+%d:%02d h", int(s)/3600, int(s)/60%60)
	}
	return fmt.Sprintf("+%.1f d", d.Hours()/24)
}

// describeLine is one case for each kind; an unknown one, of a newer agent, is shown as it is.
func describeLine(l *evidence.Line) (entry, error) {
	n := entry{word: string(l.Kind)}
	var err error
	switch l.Kind {
	case evidence.KindOpened:
		var o evidence.Opened
		err = l.Decode(&o)
		n.text = fmt.Sprintf("%s, %s, agent %s: update to %s, attempt %s", o.Device, o.Product, o.Agent, o.Version, o.Attempt) + when(o.Part > 1, ", part "+strconv.Itoa(o.Part))
		n.more = []string{date(l.Time)}
		if o.Damaged != "" {
			n.more = append(n.more, "an earlier file is damaged: "+o.Damaged)
		}
	case evidence.KindAsked:
		var k evidence.Asked
		err = l.Decode(&k)
		n.text = k.For + ", " + by(k)
	case evidence.KindManifest:
		var m evidence.Manifest
		err = l.Decode(&m)
		n.text, n.more = describeManifest(&m)
	case evidence.KindGate:
		var g evidence.Gate
		err = l.Decode(&g)
		n = describeGate(&g)
	case evidence.KindThresholds:
		var c evidence.Thresholds
		err = l.Decode(&c)
		n.text = by(c.By)
		n.more = []string{"old: " + deviceLimits(&c.Old), "new: " + deviceLimits(&c.New)}
	case evidence.KindHealth:
		var h evidence.Health
		err = l.Decode(&h)
		n = describeHealth(&h)
	case evidence.KindResult:
		var r evidence.Result
		err = l.Decode(&r)
		p := &r.Report
		n.text = fmt.Sprintf("%s: the update from %s to %s, runs %s", strings.ToUpper(string(p.Result)), p.From, p.Version, p.Running) + when(p.Reason != "", ": "+p.Reason)
		n.ink = inkOf(p.Result == "succeeded")
	default:
		err = describeStep(l, &n)
	}
	return n, err
}

// describeStep describes the kinds that say what was done.
func describeStep(l *evidence.Line, n *entry) (err error) {
	switch l.Kind {
	case evidence.KindQuiesce, evidence.KindResume:
		var a evidence.Action
		err = l.Decode(&a)
		n.text = a.Phase + when(a.Step != "", ": "+a.Step) + when(a.TookMS > 0, fmt.Sprintf(", in %.1f s", float64(a.TookMS)/1000)) + when(a.Error != "", ": "+a.Error)
		n.ink = failedInk(a.Error)
	case evidence.KindState:
		var s evidence.State
		err = l.Decode(&s)
		n.text = fmt.Sprintf("%s -> %s", s.From, s.To) + when(s.Reason != "", ": "+s.Reason) + when(s.Error != "", ", but the record could not be saved: "+s.Error)
		n.ink = failedInk(s.Error)
	case evidence.KindRestart:
		var r evidence.Restart
		err = l.Decode(&r)
		n.text = "asked for, from slot " + r.Slot + when(r.Error != "", "; refused: "+r.Error)
		n.ink = failedInk(r.Error)
	case evidence.KindBooted:
		var b evidence.Booted
		err = l.Decode(&b)
		n.text = fmt.Sprintf("version %s in slot %s, boot %s", b.Version, b.Slot, short(b.BootID)) +
			when(b.FellBack, "; the bootloader came back by itself") + when(b.Trial, "; on trial")
	case evidence.KindBootloader:
		var b evidence.Bootloader
		err = l.Decode(&b)
		n.text = fmt.Sprintf("%s slot %s: %s", b.Do, b.Slot, b.Phase) + when(b.Error != "", ": "+b.Error)
		n.ink = failedInk(b.Error)
	case evidence.KindGap:
		var g evidence.Gap
		err = l.Decode(&g)
		n.text, n.ink = fmt.Sprintf("%s could not be written, since %s: %s", count(g.Lost, "line"), date(g.Since), g.Error), bad
	case evidence.KindRecovered:
		var r evidence.Recovered
		err = l.Decode(&r)
		n.text = fmt.Sprintf("a line that the power or the process did not live to write was cut off: %d bytes", r.Cut)
	case evidence.KindEnd, evidence.KindContinued:
		var end evidence.End
		err = l.Decode(&end)
		n.text = end.How
		n.more = []string{"head " + l.Hash()}
	default:
		n.text = strings.TrimSpace(string(l.Raw))
	}
	return err
}

func inkOf(ok bool) ink {
	if ok {
		return good
	}
	return bad
}

func failedInk(err string) ink {
	if err != "" {
		return bad
	}
	return plain
}

func by(k evidence.Asked) string {
	s := "by " + k.By
	if k.UID != nil && k.PID != nil {
		s = fmt.Sprintf("by %s (uid %d, process %d) at the %s", or(k.User, "a user without a name"), *k.UID, *k.PID, k.By)
	}
	return s + when(!k.At.IsZero(), ", on "+date(k.At))
}

func describeManifest(m *evidence.Manifest) (string, []string) {
	text := fmt.Sprintf("%s, from %s, digest %s", m.Version, m.From, short(m.Digest)) + when(m.Mandatory, ", mandatory") + when(m.Back, ", back to it")
	var keys []string
	for _, id := range m.Signers {
		keys = append(keys, short(id))
	}
	signed := fmt.Sprintf("signed by %s (%d wanted)", strings.Join(keys, ", "), m.Threshold)
	if m.Unknown != "" {
		signed = "signatures: " + m.Unknown
	}
	more := []string{signed + when(len(m.Sources) > 0, "; offered by "+strings.Join(m.Sources, ", "))}
	for _, im := range m.Images {
		more = append(more, fmt.Sprintf("%s: %s, sha256 %s", im.Component, size(im.Size), im.SHA256))
	}
	if l := limits(m.Limits); l != "" {
		more = append(more, "its own limits: "+l)
	}
	return text, more
}

func describeGate(g *evidence.Gate) entry {
	n := entry{word: "gate YES", text: string(g.Moment), ink: good}
	if !g.Yes {
		n.word, n.ink = "gate no", bad
		if g.Code == "NONE" { // the battery is fine, time has to pass
			n.ink = plain
		}
		n.text += ": " + g.Reason + when(g.Battery == "yes", " (the battery allows it)")
	}
	if r := g.Repeat; r != nil {
		n.more = append(n.more, repeated(r))
	}
	if s := measuredText(g); s != "" {
		n.more = append(n.more, s)
	}
	if g.Thresholds != nil && (g.Yes || g.Repeat == nil) {
		n.more = append(n.more, limitsMark+deviceLimits(g.Thresholds)+when(g.Release != nil, "; the release's: "+releaseLimits(g)))
	}
	return n
}

func releaseLimits(g *evidence.Gate) string {
	if g.Release == nil {
		return ""
	}
	return limits(*g.Release)
}

// measuredText writes what the battery was like.
func measuredText(g *evidence.Gate) string {
	if g.Error != "" {
		return "no reading: " + g.Error
	}
	var parts []string
	oldest := int64(math.MinInt64)
	for _, s := range g.Signals {
		parts = append(parts, s.Name+" "+(ota.Signal{Value: s.Value, Unit: s.Unit}).Number()+when(s.Source != g.Source, " ("+s.Source+")"))
		if s.AgeMS != nil {
			oldest = max(oldest, *s.AgeMS)
		}
	}
	if g.Mode != "" {
		parts = append(parts, "mode "+g.Mode)
	}
	if g.Contactors != "" {
		parts = append(parts, "contactors "+g.Contactors)
	}
	if g.Control != "" {
		parts = append(parts, g.Control+" control")
	}
	if len(g.Alarms) > 0 {
		parts = append(parts, "ALARMS "+strings.Join(g.Alarms, " "))
	}
	if len(g.Warnings) > 0 {
		parts = append(parts, "warnings "+strings.Join(g.Warnings, " "))
	}
	s := strings.Join(parts, ", ")
	if oldest != math.MinInt64 {
		s += fmt.Sprintf(" (%.1f s old)", float64(oldest)/1000)
	}
	return s + when(s != "" && g.Source != "", ", from "+g.Source)
}

// repeated sums up answers that have no line of their own.
func repeated(r *evidence.Repeat) string {
	s := fmt.Sprintf("%d times since %s", r.Count, r.Since.UTC().Format(time.TimeOnly)) + when(r.Changes > 0, fmt.Sprintf(", with %d changes of the reason", r.Changes))
	for _, v := range r.Ranges {
		s += fmt.Sprintf(", %s %.1f", v.Name, v.Min) + when(v.Max > v.Min, fmt.Sprintf(" to %.1f", v.Max)) + " " + v.Unit
	}
	return s
}

func deviceLimits(l *evidence.Limits) string {
	return fmt.Sprintf("state of charge at least %g %%, %g to %g °C, at most %g A, readings at most %g s old",
		l.MinSoC, l.MinTemperature, l.MaxTemperature, l.MaxCurrent, float64(l.MaxAgeMS)/1000)
}

func describeHealth(h *evidence.Health) entry {
	n := entry{word: "health", text: "healthy", ink: good}
	if !h.OK {
		n.text, n.ink = "NOT healthy: "+h.Error, bad
	}
	var names []string
	for _, k := range h.Checks {
		names = append(names, k.Name+when(!k.OK, " FAILED"))
	}
	if len(names) > 0 {
		n.more = append(n.more, "checks: "+strings.Join(names, ", "))
	}
	if h.Repeat != nil {
		n.more = append(n.more, repeated(h.Repeat))
	}
	return n
}

// evidenceHead says where the evidence stands, to be noted elsewhere.
func evidenceHead(h *control.EvidenceHead) string {
	if h == nil {
		return ""
	}
	return when(h.Hash != "", "head "+h.Hash+" of "+h.File) + when(h.Error != "", "; CANNOT BE WRITTEN: "+h.Error)
}
