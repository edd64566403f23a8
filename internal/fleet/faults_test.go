package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

func openInside(t *testing.T) *Fleet {
	t.Helper()
	dir := t.TempDir()
	store, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), filepath.Join(dir, "fleet.db"), store, Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func release(t *testing.T, content string) io.Reader {
	t.Helper()
	private, _, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	im, err := bundle.DescribeImage("controller", bytes.NewReader([]byte(content)), 4096, false)
	if err != nil {
		t.Fatal(err)
	}
	m := ota.Manifest{Format: 1, Product: "p", Version: "1.0.0", Created: time.Unix(1.77e9, 0).UTC(), Images: []ota.Image{im}}
	envelope, err := bundle.Sign(&m, signer)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := bundle.Write(&out, envelope, bytes.NewReader([]byte(content))); err != nil {
		t.Fatal(err)
	}
	return &out
}

// A release that is being replaced, because it is bad, and promoted at the same
// moment does not come back.
func TestPromoteOfAReleaseThatIsBeingReplaced(t *testing.T) {
	f := openInside(t)
	bad, err := f.Publish(t.Context(), release(t, "bad"), PublishOptions{Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	go f.w.do(context.Background(), func(context.Context, *sql.Tx) error { <-hold; return nil }, nil)
	<-time.After(100 * time.Millisecond)
	published, promoted := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := f.Publish(context.Background(), release(t, "good"), PublishOptions{Hold: true, Replace: true})
		published <- err
	}()
	<-time.After(500 * time.Millisecond) // until it waits for its turn to write
	go func() { promoted <- f.Promote(context.Background(), api.DefaultGroup, bad.Release.Digest) }()
	<-time.After(100 * time.Millisecond)
	close(hold)
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	err = <-promoted
	if a, cerr := f.Checkin(t.Context(), api.CheckinRequest{Head: api.Head{Device: "d", Product: "p"}}); cerr != nil || a.Release != nil {
		t.Errorf("the replaced release is offered: %+v, %v", a.Release, cerr)
	}
	if !errors.Is(err, ErrConflict) {
		t.Errorf("promote: got %v, want %v", err, ErrConflict)
	}
}

// One device that makes up reports does not fill the server's disk.
func TestReportsOfADeviceAreBounded(t *testing.T) {
	f := openInside(t)
	var last string
	for i := range 40 {
		req := api.ReportsRequest{Device: "d"}
		for k := range api.MaxReports {
			last = fmt.Sprintf("%d-%d", i, k)
			req.Reports = append(req.Reports, ota.Report{ID: last, Digest: "x", Result: ota.Failed})
		}
		if out, err := f.Reports(t.Context(), req); err != nil || len(out.Stored) != api.MaxReports {
			t.Fatal(out, err)
		}
	}
	var n int
	if err := f.db.QueryRow(`SELECT COUNT(*) FROM reports`).Scan(&n); err != nil || n > 2000 {
		t.Errorf("%d reports of one device are kept (%v), want a bound", n, err)
	}
	d, err := f.Device(t.Context(), "d")
	if err != nil || len(d.Reports) != maxHistory || d.Reports[0].ID != last {
		t.Errorf("got %d reports, %v, want the newest %d", len(d.Reports), err, maxHistory)
	}
}

// A full disk is said to be one, confirms nothing, and is over when there is room.
func TestFullDisk(t *testing.T) {
	f := openInside(t)
	f.db.SetMaxOpenConns(1) // the pragma is a connection's
	report := func(id string) error {
		_, err := f.Reports(t.Context(), api.ReportsRequest{Device: "d", Reports: []ota.Report{
			{ID: id, Digest: strings.Repeat("x", 60), Result: ota.Failed, Reason: strings.Repeat("r", 400)}}})
		return err
	}
	pages := func(n int) {
		t.Helper()
		if err := f.w.do(context.Background(), func(ctx context.Context, tx *sql.Tx) error {
			var got int
			return tx.QueryRowContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", n)).Scan(&got)
		}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := report("before"); err != nil {
		t.Fatal(err)
	}
	pages(1)
	var err error
	stored := 1
	for i := 0; i < 100 && err == nil; i++ {
		if err = report(fmt.Sprint("full", i)); err == nil {
			stored++
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want %v", err, ErrFull)
	}
	pages(1_000_000)
	if err := report("after"); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
	d, err := f.Device(t.Context(), "d")
	if err != nil || len(d.Reports) != stored+1 {
		t.Errorf("got %d reports, %v, want the %d that were confirmed", len(d.Reports), err, stored+1)
	}
}

// A commit that ended with an error may have been done, for example if only its
// answer was lost: the files of the release, which is there after a restart then,
// are not deleted.
func TestCommitOfUnknownEnd(t *testing.T) {
	f := openInside(t)
	if _, err := f.db.Exec(`CREATE TABLE parent (id INTEGER PRIMARY KEY);
		CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
		CREATE TRIGGER spoil AFTER INSERT ON releases BEGIN INSERT INTO child VALUES (1); END`); err != nil {
		t.Fatal(err)
	}
	file, err := io.ReadAll(release(t, "one"))
	if err != nil {
		t.Fatal(err)
	}
	key := ota.Hash(sha256.Sum256(file))
	if _, err := f.Publish(t.Context(), bytes.NewReader(file), PublishOptions{}); err == nil || !strings.Contains(err.Error(), "commit") {
		t.Fatalf("got %v, want an error of the commit", err)
	}
	if bundle, err := f.blobs.Open(t.Context(), key); err != nil {
		t.Errorf("the bundle: %v, want it there", err)
	} else {
		bundle.Close()
	}
	if _, err := f.db.Exec(`DROP TRIGGER spoil`); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Publish(t.Context(), bytes.NewReader(file), PublishOptions{}); err != nil {
		t.Errorf("again: %v", err)
	}
}
