package otatest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
)

func ExampleDisk() {
	d := NewDisk()
	f, _ := d.OpenFile("/state", os.O_RDWR|os.O_CREATE, 0o600)
	f.WriteAt([]byte("hello"), 0)
	f.Sync()
	// The content is synced, the name is not.
	d.PowerOff(DropAll, 0)
	d.PowerOn()
	_, err := d.Stat("/state")
	fmt.Println(err)
	// Output: stat /state: file does not exist
}

func put(t *testing.T, d *Disk, name, content string, sync ...string) durable.File {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(sync, "file") {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Contains(sync, "dir") {
		if err := d.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func show(d *Disk, name string) string {
	b, err := durable.ReadFile(d, name, 1<<20)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "(none)"
		}
		return err.Error()
	}
	return string(b)
}

func TestDiskPowerOff(t *testing.T) {
	for _, test := range []struct {
		what       string
		sync       []string
		keep, drop string
	}{
		{"nothing synced", nil, "data", "(none)"},
		{"content synced, name not", []string{"file"}, "data", "(none)"},
		{"name synced, content not", []string{"dir"}, "data", ""},
		{"both synced", []string{"file", "dir"}, "data", "data"},
	} {
		t.Run(test.what, func(t *testing.T) {
			for rest, want := range map[Rest]string{KeepAll: test.keep, DropAll: test.drop} {
				d := NewDisk()
				put(t, d, "/f", "data", test.sync...)
				d.PowerOff(rest, 0)
				d.PowerOn()
				if got := show(d, "/f"); got != want {
					t.Errorf("%v: got %q, want %q", rest, got, want)
				}
			}
		})
	}
}

func TestDiskSubset(t *testing.T) {
	// Two pages and a removal, none synced: every combination turns up, and the
	// same seed gives the same.
	seen := map[string]bool{}
	for seed := range uint64(200) {
		after := func() string {
			d := NewDisk()
			put(t, d, "/gone", "x", "file", "dir")
			f := put(t, d, "/f", strings.Repeat("a", 2*pageSize), "file", "dir")
			if _, err := f.WriteAt(bytes.Repeat([]byte("b"), 2*pageSize), 0); err != nil {
				t.Fatal(err)
			}
			if err := d.Remove("/gone"); err != nil {
				t.Fatal(err)
			}
			d.PowerOff(Subset, seed)
			d.PowerOn()
			s := show(d, "/f")
			return s[:1] + s[pageSize:pageSize+1] + show(d, "/gone")
		}
		got := after()
		seen[got] = true
		if again := after(); again != got {
			t.Fatalf("seed %d: got %q, then %q", seed, got, again)
		}
	}
	if len(seen) != 8 {
		t.Errorf("got %d combinations %v, want 8", len(seen), seen)
	}
}

func TestDiskRename(t *testing.T) {
	for _, test := range []struct {
		rest Rest
		sync bool
		want string
	}{{KeepAll, false, "new"}, {DropAll, false, "old"}, {DropAll, true, "new"}} {
		d := NewDisk()
		put(t, d, "/f", "old", "file", "dir")
		put(t, d, "/f.tmp", "new", "file", "dir")
		if err := d.Rename("/f.tmp", "/f"); err != nil {
			t.Fatal(err)
		}
		if got := show(d, "/f"); got != "new" {
			t.Errorf("before the cut: got %q, want new", got)
		}
		if test.sync {
			if err := d.SyncDir("/"); err != nil {
				t.Fatal(err)
			}
		}
		d.PowerOff(test.rest, 0)
		d.PowerOn()
		if got := show(d, "/f"); got != test.want {
			t.Errorf("%v, synced %v: got %q, want %q", test.rest, test.sync, got, test.want)
		}
	}
}

func TestDiskTruncate(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/f", "0123456789", "file", "dir")
	if err := f.Truncate(4); err != nil {
		t.Fatal(err)
	}
	if got := show(d, "/f"); got != "0123" {
		t.Errorf("got %q, want 0123", got)
	}
	lost := d.Clone()
	lost.PowerOff(DropAll, 0)
	lost.PowerOn()
	if got := show(lost, "/f"); got != "0123456789" {
		t.Errorf("not synced, dropped: got %q, want all", got)
	}
	if err := f.Truncate(6); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	d.PowerOff(DropAll, 0)
	d.PowerOn()
	if got := show(d, "/f"); got != "0123\x00\x00" {
		t.Errorf("cut and grown: got %q, want zeros at the end", got)
	}
}

func TestDiskKill(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/f", "data")
	d.Kill()
	if got := show(d, "/f"); got != "data" {
		t.Errorf("got %q, want what was in the page cache", got)
	}
	if err := f.Sync(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("file from before: got %v, want ErrClosed", err)
	}
	d.PowerOff(DropAll, 0) // and it is still not durable
	d.PowerOn()
	if got := show(d, "/f"); got != "(none)" {
		t.Errorf("then power off: got %q, want nothing", got)
	}
}

// outage runs do, and returns the cut that ended it.
func outage(t *testing.T, do func()) (o *PowerCut) {
	t.Helper()
	defer func() {
		switch p := recover().(type) {
		case nil:
			t.Error("got no outage, want one")
		case *PowerCut:
			o = p
		default:
			panic(p)
		}
	}()
	do()
	return nil
}

func TestDiskCut(t *testing.T) {
	const name = "write /f 0+4"
	for _, test := range []struct {
		cut  Cut
		want string
	}{
		{Cut{At: 1, How: Before, Rest: KeepAll}, "old!"},
		{Cut{At: 1, How: After, Rest: KeepAll}, "new!"},
		{Cut{At: 1, How: After, Rest: DropAll}, "old!"},
		{Cut{At: 1, How: Before, Agent: true}, "old!"},
		{Cut{At: 1, How: After, Agent: true}, "new!"},
	} {
		t.Run(test.cut.String(), func(t *testing.T) {
			d := NewDisk()
			f := put(t, d, "/f", "old!", "file", "dir")
			d.Arm(test.cut)
			write := func() { f.WriteAt([]byte("new!"), 0) }
			if o := outage(t, write); o != nil && o.Effect != name {
				t.Errorf("got effect %q, want %q", o.Effect, name)
			}
			outage(t, write) // until the power is back
			outage(t, func() { d.Stat("/f") })
			d.PowerOn()
			if got := show(d, "/f"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("file from before: got %v, want ErrClosed", err)
			}
		})
	}
}

func TestDiskTornWrite(t *testing.T) {
	before := strings.Repeat("o", 3*pageSize)
	data := strings.Repeat("A", 2*pageSize) // differs from o in four bits, more than a torn unit is flipped in
	const at = 1000                         // not on a unit's boundary
	for _, unit := range []int{1, 512, 4096} {
		positions := map[int]bool{}
		for seed := range uint64(50) {
			d := NewDisk()
			f := put(t, d, "/f", before, "file", "dir")
			d.Arm(Cut{At: 1, How: Torn, Rest: DropAll, Unit: unit, Seed: seed})
			outage(t, func() { f.WriteAt([]byte(data), at) })
			d.PowerOn()
			got := show(d, "/f")
			if len(got) != len(before) {
				t.Fatalf("got %d bytes, want %d", len(got), len(before))
			}
			// New up to some unit, that one damaged, then old.
			i := at
			for i < len(got) && got[i] == 'A' {
				i++
			}
			torn := i - i%unit
			if s := strings.TrimLeft(got[:min(at, torn)], "o"); s != "" {
				t.Errorf("unit %d, seed %d: bytes before the write changed: %q", unit, seed, s)
			}
			if rest := strings.TrimLeft(got[min(torn+2*unit, len(got)):], "o"); rest != "" {
				t.Errorf("unit %d, seed %d: bytes after the torn unit at %d changed", unit, seed, torn)
			}
			if strings.Trim(got, "oA") == "" {
				t.Errorf("unit %d, seed %d: nothing is damaged", unit, seed)
			}
			positions[torn] = true
		}
		if len(positions) < 2 {
			t.Errorf("unit %d: torn at %v only, want several places", unit, positions)
		}
	}
}

func TestDiskTornByAgent(t *testing.T) {
	lengths := map[int]bool{}
	for seed := range uint64(50) {
		d := NewDisk()
		f := put(t, d, "/f", strings.Repeat("o", 5000), "file", "dir")
		d.Arm(Cut{At: 1, How: Torn, Agent: true, Seed: seed})
		outage(t, func() { f.WriteAt(bytes.Repeat([]byte("n"), 5000), 0) })
		d.PowerOn()
		got := show(d, "/f")
		n := strings.Count(got, "n")
		if got != strings.Repeat("n", n)+strings.Repeat("o", 5000-n) || n == 5000 {
			t.Fatalf("seed %d: got no clean prefix", seed)
		}
		lengths[n] = true
	}
	if len(lengths) < 3 {
		t.Errorf("got prefixes %v, want several", lengths)
	}
}

func TestDiskTornSync(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(50) {
		d := NewDisk()
		f := put(t, d, "/f", strings.Repeat("o", 2*pageSize), "file", "dir")
		f.WriteAt(bytes.Repeat([]byte("n"), 2*pageSize), 0)
		d.Arm(Cut{At: 1, How: Torn, Rest: DropAll, Seed: seed})
		outage(t, func() { f.Sync() })
		d.PowerOn()
		got := show(d, "/f")
		seen[got[:1]+got[pageSize:pageSize+1]] = true
	}
	if len(seen) != 4 {
		t.Errorf("got %v, want all four", seen)
	}
}

func TestDiskFaults(t *testing.T) {
	broken := fmt.Errorf("broken: %w", syscall.EIO)
	for _, test := range []struct {
		op      string
		fault   Fault
		do      func(d *Disk, f durable.File) error
		now     string // what reads see after it
		durable string // what a power cut with DropAll leaves
	}{
		{"write", Fault{Err: broken}, write, "old!", "old!"},
		{"write", Fault{Err: broken, Short: 2}, write, "ned!", "old!"},
		{"write", Fault{Err: broken, Did: true}, write, "new!", "old!"},
		{"sync", Fault{Err: broken}, writeSync, "new!", "old!"},
		{"sync", Fault{Err: broken, Did: true}, writeSync, "new!", "new!"},
		{"rename", Fault{Err: broken}, renameSync, "old!", "old!"},
		{"rename", Fault{Err: broken, Did: true}, renameSync, "new!", "old!"},
		{"syncdir", Fault{Err: broken}, renameSync, "new!", "old!"},
		{"syncdir", Fault{Err: broken, Did: true}, renameSync, "new!", "new!"},
	} {
		t.Run(fmt.Sprint(test.op, test.fault), func(t *testing.T) {
			d := NewDisk()
			put(t, d, "/g", "new!", "file", "dir")
			f := put(t, d, "/f", "old!", "file", "dir")
			d.OnEffect = func(_ int, effect string) Fault {
				if strings.HasPrefix(effect, test.op+" ") {
					return test.fault
				}
				return Fault{}
			}
			if err := test.do(d, f); !errors.Is(err, syscall.EIO) {
				t.Errorf("got error %v, want EIO", err)
			}
			d.OnEffect = nil
			if got := show(d, "/f"); got != test.now {
				t.Errorf("got %q, want %q", got, test.now)
			}
			d.PowerOff(DropAll, 0)
			d.PowerOn()
			if got := show(d, "/f"); got != test.durable {
				t.Errorf("after a power cut: got %q, want %q", got, test.durable)
			}
		})
	}
}

func write(d *Disk, f durable.File) error { _, err := f.WriteAt([]byte("new!"), 0); return err }

func writeSync(d *Disk, f durable.File) error { return errors.Join(write(d, f), f.Sync()) }

func renameSync(d *Disk, _ durable.File) error {
	if err := d.Rename("/g", "/f"); err != nil {
		return err
	}
	return d.SyncDir("/")
}

// A Sync after one that failed does not make up for it, and a direct read shows
// what is on the medium.
func TestDiskForgetsAfterFailedSync(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/f", "old!", "file", "dir")
	f.WriteAt([]byte("new!"), 0)
	d.OnEffect = func(int, string) Fault { return Fault{Err: syscall.EIO} }
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v, want EIO", err)
	}
	d.OnEffect = nil
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := show(d, "/f"); got != "new!" {
		t.Errorf("cache: got %q, want new!", got)
	}
	direct, err := d.OpenFile("/f", os.O_RDONLY|durable.Direct, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := direct.ReadAt(b, 0); string(b) != "old!" || err != nil {
		t.Errorf("medium: got %q, %v, want old!", b, err)
	}
	d.PowerOff(KeepAll, 0)
	d.PowerOn()
	if got := show(d, "/f"); got != "old!" {
		t.Errorf("after a power cut: got %q, want old!", got)
	}
}

func TestDiskFull(t *testing.T) {
	d := NewDisk()
	d.Capacity = 10
	f := put(t, d, "/f", "12345678")
	if got, err := d.Free("/"); got != 2 || err != nil {
		t.Errorf("got %d, %v free, want 2", got, err)
	}
	n, err := f.WriteAt([]byte("abcd"), 8)
	if n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %d, %v, want 2 and ENOSPC", n, err)
	}
	if n, err := f.WriteAt([]byte("x"), 0); n != 1 || err != nil {
		t.Errorf("in place: got %d, %v, want 1", n, err)
	}
	if got := show(d, "/f"); got != "x2345678ab" {
		t.Errorf("got %q", got)
	}
}

