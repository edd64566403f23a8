package evidence_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/evidence"
	"github.com/interlock-energy/ota/otatest"
)

const dir = "/data/evidence"

func newDisk(t testing.TB) *otatest.Disk {
	t.Helper()
	d := otatest.NewDisk()
	if err := d.Mkdir("/data", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	return d
}

func open(d *otatest.Disk) *evidence.Log { return openWith(d, evidence.Config{}) }

func openWith(d *otatest.Disk, c evidence.Config) *evidence.Log {
	c.FS, c.Dir, c.Device, c.Product, c.Agent, c.Log = d, dir, "bess-01", "bess", "1.0", slog.New(slog.DiscardHandler)
	return evidence.Open(c)
}

// sample is an update with a refusal and a yes.
func sample(l *evidence.Log, attempt string) error {
	if _, err := l.Begin(attempt, "1.2.0"); err != nil {
		return err
	}
	for _, write := range []func() error{
		func() error {
			return l.Write(evidence.KindManifest, evidence.Manifest{Digest: "abc", Version: "1.2.0"})
		},
		func() error { return l.Write(evidence.KindState, evidence.State{From: ota.Idle, To: ota.Available}) },
		func() error { return l.Gate(refusal(22)) },
		func() error { return l.Gate(evidence.Gate{Moment: ota.BeforeWrite, Yes: true}) },
		func() error { return l.Write(evidence.KindResult, evidence.Result{Report: ota.Report{ID: attempt}}) },
		func() error { return l.End("succeeded") },
	} {
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

func refusal(soc float64) evidence.Gate {
	return evidence.Gate{Moment: ota.BeforeWrite, Code: "BATTERY_LOW", Reason: fmt.Sprintf("state of charge %.1f %%, want at least 30 %%", soc),
		Signals: []evidence.Signal{{Name: "soc", Value: soc, Unit: "%"}}}
}

// content returns the only file.
func content(t testing.TB, d *otatest.Disk) (name string, data []byte) {
	t.Helper()
	names, err := evidence.List(d, dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("got files %q, %v, want one", names, err)
	}
	if data, err = evidence.ReadFile(d, dir, names[0]); err != nil {
		t.Fatal(err)
	}
	return names[0], data
}

func kinds(t testing.TB, data []byte) (all []evidence.Kind) {
	t.Helper()
	lines, err := evidence.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		all = append(all, l.Kind)
	}
	return all
}

func TestWriteVerifies(t *testing.T) {
	d := newDisk(t)
	l := open(d)
	if err := sample(l, "a1"); err != nil {
		t.Fatal(err)
	}
	name, data := content(t, d)
	v := evidence.Verify(name, data)
	if !v.OK() || !v.Ended || v.How != "succeeded" || v.Lines != 7 || v.Opened.Attempt != "a1" || len(v.Notes) != 0 {
		t.Errorf("got %+v, want seven lines that hold", v)
	}
	if got, want := l.Head(), (evidence.Head{File: name, Hash: v.Head, Lines: 7}); got != want {
		t.Errorf("head: got %+v, want %+v", got, want)
	}
	if err := sample(l, "a2"); err != nil {
		t.Fatal(err)
	}
	all, err := evidence.VerifyDir(d, dir)
	if err != nil || len(all) != 2 || !all[0].OK() || !all[1].OK() || all[1].Opened.PreviousHead != v.Head || all[1].Opened.Previous != name {
		t.Errorf("got %+v, %v, want two files of which the second follows the first", all, err)
	}
}

// Refusals that are alike are summed up, and those that let something happen, or are
// others, are not; the numbers of all of them are within what is written.
func TestRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		l := open(d)
		if _, err := l.Begin("a1", "1.2.0"); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			l.Gate(refusal(20 + float64(i%7)))
			time.Sleep(time.Second)
		}
		l.Gate(evidence.Gate{Moment: ota.BeforeWrite, Yes: true})
		l.Gate(evidence.Gate{Moment: ota.BeforeWrite, Yes: true})
		_, data := content(t, d)
		lines, err := evidence.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		var counts []int
		var yes int
		for _, line := range lines[1:] {
			var g evidence.Gate
			if err := line.Decode(&g); err != nil {
				t.Fatal(err)
			}
			if g.Yes {
				yes++
				continue
			}
			n := 1
			if g.Repeat != nil {
				n = g.Repeat.Count
				want := evidence.Range{Name: "soc", Unit: "%", Min: 20, Max: 26}
				if len(g.Repeat.Ranges) != 1 || g.Repeat.Ranges[0] != want {
					t.Errorf("got ranges %+v, want %+v", g.Repeat.Ranges, want)
				}
			}
			counts = append(counts, n)
		}
		if want := []int{1, 60, 39}; !slices.Equal(counts, want) || yes != 2 {
			t.Errorf("got %d and %d yes, want %d and 2", counts, yes, want)
		}
	})
}

