package media_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/media"
)

func TestWatch(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	for _, tt := range []struct {
		name  string
		steps func(t *testing.T, dir string, tick func())
		want  int // wakes
	}{
		{"nothing happens", func(t *testing.T, dir string, tick func()) { tick(); tick(); tick() }, 0},
		{"other files come", func(t *testing.T, dir string, tick func()) {
			put(t, nil, dir, "photo.jpg")
			tick()
			tick()
		}, 0},
		{"a stick comes", func(t *testing.T, dir string, tick func()) {
			put(t, r.Bundle, dir, "sda1", "a.bundle")
			tick()
			tick()
			tick()
			tick()
		}, 1},
		{"a stick goes", func(t *testing.T, dir string, tick func()) {
			name := put(t, r.Bundle, dir, "a.bundle")
			tick()
			tick()
			os.Remove(name)
			tick()
			tick()
			tick()
		}, 1},
		{"a stick is pulled and put back", func(t *testing.T, dir string, tick func()) {
			name := put(t, r.Bundle, dir, "a.bundle")
			tick()
			tick()
			away := filepath.Join(t.TempDir(), "away") // the same file, with the same time
			os.Rename(name, away)
			tick()
			os.Rename(away, name)
			tick()
			tick()
			tick()
		}, 2},
		{"a file that is being copied", func(t *testing.T, dir string, tick func()) {
			for n := range 5 {
				put(t, r.Bundle[:1000*(n+1)], dir, "a.bundle")
				tick()
			}
		}, 0},
		{"a file that was copied", func(t *testing.T, dir string, tick func()) {
			for n := range 5 {
				put(t, r.Bundle[:1000*(n+1)], dir, "a.bundle")
				tick()
			}
			tick()
			tick()
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				c := config(dir, r.Verify)
				c.Poll = 3 * time.Second
				src := newSource(t, c)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- src.Run(ctx) }()
				synctest.Wait()
				got := 0
				tt.steps(t, dir, func() {
					time.Sleep(c.Poll)
					synctest.Wait()
					select {
					case <-src.Wake():
						got++
					default:
					}
				})
				if got != tt.want {
					t.Errorf("got %d wakes, want %d", got, tt.want)
				}
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("Run: got %v, want %v", err, context.Canceled)
				}
			})
		})
	}
}

func ExampleNew() {
	src, err := media.New(media.Config{
		Path:     "/media/*",
		Product:  "bess-100",
		Hardware: "rev2",
		Version:  "1.4.2",
		Verify:   func(signed []byte) (*ota.Manifest, error) { return nil, ota.ErrValidation }, // (*bundle.Keys).Verify
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go src.Run(ctx) // wakes the manager when a stick is put in
	// manager, err := ota.New(ota.Config{Source: src, ...})
}
