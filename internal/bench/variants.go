package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/slot/file"
	"github.com/interlock-energy/ota/source/https"
	"github.com/interlock-energy/ota/store"
)

// floor is the least that Go needs: fetch, hash, write in pieces of 1 MiB, sync.
func floor(dir, url string) error {
	c, err := client(dir)
	if err != nil {
		return err
	}
	resp, err := c.Get(url + "/image")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch: %s", resp.Status)
	}
	f, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	defer f.Close()
	h, buf := sha256.New(), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(resp.Body, buf)
		h.Write(buf[:n])
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	h.Sum(nil)
	return f.Sync()
}

// install is the manager as a device runs it, up to where it asks for the restart.
func install(dir, url string) error {
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	keys, err := bundle.LoadKeys(1, filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	src, err := https.New(https.Config{URL: url + "/bundle", Kind: https.Bundle, Product: "bench", Version: "1.0.0", CACert: pem})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	cfg := file.Config{Dir: dir, Restart: func(context.Context) error { cancel(errRestart); return nil }}
	if err := file.Format(cfg, map[string]io.Reader{"controller": strings.NewReader("the factory's image")}); err != nil {
		return err
	}
	slots, err := file.Open(cfg)
	if err != nil {
		return err
	}
	if _, err := slots.PowerOn(ctx); err != nil {
		return err
	}
	record, err := store.Open(filepath.Join(dir, "record"))
	if err != nil {
		return err
	}
	defer record.Close()
	failed := func(err error) { cancel(fmt.Errorf("install: %w", err)) }
	m, err := ota.New(ota.Config{Product: "bench", Version: "1.0.0", Source: src, Verify: keys.Verify, Slots: slots, Store: record,
		Gate:  func(context.Context, *ota.Manifest, ota.Moment) error { return nil },
		Hooks: ota.Hooks{Failed: failed}, StartupDelay: time.Nanosecond, Automatic: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, errRestart) {
		return err
	}
	return nil
}

var errRestart = errors.New("restart")
