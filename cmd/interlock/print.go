package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// say prints a remark for people to standard error, unless they want none.
func (e *env) say(format string, a ...any) {
	if !e.quiet {
		fmt.Fprintf(e.stderr, format+"\n", a...)
	}
}

// printJSON prints v for programs.
func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printLine prints v for programs, on one line.
func (e *env) printLine(v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// table prints rows under a heading, in columns.
func (e *env) table(heading []string, rows [][]string) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(heading, "\t"))
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			if cells[i] = clean(c); c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// list prints names and values below each other. An empty value is left out.
func (e *env) list(pairs ...[2]string) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, p := range pairs {
		if p[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", p[0], clean(p[1]))
		}
	}
	return w.Flush()
}

// onTerminal reports whether w is a terminal that can move its cursor.
func onTerminal(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && getenv("TERM") != "dumb"
}

// progress returns a function that shows how much of total bytes is done: a bar
// on a terminal, after half a second, otherwise a line for every tenth. What takes less than two
// seconds is not worth lines in a log.
func (e *env) progress(what string, total int64) (show func(done int64), end func()) {
	begun := e.now()
	switch {
	case e.quiet || total <= 0:
		return func(int64) {}, func() {}
	case onTerminal(e.stderr, e.getenv):
		bar := progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(e.stderr),
			progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetWidth(30),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionEnableColorCodes(false),
		)
		return func(done int64) {
			if e.now().Sub(begun) >= 500*time.Millisecond { // a speed before that is fiction
				_ = bar.Set64(done) // a terminal that cannot be written to is no reason to stop the work
			}
		}, func() { _ = bar.Clear() }
	}
	shown := int64(0)
	return func(done int64) {
		if tenth := 10 * done / total; tenth > shown && e.now().Sub(begun) > 2*time.Second {
			shown = tenth
			fmt.Fprintf(e.stderr, "%s: %d %% of %s\n", what, 10*tenth, size(total))
		}
	}, func() {}
}

// size writes a number of bytes for people.
func size(n int64) string {
	f, unit := float64(n), ""
	for _, unit = range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 || unit == "TiB" {
			break
		}
		f /= 1024
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// short abbreviates a digest or a key id.
func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// date writes a time for people, in UTC, which is the same at every site.
func date(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// ago writes how long ago t was.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "never"
	case d < 2*time.Second:
		return "just now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// describeFlag adds the variable that can stand for a flag to its help.
func describeFlag(v *kong.Value) string {
	if len(v.Tag.Envs) == 0 {
		return v.Help
	}
	return strings.TrimSuffix(v.Help, ".") + " (or $" + strings.Join(v.Tag.Envs, ", $") + ")."
}
