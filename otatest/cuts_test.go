package otatest_test

import (
	"flag"
	"fmt"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

var (
	all   = flag.Bool("cuts", false, "make all cuts, not a sample; takes many minutes")
	only  = flag.String("cut", "", "make one run again, as a failure has named it, and show everything that it does to the disk")
	which = flag.String("backend", "", "only backends whose names begin so")
)

// sum counts over all tests of this binary, for the table and the closing line.
var sum struct {
	sync.Mutex
	lines    map[string]otatest.Tally // by backend
	cuts     int
	failures int
	plant    int // devices that were cut with the plant quiesced
	stuck    int // of these, those that never resumed it
}

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // what a run needs is small, and soon gone
	code := m.Run()
	if sum.cuts > 0 {
		fmt.Print(table())
		fmt.Printf("plant: %d cuts between quiesce and resume, %d of them never resumed\n", sum.plant, sum.stuck)
		fmt.Printf("cuts: %d, failures: %d\n", sum.cuts, sum.failures)
	}
	os.Exit(code)
}

// A size is one pass of the matrix: how large the images are, and how much is done.
type size struct {
	name         string
	chunks       int
	sample, full otatest.Options // full with -cuts
}

var sizes = []size{
	{"one", 8, otatest.Options{Step: 15}, otatest.Options{Step: 1}},
	{"two", 2, otatest.Options{Step: 17, Second: 251}, otatest.Options{Step: 1, Second: 67}},
	// The second cut at every effect after every first, on one backend.
	{"pairs", 1, otatest.Options{Step: 1009, Second: 1}, otatest.Options{Step: 1, Second: 1}},
}

// takes reports whether sc on b is small enough for every pair of cuts, and whether
// the size of the image matters to it.
func (s size) takes(b backend, sc otatest.Scenario) bool {
	if sc.Installed {
		return s.name == "two" || s.name == "pairs" && *all && b.name == "file"
	}
	return s.name != "pairs" || b.name == "file" && (sc.Name == "good image" || sc.Name == "a person goes back")
}

// TestMatrix cuts every effect of every scenario on every backend in every way, and
// then, on a small image, samples of the recovery again; without -cuts, samples of all.
func TestMatrix(t *testing.T) {
	if *only != "" {
		t.Run("again", again)
		return
	}
	for _, b := range backends {
		if !strings.HasPrefix(b.name, *which) {
			continue
		}
		for _, size := range sizes {
			opt := size.sample
			if *all {
				opt = size.full
			}
			for _, sc := range scenarios(b, size) {
				if !size.takes(b, sc) {
					continue
				}
				name := underlined(b.name, size.name, sc.Name)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { cut(t, name, b, sc, opt) })
				})
			}
		}
	}
}

// scenarios are what b goes through.
func scenarios(b backend, s size) []otatest.Scenario {
	all := otatest.Scenarios(s.chunks)
	for i, sc := range all {
		if b.mute && slices.Contains(sc.Results, ota.Failed) {
			all[i].Results = append(sc.Results, ota.Lost)
		}
	}
	return all
}

func cut(t *testing.T, name string, b backend, sc otatest.Scenario, opt otatest.Options) {
	opt.Weak, opt.Unsealed, opt.Fragile = b.weak, b.unsealed, b.fragile
	tally := otatest.Cuts(b.Backend, sc, opt)
	for _, f := range tally.Failures {
		t.Errorf("%v\nagain: go test ./otatest -run '^TestMatrix$' -cut '%s/%s'", f, name, f.CutString())
	}
	if want := 12 * tally.Effects / opt.Step; tally.Effects < 20 || tally.Cuts < want {
		t.Errorf("%d cuts of %d effects, want at least %d: the harness has not done its work", tally.Cuts, tally.Effects, want)
	}
	if tally.Missed > tally.Cuts/4 {
		t.Errorf("%d runs ended before their cut, and %d were cut", tally.Missed, tally.Cuts)
	}
	t.Logf("%d effects, %d reads, %d cuts, %d of them twice, %d missed, %d failures", tally.Effects, tally.Reads, tally.Cuts, tally.Twice, tally.Missed, len(tally.Failures))
	sum.Lock()
	defer sum.Unlock()
	sum.cuts += tally.Cuts
	sum.failures += len(tally.Failures)
	sum.plant += tally.Plant
	sum.stuck += tally.Stuck
	if sum.lines == nil {
		sum.lines = map[string]otatest.Tally{}
	}
	line := sum.lines[b.name]
	if line.ByKind == nil {
		line.ByKind = map[otatest.Kind]int{}
	}
	line.Cuts += tally.Cuts
	line.Twice += tally.Twice
	for kind, n := range tally.ByKind {
		line.ByKind[kind] += n
	}
	sum.lines[b.name] = line
}

// again makes the run that -cut names.
func again(t *testing.T) {
	name, list := path.Split(*only)
	cuts, err := otatest.ParseCuts(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		for _, size := range sizes {
			for _, sc := range scenarios(b, size) {
				if underlined(b.name, size.name, sc.Name)+"/" == name {
					synctest.Test(t, func(t *testing.T) {
						if err := otatest.Again(b.Backend, sc, otatest.Options{Weak: b.weak, Unsealed: b.unsealed, Fragile: b.fragile}, cuts, os.Stdout); err != nil {
							t.Error(err)
						}
					})
					return
				}
			}
		}
	}
	t.Fatalf("-cut %s: there is no such backend, size and scenario", *only)
}

// underlined is the name of a subtest.
func underlined(backend, size, scenario string) string {
	return strings.ReplaceAll(path.Join(backend, size, scenario), " ", "_")
}

// table returns what was cut, for docs/proof.md.
func table() string {
	var s strings.Builder
	row := func(name string, t otatest.Tally) {
		fmt.Fprintf(&s, "| %s |", name)
		for _, kind := range otatest.Kinds {
			fmt.Fprintf(&s, " %s |", thousands(t.ByKind[kind]))
		}
		fmt.Fprintf(&s, " %s | %s |\n", thousands(t.Twice), thousands(t.Cuts))
	}
	s.WriteString("| boot control |")
	for _, kind := range otatest.Kinds {
		fmt.Fprintf(&s, " %s |", kind)
	}
	s.WriteString(" of these twice | sum |\n|---|" + strings.Repeat("---|", len(otatest.Kinds)+2) + "\n")
	every := otatest.Tally{ByKind: map[otatest.Kind]int{}}
	for _, b := range backends {
		t, ok := sum.lines[b.name]
		if !ok {
			continue
		}
		row(b.name, t)
		every.Cuts += t.Cuts
		every.Twice += t.Twice
		for kind, n := range t.ByKind {
			every.ByKind[kind] += n
		}
	}
	row("**sum**", every)
	return s.String()
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
