package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/interlock-energy/ota/internal/push"
)

// pushView shows a transfer: a bar with rate and remaining time on a terminal, a line
// every ten seconds elsewhere, or every event as JSON.
type pushView struct {
	*env
	json   bool
	file   *push.File
	device string // for people
	known  bool   // a device has said who it is
	asked  bool   // it was asked to install the file
	err    error  // standard output is gone

	first, last int64     // bytes: where the transfer began, and now
	begun       time.Time // zero: it has not
	shown       time.Time // when progress was shown last
	bar         bool      // one is on the screen
}

// How often progress is shown.
const (
	barEvery  = 200 * time.Millisecond
	lineEvery = 10 * time.Second
	jsonEvery = time.Second
)

func (v *pushView) event(ev push.Event) {
	v.known = v.known || ev.Kind == push.KindIdentity
	v.asked = v.asked || ev.Status != nil && ev.Status.State >= push.WaitSafe // only who has asked is told of states
	switch {
	case v.json && (ev.Kind != push.KindProgress && ev.Kind != push.KindNumbers || v.due(jsonEvery, ev.Done)):
		if err := v.printLine(ev); err != nil && v.err == nil {
			v.err = err
		}
	case v.json:
	case ev.Kind == push.KindProgress:
		v.progress(ev.Done)
	case ev.Kind == push.KindIdentity:
		v.device = ev.Identity.Device
		v.remark("%s", identity(ev.Identity))
	case ev.Kind == push.KindPlan && ev.Plan.Bytes > 0:
		v.remark("%s", ev.Plan)
	case ev.Kind == push.KindState:
		v.remark("%s", ev.Status)
		v.shown = v.now()
	case ev.Kind == push.KindNumbers:
		v.numbers(ev.Status)
	case ev.Kind == push.KindTrouble:
		v.remark("trouble, trying on: %s", ev.Error)
	case ev.Kind == push.KindBack:
		v.remark("the device answers again")
	}
}

func identity(id *push.Identity) string {
	return or(id.Device, "a device") + when(id.Product != "", " ("+id.Product+")") + when(id.Running != "", " runs "+id.Running) + ", speaks " + id.Protocol
}

// due says whether progress is to be shown, which it is at the end in any case.
func (v *pushView) due(every time.Duration, done int64) bool {
	now := v.now()
	if now.Sub(v.shown) < every && done < v.file.Size {
		return false
	}
	v.shown = now
	return true
}

func (v *pushView) progress(done int64) {
	if v.begun.IsZero() {
		v.begun, v.first = v.now(), done
		v.shown = v.begun // a rate before that is fiction
	}
	v.last = done
	if v.first >= v.file.Size { // the device had all of it
		return
	}
	terminal := onTerminal(v.stderr, v.getenv)
	switch {
	case v.quiet:
	case terminal && v.due(barEvery, done):
		fmt.Fprintf(v.stderr, "\r\x1b[K%s", v.line(true))
		if v.bar = done < v.file.Size; !v.bar {
			fmt.Fprintln(v.stderr) // it stays: who comes back later sees how long it took
		}
	case !terminal && v.due(lineEvery, done):
		fmt.Fprintln(v.stderr, v.line(false))
	}
}

// numbers shows how a state goes on: the time that is left, and how much is written.
func (v *pushView) numbers(s *push.Status) {
	terminal := onTerminal(v.stderr, v.getenv)
	switch {
	case v.quiet:
	case terminal && v.due(barEvery, 0):
		fmt.Fprintf(v.stderr, "\r\x1b[K%s", v.count(s))
		v.bar = true
	case !terminal && v.due(lineEvery, 0):
		fmt.Fprintln(v.stderr, clean(s.String()))
	}
}

// count is a status on a line that can be written over.
func (v *pushView) count(s *push.Status) string {
	text := s.String()
	if s.Done > 0 {
		text = gauge(s.Done) + " " + text
	}
	return cutTo(clean(text), columns)
}

// columns is how much of a line can be written over: more would wrap on the terminals of old.
const columns = 79

// cutTo shortens a text to so many characters.
func cutTo(text string, most int) string {
	r := []rune(text)
	if len(r) <= most {
		return text
	}
	return string(r[:most-1]) + "…"
}

// gauge is a bar that is full to this share.
func gauge(share float64) string {
	const width = 12 // so that the longest line fits 80 columns, and can be written over
	full := int(min(max(share, 0), 1) * width)
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "]"
}

// line is how far it is.
func (v *pushView) line(bar bool) string {
	share := float64(v.last) / float64(v.file.Size)
	text := fmt.Sprintf("send %3d %%  %s of %s", int(100*share), size(v.last), size(v.file.Size))
	if bar {
		text = fmt.Sprintf("send %s %3d %%  %s of %s", gauge(share), int(100*share), size(v.last), size(v.file.Size))
	}
	spent := v.now().Sub(v.begun)
	if sent := v.last - v.first; sent > 0 && spent >= time.Second {
		rate := float64(sent) / spent.Seconds()
		text += fmt.Sprintf("  %s/s", size(int64(rate)))
		if v.last >= v.file.Size {
			return text + "  in " + push.About(spent)
		}
		if left := time.Duration(float64(v.file.Size-v.last) / rate * float64(time.Second)); left > 0 {
			text += "  " + push.About(left) + " left"
		}
	}
	return text
}

// remark prints a line, and the bar below it again.
func (v *pushView) remark(format string, a ...any) {
	v.end()
	v.say("%s", clean(fmt.Sprintf(format, a...)))
}

// end takes the bar off the screen.
func (v *pushView) end() {
	if v.bar {
		fmt.Fprint(v.stderr, "\r\x1b[K")
		v.bar = false
	}
}
