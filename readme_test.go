package ota_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks returns the README's fenced blocks in one language.
func blocks(t *testing.T, lang string) []string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile("(?s)```"+lang+"\n(.*?)```").FindAllSubmatch(b, -1) {
		found = append(found, string(m[1]))
	}
	return found
}

// TestREADMEGo: every line of Go in the README is compiled, in example_test.go.
func TestREADMEGo(t *testing.T) {
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, block := range blocks(t, "go") {
		for _, line := range strings.Split(strings.TrimSpace(block), "\n") {
			lines++
			if !strings.Contains(string(example), strings.TrimSpace(line)) {
				t.Errorf("not in example_test.go: %s", line)
			}
		}
	}
	if lines < 5 || lines > 15 {
		t.Errorf("the README embeds the library in %d lines, want 5 to 15", lines)
	}
}

// TestREADMEByHand runs what the README says to type, in its order.
func TestREADMEByHand(t *testing.T) {
	var script string
	for _, first := range []string{"# by hand", "# a battery", "# over a bus", "# without a server"} {
		found := false
		for _, block := range blocks(t, "sh") {
			if strings.HasPrefix(block, first) {
				script, found = script+block, true
			}
		}
		if !found {
			t.Fatalf("the README has no block that begins with %q", first)
		}
	}
	bin, dir := t.TempDir(), t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "./cmd/interlock", "./cmd/interlockd").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	// Another port than the reader's, and an end for what runs in the background.
	script = strings.ReplaceAll(script, "8443", freePort(t))
	script = strings.ReplaceAll(script, "1502", freePort(t))
	script = strings.ReplaceAll(script, "1503", freePort(t))
	script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n" + script
	cmd := exec.Command("timeout", "180", "bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	out, _ := os.ReadFile(log.Name())
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`bess-0001 .*1\.0\.1 .*up to date`, `bess-0001 .*1\.0\.2 .*up to date`, `name=converter step="at rest`, `the set-point is as it was found`, `bess 1\.0\.1 is proven on bess-0002`} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("nothing shows %s:\n%s", want, out)
		}
	}
}
