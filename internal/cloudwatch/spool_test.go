package cloudwatch

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
)

const dir = "/var/spool/log"

func newSpool(disk *otatest.Disk) (*spool, *int64) {
	dropped := new(int64)
	return &spool{fs: disk, dir: dir, max: 256 << 10, drop: func(n int64, _ string) { *dropped += n }}, dropped
}

// all returns the texts that a new process finds.
func all(t testing.TB, disk *otatest.Disk) (texts []string) {
	t.Helper()
	s, _ := newSpool(disk)
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	for _, seg := range s.segs {
		events, err := s.read(seg)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			texts = append(texts, string(e.text))
		}
	}
	return texts
}

func lineOf(i int) event {
	return event{int64(i), fmt.Appendf(nil, "line %d %s", i, strings.Repeat("x", 3000))}
}

// life appends 43 lines in portions of 1 to 4, and removes the two oldest segments
// as if they had been accepted. saved and removed count the lines of calls that have
// returned; trying and removing those of calls that have not, too.
func life(disk *otatest.Disk, saved, trying, removed, removing *int) (cut bool) {
	defer func() {
		if err, ok := recover().(error); ok {
			if _, ok := errors.AsType[*otatest.PowerCut](err); !ok {
				panic(err)
			}
			cut = true
		}
	}()
	s, _ := newSpool(disk)
	for i := 0; i < 40; {
		var events []event
		for range i%4 + 1 {
			events = append(events, lineOf(i))
			i++
		}
		*trying = i
		if n, err := s.append(events); err != nil {
			panic(fmt.Sprint(n, err))
		}
		*saved = i
	}
	for range 2 {
		seg := s.segs[0]
		*removing = *removed + seg.events
		s.remove(seg)
		*removed = *removing
	}
	return false
}

// TestPowerCut cuts the power at every effect on the disk, in every way, and
// finds all lines that were saved, in order, none twice, and none that was removed.
func TestPowerCut(t *testing.T) {
	plain := otatest.NewDisk()
	var a, b, c, d int
	life(plain, &a, &b, &c, &d)
	effects := plain.Effects()
	if effects < 40 || a < 40 || c == 0 {
		t.Fatalf("got %d effects, %d lines saved, %d removed", effects, a, c)
	}
	cuts := 0
	for at := 1; at <= effects; at++ {
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
				cut := otatest.Cut{At: at, How: how, Rest: rest, Seed: uint64(at)}
				disk := otatest.NewDisk()
				disk.Arm(cut)
				var saved, trying, removed, removing int
				if !life(disk, &saved, &trying, &removed, &removing) {
					continue
				}
				cuts++
				disk.PowerOn()
				got := all0(t, disk)
				first, last := -1, -1
				for i, text := range got {
					var n int
					fmt.Sscanf(text, "line %d ", &n)
					if i == 0 {
						first, last = n, n-1
					}
					if text != string(lineOf(n).text) || n != last+1 {
						t.Fatalf("%v: line %d follows line %d", cut, n, last)
					}
					last = n
				}
				if first != removed && first != removing && len(got) > 0 {
					t.Errorf("%v: begins with line %d, want %d or %d", cut, first, removed, removing)
				}
				if last+1 < saved || last+1 > trying {
					if !(len(got) == 0 && saved == 0) {
						t.Errorf("%v: got lines up to %d, want %d to %d", cut, last, saved-1, trying-1)
					}
				}
				// And the next process goes on.
				s, _ := newSpool(disk)
				if n, err := s.append([]event{lineOf(1000)}); n != 1 || err != nil {
					t.Errorf("%v: append: %d, %v", cut, n, err)
				}
				if after := all(t, disk); len(after) != len(got)+1 {
					t.Errorf("%v: got %d lines, want %d", cut, len(after), len(got)+1)
				}
			}
		}
	}
	t.Logf("%d cuts at %d effects", cuts, effects)
}

// all0 is all for a disk that may not have the directory yet.
func all0(t testing.TB, disk *otatest.Disk) []string {
	if _, err := disk.Stat(dir); err != nil {
		return nil
	}
	return all(t, disk)
}