func TestDiskReadFaults(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/f", "data", "file", "dir")
	d.OnRead = func(name string, off int64, p []byte) error {
		if off == 2 {
			return syscall.EIO
		}
		p[0] = 'X'
		return nil
	}
	b := make([]byte, 2)
	if _, err := f.ReadAt(b, 2); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	if _, err := f.ReadAt(b, 0); string(b) != "Xa" || err != nil {
		t.Errorf("got %q, %v, want Xa", b, err)
	}
}

func TestDiskRot(t *testing.T) {
	d := NewDisk()
	put(t, d, "/f", "data", "file", "dir")
	if err := d.Rot("/f", 1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := show(d, "/f"); got != "d`ta" {
			t.Errorf("got %q, want one bit changed", got)
		}
		d.PowerOff(DropAll, 0)
		d.PowerOn()
	}
	if d.Rot("/f", 4) == nil || d.Rot("/g", 0) == nil {
		t.Error("rot of what is not there: got no error")
	}
}

func TestDiskClone(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/f", "data", "file", "dir")
	f.WriteAt([]byte("D"), 0)
	c := d.Clone()
	f.WriteAt([]byte("xxxx"), 0)
	if got := show(c, "/f"); got != "Data" {
		t.Errorf("clone: got %q, want Data", got)
	}
	c.PowerOff(DropAll, 0)
	c.PowerOn()
	if got := show(c, "/f"); got != "data" {
		t.Errorf("clone after a cut: got %q, want data", got)
	}
	if got := show(d, "/f"); got != "xxxx" {
		t.Errorf("original: got %q, want xxxx", got)
	}
}

