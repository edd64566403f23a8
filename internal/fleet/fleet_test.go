package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/fleet"
)

func open(t testing.TB, dir string, cfg fleet.Config) *fleet.Fleet {
	t.Helper()
	store, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	f, err := fleet.Open(context.Background(), filepath.Join(dir, "fleet.db"), store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func closeFleet(t testing.TB, f *fleet.Fleet) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func ExampleWhy() {
	d := fleet.Device{Head: api.Head{Product: "bess", Version: "1.0.0", Status: ota.StatusUpdateAvailable, UpdateVersion: "1.1.0",
		Reason: "state of charge 22.0 %, want at least 30 %"}}
	r := &fleet.Release{Manifest: &ota.Manifest{Product: "bess", Version: "1.1.0"}}
	fmt.Println(fleet.Why(d, r, time.Time{}))
	// Output: true waits: state of charge 22.0 %, want at least 30 %
}

// Many at once share commits; all of theirs is there afterwards, once.
func TestManyReportsAtOnce(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, fleet.Config{})
	const devices, each = 40, 5
	var wg sync.WaitGroup
	for d := range devices {
		wg.Go(func() {
			for i := range each {
				req := api.ReportsRequest{Device: fmt.Sprintf("rack-%d", d), Reports: []ota.Report{
					{ID: fmt.Sprint(i), Digest: "aa", Result: ota.Failed}, {ID: fmt.Sprint(i), Digest: "aa", Result: ota.Failed}}}
				for range 2 {
					if _, err := f.Reports(context.Background(), req); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	closeFleet(t, f)
	f = open(t, dir, fleet.Config{})
	defer closeFleet(t, f)
	for d := range devices {
		got, err := f.Device(t.Context(), fmt.Sprintf("rack-%d", d))
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, r := range got.Reports {
			ids = append(ids, r.ID)
		}
		if diff := cmp.Diff([]string{"4", "3", "2", "1", "0"}, ids); diff != "" {
			t.Errorf("%s (-want +got):\n%s", got.Device.Device, diff)
		}
	}
	if got := f.Summary().Outcomes["aa"][ota.Failed]; got != devices {
		t.Errorf("outcome of the release on %d devices, want %d", got, devices)
	}
}

// What was confirmed is on the disk at that moment: a copy of the files, as a
// killed process leaves them, has it.
func TestConfirmedReportOutlivesAKill(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	f := open(t, dir, fleet.Config{})
	defer closeFleet(t, f)
	for i := range 20 {
		id := fmt.Sprint(i)
		out, err := f.Reports(t.Context(), api.ReportsRequest{Device: "rack-7", Reports: []ota.Report{{ID: id, Digest: "aa", Result: ota.RolledBack}}})
		if err != nil || len(out.Stored) != 1 {
			t.Fatalf("answer %+v, %v", out, err)
		}
	}
	for _, name := range []string{"fleet.db", "fleet.db-wal"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Mode().Perm(); got != 0o600 {
			t.Errorf("%s has mode %v, want 0600: it holds secrets", name, got)
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := open(t, copied, fleet.Config{})
	defer closeFleet(t, g)
	d, err := g.Device(t.Context(), "rack-7")
	if err != nil || len(d.Reports) != 20 {
		t.Errorf("%d reports, %v; want 20", len(d.Reports), err)
	}
}

// A device that registers, moves and is counted, all at once and twice.
func TestRegistrationIsOnce(t *testing.T) {
	f := open(t, t.TempDir(), fleet.Config{})
	defer closeFleet(t, f)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := f.Checkin(context.Background(), api.CheckinRequest{Head: api.Head{Device: "rack-7", Product: "bess"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, _ := f.Devices(fleet.Query{})
	if len(list) != 1 {
		t.Errorf("%d devices, want 1", len(list))
	}
	if err := f.CreateGroup(t.Context(), "pilot"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Move(t.Context(), "rack-7", "pilot"); err != nil {
			t.Fatal(err)
		}
	}
	want := []api.Group{{Name: "default"}, {Name: "pilot", Devices: 1}}
	if diff := cmp.Diff(want, f.Groups()); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if err := f.Move(t.Context(), "rack-7", "nowhere"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("move to an unknown group: %v, want ErrNotFound", err)
	}
}

// What was last heard is written by itself, without a Close.
func TestLastSeenIsFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := open(t, dir, fleet.Config{FlushInterval: 5 * time.Second})
		if _, err := f.Checkin(t.Context(), api.CheckinRequest{Head: api.Head{Device: "rack-7", Product: "bess"}}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(time.Second)
			if err := f.Status(t.Context(), api.Head{Device: "rack-7", Product: "bess", Version: "1.0.0"}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		// A second reader sees what is on the disk.
		g := open(t, dir, fleet.Config{})
		d, err := g.Describe("rack-7")
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(d.LastSeen); d.Version != "1.0.0" || age > 5*time.Second {
			t.Errorf("on the disk: version %q, %v old; want 1.0.0, at most 5 s", d.Version, age)
		}
		closeFleet(t, g)
		closeFleet(t, f)
	})
}

func TestCallerWhoLeavesIsNotWaitedFor(t *testing.T) {
	f := open(t, t.TempDir(), fleet.Config{})
	defer closeFleet(t, f)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	req := api.ReportsRequest{Device: "rack-7", Reports: []ota.Report{{ID: "1", Result: ota.Failed}}}
	for range 20 { // whether it was written or not, sending it again is right
		if out, err := f.Reports(gone, req); err == nil && len(out.Stored) != 1 {
			t.Errorf("answer without an error and without the report: %+v", out)
		}
	}
	if _, err := f.Reports(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	d, err := f.Device(t.Context(), "rack-7")
	if err != nil || len(d.Reports) != 1 {
		t.Errorf("%d reports, %v; want one", len(d.Reports), err)
	}
}

func TestClosedFleet(t *testing.T) {
	f := open(t, t.TempDir(), fleet.Config{})
	closeFleet(t, f)
	if err := f.CreateGroup(t.Context(), "pilot"); err == nil {
		t.Error("a closed fleet took a group")
	}
}

func TestDamagedDatabaseIsAnError(t *testing.T) {
	dir := t.TempDir()
	store, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "fleet ?#%.db") // no part of the name is taken for an option
	f, err := fleet.Open(t.Context(), path, store, fleet.Config{})
	if err != nil {
		t.Fatal(err)
	}
	closeFleet(t, f)
	if got, err := filepath.Glob(filepath.Join(dir, "fleet*")); err != nil || len(got) != 1 || got[0] != path {
		t.Errorf("files %q, %v; want %q", got, err, path)
	}
	if _, err := fleet.Open(t.Context(), filepath.Join(dir, "blobs"), store, fleet.Config{}); err == nil {
		t.Error("a directory was opened as a database")
	}
}

func TestLongTextsAreCutToValidText(t *testing.T) {
	f := open(t, t.TempDir(), fleet.Config{})
	defer closeFleet(t, f)
	for _, reason := range []string{strings.Repeat("é", 1000), strings.Repeat("x", 499) + "é", "a\x00b", "\xff\xfe", strings.Repeat("\U0001F50B", 200)} {
		head := api.Head{Device: "rack-7", Product: "bess", Reason: reason}
		if _, err := f.Checkin(t.Context(), api.CheckinRequest{Head: head}); err != nil {
			t.Fatal(err)
		}
		d, err := f.Describe("rack-7")
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Reason) > 510 || !utf8.ValidString(d.Reason) || strings.Contains(d.Reason, "\x00") {
			t.Errorf("reason of %d bytes: %q", len(d.Reason), d.Reason)
		}
	}
}

func TestTokens(t *testing.T) {
	f := open(t, t.TempDir(), fleet.Config{})
	defer closeFleet(t, f)
	if f.HasToken(fleet.Operator) {
		t.Error("a new fleet has a token")
	}
	token, err := f.NewToken(t.Context(), fleet.Agent, "rack-7", "")
	if err != nil {
		t.Fatal(err)
	}
	id, ok := f.Identify(token)
	if !ok || !id.SpeaksFor("rack-7") || id.SpeaksFor("rack-8") || id.SpeaksFor("") {
		t.Errorf("identity %+v, %v; want one that speaks for rack-7 only", id, ok)
	}
	if _, ok := f.Identify(token[:len(token)-1]); ok {
		t.Error("a shortened token is taken")
	}
	for _, tt := range []struct {
		role         fleet.Role
		device, note string
	}{{"king", "", ""}, {fleet.Operator, "rack-7", ""}, {fleet.Agent, "a b", ""}, {fleet.Agent, "", strings.Repeat("x", 201)}} {
		if _, err := f.NewToken(t.Context(), tt.role, tt.device, tt.note); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("token for %+v: %v, want ErrInvalid", tt, err)
		}
	}
}

func BenchmarkCheckin(b *testing.B) {
	f := open(b, b.TempDir(), fleet.Config{})
	defer closeFleet(b, f)
	req := api.CheckinRequest{Head: api.Head{Device: "rack-7", Product: "bess"}}
	for b.Loop() {
		if _, err := f.Checkin(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// Sixty-four clients at a time: what a durable report costs with shared commits.
func BenchmarkReports(b *testing.B) {
	f := open(b, b.TempDir(), fleet.Config{})
	defer closeFleet(b, f)
	b.SetParallelism(32) // times the number of cores
	var mu sync.Mutex
	n := 0
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			id := fmt.Sprint(n)
			mu.Unlock()
			if _, err := f.Reports(b.Context(), api.ReportsRequest{Device: "rack-7", Reports: []ota.Report{{ID: id, Result: ota.Failed}}}); err != nil {
				b.Error(err)
			}
		}
	})
}
