package store_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/store"
)

func Example() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)

	st, err := store.Open(filepath.Join(dir, "record"))
	if err != nil {
		fmt.Println(err)
	}
	defer st.Close()
	if err := st.Save(ota.Record{Format: 1, State: ota.Staged}); err != nil {
		fmt.Println(err)
	}
	r, err := st.Load()
	fmt.Println(r.State, err)
	// Output: staged <nil>
}

const path = "/data/record"

func open(t *testing.T, fsys durable.FS) *store.File {
	t.Helper()
	f, err := store.OpenOn(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	f.Log = slog.New(slog.DiscardHandler)
	return f
}

// record is full of things that must not be lost.
func record(number int) ota.Record {
	m := &ota.Manifest{Format: 1, Product: "test", Version: "2.0.0", Created: time.Unix(1e9, 0).UTC(), Images: []ota.Image{{
		Component: "controller", Size: 10000, SHA256: ota.Hash{1, 2}, ChunkSize: 4096, Chunks: ota.Hashes{{1}, {2}, {3}}}}}
	report := ota.Report{ID: "attempt-1", Version: "2.0.0", Result: ota.RolledBack, Code: ota.ErrValidation, Time: time.Unix(1e9, 0).UTC()}
	return ota.Record{
		Format: 1, State: ota.Trial, Release: m, Digest: "00ff", Slot: "B", OldSlot: "A", BootID: "17", Tries: number,
		SecurityVersion: 7, NewestTime: time.Unix(1e9, 5).UTC(),
		Skipped: []ota.Skipped{{Digest: "abcd", Version: "1.9.0", Reason: "not healthy"}},
		Unsent:  []ota.Report{report}, Last: &report,
	}
}

func want(t *testing.T, f *store.File, want ota.Record) {
	t.Helper()
	got, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record differs (-want +got):\n%s", diff)
	}
}

func TestSaveAndLoad(t *testing.T) {
	for name, fsys := range map[string]durable.FS{"real": durable.OS{}, "disk": otatest.NewDisk()} {
		t.Run(name, func(t *testing.T) {
			path := path
			if name == "real" {
				path = filepath.Join(t.TempDir(), "deep", "down", "record")
			}
			f, err := store.OpenOn(fsys, path)
			if err != nil {
				t.Fatal(err)
			}
			want(t, f, ota.Record{})
			for i := range 4 {
				if err := f.Save(record(i)); err != nil {
					t.Fatal(err)
				}
				want(t, f, record(i))
				again, err := store.OpenOn(fsys, path) // another process
				if err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					want(t, again, record(i))
				}
				f = again // which may also save before it has loaded
			}
		})
	}
}

func TestZeroRecordIsSaved(t *testing.T) {
	f := open(t, otatest.NewDisk())
	if err := f.Save(ota.Record{}); err != nil {
		t.Fatal(err)
	}
	want(t, f, ota.Record{Format: 1})
}

