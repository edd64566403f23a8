// Package esp32 keeps the two slots of an ESP32, or a successor of it, in the chip's
// flash, and tells the vendor's bootloader which one boots. The flash is a file with
// all of it, a block device or raw flash; the program runs on a host that has it at
// hand, such as a gateway beside the chip, or a bench. Package image in the folder
// below knows the formats of images and partition tables.
//
//	0x8000   partition table   which partitions there are; never written
//	0x9000   otadata           two sectors of 4 KiB with an entry of 32 bytes each:
//	                           number of the choice, state, CRC of the number
//	0x10000  ota_0             an application: slot 0
//	0x150000 ota_1             slot 1
//
// The entry with the greater number counts; its slot is (number-1) modulo the count
// of slots. A bootloader with rollback (CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE) starts
// an entry in state NEW once and makes it PENDING_VERIFY, and at the next start
// ABORTED, unless the application was marked VALID. Then the other entry counts. An
// image that is not whole is passed over, and the next slot is loaded instead. One
// that is not built with rollback heeds none of that: see [Slots.Probe].
//
// Start with [Open], or with [ReadBoot] to look only. Slots are named as their
// partitions are labelled, for example ota_0, or app0 in the tables of Arduino. The
// slot to write is the one after the running one, and after the last the first, as
// esp_ota_get_next_update_partition has it. So with three slots, what ran before the
// last update is not the slot that is written next; the way back by hand is for
// tables with two. The factory application is never written: while it runs, ota_0
// is the other slot; and it cannot be tried, because it has no entry, only chosen.
//
// Promised, at every loss of power, with a bootloader that has rollback: what boots
// is a whole image; what is tried boots once unless it is marked good; nothing that
// is half written has an entry that counts. Before [Slots.Try] writes anything, the
// image is checked as the bootloader would, because some do not. Both entries boot
// the same slot after [Slots.MarkGood], and before the other slot is written, so that
// either may be lost. An entry is written so that no part of it ever counts: see put
// in flash.go. The numbers, states and CRCs are those that ESP-IDF's esp_ota_ops.c
// writes, so that applications may use that too, but for three things: a second
// entry for the running slot where ESP-IDF erases it; the unused label of an entry,
// which remembers that the bootloader was seen to come back; and numbers that start
// anew before they end, where ESP-IDF counts for 2^31 rounds.
//
// Known traps. A cut inside [Slots.MarkGood] at the end of a trial can bring back the
// slot from before: report success only after it has returned. A cut inside the
// bootloader's own write of PENDING_VERIFY can lose the entry, so that the update was
// never tried, as far as anybody can tell, or, in a narrow window, leave the state
// UNDEFINED, so that the new image runs without being on trial. The CRC does not
// cover the state: one flipped bit can make VALID into NEW or INVALID, and then the
// other entry boots the same slot. esp_ota_mark_app_invalid_rollback_and_reboot finds
// no other slot to go back to once the running one was marked good here. Flash
// encryption is not supported: what lies there cannot be read from outside.
package esp32

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

// Config says where the flash is, and what its bootloader can do. The zero value
// of all that may be left out is a bootloader that never comes back.
type Config struct {
	// Flash is a file, a block device or raw flash that holds the whole flash of the
	// chip, from its first byte; must be given. It must not be encrypted.
	Flash string

	TableOffset uint32 // of the partition table, in bytes; 0: [image.TableOffset]
	FlashSize   int64  // bytes; 0: what Flash has

	// Rollback says that the bootloader was built with
	// CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE. Without it, a slot that is tried stays.
	Rollback bool
	// AntiRollback says that it was built with CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK,
	// which takes no application whose security version is below SecureVersion, that
	// of the chip's eFuses.
	AntiRollback  bool
	SecureVersion uint32

	// What an application must be: see [image.Options].
	Chip       *image.ChipID
	Rev        uint16
	KeyDigests [][32]byte

	Component string // that the slots are for; default "controller"

	// Booted tells which slot runs, by the label of its partition, and an id that
	// changes at every boot; must be given. With Rollback, slot may be empty: then
	// it is found as the bootloader finds it.
	Booted func(context.Context) (slot, id string, err error)

	// Restart restarts the chip. Default: none, and Reboot is an error.
	Restart func(context.Context) error

	Log *slog.Logger // gets a warning when an entry of otadata was damaged; default slog.Default()
}

