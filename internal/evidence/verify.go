package evidence

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

// Fault says what is wrong with evidence.
type Fault string

// Faults.
const (
	Changed  Fault = "changed"  // a line is not as it was written
	Missing  Fault = "missing"  // lines, or a file, were taken out
	Moved    Fault = "moved"    // lines are in another order
	Repeated Fault = "repeated" // a line is there twice
	Foreign  Fault = "foreign"  // a line, or a file, does not belong here
	Unended  Fault = "open"     // there is no end: it is still being written, or was cut off
	Torn     Fault = "torn"     // the last line is not whole
	Empty    Fault = "empty"    // there is nothing in the file
)

// Problem is one thing that is wrong.
type Problem struct {
	Fault Fault  `json:"fault"`
	Line  int    `json:"line,omitempty"` // position in the file, from 1; 0: the file as a whole
	Text  string `json:"text"`
}

// Verdict is what was found out about one file.
type Verdict struct {
	Name     string    `json:"name"`
	Opened   Opened    `json:"opened"`
	Lines    int       `json:"lines"`
	First    time.Time `json:"first,omitzero"` // by the device's clock
	Last     time.Time `json:"last,omitzero"`
	Head     string    `json:"head"`          // hash of the last line
	Ended    bool      `json:"ended"`         // its last line says so
	How      string    `json:"how,omitempty"` // how it ended
	Problems []Problem `json:"problems,omitempty"`
	Notes    []string  `json:"notes,omitempty"` // what an auditor should know, and is no fault
	Hashes   []string  `json:"-"`               // of all lines, in order
}

// maxProblems bounds what is said about a file that is no evidence at all.
const maxProblems = 100

func (v *Verdict) fault(f Fault, line int, format string, a ...any) {
	if len(v.Problems) == maxProblems {
		return
	}
	v.Problems = append(v.Problems, Problem{f, line, fmt.Sprintf(format, a...)})
}

func (v *Verdict) note(format string, a ...any) {
	v.Notes = append(v.Notes, fmt.Sprintf(format, a...))
}

// OK reports whether nothing is wrong with the file, and it has an end.
func (v *Verdict) OK() bool { return len(v.Problems) == 0 }

// Verify looks at one file by itself: the form of every line, that each follows the
// one before, and that there is an end. What it finds is true of data, which may have
// been written anew as a whole; see [Verdict.Head].
func Verify(name string, data []byte) Verdict {
	v := Verdict{Name: name}
	if len(data) == 0 {
		v.fault(Empty, 0, "there is nothing in it")
		return v
	}
	pieces := split(data)
	lines := make([]Line, len(pieces))
	where := map[int][]int{} // number of a line to its positions
	for i, raw := range pieces {
		l, err := parse(raw)
		lines[i] = l
		switch {
		case err == nil:
			where[l.Seq] = append(where[l.Seq], i)
			v.Head = l.Hash()
			v.Hashes = append(v.Hashes, v.Head)
		case i == len(pieces)-1 && !bytes.HasSuffix(raw, []byte("\n")):
			lines[i].Seq = -1
			v.fault(Torn, i+1, "the last line is not whole: %d bytes of it", len(raw))
		default:
			lines[i].Seq = -1
			v.fault(Changed, i+1, "changed: %v", err)
		}
	}
	v.Lines = len(pieces)
	v.order(lines, where)
	v.chain(lines)
	v.ends(lines)
	return v
}

// order tells lines that are missing from those that were moved or repeated, by
// their numbers. A line that cannot be read stands for the number that would be its.
func (v *Verdict) order(lines []Line, where map[int][]int) {
	next := 1
	for i, l := range lines {
		switch {
		case l.Seq < 0:
			next++
		case l.Seq > next:
			for _, n := range slices.Sorted(maps.Keys(where)) { // never count: the number may be anything
				if n < next || n > l.Seq {
					continue
				}
				if n > next {
					v.fault(Missing, i+1, "before this line %s missing", numbers(next, n-1))
				}
				if n < l.Seq {
					v.fault(Moved, where[n][0]+1, "moved: it is number %d, and stands at line %d", n, where[n][0]+1)
				}
				next = n + 1
			}
		case l.Seq < next && len(where[l.Seq]) > 1 && where[l.Seq][0] != i:
			first := where[l.Seq][0]
			if bytes.Equal(lines[first].Raw, l.Raw) {
				v.fault(Repeated, i+1, "repeated: number %d stands at line %d already", l.Seq, first+1)
			} else {
				v.fault(Foreign, i+1, "another line with number %d stands at line %d", l.Seq, first+1)
			}
		case l.Seq < next:
			if len(v.Problems) == 0 {
				v.fault(Moved, i+1, "moved: it is number %d, and stands at line %d", l.Seq, i+1)
			}
		default:
			next++
		}
	}
}

func numbers(from, to int) string {
	if from == to {
		return fmt.Sprintf("number %d is", from)
	}
	return fmt.Sprintf("numbers %d to %d are", from, to)
}