func put(t *testing.T, d *otatest.Disk, name, content string) {
	t.Helper()
	if err := durable.WriteFile(d, name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// saved returns a disk with records 1 and 2, the second the newest.
func saved(t *testing.T) (*otatest.Disk, *store.File) {
	t.Helper()
	d := otatest.NewDisk()
	f := open(t, d)
	for i := range 2 {
		if err := f.Save(record(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	return d, f
}

// Any byte of the newest may rot: the one before it counts, with a warning. Any
// byte of the older one may rot: nothing is lost.
func TestRot(t *testing.T) {
	base, _ := saved(t)
	for name, wanted := range map[string]int{path: 2, path + ".alt": 1} {
		size := int64(len(base.Content(name)))
		for at := int64(0); at < size; at += 11 {
			d := base.Clone()
			if err := d.Rot(name, at); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			f := open(t, d)
			f.Log = slog.New(slog.NewTextHandler(&log, nil))
			want(t, f, record(wanted))
			if !strings.Contains(log.String(), "damaged") {
				t.Errorf("%s rotten at %d: got log %q, want a warning", name, at, log.String())
			}
			// The damaged one is written next, and not the good one.
			good := map[string]string{path: path + ".alt", path + ".alt": path}[name]
			before := d.Content(good)
			if err := f.Save(record(3)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, d.Content(good)) {
				t.Fatalf("%s rotten at %d: the good copy was written over", name, at)
			}
			want(t, open(t, d), record(3))
		}
	}
}

func TestDamaged(t *testing.T) {
	later := func(t *testing.T, d *otatest.Disk, from, to string) {
		for _, name := range []string{path, path + ".alt"} {
			put(t, d, name, strings.Replace(string(d.Content(name)), from, to, 1))
		}
	}
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, d *otatest.Disk)
		want    []string // in the error
	}{
		{"both rotten", func(t *testing.T, d *otatest.Disk) {
			if err := errors.Join(d.Rot(path, 200), d.Rot(path+".alt", 200)); err != nil {
				t.Fatal(err)
			}
		}, []string{"checksum", path, path + ".alt", "restore", "delete"}},
		{"one gone, one rotten", func(t *testing.T, d *otatest.Disk) {
			if err := errors.Join(d.Remove(path), d.Rot(path+".alt", 200)); err != nil {
				t.Fatal(err)
			}
		}, []string{"checksum", path + ".alt"}},
		{"both empty", func(t *testing.T, d *otatest.Disk) { put(t, d, path, ""); put(t, d, path+".alt", "") }, []string{"0 bytes that do not begin like a record"}},
		{"a later layout", func(t *testing.T, d *otatest.Disk) { later(t, d, "interlock-record 1 ", "interlock-record 2 ") }, []string{`layout "2" is not known here`}},
		{"edited by hand", func(t *testing.T, d *otatest.Disk) { later(t, d, `"security_version":7`, `"security_version":0`) }, []string{"checksum"}},
		{"cannot be read", func(t *testing.T, d *otatest.Disk) {
			d.OnRead = func(string, int64, []byte) error { return syscall.EIO }
		}, []string{"input/output error"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, _ := saved(t)
			test.prepare(t, d)
			before := d.Content(path + ".alt")
			f := open(t, d)
			got, err := f.Load()
			if diff := cmp.Diff(ota.Record{}, got); diff != "" {
				t.Errorf("got a record with the error:\n%s", diff)
			}
			for _, part := range test.want {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("got error %v, want %q in it", err, part)
				}
			}
			if err := f.Save(record(9)); err == nil {
				t.Error("save: got no error, want the damage to be seen to first")
			}
			if !bytes.Equal(before, d.Content(path+".alt")) {
				t.Error("save has changed a file")
			}
		})
	}
}

func TestFormats(t *testing.T) {
	d, f := saved(t)
	r := record(3)
	r.Format = 2
	if err := f.Save(r); err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("save format 2: got %v", err)
	}
	want(t, f, record(2))

	// As later software would have written them, with a good checksum.
	later := func(body string) { put(t, d, path, string(store.Encode(9, []byte(body)))) }
	later(`{"format":2,"state":{"not":"a string"}}`)
	if _, err := open(t, d).Load(); err == nil || !strings.Contains(err.Error(), "format 2 is not known here") {
		t.Errorf("load format 2: got %v", err)
	}
	if err := open(t, d).Save(record(3)); err == nil {
		t.Error("save over format 2: got no error")
	}
	later(`{"format":1,"state":"staged","a_later_field":[1,2,3]}`)
	want(t, open(t, d), ota.Record{Format: 1, State: ota.Staged})
}

// The golden file is what format 1 looks like for ever.
func TestGolden(t *testing.T) {
	golden, err := os.ReadFile("testdata/record.1")
	if err != nil {
		t.Fatal(err)
	}
	d := otatest.NewDisk()
	f := open(t, d)
	put(t, d, path, string(golden))
	want(t, f, record(1))
	_, body, _ := bytes.Cut(golden, []byte("\n"))
	var fields map[string]any
	if err := json.Unmarshal(body, &fields); err != nil {
		t.Fatal(err)
	}
	if fields["state"] != "trial" || fields["security_version"] != 7.0 {
		t.Errorf("got state %v, security version %v", fields["state"], fields["security_version"])
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	first, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(path); !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), "stop the other agent") {
		t.Errorf("got %v, want ErrLocked and what to do", err)
	}
	// Another process is kept away too.
	child := exec.Command(os.Args[0], "-test.run=^TestLockFromElsewhere$")
	child.Env = append(os.Environ(), "STORE_PATH="+path)
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("in another process: %v\n%s", err, out)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := store.Open(path)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	second.Close()
}

