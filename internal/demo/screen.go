package demo

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// screen shows what happens: on a terminal a table that is drawn over and over,
// elsewhere a line for everything that changes.
type screen struct {
	out      io.Writer
	terminal bool
	color    bool
	err      error                 // of the first write that failed
	drawn    int                   // lines of the table on the terminal
	widths   [columns]int          // of its columns
	width    func() int            // of the terminal, in characters
	said     map[string]string     // last line about each device, without the time
	last     map[string]api.Device // as shown last
}

func newScreen(cfg Config) *screen {
	s := &screen{out: cfg.Out, terminal: cfg.Terminal, color: cfg.Color, said: map[string]string{}, last: map[string]api.Device{}}
	if s.out == nil {
		s.out = io.Discard
	}
	s.width = func() int { return widthOf(s.out) }
	return s
}

// printf writes, until that fails once: whoever watched is gone.
func (s *screen) printf(format string, a ...any) {
	if s.err == nil {
		_, s.err = fmt.Fprintf(s.out, format, a...)
	}
}

// begin comes first: where to look.
func (s *screen) begin(url string) {
	s.printf("Watch it in a browser: %s\n\n", s.paint(bold, url+"/"))
	s.printf("An update server and six battery systems, all on this machine. Firmware %s is\n"+
		"rolled out over %s, and %s, which does not start, to the canary.\n\n", goodVersion, oldVersion, brokenOne)
}

// note tells of something that is not about one device. The table has no room
// for it.
func (s *screen) note(at time.Duration, text string) {
	if !s.terminal {
		s.printf("%5.1f s  %s\n", at.Seconds(), text)
	}
}

// show brings the display up to date.
func (s *screen) show(at time.Duration, list []api.Device) {
	list = slices.Clone(list)
	for i := range list {
		list[i].Why = strings.Replace(list[i].Why, "waits: not now: ", "waits: ", 1) // says it twice
		d := list[i]
		// A check takes no time, and what was before it tells more.
		if last, ok := s.last[d.Device]; ok && d.Status == ota.StatusChecking {
			last.Wanted, last.Group, last.Signals = d.Wanted, d.Group, d.Signals
			list[i] = last
			continue
		}
		s.last[d.Device] = d
	}
	if !s.terminal {
		for i := range list {
			s.event(at, &list[i])
		}
		return
	}
	s.table(at, list)
}

// Columns of the table; the reason follows.
const (
	colDevice = iota
	colGroup
	colRuns
	colShouldRun
	colStatus
	colBattery
	columns
)

// reasonRoom is what the reasons of the plan need, in characters, if the battery's
// column makes room for them. With less, each has a line of its own.
const reasonRoom = 50

// table draws the table over the one before. Columns are as wide as their widest
// contents so far, so that they do not jump.
func (s *screen) table(at time.Duration, list []api.Device) {
	rows := [][columns]string{{"DEVICE", "GROUP", "RUNS", "SHOULD RUN", "STATUS", "BATTERY"}}
	for i := range list {
		d := &list[i]
		rows = append(rows, [columns]string{d.Device, d.Group, d.Version, d.Wanted, d.Status.String(), readings(d.Signals)})
	}
	for _, row := range rows {
		for i, cell := range row {
			s.widths[i] = max(s.widths[i], utf8.RuneCountInString(cell)+2)
		}
	}
	whole := 0
	for _, w := range s.widths {
		whole += w
	}
	width := s.width() - 1 // a line that fills the last column would wrap
	narrow := width-(whole-s.widths[colBattery]) < reasonRoom
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn) // up, to the first line of the table
	}
	s.drawn = 0
	line := func(text string) {
		b.WriteString(text + "\x1b[K\n") // and clear the rest of the old line
		s.drawn++
	}
	for i, row := range rows {
		cells := make([]string, columns)
		for j := range row {
			cells[j] = pad(row[j], s.widths[j])
		}
		text := strings.Join(cells, "")
		reason := fmt.Sprintf("%5.1f s", at.Seconds())
		if i > 0 {
			reason = why(&list[i-1])
		}
		switch {
		case narrow && i == 0:
			room := width - len(reason)
			text = cut(pad(cut(strings.TrimRight(text, " "), room), room)+reason, width)
		case narrow:
			text = cut(text, width)
		case i > 0 && utf8.RuneCountInString(text+reason) > width: // it says more than the battery's column
			text = cut(strings.Join(cells[:colBattery], "")+reason, width)
		default:
			text = cut(text+reason, width)
		}
		if i == 0 {
			line(s.paint(dim, text))
			continue
		}
		status := strings.Join(cells[:colStatus], "")
		if rest, ok := strings.CutPrefix(text, status+cells[colStatus]); ok {
			text = status + s.paint(colorOf(&list[i-1]), cells[colStatus]) + rest
		}
		line(text)
		if narrow {
			line(cut(pad("", s.widths[colDevice])+reason, width))
		}
	}
	s.printf("%s\x1b[J", b.String()) // what a wider window has left
}

