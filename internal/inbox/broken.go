package inbox

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// This file is what keeps a panic from being more than the end of what panicked. Nobody knows what a
// change left behind that did not come to its end, so there is no other change after it, and
// nothing is offered: the inbox is broken until the next Open, which believes what the journal on the
// disk says, and of that what can be proven. A manifest of which the verification panics is only
// wrong, for verifying changes nothing.

// change does what changes something, with op held. If it panics, the inbox is broken before anybody else
// has op.
func (b *Inbox) change(doing string, f func() error) (err error) {
	b.op.Lock()
	defer b.op.Unlock()
	defer b.cfg.Crashes.Catch(doing, func(e error) { err = b.breaks(e) })
	if b.broken != nil {
		return b.broken
	}
	return f()
}

// inside is change for what cannot err otherwise. It reports whether the work goes on.
func (b *Inbox) inside(doing string, f func()) bool {
	return b.change(doing, func() error { f(); return nil }) == nil
}

// step does one thing of the background.
func (b *Inbox) step(todo func()) {
	defer b.cfg.Crashes.Catch("work in the inbox", func(e error) {
		b.op.Lock()
		defer b.op.Unlock()
		_ = b.breaks(e) // it is in State
	})
	todo()
}

// breaks makes the inbox useless because of err. op is held.
func (b *Inbox) breaks(err error) error {
	err = fmt.Errorf("%w: %w", ErrBroken, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = err
	if b.waiting != nil {
		close(b.waiting)
		b.waiting = nil
	}
	return err
}

// careful makes a panic of the callbacks that judge a release a no.
func (cfg *Config) careful() {
	verify, judge := cfg.Verify, cfg.Judge
	cfg.Verify = func(signed []byte) (m *ota.Manifest, err error) {
		defer cfg.Crashes.Catch("verify a pushed manifest", func(e error) { m, err = nil, coded(ota.ErrValidation, "%w", e) })
		return verify(signed)
	}
	if judge == nil {
		return
	}
	cfg.Judge = func(m *ota.Manifest) (err error) {
		defer cfg.Crashes.Catch("judge a pushed release", func(e error) { err = coded(ota.ErrIncompatible, "%w", e) })
		return judge(m)
	}
}

// restored returns an inbox with what an earlier life of the process left. If that makes it panic, it is put
// aside: the agent would otherwise meet it at every start.
func restored(cfg Config) *Inbox {
	b := newInbox(cfg)
	err := cfg.guarded("restore the inbox", func() error { b.restore(); return nil })
	if err == nil {
		return b
	}
	cfg.Log.Error("the inbox cannot read what an earlier life left, puts it aside and begins anew", "error", err)
	err = cfg.guarded("restore the inbox anew", func() error {
		_ = b.release() // nothing was written
		if err := aside(cfg.FS, cfg.Dir); err != nil {
			return err
		}
		b = newInbox(cfg)
		b.restore()
		return nil
	})
	if err != nil {
		cfg.Log.Error("the inbox is broken", "error", err)
		_ = b.breaks(err) // it is in State
	}
	return b
}

// guarded does f before anybody else can.
func (cfg *Config) guarded(doing string, f func() error) (err error) {
	defer cfg.Crashes.Catch(doing, func(e error) { err = e })
	return f()
}

// asideSuffix is behind the names of files that were put aside.
const asideSuffix = ".bad"

// aside keeps what cannot be read for those who look for the reason. The bytes that were received are removed
// as those of any transfer that nothing knows of.
func aside(disk durable.FS, dir string) error {
	var errs []error
	for _, name := range []string{journalName, envelopeName} {
		err := disk.Rename(filepath.Join(dir, name), filepath.Join(dir, name+asideSuffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, disk.SyncDir(dir))...)
}