// Months of waiting stay small, also when the reason changes with every second.
func TestWaitingForMonths(t *testing.T) {
	for _, flapping := range []bool{false, true} {
		t.Run(fmt.Sprintf("flapping %v", flapping), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDisk(t)
				l := open(d)
				if _, err := l.Begin("a1", "1.2.0"); err != nil {
					t.Fatal(err)
				}
				const days = 7
				const most = days*256<<10 + 2<<20
				asked := 0
				for i := range days * 24 * 3600 / 5 {
					g := refusal(22)
					if flapping && i%2 == 0 {
						g.Reason = "highest temperature 47 °C"
					}
					l.Gate(g)
					if h := l.Head(); h.Lines > most/evidence.Page {
						t.Fatalf("%d questions: got %d lines already", asked, h.Lines)
					}
					asked++
					time.Sleep(5 * time.Second)
				}
				l.Close()
				_, data := content(t, d)
				if len(data) > most {
					t.Errorf("%d questions: got %d bytes, want at most %d", asked, len(data), most)
				}
				told := 0
				lines, _ := evidence.Parse(data)
				for _, line := range lines[1:] {
					var g evidence.Gate
					if line.Decode(&g); g.Repeat == nil {
						told++
					} else {
						told += g.Repeat.Count
					}
				}
				if told != asked {
					t.Errorf("%d answers are told, want %d", told, asked)
				}
				t.Logf("%d days, %d questions: %d lines, %d bytes", days, asked, len(lines), len(data))
			})
		})
	}
}

