package otatest

import (
	"os"
	"os/exec"
	"testing"
)

// Tool returns the path of a program that a test compares with. Without it the
// test is skipped, or, if the environment says INTERLOCK_TOOLS=1, as "make test"
// does after it has installed them all, fails.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} { // not in everybody's PATH
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name
		}
	}
	if os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatalf("the program %s is missing, and everything should be here: add its package to the Makefile", name)
	}
	t.Skipf("NOT TESTED: the program %s is missing; make test installs it", name)
	return ""
}
