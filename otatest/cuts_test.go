package otatest_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file/filetest"
)

var all = flag.Bool("cuts", false, "cut every recovery at every effect, not at samples; takes many minutes")

// total counts over all tests of this binary, for the closing line.
var total struct {
	sync.Mutex
	cuts, failures int
}

func TestMain(m *testing.M) {
	code := m.Run()
	if total.cuts > 0 {
		fmt.Printf("cuts: %d, failures: %d\n", total.cuts, total.failures)
	}
	os.Exit(code)
}

// TestCuts cuts every effect of every scenario in every way, and then, on a small
// image, the recovery again: at samples, or with -cuts at every effect.
func TestCuts(t *testing.T) {
	for _, run := range []struct {
		name   string
		chunks int
		second int
	}{
		{"one cut", 8, 0},
		{"two cuts", 2, 101},
	} {
		if run.second > 0 && *all {
			run.second = 1
		}
		t.Run(run.name, func(t *testing.T) {
			for _, sc := range otatest.Scenarios(run.chunks) {
				t.Run(strings.ReplaceAll(sc.Name, " ", "_"), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						tally := otatest.Cuts(filetest.Backend{}, sc, otatest.Options{Second: run.second})
						for _, f := range tally.Failures {
							t.Error(f)
						}
						if tally.Cuts < 12*tally.Effects || tally.Effects < 20 {
							t.Errorf("%d cuts of %d effects: the harness has not done its work", tally.Cuts, tally.Effects)
						}
						total.Lock()
						defer total.Unlock()
						total.cuts += tally.Cuts
						total.failures += len(tally.Failures)
						t.Logf("%d effects, %d cuts, %d failures", tally.Effects, tally.Cuts, len(tally.Failures))
					})
				})
			}
		})
	}
}