// TestDiskErrors lets every effect fail, once without doing it and once although it
// was done, and finds every line in the files, once.
func TestDiskErrors(t *testing.T) {
	failed := errors.New("input/output error")
	for _, did := range []bool{false, true} {
		for at := range 60 {
			disk, n := otatest.NewDisk(), 0
			disk.OnEffect = func(int, string) otatest.Fault {
				if n++; n == at {
					return otatest.Fault{Err: failed, Did: did, Short: 100}
				}
				return otatest.Fault{}
			}
			s, _ := newSpool(disk)
			var pending []event
			for i := range 30 {
				pending = append(pending, lineOf(i))
				n, err := s.append(pending)
				if err != nil && !errors.Is(err, failed) {
					t.Fatal(err)
				}
				pending = pending[n:]
			}
			var want []string
			for i := range 30 {
				want = append(want, string(lineOf(i).text))
			}
			if got := all(t, disk); len(pending) > 0 || !reflect.DeepEqual(got, want) {
				t.Errorf("effect %d, did %v: got %d lines and %d pending, want 30 and 0", at, did, len(got), len(pending))
			}
		}
	}
}

// TestRemoveFails: a segment that was accepted and cannot be removed is not sent
// again by this process, and removed later.
func TestRemoveFails(t *testing.T) {
	disk, broken := otatest.NewDisk(), true
	disk.OnEffect = func(_ int, effect string) otatest.Fault {
		if broken && strings.HasPrefix(effect, "remove") {
			return otatest.Fault{Err: errors.New("read-only file system")}
		}
		return otatest.Fault{}
	}
	s, _ := newSpool(disk)
	s.append([]event{lineOf(0)})
	s.remove(s.segs[0])
	s.append([]event{lineOf(1)})
	if lines, _ := s.waiting(); lines != 1 {
		t.Errorf("got %d lines waiting, want 1", lines)
	}
	broken = false
	s.append([]event{lineOf(2)})
	if got := all(t, disk); len(got) != 2 {
		t.Errorf("got %d lines on disk, want 2", len(got))
	}
}

// TestBusy: the segment that is being sent is not dropped for want of room.
func TestBusy(t *testing.T) {
	s, dropped := newSpool(otatest.NewDisk())
	s.append([]event{lineOf(0)})
	s.seal()
	s.busy = s.segs[0]
	for i := 1; i < 200; i++ {
		s.append([]event{lineOf(i)})
	}
	if s.segs[0] != s.busy || *dropped == 0 {
		t.Errorf("got segment %d first, %d dropped", s.segs[0].number, *dropped)
	}
}

