package otatest

import (
	"os"
	"path/filepath"
	"testing"
)

// Tool returns the path of a program that a test compares with. Without it the
// test is skipped, or, if the environment says INTERLOCK_TOOLS=1, as "make test"
// does after it has installed them all, fails.
func Tool(t testing.TB, name string) string {
	t.Helper()
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") // not in everybody's PATH
	for _, dir := range dirs {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return filepath.Join(dir, name)
		}
	}
	if os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatalf("the program %s is missing, and everything should be here: add its package to the Makefile", name)
	}
	t.Skipf("NOT TESTED: the program %s is missing; make test installs it", name)
	return ""
}