// chain compares each line with the one before it. Where numbers do not follow each
// other, or a line cannot be read, the fault was told already.
func (v *Verdict) chain(lines []Line) {
	var clock time.Time
	for i, l := range lines {
		if l.Seq < 0 {
			continue
		}
		if back := clock.Sub(l.Time); back > 0 && !clock.IsZero() {
			v.note("line %d: the device's clock was set back by %v", i+1, back.Round(time.Millisecond))
		}
		clock = l.Time
		switch {
		case i == 0:
			if l.Seq == 1 && l.Prev != zeroHash {
				v.fault(Changed, 1, "it is number 1, and follows another line")
			}
			if l.Seq == 1 && l.Kind != KindOpened {
				v.fault(Foreign, 1, "it is of kind %s, want %s", l.Kind, KindOpened)
			}
		case lines[i-1].Seq == l.Seq-1 && l.Prev != lines[i-1].Hash():
			v.fault(Changed, i+1, "it follows another line %d than the one that is here; one of the two was changed", l.Seq-1)
		}
		if i > 0 && l.Kind == KindOpened {
			v.fault(Foreign, i+1, "a line of kind %s can only be the first", KindOpened)
		}
		switch l.Kind {
		case KindGap:
			var g Gap
			if l.Decode(&g) == nil {
				v.note("line %d: %d lines before it could not be written: %s", i+1, g.Lost, g.Error)
			}
		case KindRecovered:
			var r Recovered
			if l.Decode(&r) == nil {
				v.note("line %d: a line that was not whole was cut off before it, %d bytes: the power failed, or the process was killed", i+1, r.Cut)
			}
		}
	}
}

func (v *Verdict) ends(lines []Line) {
	first, last := lines[0], lines[len(lines)-1]
	if first.Seq > 0 {
		v.First = first.Time
		if first.Kind == KindOpened {
			if err := first.Decode(&v.Opened); err != nil {
				v.fault(Changed, 1, "%v", err)
			}
			if v.Opened.Format > Format {
				v.fault(Foreign, 1, "its format is %d, and this program knows up to %d", v.Opened.Format, Format)
			}
			if v.Opened.Damaged != "" {
				v.note("this file goes on with an attempt of which an earlier file could not be gone on with: %s", v.Opened.Damaged)
			}
		}
	}
	for i, l := range lines[:len(lines)-1] {
		if l.Seq > 0 && (l.Kind == KindEnd || l.Kind == KindContinued) {
			v.fault(Foreign, i+2, "it follows the end")
		}
	}
	if last.Seq > 0 {
		v.Last = last.Time
	}
	switch {
	case last.Seq > 0 && (last.Kind == KindEnd || last.Kind == KindContinued):
		var e End
		v.Ended = last.Decode(&e) == nil
		v.How = e.How
	case last.Seq > 0:
		v.fault(Unended, len(lines), "there is no end: it is still being written, or what followed was cut off")
	}
}

// VerifyDir is [VerifyAll] for the files in dir.
func VerifyDir(fsys durable.FS, dir string) ([]Verdict, error) {
	names, err := List(fsys, dir)
	if err != nil {
		return nil, err
	}
	return VerifyAll(names, func(name string) ([]byte, error) { return ReadFile(fsys, dir, name) })
}

// VerifyAll looks at all files of a device, oldest first, and at whether each follows
// the one before it. That the newest is open is a note, because an update may be under
// way.
func VerifyAll(names []string, read func(name string) ([]byte, error)) ([]Verdict, error) {
	var all []Verdict
	for i, name := range names {
		data, err := read(name)
		if err != nil {
			return nil, fmt.Errorf("verify %s: %w", name, err)
		}
		v := Verify(name, data)
		if i == len(names)-1 {
			v.excuse("it is the newest, so that an update may be under way", Unended, Empty, Torn)
		}
		if i == 0 {
			v.follows(Verdict{})
		} else {
			v.follows(all[i-1])
			if before := &all[i-1]; before.Head == "" && v.Opened.Previous == before.Name && v.Opened.PreviousHead == "" {
				before.excuse("no line of it is whole, and so it was when the next file was made: the power failed while this one was", Empty, Torn, Changed)
			}
		}
		all = append(all, v)
	}
	return all, nil
}

// excuse makes notes of the problems, if all of them are of these faults.
func (v *Verdict) excuse(why string, faults ...Fault) {
	if slices.ContainsFunc(v.Problems, func(p Problem) bool { return !slices.Contains(faults, p.Fault) }) {
		return
	}
	for _, p := range v.Problems {
		v.note("%s; %s", p.Text, why)
	}
	v.Problems = nil
}

// follows compares the first line with the file before, the zero Verdict for none.
func (v *Verdict) follows(before Verdict) {
	o := v.Opened
	switch {
	case o.Format == 0: // told already
	case before.Name == "" && o.Previous == "":
	case before.Name == "":
		v.note("the file before it, %s with head %s, is not here: the device keeps the newest only, or it was taken away", o.Previous, o.PreviousHead)
	case o.Previous == "":
		v.fault(Foreign, 1, "it says that there was no file before it, and %s is here", before.Name)
	case o.Previous != before.Name:
		v.fault(Missing, 1, "it follows the file %s, and the one before it here is %s", o.Previous, before.Name)
	case o.PreviousHead != before.Head:
		v.fault(Changed, 1, "it follows %s with head %s, and the head of that is %s: lines were cut off or changed", o.Previous, or(o.PreviousHead, "none"), or(before.Head, "none"))
	}
}

func or(s, empty string) string {
	if s == "" {
		return empty
	}
	return s
}