// TestForeignFiles: what is not ours stays, and what is damaged does no harm.
func TestForeignFiles(t *testing.T) {
	disk := otatest.NewDisk()
	s, _ := newSpool(disk)
	s.append([]event{lineOf(0)})
	for name, content := range map[string]string{
		"README":               "not ours",
		"0000000000000007.log": "ILOGCW1\nrubbish",
		"ffffffffffffffff.log": "the number after it would be 0",
		"0000000000000009.log": strings.Repeat("x", maxSegment+1),
	} {
		if err := durable.WriteFile(disk, dir+"/"+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, _ := newSpool(disk)
	if n, err := again.append([]event{lineOf(1)}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if got := all(t, disk); len(got) != 2 {
		t.Errorf("got %d lines, want 2", len(got))
	}
	entries, _ := disk.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{"0000000000000000.log", "000000000000000a.log", "README", "ffffffffffffffff.log"}
	if !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}

// TestPlan: whatever the events, a batch keeps the limits and something is done.
func TestPlan(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) event { return event{now.Add(d).UnixMilli(), []byte("x")} }
	many := slices.Repeat([]event{at(0)}, 10_001)
	large := slices.Repeat([]event{{now.UnixMilli(), make([]byte, maxEvent)}}, 5) // 262,144 each: 4 are 1,048,576
	for _, tt := range []struct {
		events []event
		old, n int
	}{
		{nil, 0, 0},
		{many, 0, 10_000},
		{large, 0, 4},
		{[]event{at(-15 * 24 * time.Hour), at(-14 * 24 * time.Hour), at(-time.Hour)}, 2, 1},
		{[]event{at(-25 * time.Hour), at(-time.Hour - 1), at(-time.Hour), at(0)}, 0, 2},
		{[]event{at(0), at(time.Hour), at(3 * time.Hour)}, 0, 2},
		{[]event{at(3 * time.Hour)}, 0, 0},
	} {
		if old, n := plan(tt.events, now); old != tt.old || n != tt.n {
			t.Errorf("%d events: got %d old and %d to send, want %d and %d", len(tt.events), old, n, tt.old, tt.n)
		}
	}
}

// FuzzSegment reads any bytes. What was read is written again in the same bytes,
// and a tear at any place leaves what is before it.
func FuzzSegment(f *testing.F) {
	good := []byte(segmentMagic)
	for i := range 3 {
		good = appendRecord(good, event{int64(i) << 40, fmt.Appendf(nil, "line %d", i)})
	}
	f.Add(good, 20)
	f.Add(good[:len(good)-1], 0)
	f.Add(append(slices.Clone(good), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 9)
	f.Add([]byte("ILOGCW1\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), 3)
	f.Add([]byte("ILOGCW"), 1)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		events := parseSegment(data)
		again := []byte(segmentMagic)
		for _, e := range events {
			if len(e.text) == 0 || len(e.text) > maxEvent {
				t.Fatalf("got a line of %d bytes", len(e.text))
			}
			again = appendRecord(again, e)
		}
		if len(events) > 0 && !slices.Equal(again, data[:len(again)]) {
			t.Fatalf("read %q, wrote %q", data, again)
		}
		if cut = min(max(cut, 0), len(again)); cut >= segmentHeader {
			part := parseSegment(again[:cut])
			if len(part) > len(events) || len(part) > 0 && !reflect.DeepEqual(part, events[:len(part)]) {
				t.Fatalf("cut at %d: got %d of %d lines", cut, len(part), len(events))
			}
		}
	})
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                         " ",
		"a\n":                      "a",
		"a\xffb":                   "a\uFFFDb",
		strings.Repeat("é", 15):    strings.Repeat("é", 15),
		strings.Repeat("éa", 20):   "éa... (cut, it has 60 bytes)",
		strings.Repeat("aaaé", 12): "aaa... (cut, it has 60 bytes)",
	} {
		if got := string(clean([]byte(in), 30)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestDiskForOthers: when others fill the disk the spool makes room, down to its last
// line, and does not take what is left: the record of an update is on the same disk.
func TestDiskForOthers(t *testing.T) {
	disk := otatest.NewDisk()
	disk.Capacity = 8 << 20
	lost := int64(0)
	s := &spool{fs: disk, dir: "/data", max: 4 << 20, drop: func(n int64, _ string) { lost += n }}
	line := event{1, bytes.Repeat([]byte("x"), 10_000)}
	kept := int64(0)
	for range 300 {
		if n, err := s.append([]event{line}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		kept++
	}
	fill := func(leave int64) {
		t.Helper()
		free, err := disk.Free("/data")
		if err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(disk, fmt.Sprintf("/data/of others %d", leave), make([]byte, free-leave), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill(900 << 10)
	if n, err := s.append([]event{line}); n != 1 || err != nil {
		t.Fatal("with what it has to give up:", n, err)
	}
	if free, _ := disk.Free("/data"); free < reserve {
		t.Errorf("%d bytes are free, want %d", free, reserve)
	}
	if lines, _ := s.waiting(); lost == 0 || int64(lines)+lost != kept+1 || lines < 100 {
		t.Errorf("%d lines wait and %d are lost of %d", lines, lost, kept+1)
	}
	var err error
	for leave := int64(1); leave < 5; leave++ { // it gives up all that it has
		fill(leave << 10)
		_, err = s.append([]event{line})
	}
	if lines, _ := s.waiting(); err == nil || lines > 0 {
		t.Errorf("with nothing left to give up: %v, and %d lines are on disk", err, lines)
	}
	if err := disk.Remove("/data/of others 1024"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.append([]event{line}); n != 1 || err != nil {
		t.Errorf("with room again: %d lines written, %v", n, err)
	}
	if free, _ := disk.Free("/data"); free < reserve {
		t.Errorf("%d bytes are free, want %d: the spool has kept some", free, reserve)
	}
}