// A file that is full is followed by another, and the oldest make room.
func TestRollAndRetain(t *testing.T) {
	d := newDisk(t)
	l := openWith(d, evidence.Config{MaxFile: 1 << 16, Keep: 5})
	if _, err := l.Begin("a1", "1.2.0"); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := l.Write(evidence.KindState, evidence.State{Reason: strings.Repeat("x", 300)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.End("failed"); err != nil {
		t.Fatal(err)
	}
	all, err := evidence.VerifyDir(d, dir)
	if err != nil || len(all) != 5 {
		t.Fatalf("got %d files, %v, want 5", len(all), err)
	}
	for i, v := range all {
		data, _ := evidence.ReadFile(d, dir, v.Name)
		if !v.OK() || !v.Ended || len(data) > 1<<16 || v.Opened.Attempt != "a1" || i > 0 && v.Opened.Part != all[i-1].Opened.Part+1 {
			t.Errorf("file %d: got %d bytes, %+v", i, len(data), v)
		}
	}
}

// A medium that is full for a while: the error says so, and later a line.
func TestGap(t *testing.T) {
	d := newDisk(t)
	l := open(d)
	if _, err := l.Begin("a1", "1.2.0"); err != nil {
		t.Fatal(err)
	}
	broken := fmt.Errorf("no space left")
	d.OnEffect = func(_ int, effect string) otatest.Fault {
		return otatest.Fault{Err: broken, Short: 100}
	}
	for range 3 {
		if err := l.Gate(evidence.Gate{Moment: ota.AtRestart, Yes: true}); err == nil {
			t.Fatal("a yes that is nowhere written was reported as written")
		}
	}
	if h := l.Head(); !strings.Contains(h.Error, "no space left") {
		t.Errorf("head: got %+v, want the error", h)
	}
	d.OnEffect = nil
	if err := l.Write(evidence.KindState, evidence.State{To: ota.Trial}); err != nil {
		t.Fatal(err)
	}
	if h := l.Head(); h.Error != "" {
		t.Errorf("head: got %+v, want no error any more", h)
	}
	_, data := content(t, d)
	if got, want := kinds(t, data), []evidence.Kind{evidence.KindOpened, evidence.KindGap, evidence.KindState}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	lines, _ := evidence.Parse(data)
	var g evidence.Gap
	if lines[1].Decode(&g); g.Lost != 3 || !strings.Contains(g.Error, "no space left") {
		t.Errorf("got %+v, want 3 lines lost, and why", g)
	}
}

// A sync that fails says nothing about the medium: what it was to keep is written again.
func TestSyncFails(t *testing.T) {
	d := newDisk(t)
	l := open(d)
	if _, err := l.Begin("a1", "1.2.0"); err != nil {
		t.Fatal(err)
	}
	fail := true
	d.OnEffect = func(_ int, effect string) otatest.Fault {
		if fail && strings.HasPrefix(effect, "sync ") {
			fail = false
			return otatest.Fault{Err: fmt.Errorf("i/o error")}
		}
		return otatest.Fault{}
	}
	if err := l.Write(evidence.KindState, evidence.State{To: ota.Trial}); err == nil {
		t.Fatal("got nil, want the error of the sync")
	}
	if err := l.Write(evidence.KindState, evidence.State{To: ota.Idle}); err != nil {
		t.Fatal(err)
	}
	d.PowerOff(otatest.DropAll, 1)
	d.PowerOn()
	_, data := content(t, d)
	if got, want := kinds(t, data), []evidence.Kind{evidence.KindOpened, evidence.KindGap, evidence.KindState}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Damage in the middle is no torn line: nothing behind it is cut off, and the attempt
// goes on in another file.
func TestDamageIsKept(t *testing.T) {
	d := newDisk(t)
	l := open(d)
	if _, err := l.Begin("a1", "1.2.0"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l.Write(evidence.KindState, evidence.State{})
	}
	l.Close()
	name, data := content(t, d)
	f, err := d.OpenFile(dir+"/"+name, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(bytes.IndexByte(data, '\n') + 30)
	f.WriteAt([]byte("!"), at)
	before, err := open(d).Begin("a1", "1.2.0")
	if err != nil || !before {
		t.Fatalf("got %v, %v, want that the attempt had begun before", before, err)
	}
	if got := d.Content(dir + "/" + name); len(got) != len(data) {
		t.Errorf("the damaged file has %d bytes, want %d still", len(got), len(data))
	}
	all, err := evidence.VerifyDir(d, dir)
	if err != nil || len(all) != 2 || all[1].Opened.Part != 2 || !strings.Contains(all[1].Opened.Damaged, "line 2") || !slices.ContainsFunc(all[0].Problems, func(p evidence.Problem) bool { return p.Line == 2 && p.Fault == evidence.Changed }) {
		t.Errorf("got %+v, %v, want a second file that says what is wrong with the first", all, err)
	}
}

// What a process could not end, the next one does.
func TestSettle(t *testing.T) {
	d := newDisk(t)
	l := open(d)
	if _, err := l.Begin("a1", "1.2.0"); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = open(d)
	how := func(attempt string) string { return "of " + attempt }
	if err := l.Settle("a1", how); err != nil {
		t.Fatal(err)
	}
	_, data := content(t, d)
	if got := kinds(t, data); len(got) != 1 {
		t.Errorf("got %q, want nothing more while the attempt is under way", got)
	}
	for range 2 {
		if err := l.Settle("", how); err != nil {
			t.Fatal(err)
		}
	}
	name, data := content(t, d)
	if v := evidence.Verify(name, data); !v.OK() || v.How != "of a1" || v.Lines != 2 {
		t.Errorf("got %+v, want one end", v)
	}
}

// A clock that is set back does not change the order of the files.
func TestClockSetBack(t *testing.T) {
	d := newDisk(t)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	l := openWith(d, evidence.Config{Now: func() time.Time { return now }})
	for i, a := range []string{"z", "y", "x"} {
		if err := sample(l, a); err != nil {
			t.Fatal(err)
		}
		now = now.Add(-time.Hour * time.Duration(i+1))
	}
	all, err := evidence.VerifyDir(d, dir)
	if err != nil || len(all) != 3 {
		t.Fatalf("got %d files, %v, want 3", len(all), err)
	}
	for i, v := range all {
		if want := string('z' - rune(i)); !v.OK() || v.Opened.Attempt != want {
			t.Errorf("file %d: got %+v, want attempt %s", i, v, want)
		}
	}
}

// A writer that opens whatever is there neither fails to go on nor cuts off whole lines.
func FuzzGoOn(f *testing.F) {
	d := newDisk(f)
	l := open(d)
	if _, err := l.Begin("a1", "1.2.0"); err != nil {
		f.Fatal(err)
	}
	l.Write(evidence.KindState, evidence.State{})
	l.Close()
	name, data := content(f, d)
	f.Add(data)
	f.Add(data[:len(data)-3])
	f.Add(append(bytes.Clone(data), 0, 0, 0))
	f.Add(data[30:])
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDisk(t)
		d.Mkdir(dir, 0o700)
		file, err := d.OpenFile(dir+"/"+name, 0o102, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		file.WriteAt(b, 0)
		whole, _ := evidence.Parse(b)
		l := open(d)
		if _, err := l.Begin("a1", "1.2.0"); err != nil {
			t.Fatalf("go on with %q: %v", b, err)
		}
		if err := l.End("done"); err != nil {
			t.Fatal(err)
		}
		after, _ := evidence.Parse(d.Content(dir + "/" + name))
		if len(after) < len(whole) {
			t.Errorf("%d whole lines were there, and %d are left", len(whole), len(after))
		}
	})
}

// Only evidence is read, whatever is asked for.
func TestReadFileNames(t *testing.T) {
	d := newDisk(t)
	if err := sample(open(d), "a1"); err != nil {
		t.Fatal(err)
	}
	name, _ := content(t, d)
	for _, bad := range []string{"", ".", "..", "../record", "../evidence/" + name, "/data/evidence/" + name, name + "/", "x" + name, name + ".tmp", "20260301T120000Z-1-../x.jsonl"} {
		if data, err := evidence.ReadFile(d, dir, bad); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: got %d bytes, %v, want %v", bad, len(data), err, fs.ErrNotExist)
		}
	}
}