// Slots is an [ota.Slots] in the flash of a chip, and an [ota.Prober]. Its methods
// may be called from any goroutine.
type Slots struct {
	cfg   Config
	flash flash
	layout

	mu  sync.Mutex // of otadata
	gen int        // grows with every try; slots opened before prepare again
}

// layout is what the partition table says.
type layout struct {
	table   *image.Table
	slots   []image.Partition // ota_0 first; at least one
	factory *image.Partition  // or nil
	otadata image.Partition
}

// Open returns the slots in a flash. It changes nothing.
func Open(cfg Config) (*Slots, error) { return OpenOn(durable.OS{}, cfg) }

// OpenOn is Open on any file system.
func OpenOn(fsys durable.FS, cfg Config) (*Slots, error) {
	s := &Slots{cfg: cfg, flash: flash{fsys, cfg.Flash}}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open the slots in flash %s: %w", cfg.Flash, err)
	}
	return s, nil
}

func (s *Slots) open() error {
	s.cfg.Component = cmp.Or(s.cfg.Component, "controller")
	s.cfg.Log = cmp.Or(s.cfg.Log, slog.Default())
	switch {
	case s.cfg.Flash == "":
		return errors.New("no flash is given: Config.Flash is empty")
	case s.cfg.Booted == nil:
		return errors.New("nothing tells which slot runs: Config.Booted is not set")
	}
	if err := ota.CheckName(s.cfg.Component); err != nil {
		return fmt.Errorf("component: %w", err)
	}
	size, err := s.flash.size()
	if err != nil {
		return err
	}
	if s.cfg.FlashSize > size {
		return fmt.Errorf("it has %d bytes, want %d", size, s.cfg.FlashSize)
	}
	if s.cfg.FlashSize == 0 {
		s.cfg.FlashSize = size
	}
	s.layout, err = readLayout(s.flash, s.cfg)
	if err != nil {
		return err
	}
	if s.factory == nil && len(s.slots) < 2 {
		return fmt.Errorf("%w: there is one partition for applications, %s, and an update needs a second: change the partition table", ota.ErrIncompatible, s.slots[0].Label)
	}
	return nil
}

// readLayout reads the partition table of a flash.
func readLayout(r io.ReaderAt, cfg Config) (l layout, err error) {
	offset := cmp.Or(cfg.TableOffset, image.TableOffset)
	b := make([]byte, image.TableSize)
	if n, err := r.ReadAt(b, int64(offset)); n < len(b) {
		return l, fmt.Errorf("read the partition table at %#x: got %d of %d bytes: %w", offset, n, len(b), err)
	}
	if l.table, err = image.ParseTable(b, cfg.FlashSize); err != nil {
		return l, err
	}
	if err := l.table.Check(offset, cfg.FlashSize); err != nil {
		return l, err
	}
	l.slots = l.table.OTA()
	p, ok := l.table.Find(image.TypeData, image.DataOTA)
	if l.otadata = p; !ok || len(l.slots) == 0 {
		return l, fmt.Errorf("%w: the partition table has %d partitions of type app, ota_0 and so on, and otadata: %v; updates need both", ota.ErrIncompatible, len(l.slots), ok)
	}
	if p, ok := l.table.Find(image.TypeApp, image.AppFactory); ok {
		if cfg.AntiRollback {
			return l, fmt.Errorf("%w: a bootloader with anti-rollback takes no %v, which cannot be kept from being old", ota.ErrIncompatible, p)
		}
		l.factory = &p
	}
	return l, nil
}

// index returns the number of the slot that is labelled name, or [factory].
func (l *layout) index(name string) (int, error) {
	if l.factory != nil && l.factory.Label == name {
		return factory, nil
	}
	i := slices.IndexFunc(l.slots, func(p image.Partition) bool { return p.Label == name })
	if i < 0 {
		return 0, fmt.Errorf("%w: there is no slot %q, only %q", ota.ErrIncompatible, name, l.names())
	}
	return i, nil
}

func (l *layout) names() (names []string) {
	if l.factory != nil {
		names = append(names, l.factory.Label)
	}
	for _, p := range l.slots {
		names = append(names, p.Label)
	}
	return names
}

