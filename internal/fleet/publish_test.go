package fleet

import (
	"bytes"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
)

// A database of the first version knows what its groups have, and so what they had.
func TestMigratedGroupsKnowWhatTheyHad(t *testing.T) {
	dir := t.TempDir()
	open := func() *Fleet {
		store, err := blob.Open(filepath.Join(dir, "blobs"))
		if err != nil {
			t.Fatal(err)
		}
		f, err := Open(t.Context(), filepath.Join(dir, "fleet.db"), store, Config{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	file, err := io.ReadAll(release(t, "firmware"))
	if err != nil {
		t.Fatal(err)
	}
	f := open()
	first, err := f.Publish(t.Context(), bytes.NewReader(file), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, undo := range []string{`DROP TABLE given_releases`, `DELETE FROM goose_db_version WHERE version_id = 2`} {
		if _, err := f.db.Exec(undo); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = open()
	defer f.Close()
	if err := f.Withdraw(t.Context(), api.DefaultGroup, first.Release.Digest); err != nil {
		t.Fatal(err)
	}
	again, err := f.Publish(t.Context(), bytes.NewReader(file), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Release.Groups) != 0 || !strings.Contains(again.Note, "1.0.0 was taken from default") {
		t.Errorf("published again after it was withdrawn: groups %v, note %q; want none, and why", again.Release.Groups, again.Note)
	}
}