func TestDiskEffects(t *testing.T) {
	d := NewDisk()
	var got []string
	d.OnEffect = func(n int, effect string) Fault {
		got = append(got, fmt.Sprint(n, " ", effect))
		return Fault{}
	}
	if err := durable.MkdirAll(d, "/data", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(d, "/data/f", []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Effect("reboot", func() { got = append(got, "done") }); err != nil {
		t.Fatal(err)
	}
	want := []string{"1 mkdir /data", "2 syncdir /", "3 create /data/f.tmp", "4 write /data/f.tmp 0+4", "5 sync /data/f.tmp",
		"6 rename /data/f.tmp /data/f", "7 syncdir /data", "8 reboot", "done"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if d.Effects() != 8 {
		t.Errorf("got %d effects, want 8", d.Effects())
	}
}

// What a program may do wrong is an error like the real one.
func TestDiskErrors(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/f", "data")
	if err := d.Mkdir("/dir", 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, d, "/dir/g", "data")
	open := func(name string, flag int) error { _, err := d.OpenFile(name, flag, 0o600); return err }
	readOnly, err := d.OpenFile("/f", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	writeReadOnly := func() error { _, err := readOnly.WriteAt([]byte("x"), 0); return err }
	readEnd := func() error { _, err := f.ReadAt(make([]byte, 5), 0); return err }
	for _, test := range []struct {
		what      string
		got, want error
	}{
		{"open missing", open("/x", os.O_RDONLY), fs.ErrNotExist},
		{"create in missing", open("/x/y", os.O_RDWR|os.O_CREATE), fs.ErrNotExist},
		{"create below a file", open("/f/y", os.O_RDWR|os.O_CREATE), syscall.ENOTDIR},
		{"create exclusively", open("/f", os.O_RDWR|os.O_CREATE|os.O_EXCL), fs.ErrExist},
		{"write a directory", open("/dir", os.O_RDWR), syscall.EISDIR},
		{"write read-only", writeReadOnly(), syscall.EBADF},
		{"read beyond", readEnd(), io.EOF},
		{"mkdir twice", d.Mkdir("/dir", 0o700), fs.ErrExist},
		{"remove full", d.Remove("/dir"), syscall.ENOTEMPTY},
		{"remove missing", d.Remove("/x"), fs.ErrNotExist},
		{"rename missing", d.Rename("/x", "/y"), fs.ErrNotExist},
		{"rename directory", d.Rename("/dir", "/y"), errors.ErrUnsupported},
		{"syncdir of a file", d.SyncDir("/f"), syscall.ENOTDIR},
		{"close twice", errors.Join(readOnly.Close(), readOnly.Close()), fs.ErrClosed},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%s: got %v, want %v", test.what, test.got, test.want)
		}
	}
	entries, err := d.ReadDir("/")
	if len(entries) != 2 || entries[0].Name() != "dir" || !entries[0].IsDir() || entries[1].Name() != "f" || err != nil {
		t.Errorf("got %v, %v, want dir and f", entries, err)
	}
}

// TestDiskWriteWithinPage writes more than a page from the middle of one on: what
// is before it stays.
func TestDiskWriteWithinPage(t *testing.T) {
	d := NewDisk()
	f := put(t, d, "/log", strings.Repeat("a", 1000), "file", "dir")
	if _, err := f.WriteAt([]byte(strings.Repeat("b", 9000)), 1000); err != nil {
		t.Fatal(err)
	}
	if got, want := show(d, "/log"), strings.Repeat("a", 1000)+strings.Repeat("b", 9000); got != want {
		t.Errorf("got %.20q, want %.20q", got, want)
	}
}