// partition is the opposite of index.
func (l *layout) partition(i int) image.Partition {
	if i == factory {
		return *l.factory
	}
	return l.slots[i]
}

// other returns the slot to write while slot i runs, as
// esp_ota_get_next_update_partition does: the next, and after the last the first.
// With one slot it is the factory application, which is not written.
func (l *layout) other(i int) int {
	if i+1 < len(l.slots) {
		return i + 1
	}
	if len(l.slots) == 1 {
		return factory
	}
	return 0
}

// control reads otadata. A copy that cannot be read counts as damaged, as it does
// for the bootloader; two are an error.
func (s *Slots) control() (control, error) {
	c := control{n: len(s.slots), anti: s.cfg.AntiRollback}
	var errs []error
	for i := range c.entry {
		b := make([]byte, entrySize)
		if n, err := s.flash.ReadAt(b, s.entryAt(i)); n < len(b) {
			errs = append(errs, err)
			b = nil
		}
		c.entry[i] = ParseEntry(b)
	}
	if len(errs) == len(c.entry) {
		return c, fmt.Errorf("read otadata of %s at %#x: %w", s.cfg.Flash, s.otadata.Offset, errors.Join(errs...))
	}
	c.setLow(s.flash, s.layout, s.cfg)
	return c, nil
}

// setLow finds out what anti-rollback keeps from booting.
func (c *control) setLow(r io.ReaderAt, l layout, cfg Config) {
	for i := range c.entry {
		if !cfg.AntiRollback || !c.entry[i].Valid() {
			continue
		}
		p := l.slots[c.slot(i)]
		d, err := image.ReadAppDesc(section(r, p), int64(p.Size))
		c.low[i] = err != nil || d.SecureVersion < cfg.SecureVersion
	}
}

func (s *Slots) entryAt(i int) int64 { return int64(s.otadata.Offset) + int64(i)*image.SectorSize }

// section is what is in a partition.
func section(r io.ReaderAt, p image.Partition) *io.SectionReader {
	return io.NewSectionReader(r, int64(p.Offset), int64(p.Size))
}

// verify checks the image in a slot as the bootloader does. What is to be installed
// must be an application besides.
func verify(r io.ReaderAt, p image.Partition, cfg Config, app bool) error {
	o := image.Options{Chip: cfg.Chip, Rev: cfg.Rev, MaxSize: int64(p.Size), App: app, KeyDigests: cfg.KeyDigests}
	if cfg.AntiRollback {
		o.MinSecureVersion = cfg.SecureVersion
	}
	_, err := image.Verify(section(r, p), int64(p.Size), o)
	if _, coded := errors.AsType[ota.ErrorCode](err); err != nil && !coded {
		return fmt.Errorf("%w: %w", ota.ErrValidation, err) // the bootloader cannot read it either
	}
	return err
}

// write carries out steps, and makes sure that what they say is on the medium.
func (s *Slots) write(c *control, steps []step) error {
	for _, st := range steps {
		if e := c.entry[st.i]; e.Seq != emptySeq && !e.Whole() {
			s.cfg.Log.Warn("an entry of otadata was damaged, writing it anew", "flash", s.cfg.Flash, "entry", st.i)
		}
		if err := s.flash.put(s.entryAt(st.i), st.e); err != nil {
			return err
		}
		c.do(st)
	}
	return nil
}

// now is what is known of the present boot.
type now struct {
	control
	running int // slot, or factory
	id      string
}

// now reads what is booted.
func (s *Slots) now(ctx context.Context) (n now, err error) {
	name, id, err := s.cfg.Booted(ctx)
	if err != nil {
		return n, err
	}
	if id == "" {
		return n, errors.New("this boot has no id")
	}
	n.id = id
	if n.control, err = s.control(); err != nil {
		return n, err
	}
	if name == "" {
		n.running, err = s.derive(n.control)
	} else {
		n.running, err = s.index(name)
	}
	if err != nil {
		return n, fmt.Errorf("find out which slot runs: %w", err)
	}
	return n, nil
}