// TestLockFromElsewhere is the other process of TestLock; by itself it locks its own path twice.
func TestLockFromElsewhere(t *testing.T) {
	path := os.Getenv("STORE_PATH")
	if path == "" {
		path = filepath.Join(t.TempDir(), "record")
		f, err := store.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if _, err := store.Open(path); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

// Every effect of two saves and a load is cut in every way. What is loaded is the
// record before or after the save that was cut, whole, and can be saved over.
func TestCuts(t *testing.T) {
	base, _ := saved(t)
	tried := 0
	for at := 1; ; at++ {
		came := false
		for _, cut := range cuts(at) {
			d := base.Clone()
			last := 2 // the last that Save returned nil for
			d.Arm(cut)
			came = cutOff(func() {
				f := open(t, d)
				for i := 3; i <= 5; i++ {
					if err := f.Save(record(i)); err != nil {
						t.Errorf("%v: %v", cut, err)
					}
					last = i
				}
			})
			if !came {
				break
			}
			tried++
			d.PowerOn()
			got, err := open(t, d).Load()
			if err != nil {
				t.Fatalf("%v: %v", cut, err)
			}
			if got.Tries != last && got.Tries != last+1 {
				t.Errorf("%v: got record %d, want %d or %d", cut, got.Tries, last, last+1)
			}
			if diff := cmp.Diff(record(got.Tries), got); diff != "" {
				t.Errorf("%v: record is not whole:\n%s", cut, diff)
			}
			// What was loaded, was acted on: it must not go away any more.
			d.PowerOff(otatest.DropAll, 0)
			d.PowerOn()
			f := open(t, d)
			if again, err := f.Load(); again.Tries != got.Tries || err != nil {
				t.Errorf("%v: got record %d, then after another cut %d, %v", cut, got.Tries, again.Tries, err)
			}
			if err := f.Save(record(9)); err != nil {
				t.Errorf("%v: %v", cut, err)
			}
			d.PowerOff(otatest.DropAll, 0)
			d.PowerOn()
			want(t, open(t, d), record(9))
		}
		if !came {
			break
		}
	}
	if tried < 200 {
		t.Errorf("got %d cuts, want some hundreds", tried)
	}
	t.Logf("%d cuts", tried)
}

// Every effect of a save fails once, having done it or not. Neither the record that
// was there is lost, nor the next save.
func TestFaults(t *testing.T) {
	for _, did := range []bool{false, true} {
		for at := 1; ; at++ {
			d, f := saved(t)
			if _, err := f.Load(); err != nil {
				t.Fatal(err)
			}
			d.Arm(otatest.Cut{})
			d.OnEffect = func(n int, _ string) otatest.Fault {
				if n == at {
					return otatest.Fault{Err: syscall.ENOSPC, Did: did}
				}
				return otatest.Fault{}
			}
			err := f.Save(record(3))
			if d.Effects() < at {
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("effect %d: got %v, want ENOSPC", at, err)
			}
			d.OnEffect = nil
			for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll} {
				c := d.Clone()
				c.PowerOff(rest, 0)
				c.PowerOn()
				if got, err := open(t, c).Load(); err != nil || got.Tries != 2 && got.Tries != 3 {
					t.Errorf("effect %d, %v: got record %d, %v, want 2 or 3", at, rest, got.Tries, err)
				}
			}
			for i := 4; i < 6; i++ {
				if err := f.Save(record(i)); err != nil {
					t.Fatalf("effect %d: the next save: %v", at, err)
				}
				c := d.Clone()
				c.PowerOff(otatest.DropAll, 0)
				c.PowerOn()
				want(t, open(t, c), record(i))
			}
		}
	}
}

func cuts(at int) (all []otatest.Cut) {
	for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
		all = append(all, otatest.Cut{At: at, How: how, Agent: true})
		for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll} {
			all = append(all, otatest.Cut{At: at, How: how, Rest: rest, Seed: uint64(at)})
		}
		for seed := range uint64(8) {
			all = append(all, otatest.Cut{At: at, How: how, Rest: otatest.Subset, Seed: seed})
		}
	}
	return all
}

func cutOff(do func()) (came bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(*otatest.PowerCut); !ok {
				panic(p)
			}
			came = true
		}
	}()
	do()
	return false
}

func FuzzLoad(f *testing.F) {
	if golden, err := os.ReadFile("testdata/record.1"); err == nil {
		f.Add(golden)
	}
	f.Add([]byte("interlock-record 1 1 \n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := otatest.NewDisk()
		st := open(t, d)
		put(t, d, path, string(b))
		r, err := st.Load()
		if err == nil && r.Format != store.Format {
			t.Errorf("got a record of format %d without an error", r.Format)
		}
	})
}
