// Package mutants_test breaks the code on purpose, a line or two at a time, and
// demands that a test notices: that the order of two writes, a sync, a check or the
// moment of a save is not only there but proven to be needed.
//
// Every *.txt file beside this one is a list. A mutant in it has a name that says
// what is wrong with it, the package and the tests that must fail, the file, and the
// change, like a patch without line numbers:
//
//	the running slot can be tried
//	test ./slot/file ^TestSlots$
//	file slot/file/file.go
//	-		if slot != b.Other {
//	+		if slot == "" {
//
// Lines without a sign are there to make the place unique: what is to be changed must
// occur exactly once in the file. The tree itself is never touched: the changed file
// is laid over it while the test is built (go test -overlay).
//
// A mutant that no test notices is either a test that is missing, which is to be
// written, or no mutant at all, because both ways are right; then it does not belong here.
package mutants_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A mutant is one way to break the code.
type mutant struct {
	list     string // the file that it is from, without ".txt"
	name     string
	pkg      string // whose test notices it, relative to the root of the module
	run      string // regular expression of that test, for -test.run
	file     string // relative to the root of the module
	old, new string // whole lines
}

// parse reads a list. Mutants are separated by empty lines; a line that begins with
// '#' before the name is a comment.
func parse(list, text string) (all []mutant, err error) {
	for block := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		m := mutant{list: list}
		for line := range strings.SplitSeq(block, "\n") {
			verb, rest, _ := strings.Cut(line, " ")
			switch {
			case m.name == "" && strings.HasPrefix(line, "#"):
			case m.name == "":
				m.name = line
			case m.pkg == "" && verb == "test":
				m.pkg, m.run, _ = strings.Cut(rest, " ")
			case m.file == "" && verb == "file":
				m.file = rest
			case strings.HasPrefix(line, "-"):
				m.old += line[1:] + "\n"
			case strings.HasPrefix(line, "+"):
				m.new += line[1:] + "\n"
			default:
				m.old += line + "\n"
				m.new += line + "\n"
			}
		}
		if m.name == "" {
			continue
		}
		if m.run == "" || m.file == "" || m.old == "" || m.old == m.new {
			return nil, fmt.Errorf("read %s.txt: %q has no test, no file or no change", list, m.name)
		}
		all = append(all, m)
	}
	return all, nil
}

// apply returns the source with the mutant in it.
func (m mutant) apply(source string) (string, error) {
	source, before := "\n"+source, "\n"+m.old // whole lines
	at := strings.Index(source, before)
	if at < 0 || strings.LastIndex(source, before) != at {
		return "", fmt.Errorf("what is to be changed is not there, or more than once, in %s:\n%s", m.file, m.old)
	}
	return source[1:at+1] + m.new + source[at+len(before):], nil
}

// root is the folder of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T) (all []mutant) {
	t.Helper()
	files, err := filepath.Glob("*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no lists: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		some, err := parse(strings.TrimSuffix(file, ".txt"), string(text))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, some...)
	}
	return all
}

// cpu is what a program and those that it started have used.
func cpu(c *exec.Cmd) time.Duration { return c.ProcessState.UserTime() + c.ProcessState.SystemTime() }

// build builds the tests of a package, with files laid over the tree.
func build(t *testing.T, root, pkg string, over map[string]string) (binary string, took time.Duration) {
	t.Helper()
	dir := t.TempDir()
	overlay, err := json.Marshal(map[string]any{"Replace": over})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "test")
	c := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, pkg)
	c.Dir, c.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("it cannot be built: %v\n%s", err, out)
	}
	return binary, cpu(c)
}

// test runs tests of a binary, and returns their output and whether they passed.
func test(t *testing.T, binary, dir, run string) (out string, passed bool, took time.Duration) {
	t.Helper()
	c := exec.Command(binary, "-test.run", run, "-test.failfast", "-test.v", "-test.timeout", "10m")
	c.Dir = dir
	b, err := c.CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return string(b), err == nil, cpu(c)
}

var every = flag.Bool("mutants", false, "build and test every mutant, not one in eight")