// derive finds the slot that runs from what the bootloader has written. A slot in
// state New was not started yet, by a bootloader with rollback.
func (s *Slots) derive(c control) (int, error) {
	if !s.cfg.Rollback {
		return 0, errors.New("a bootloader without rollback does not write it down: tell it in Config.Booted")
	}
	for i := range c.entry {
		if c.usable(i) && c.entry[i].State == New {
			c.entry[i] = blank
		}
	}
	i, _ := c.first(false, s.factory != nil)
	if i == factory && s.factory == nil {
		i = 0
	}
	if p := s.partition(i); verify(s.flash, p, s.cfg, false) != nil {
		return 0, fmt.Errorf("%v should, and holds no whole image: tell it in Config.Booted", p)
	}
	return i, nil
}

// Booted implements [ota.Slots].
func (s *Slots) Booted(ctx context.Context) (ota.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.now(ctx)
	if err != nil {
		return ota.Boot{}, fmt.Errorf("find out what is booted: %w", err)
	}
	return ota.Boot{
		Slot: s.partition(n.running).Label, Other: s.partition(s.other(n.running)).Label, ID: n.id,
		FellBack: n.fellBack(n.running), Trial: s.cfg.Rollback && n.trial(n.running),
	}, nil
}

// Try implements [ota.Slots]. The image in slot must be whole and right for this
// chip: there are bootloaders that start anything. What runs on trial can only go
// back to the slot from before. The factory application cannot be tried, but chosen,
// and then stays.
func (s *Slots) Try(ctx context.Context, slot string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.try(ctx, slot); err != nil {
		return fmt.Errorf("try slot %s: %w", slot, err)
	}
	return nil
}

func (s *Slots) try(ctx context.Context, slot string) error {
	i, err := s.index(slot)
	if err != nil {
		return err
	}
	n, err := s.now(ctx)
	if err != nil {
		return err
	}
	if i == n.running {
		return errors.New("it is running: want another")
	}
	if err := verify(s.flash, s.partition(i), s.cfg, true); err != nil {
		return err
	}
	s.gen++
	as := New
	if !s.cfg.Rollback {
		as = Undefined
	}
	if err := s.settle(&n); err != nil {
		return err
	}
	return s.write(&n.control, n.try(n.running, i, as))
}

// settle makes ready for a plan: what is in the cache only comes to the medium,
// and what was seen of the bootloader into new entries.
func (s *Slots) settle(n *now) error {
	if err := durable.SyncFile(s.flash.fsys, s.flash.path); err != nil {
		return pair.FlashError(err)
	}
	label, err := s.evidence(n.control)
	if err != nil { // then the next trial shows it again
		s.cfg.Log.Warn("cannot remember what was seen of the bootloader", "flash", s.cfg.Flash, "error", err)
	}
	n.label = label
	return nil
}

// MarkGood implements [ota.Slots]. Both entries say so afterwards; where they do,
// nothing is written.
func (s *Slots) MarkGood(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.good(ctx); err != nil {
		return fmt.Errorf("mark the running slot good: %w", err)
	}
	return nil
}

func (s *Slots) good(ctx context.Context) error {
	n, err := s.now(ctx)
	if err != nil {
		return err
	}
	if err := s.settle(&n); err != nil {
		return err
	}
	return s.write(&n.control, n.good(n.running))
}

// prepare makes slot i unbootable before it is written.
func (s *Slots) prepare(ctx context.Context, i int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.now(ctx)
	switch {
	case err != nil:
		return err
	case i == n.running:
		return fmt.Errorf("%w: it is running", ota.ErrFlashWrite)
	case i == factory:
		return fmt.Errorf("%w: the factory application is not written: add a slot to the partition table", ota.ErrIncompatible)
	case s.cfg.Rollback && n.trial(n.running):
		return fmt.Errorf("%w: the running slot is on trial, and this is the way back: mark it good first", ota.ErrFlashWrite)
	}
	if err := s.settle(&n); err != nil {
		return err
	}
	return s.write(&n.control, n.good(n.running))
}

// Reboot implements [ota.Slots].
func (s *Slots) Reboot(ctx context.Context) error {
	if s.cfg.Restart == nil {
		return fmt.Errorf("restart the chip: %w: Config.Restart is not set", errors.ErrUnsupported)
	}
	if err := s.cfg.Restart(ctx); err != nil {
		return fmt.Errorf("restart the chip: %w", err)
	}
	return nil
}
