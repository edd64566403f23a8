//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
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
	"github.com/interlock-energy/ota/source/media"
	"github.com/interlock-energy/ota/store"
)

// A child is this program, started again as one of the variants.
type child struct {
	name string
	dir  string // of its own; of the files, for serve
	url  string // of the server; or else:
	from string // a local file
	slot string // a loop device; default: a file in dir
}

func measureChild(ctx context.Context, c child) (run, error) {
	self, err := os.Executable()
	if err != nil {
		return run{}, err
	}
	return measure(ctx, c.dir, nil, self, "-child", c.name, "-dir", c.dir, "-url", c.url, "-from", c.from, "-slot", c.slot)
}

func (c child) run() error {
	switch c.name {
	case "serve":
		return serveFiles(c.dir)
	case "floor":
		return c.floor()
	case "install":
		return c.install()
	}
	return fmt.Errorf("unknown variant %q", c.name)
}

// floor is the least that Go needs: fetch, hash, write in pieces of 1 MiB, sync.
func (c child) floor() error {
	r, err := c.open()
	if err != nil {
		return err
	}
	defer r.Close()
	var w *os.File
	if c.slot != "" {
		w, err = openSlot(c.slot, 0)
	} else {
		w, err = os.Create(filepath.Join(c.dir, "image"))
	}
	if err != nil {
		return err
	}
	defer w.Close()
	h, buf := sha256.New(), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(r, buf)
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
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
	return w.Sync()
}

// open opens the bare image.
func (c child) open() (io.ReadCloser, error) {
	if c.from != "" {
		return os.Open(c.from)
	}
	pem, err := os.ReadFile(filepath.Join(c.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in ca.pem")
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	resp, err := client.Get(c.url + "/image")
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("fetch: %s", resp.Status)
	}
	return resp.Body, nil
}

// source is where the manager gets the bundle from.
func (c child) source(verify ota.Verify) (ota.Source, error) {
	if c.from != "" {
		return media.New(media.Config{Path: c.from, Product: "bench", Version: "1.0.0", Verify: verify, Log: slog.New(slog.DiscardHandler)})
	}
	pem, err := os.ReadFile(filepath.Join(c.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	return https.New(https.Config{URL: c.url + "/bundle", Kind: https.Bundle, Product: "bench", Version: "1.0.0", CACert: pem})
}

// slots is a device that has just booted slot A.
func (c child) slots(ctx context.Context, restart func(context.Context) error) (*file.Slots, error) {
	cfg := file.Config{Dir: c.dir, Restart: restart}
	if c.slot != "" {
		f, err := openSlot(c.slot, 0)
		if err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		cfg.Components = map[string][2]string{"controller": {filepath.Join(c.dir, "factory"), c.slot}}
	}
	if err := file.Format(cfg, map[string]io.Reader{"controller": strings.NewReader("the factory's image")}); err != nil {
		return nil, err
	}
	slots, err := file.Open(cfg)
	if err != nil {
		return nil, err
	}
	_, err = slots.PowerOn(ctx)
	return slots, err
}

// install is the manager as a device runs it, up to where it asks for the restart.
func (c child) install() error {
	keys, err := bundle.LoadKeys(1, filepath.Join(c.dir, "key.pem"))
	if err != nil {
		return err
	}
	src, err := c.source(keys.Verify)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	slots, err := c.slots(ctx, func(context.Context) error { cancel(errRestart); return nil })
	if err != nil {
		return err
	}
	record, err := store.Open(filepath.Join(c.dir, "record"))
	if err != nil {
		return err
	}
	defer record.Close()
	failed := func(err error) { cancel(fmt.Errorf("install: %w", err)) }
	m, err := ota.New(ota.Config{Product: "bench", Version: "1.0.0", Source: src, Verify: keys.Verify, Slots: slots, Store: record,
		Gate:  func(context.Context, *ota.Manifest, ota.Moment) error { return nil },
		Hooks: ota.Hooks{Failed: failed}, StartupDelay: time.Nanosecond, RetryDelay: time.Millisecond, Automatic: true, Log: slog.New(slog.DiscardHandler)})
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
