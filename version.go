package ota

import (
	"cmp"
	"fmt"
	"strings"
)

// CheckVersion reports whether v is a version that can be ordered: one to eight
// numbers with dots between them, then an optional "-pre.release" and an
// optional "+build", at most 64 characters. Semantic versions are such versions.
func CheckVersion(v string) error {
	if v == "" {
		return fmt.Errorf("version is empty")
	}
	if len(v) > 64 {
		return fmt.Errorf("version is %d characters, want at most 64", len(v))
	}
	core, pre, build := splitVersion(v)
	numbers := strings.Split(core, ".")
	if len(numbers) > 8 {
		return fmt.Errorf("version %q has %d numbers, want at most 8", v, len(numbers))
	}
	for _, n := range numbers {
		if !isNumber(n) {
			return fmt.Errorf("version %q: %q is not a number; want a form like 1.4.2 or 1.4.2-rc.1", v, n)
		}
	}
	for _, part := range []struct{ mark, s string }{{"-", pre}, {"+", build}} {
		if !strings.Contains(v, part.mark) && part.s == "" {
			continue
		}
		if part.mark == "-" && part.s == "" && !strings.Contains(strings.SplitN(v, "+", 2)[0], "-") {
			continue // the only dash is in the build part
		}
		for _, id := range strings.Split(part.s, ".") {
			if id == "" || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
				return fmt.Errorf("version %q: %q after %q is not letters, digits and dashes", v, id, part.mark)
			}
		}
	}
	return nil
}

// CompareVersions returns -1, 0 or 1 as a is older than, equal to or newer than
// b, by the order of Semantic Versioning 2.0.0, section 11, for any count of
// numbers: missing ones are zero, numbers are of any length, a pre-release is
// older than its release, and the build part does not count. Both must have
// passed [CheckVersion].
func CompareVersions(a, b string) int {
	ac, ap, _ := splitVersion(a)
	bc, bp, _ := splitVersion(b)
	an, bn := strings.Split(ac, "."), strings.Split(bc, ".")
	for i := range max(len(an), len(bn)) {
		x, y := "0", "0"
		if i < len(an) {
			x = an[i]
		}
		if i < len(bn) {
			y = bn[i]
		}
		if c := compareNumbers(x, y); c != 0 {
			return c
		}
	}
	switch {
	case ap == bp:
		return 0
	case ap == "":
		return 1
	case bp == "":
		return -1
	}
	ai, bi := strings.Split(ap, "."), strings.Split(bp, ".")
	for i := range min(len(ai), len(bi)) {
		if c := compareIdentifiers(ai[i], bi[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(ai), len(bi))
}

func splitVersion(v string) (core, pre, build string) {
	v, build, _ = strings.Cut(v, "+")
	core, pre, _ = strings.Cut(v, "-")
	return core, pre, build
}

func compareIdentifiers(a, b string) int {
	an, bn := isNumber(a), isNumber(b)
	switch {
	case an && bn:
		return compareNumbers(a, b)
	case an:
		return -1
	case bn:
		return 1
	}
	return cmp.Compare(a, b)
}

// compareNumbers compares decimal numbers of any length, so none overflows.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return cmp.Compare(a, b)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