// event prints a line if something has changed but numbers.
func (s *screen) event(at time.Duration, d *api.Device) {
	if d.Wanted == "" || d.Status == ota.StatusChecking {
		return // nothing to tell yet
	}
	text := fmt.Sprintf("%s runs %-6s %-17s %s", d.Device, d.Version, d.Status, d.Why)
	key := fmt.Sprint(d.Version, d.Status, d.Code, d.UpdateVersion)
	if s.said[d.Device] == key {
		return
	}
	s.said[d.Device] = key
	s.printf("%5.1f s  %s\n", at.Seconds(), text)
}

// summary prints what was expected and what was found.
func (s *screen) summary(sum Summary) {
	s.printf("\n%-9s%-28s%-28s\n", "DEVICE", "EXPECTED", "ACTUAL")
	for i := range sum.Devices {
		o := &sum.Devices[i]
		mark, color := "as planned", green
		if !o.OK {
			mark, color = "NOT AS PLANNED, "+o.Status, red
		}
		row, story := fmt.Sprintf("%-9s%-28s%-28s", o.Device, o.Want, o.Got), o.Story
		if reason := strings.TrimPrefix(o.Reason, "not now: "); reason != "" {
			story += ": " + reason
		}
		if utf8.RuneCountInString(row+mark+": "+story) < s.width() {
			s.printf("%s%s: %s\n", row, s.paint(color, mark), story)
			continue
		}
		s.printf("%s%s\n", row, s.paint(color, mark))
		for _, text := range wrap(story, s.width()-10) {
			s.printf("         %s\n", s.paint(dim, text))
		}
	}
	text := fmt.Sprintf("All %d devices ended as planned, in %.1f s.", len(sum.Devices), sum.Seconds)
	if !sum.OK {
		text = fmt.Sprintf("Not all devices ended as planned in %.1f s.", sum.Seconds)
	}
	s.printf("\n%s\n", s.paint(bold, text))
}

// keep says how to go on by hand.
func (s *screen) keep(st *stage) {
	s.printf(`
Server and devices go on until Ctrl-C. In another terminal:

  export INTERLOCK_SERVER=%s INTERLOCK_CA=%s INTERLOCK_TOKEN_FILE=%s
  interlock devices list
  interlock device status --socket %s

`, st.server.URL, st.server.CAFile, st.server.OperatorFile, st.socket("bess-04"))
}

func (e End) String() string {
	switch {
	case e.Waits != 0:
		return e.Version + ", waits: " + e.Waits.Name()
	case e.Result == ota.Succeeded:
		return e.Version + ", " + string(e.Result)
	case e.Result != "":
		return e.Version + ", " + e.Release + " " + string(e.Result)
	}
	return e.Version
}

// why is the reason, or how far a download is.
func why(d *api.Device) string {
	if d.Status != ota.StatusDownloading || d.Total <= 0 || d.Code != ota.ErrNone {
		return d.Why
	}
	const cells = 20
	full := int(cells * d.Done / d.Total)
	return strings.Repeat("█", full) + strings.Repeat("░", cells-full) + fmt.Sprintf(" %3d %%", 100*d.Done/d.Total)
}

// readings writes state of charge and temperature.
func readings(list []ota.Signal) string {
	var parts []string
	for _, x := range list {
		if x.Name == "soc" || x.Name == "temperature_max" {
			parts = append(parts, fmt.Sprintf("%.1f %s", x.Value, x.Unit))
		}
	}
	return strings.Join(parts, "  ")
}

type paint string

const (
	bold   paint = "1"
	dim    paint = "2"
	red    paint = "31"
	green  paint = "32"
	yellow paint = "33"
	blue   paint = "34"
)

func (s *screen) paint(p paint, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + string(p) + "m" + text + "\x1b[0m"
}

func colorOf(d *api.Device) paint {
	switch {
	case d.Status == ota.StatusFailed:
		return red
	case d.Code != ota.ErrNone:
		return yellow
	case d.Status == ota.StatusIdle || d.Status == ota.StatusComplete:
		return green
	}
	return blue
}

// widthOf returns the width of a terminal in characters, which may change.
func widthOf(out io.Writer) int {
	if f, ok := out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	return 120
}

// cut shortens text to n characters, for a line that wraps would tear the table.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(n-1, 0)]) + "…"
}

// wrap breaks text at spaces into lines of at most n characters; a longer word
// has a line of its own.
func wrap(text string, n int) (lines []string) {
	for _, word := range strings.Fields(text) {
		if last := len(lines) - 1; last >= 0 && utf8.RuneCountInString(lines[last])+1+utf8.RuneCountInString(word) <= n {
			lines[last] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}

func pad(text string, n int) string {
	return text + strings.Repeat(" ", max(n-utf8.RuneCountInString(text), 0))
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
