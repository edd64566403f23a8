package evidence_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/evidence"
	"github.com/interlock-energy/ota/otatest"
)

// Whatever is changed, it is noticed: every bit of a file, every line.
func TestTampering(t *testing.T) {
	d := newDisk(t)
	if err := sample(open(d), "a1"); err != nil {
		t.Fatal(err)
	}
	name, data := content(t, d)
	faults := func(b []byte) (f []evidence.Fault) {
		for _, p := range evidence.Verify(name, b).Problems {
			f = append(f, p.Fault)
		}
		return f
	}
	flips := 0
	for i := range data {
		for bit := range 8 {
			// Where nothing stands, one bit of every byte of a line, and some of the others'.
			if data[i] == ' ' && (bit != i%8 || i > evidence.Page && i%16 != 0) {
				continue
			}
			b := bytes.Clone(data)
			b[i] ^= 1 << bit
			if len(faults(b)) == 0 {
				t.Fatalf("bit %d of byte %d is flipped, and nobody notices: %q", bit, i, b[max(0, i-20):i+1])
			}
			flips++
		}
	}
	for n := range data {
		if n > evidence.Page && n%100 > 0 && data[n-1] == ' ' {
			continue
		}
		if f := faults(data[:n]); len(f) == 0 {
			t.Fatalf("it is cut to %d of %d bytes, and nobody notices", n, len(data))
		}
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines = lines[:len(lines)-1]
	check := func(what string, changed [][]byte, want evidence.Fault) {
		t.Helper()
		if f := faults(bytes.Join(changed, nil)); !slices.Contains(f, want) {
			t.Errorf("%s: got %q, want %q", what, f, want)
		}
	}
	moves := 0
	for i := range lines {
		want := evidence.Missing
		if i == len(lines)-1 {
			want = evidence.Unended
		}
		check(fmt.Sprintf("without line %d", i+1), slices.Delete(slices.Clone(lines), i, i+1), want)
		for j := range lines {
			check(fmt.Sprintf("line %d again before line %d", i+1, j+1), slices.Insert(slices.Clone(lines), j, lines[i]), evidence.Repeated)
			if i < j {
				swapped := slices.Clone(lines)
				swapped[i], swapped[j] = swapped[j], swapped[i]
				check(fmt.Sprintf("lines %d and %d swapped", i+1, j+1), swapped, evidence.Moved)
			}
			moves++
		}
	}
	t.Logf("%d bits flipped, %d cuts, %d lines taken out, repeated or swapped: all noticed", flips, len(data), moves)
}

// A line that is written anew, with a sum that fits, breaks what follows it.
func TestForgedLine(t *testing.T) {
	forged := func(soc float64) (string, [][]byte) {
		d := newDisk(t)
		var name string
		var data []byte
		synctest.Test(t, func(t *testing.T) { // the same clock for both
			l := open(d)
			if _, err := l.Begin("a1", "1.2.0"); err != nil {
				t.Fatal(err)
			}
			l.Gate(refusal(soc))
			l.Write(evidence.KindState, evidence.State{From: ota.Idle, To: ota.Available})
			l.End("succeeded")
			name, data = content(t, d)
		})
		return name, bytes.SplitAfter(data, []byte("\n"))
	}
	name, honest := forged(22)
	_, other := forged(80)
	honest[1] = other[1]
	v := evidence.Verify(name, bytes.Join(honest, nil))
	if len(v.Problems) != 1 || v.Problems[0].Fault != evidence.Changed || v.Problems[0].Line != 3 || !strings.Contains(v.Problems[0].Text, "line 2") {
		t.Errorf("got %+v, want that line 3 follows another line 2", v.Problems)
	}
}

// The chain goes from file to file: what is done to one shows in the next.
func TestTamperingWithFiles(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(d *otatest.Disk, names []string) error
		want evidence.Fault // "": none, and a note
	}{
		{"the oldest is gone", func(d *otatest.Disk, n []string) error { return d.Remove(dir + "/" + n[0]) }, ""},
		{"one in the middle is gone", func(d *otatest.Disk, n []string) error { return d.Remove(dir + "/" + n[1]) }, evidence.Missing},
		{"the end of one is cut off", func(d *otatest.Disk, n []string) error { return cutLine(d, n[1]) }, evidence.Changed},
		{"the end of the newest is cut off", func(d *otatest.Disk, n []string) error { return cutLine(d, n[2]) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDisk(t)
			l := open(d)
			for _, a := range []string{"a1", "a2", "a3"} {
				if err := sample(l, a); err != nil {
					t.Fatal(err)
				}
			}
			names, _ := evidence.List(d, dir)
			if err := tt.do(d, names); err != nil {
				t.Fatal(err)
			}
			all, err := evidence.VerifyDir(d, dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []evidence.Fault
			notes := 0
			for _, v := range all {
				notes += len(v.Notes)
				for _, p := range v.Problems {
					got = append(got, p.Fault)
				}
			}
			if tt.want == "" && (len(got) > 0 || notes == 0) || tt.want != "" && !slices.Contains(got, tt.want) {
				t.Errorf("got %q and %d notes, want %q: %+v", got, notes, tt.want, all)
			}
		})
	}
}

func cutLine(d *otatest.Disk, name string) error {
	data, err := evidence.ReadFile(d, dir, name)
	if err != nil {
		return err
	}
	f, err := d.OpenFile(dir+"/"+name, 2, 0)
	if err != nil {
		return err
	}
	return f.Truncate(int64(bytes.LastIndexByte(data[:len(data)-1], '\n') + 1))
}
