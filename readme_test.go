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

// TestREADMEByHand runs what the README says to type.
func TestREADMEByHand(t *testing.T) {
	var script string
	for _, block := range blocks(t, "sh") {
		if strings.HasPrefix(block, "# by hand") {
			script = block
		}
	}
	if script == "" {
		t.Fatal("the README has no block that begins with \"# by hand\"")
	}
	bin, dir := t.TempDir(), t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "./cmd/interlock", "./cmd/interlockd").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	// Another port than the reader's, and an end for what runs in the background.
	script = strings.ReplaceAll(script, "8443", freePort(t))
	script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n" + script
	cmd := exec.Command("timeout", "120", "bash", "-c", script)
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
	if !regexp.MustCompile(`bess-0001 .*1\.0\.1 .*up to date`).Match(out) {
		t.Errorf("the list does not show the device as up to date:\n%s", out)
	}
}
