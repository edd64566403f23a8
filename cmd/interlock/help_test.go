package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/interlock-energy/ota/internal/control"
)

// leaves returns all commands that can be run.
func leaves(t *testing.T) (*kong.Kong, []*kong.Node) {
	t.Helper()
	var c cli
	p, err := kong.New(&c, kong.Name("interlock"), kong.Vars{"socket": control.DefaultSocket}, kong.ExplicitGroups(nil))
	if err != nil {
		t.Fatal(err)
	}
	var list []*kong.Node
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		if n.Leaf() {
			list = append(list, n)
		}
		for _, child := range n.Children {
			walk(child)
		}
	}
	walk(p.Model.Node)
	if len(list) < 20 {
		t.Fatalf("got %d commands, want all", len(list))
	}
	return p, list
}

// Every command has examples, and what they show is a command line that works.
func TestExamples(t *testing.T) {
	t.Setenv("INTERLOCK_SERVER", "https://ota.example.com")
	parser, list := leaves(t)
	for _, n := range list {
		words := strings.Fields(n.FullPath())[1:]
		var out bytes.Buffer
		e := &env{stdout: &out, stderr: &out, getenv: func(string) string { return "" }, now: time.Now}
		if code := run(context.Background(), append(words, "--help"), e); code != exitOK {
			t.Errorf("%v --help: exit code %d, want 0: %s", words, code, &out)
		}
		_, examples, ok := strings.Cut(out.String(), "Examples:\n")
		if !ok {
			t.Errorf("%v --help has no examples", words)
			continue
		}
		examples, _, _ = strings.Cut(examples, "\nFlags:")
		examples = strings.ReplaceAll(examples, "\\\n", "")
		shown := 0
		for line := range strings.Lines(examples) {
			for command := range strings.SplitSeq(line, "&&") {
				command, _, _ = strings.Cut(command, "|")
				command, _, _ = strings.Cut(command, ">")
				args := strings.Fields(command)
				if len(args) == 0 || args[0] != "interlock" {
					continue
				}
				if _, err := parser.Parse(args[1:]); err != nil {
					t.Errorf("example of %v: %s: %v", words, command, err)
				}
				if strings.Join(args[1:1+len(words)], " ") == strings.Join(words, " ") {
					shown++
				}
			}
		}
		if shown == 0 {
			t.Errorf("no example of %v shows it:\n%s", words, examples)
		}
	}
}

// The manual names every command, and has the exit codes of the help.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(b)
	_, list := leaves(t)
	for _, n := range list {
		if !strings.Contains(manual, n.FullPath()) {
			t.Errorf("docs/cli.md does not name %q", n.FullPath())
		}
	}
	codes := 0
	for line := range strings.Lines(exitCodes) {
		code, text, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.Trim(code, "0123456789") != "" {
			continue
		}
		codes++
		if row := "| " + code + " | " + strings.TrimSpace(text) + " |"; !strings.Contains(manual, row) {
			t.Errorf("docs/cli.md does not have the row %q", row)
		}
	}
	if codes != 11 {
		t.Errorf("got %d exit codes in the help, want 11", codes)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ä °C":       "plain ä °C",
		"two\nlines\tx":    "two lines x",
		"\x1b[2Jgone":      "\ufffd[2Jgone",
		"\u202eback":       "\ufffdback",
		"nul\x00 del\x7f":  "nul\ufffd del\ufffd",
		"c1 \u009b31m red": "c1 \ufffd31m red",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q): got %q, want %q", in, got, want)
		}
	}
}

func TestParseExpiry(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{
		"90d":                       "2026-05-30T12:00:00Z",
		"12h":                       "2026-03-02T00:00:00Z",
		"2027-06-30":                "2027-06-30T23:59:59Z",
		"2027-06-30T12:00:00+02:00": "2027-06-30T10:00:00Z",
		"":                          "", "0d": "", "-1d": "", "1.5d": "", "-5h": "", "2027-13-01": "", "next week": "", "99999999d": "",
	} {
		got, err := parseExpiry(in, start)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q: got %v, want an error", in, got)
		case want != "" && (err != nil || got.Format(time.RFC3339) != want):
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 2 << 20: "2.0 MiB", 5 << 40: "5.0 TiB", 5 << 50: "5120.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d): got %s, want %s", n, got, want)
		}
	}
}

// Progress in a log: nothing for what is quick, a line for every tenth otherwise.
func TestProgressWithoutTerminal(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name  string
		quiet bool
		speed time.Duration // for a tenth
		want  int           // lines
	}{{"quick", false, time.Millisecond, 0}, {"slow", false, 3 * time.Second, 10}, {"quiet", true, 3 * time.Second, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			e := &env{stderr: &out, quiet: tt.quiet, now: func() time.Time { return now }, getenv: func(string) string { return "" }}
			show, end := e.progress("upload", 1000)
			for done := int64(0); done <= 1000; done += 50 {
				show(done)
				now = now.Add(tt.speed / 2)
			}
			end()
			if got := strings.Count(out.String(), "\n"); got != tt.want {
				t.Errorf("got %d lines, want %d:\n%s", got, tt.want, &out)
			}
		})
	}
}