// TestMutants demands that the named test of every mutant fails, and passes without it.
// Without -mutants it takes every eighth one, and looks whether the others still fit.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED: builds a test binary for every mutant, minutes of work; leave out -short")
	}
	root, all := root(t), read(t)
	if !*every {
		all = sample(t, root, all)
	}
	t.Run("none", func(t *testing.T) { // parallel subtests end before what follows
		runs := map[string][]string{}
		for _, m := range all {
			if !slices.Contains(runs[m.pkg], m.run) {
				runs[m.pkg] = append(runs[m.pkg], m.run)
			}
		}
		for pkg, runs := range runs {
			t.Run(pkg, func(t *testing.T) {
				t.Parallel()
				binary, _ := build(t, root, pkg, nil)
				for _, run := range runs {
					out, passed, _ := test(t, binary, filepath.Join(root, pkg), run)
					if !passed || !strings.Contains(out, "=== RUN") {
						t.Errorf("%s does not pass without a mutant, or is not there:\n%s", run, out)
					}
				}
			})
		}
	})
	var mu sync.Mutex
	var rows []string
	survived := 0
	t.Run("all", func(t *testing.T) {
		for _, m := range all {
			t.Run(m.list+"/"+m.name, func(t *testing.T) {
				t.Parallel()
				by, ok, built, tested := m.noticed(t, root)
				mu.Lock()
				defer mu.Unlock()
				rows = append(rows, fmt.Sprintf("| %s | %s | %s | %.1f | %.1f |", m.list, m.name, by, built.Seconds(), tested.Seconds()))
				if !ok {
					survived++
					t.Errorf("no test notices: %s, %s", m.pkg, m.run)
				}
			})
		}
	})
	slices.Sort(rows)
	t.Logf("noticed by, and seconds of CPU to build and to test:\n%s", strings.Join(rows, "\n"))
	fmt.Printf("mutants: %d, survived: %d\n", len(all), survived)
}

// sample returns every eighth mutant, and demands that all fit their files.
func sample(t *testing.T, root string, all []mutant) (some []mutant) {
	t.Helper()
	for i, m := range all {
		source, err := os.ReadFile(filepath.Join(root, m.file))
		if err == nil {
			_, err = m.apply(string(source))
		}
		if err != nil {
			t.Errorf("%s/%s: %v", m.list, m.name, err)
		}
		if i%8 == 0 {
			some = append(some, m)
		}
	}
	return some
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)|^panic: |^fatal error: `)

// noticed builds and tests the mutant, and returns the test that fails.
func (m mutant) noticed(t *testing.T, root string) (by string, ok bool, built, tested time.Duration) {
	t.Helper()
	path := filepath.Join(root, m.file)
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	broken, err := m.apply(string(source))
	if err != nil {
		t.Fatal(err)
	}
	over := filepath.Join(t.TempDir(), filepath.Base(m.file))
	if err := os.WriteFile(over, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, built := build(t, root, m.pkg, map[string]string{path: over})
	out, passed, tested := test(t, binary, filepath.Join(root, m.pkg), m.run)
	if passed && strings.Contains(out, "--- SKIP") && os.Getenv("INTERLOCK_TOOLS") != "1" {
		t.Skipf("NOT TESTED: a part of %s %s was skipped, as it says:\n%s", m.pkg, m.run, out)
	}
	if passed {
		return "", false, built, tested
	}
	all := failed.FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		t.Fatalf("it ended badly, and no test says so:\n%s", out)
	}
	return m.pkg + " " + all[len(all)-1][1], true, built, tested // the innermost subtest comes last
}

// TestParse shows the form of the lists, and that a change must fit.
func TestParse(t *testing.T) {
	text := "# about these\nthe first\ntest ./x ^TestX$\nfile x.go\n a := 1\n-b := 2\n+b := 3\n\nanother\ntest . ^TestY$\nfile y.go\n-gone\n"
	all, err := parse("list", text)
	if err != nil {
		t.Fatal(err)
	}
	want := []mutant{
		{"list", "the first", "./x", "^TestX$", "x.go", " a := 1\nb := 2\n", " a := 1\nb := 3\n"},
		{"list", "another", ".", "^TestY$", "y.go", "gone\n", ""},
	}
	if !slices.Equal(all, want) {
		t.Errorf("got %+v, want %+v", all, want)
	}
	if got, err := all[1].apply("kept\ngone\n"); err != nil || got != "kept\n" {
		t.Errorf("apply: got %q, %v", got, err)
	}
	for _, source := range []string{"kept\n", "gone\ngone\n", "not gone\n"} {
		if got, err := all[1].apply(source); err == nil {
			t.Errorf("apply to %q: got %q, want an error", source, got)
		}
	}
	for _, text := range []string{"no test\nfile x.go\n-a\n", "no file\ntest . ^T$\n-a\n", "no change\ntest . ^T$\nfile x.go\na\n"} {
		if all, err := parse("list", text); err == nil {
			t.Errorf("parse %q: got %+v, want an error", text, all)
		}
	}
}
