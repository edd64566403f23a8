package ota_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file"
	"github.com/interlock-energy/ota/store"
)

// TestTwoComponents: the images of one release are written and read back one
// after the other, with real signatures and on a real file system, and change
// slots together.
func TestTwoComponents(t *testing.T) {
	dir := t.TempDir()
	release := otatest.NewSigningKey(t).Release(t, "1.0.1", 30_000, 50_000)
	restarts := 0
	cfg := file.Config{Dir: dir, Capacity: 100_000, BootFile: filepath.Join(dir, "boot"), Components: map[string][2]string{
		"controller": {filepath.Join(dir, "a.controller"), filepath.Join(dir, "b.controller")},
		"module1":    {filepath.Join(dir, "a.module1"), filepath.Join(dir, "b.module1")},
	}, Restart: func(context.Context) error { restarts++; return nil }}
	factory := map[string]io.Reader{"controller": strings.NewReader("factory"), "module1": strings.NewReader("factory too")}
	if err := file.Format(cfg, factory); err != nil {
		t.Fatal(err)
	}
	var statuses []string
	boot := func(version string) ota.Snapshot {
		slots, record := powered(t, cfg, dir)
		defer record.Close()
		var last ota.Snapshot
		synctest.Test(t, func(t *testing.T) {
			m, err := ota.New(ota.Config{Product: "bess", Version: version, Source: &twoImages{release: release}, Verify: release.Verify,
				Slots: slots, Store: record, Automatic: true, Log: slog.New(slog.DiscardHandler),
				Gate:    func(context.Context, *ota.Manifest, ota.Moment) error { return nil },
				Healthy: func(context.Context) error { return nil },
				Hooks:   ota.Hooks{Event: func(s ota.Status, _ ota.ErrorCode) { statuses = append(statuses, s.String()) }}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := m.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			last = m.Snapshot()
		})
		return last
	}
	boot("1.0.0")
	if restarts != 1 {
		t.Fatalf("%d restarts after %v, want 1", restarts, statuses)
	}
	for component, want := range release.Images {
		if got, err := os.ReadFile(filepath.Join(dir, "b."+component)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("slot B of %s has %d bytes, %v, want %d", component, len(got), err, len(want))
		}
	}
	downloads := 0
	for _, s := range statuses {
		if s == "DOWNLOADING" {
			downloads++
		}
	}
	if downloads != 2 {
		t.Errorf("statuses %v, want DOWNLOADING for each of two images", statuses)
	}
	got := boot("1.0.1")
	if got.Slot != "B" || got.Running != "1.0.1" || !got.CanRollBack || !slices.Contains(statuses, "COMPLETE") {
		t.Errorf("%+v after %v, want 1.0.1 proven in slot B, and a way back", got, statuses)
	}
}

// twoImages is a source of one release with several images.
type twoImages struct{ release *otatest.SignedRelease }

func (s *twoImages) Latest(context.Context) ([]byte, error) { return s.release.Signed, nil }

func (s *twoImages) Open(_ context.Context, _ *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s.release.Images[im.Component][offset:])), nil
}

// powered is a device after a power-on: its slots, and the record that it keeps in dir.
func powered(t *testing.T, cfg file.Config, dir string) (*file.Slots, *store.File) {
	t.Helper()
	slots, err := file.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slots.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	record, err := store.Open(filepath.Join(dir, "record"))
	if err != nil {
		t.Fatal(err)
	}
	return slots, record
}
