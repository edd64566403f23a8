package evidence_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/evidence"
	"github.com/interlock-energy/ota/otatest"
)

// cutRun writes until the disk loses power, and returns the kinds of the lines that
// were on the medium by what Write had returned, file by file.
func cutRun(d *otatest.Disk) (synced int, yes bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(*otatest.PowerCut); !ok {
				panic(p)
			}
		}
	}()
	l := open(d)
	for _, a := range []string{"a1", "a2"} {
		if _, err := l.Begin(a, "1.2.0"); err != nil {
			return synced, yes
		}
		synced++
		for i := range 3 {
			if l.Write(evidence.KindState, evidence.State{Reason: strings.Repeat(a, 3000*i)}) == nil {
				synced++
			}
		}
		if l.Gate(evidence.Gate{Moment: ota.AtRestart, Yes: true}) == nil {
			synced++
			yes = true
		}
		if l.End("succeeded") == nil {
			synced++
		}
	}
	return synced, yes
}

// A power cut, or the end of the process, at every effect: no line is lost that was
// reported as written, everything verifies, and the next process goes on.
func TestCuts(t *testing.T) {
	base := newDisk(t)
	d := base.Clone()
	d.Arm(otatest.Cut{})
	cutRun(d)
	effects := d.Effects()
	cuts := 0
	for at := 1; at <= effects; at++ {
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
				for seed := range uint64(6) {
					c := otatest.Cut{At: at, How: how, Rest: rest, Seed: seed, Unit: []int{512, 4096, 1}[seed%3], Agent: seed == 5}
					d := base.Clone()
					d.Arm(c)
					synced, _ := cutRun(d)
					d.PowerOn()
					checkCut(t, d, c, synced)
					cuts++
				}
			}
		}
	}
	t.Logf("%d cuts at %d effects", cuts, effects)
}

func checkCut(t *testing.T, d *otatest.Disk, c otatest.Cut, synced int) {
	t.Helper()
	// The next process: it ends what is left, and begins another attempt.
	l := open(d)
	if err := l.Settle("", func(string) string { return "settled" }); err != nil {
		t.Fatalf("%v: settle: %v", c, err)
	}
	if err := sample(l, "a3"); err != nil {
		t.Fatalf("%v: the next attempt: %v", c, err)
	}
	all, err := evidence.VerifyDir(d, dir)
	if err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	lines := 0
	for _, v := range all {
		if !v.OK() {
			t.Fatalf("%v: got %+v, want that it verifies", c, v)
		}
		if v.Opened.Attempt == "a3" {
			continue
		}
		data, err := evidence.ReadFile(d, dir, v.Name)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			continue
		}
		got, err := evidence.Parse(data)
		if err != nil && v.Head != "" {
			t.Fatalf("%v: %v", c, err)
		}
		for _, line := range got {
			var e evidence.End
			if line.Kind == evidence.KindRecovered || line.Kind == evidence.KindEnd && line.Decode(&e) == nil && e.How == "settled" {
				continue
			}
			lines++
		}
	}
	// One more may be there: it reached the medium, and nobody heard of it.
	if lines < synced || lines > synced+1 {
		t.Fatalf("%v: %d lines are there, want the %d that were synced, and at most one more", c, lines, synced)
	}
}

// Whatever is written, in whatever order, with restarts of the process: it verifies.
func TestWrittenVerifies(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := newDisk(t)
		c := evidence.Config{MaxFile: 20_000 + r.Int64N(80_000)}
		l := openWith(d, c)
		attempt := "a0"
		l.Begin(attempt, "1.0.0")
		for i := range 60 {
			switch r.IntN(8) {
			case 0:
				l.Close()
				l = openWith(d, c)
				l.Begin(attempt, "1.0.0")
			case 1:
				l.End("done")
				attempt = fmt.Sprintf("a%d", i)
				l.Begin(attempt, "1.0.0")
			case 2:
				l.Gate(refusal(float64(r.IntN(30))))
			case 3:
				l.Health(evidence.Health{OK: r.IntN(2) == 0})
			case 4:
				l.Gate(evidence.Gate{Yes: true})
			default:
				l.Write(evidence.KindAsked, evidence.Asked{By: strings.Repeat("\"\n\u2028<é\xff", r.IntN(20))})
			}
		}
		l.End("done")
		all, err := evidence.VerifyDir(d, dir)
		if err != nil || len(all) == 0 {
			t.Fatal(err)
		}
		for _, v := range all {
			if !v.OK() || !v.Ended {
				t.Fatalf("seed %d: %+v", seed, v)
			}
		}
	}
}
