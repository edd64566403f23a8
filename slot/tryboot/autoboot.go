package tryboot

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxAutoboot is the size of the firmware's buffer for autoboot.txt, in bytes
// (Raspberry Pi documentation, autoboot.txt). It is one sector, too.
const maxAutoboot = 512

// autoboot is what autoboot.txt says, and where. Lines are kept as they are.
type autoboot struct {
	text    string
	normal  int // partition without the tryboot flag
	trial   int // partition with it
	atN     [2]int
	atT     [2]int // where in text the two numbers are
	enabled bool   // tryboot_a_b=1: the flag changes the partition, and not the file that is read
}

// parse reads autoboot.txt as the firmware does: lines "name=value", of which the
// last that applies counts, in sections [all], [none] and [tryboot]; what comes before
// any section applies always. What it does not know for sure is an error, for the
// firmware might read it in another way.
func parse(text string) (a autoboot, err error) {
	a = autoboot{text: text, normal: -1, trial: -1}
	if len(text) > maxAutoboot {
		return a, fmt.Errorf("it is %d bytes, and the firmware reads %d", len(text), maxAutoboot)
	}
	always, trial := true, true // the present section applies without the flag, and with it
	at := 0
	for i, line := range strings.SplitAfter(text, "\n") {
		begin := at
		at += len(line)
		line = strings.TrimRight(line, "\r\n")
		fail := func(format string, v ...any) error { return fmt.Errorf("line %d: %s", i+1, fmt.Sprintf(format, v...)) }
		if j := strings.IndexFunc(line, func(r rune) bool { return r != '\t' && (r < ' ' || r > '~') }); j >= 0 {
			return a, fail("byte %d is no text", j)
		}
		switch name, value, isSetting := strings.Cut(line, "="); {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
		case line == "[all]":
			always, trial = true, true
		case line == "[none]":
			always, trial = false, false
		case line == "[tryboot]":
			always, trial = false, true
		case strings.HasPrefix(line, "["):
			return a, fail("section %s is not known in this file, only [all], [none] and [tryboot]", line)
		case !isSetting:
			return a, fail("%q is neither a section nor a setting", line)
		case name == "tryboot_a_b":
			if value != "0" && value != "1" {
				return a, fail("tryboot_a_b is %q, want 0 or 1", value)
			}
			if trial {
				a.enabled = value == "1"
			}
		case name == "boot_partition":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > maxPartition || strconv.Itoa(n) != value {
				return a, fail("boot_partition is %q, want a number up to %d", value, maxPartition)
			}
			place := [2]int{begin + len(name) + 1, begin + len(name) + 1 + len(value)}
			if always {
				a.normal, a.atN = n, place
			}
			if trial {
				a.trial, a.atT = n, place
			}
		case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "":
			return a, fail("%q is no name of a setting", name)
		}
	}
	return a, nil
}

// check reports whether the firmware has two slots to choose from.
func (a *autoboot) check(partitions [2]int) error {
	known := func(n int) bool { return n == partitions[0] || n == partitions[1] }
	switch {
	case !a.enabled:
		return errors.New("tryboot_a_b=1 is missing under [all], so the flag would not change the partition")
	case a.normal < 0:
		return errors.New("boot_partition is missing under [all]")
	case a.atT == a.atN:
		return errors.New("boot_partition is missing under [tryboot], which must come after [all]")
	case !known(a.normal) || !known(a.trial):
		return fmt.Errorf("boot_partition is %d, and %d under [tryboot]; want %d and %d, the partitions of the slots", a.normal, a.trial, partitions[0], partitions[1])
	case a.normal == a.trial:
		return fmt.Errorf("boot_partition is %d in both sections, so there is nothing to try", a.normal)
	}
	return nil
}

// with returns the text with other numbers in the same places. All else is kept.
func (a *autoboot) with(normal, trial int) (string, error) {
	n, t := strconv.Itoa(normal), strconv.Itoa(trial)
	first, second, x, y := a.atN, a.atT, n, t
	if first[0] > second[0] {
		first, second, x, y = second, first, y, x
	}
	text := a.text[:first[0]] + x + a.text[first[1]:second[0]] + y + a.text[second[1]:]
	got, err := parse(text)
	if err != nil || got.normal != normal || got.trial != trial {
		return "", fmt.Errorf("with boot_partition %d, and %d under [tryboot], it reads %d and %d (%v)", normal, trial, got.normal, got.trial, err)
	}
	return text, nil
}
