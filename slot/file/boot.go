package file

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/internal/pair"
)

const (
	sectorSize = 512
	// copyDistance keeps the two copies out of each other's flash page, which a cut
	// during a write can damage as a whole: 4 to 32 KiB on common eMMC and SD cards.
	copyDistance = 64 << 10
	controlSize  = 2 * copyDistance
	controlMagic = "ILBOOT1\n"
	noSlot       = '-'
)

// errNoControl says that neither copy is valid, or that there is no boot control at all.
var errNoControl = errors.New("no valid boot control")

// control is one state of the boot control.
type control struct {
	seq      uint64 // grows with every change
	boots    uint64 // grows with every PowerOn: the id of the boot
	good     byte   // slot that boots
	try      byte   // slot that boots once, or noSlot
	booted   byte   // slot that runs, or noSlot before the first PowerOn
	fellBack bool   // a slot was tried, and the good one came back
}

func (c control) encode() []byte {
	b := make([]byte, sectorSize)
	copy(b, controlMagic)
	binary.LittleEndian.PutUint64(b[8:], c.seq)
	binary.LittleEndian.PutUint64(b[16:], c.boots)
	b[24], b[25], b[26], b[27] = c.good, c.try, c.booted, '0'
	if c.fellBack {
		b[27] = '1'
	}
	binary.LittleEndian.PutUint32(b[sectorSize-4:], crc32.ChecksumIEEE(b[:sectorSize-4]))
	return b
}

// decode believes a sector only if every field is one that encode writes: the
// checksum is for accidents, and zeros have a valid one in some layouts.
func decode(b []byte) (c control, ok bool) {
	if len(b) != sectorSize || crc32.ChecksumIEEE(b[:sectorSize-4]) != binary.LittleEndian.Uint32(b[sectorSize-4:]) {
		return c, false
	}
	c = control{
		seq: binary.LittleEndian.Uint64(b[8:]), boots: binary.LittleEndian.Uint64(b[16:]),
		good: b[24], try: b[25], booted: b[26], fellBack: b[27] == '1',
	}
	slot := func(b byte) bool { return b == SlotA[0] || b == SlotB[0] }
	ok = slot(c.good) && (slot(c.try) || c.try == noSlot) && (slot(c.booted) || c.booted == noSlot)
	return c, ok && bytes.Equal(b, c.encode())
}

// bootControl is the place of the boot control.
type bootControl struct {
	fsys durable.FS
	path string
}

func (s *Slots) control() bootControl { return bootControl{s.fsys, s.cfg.BootFile} }

// load returns what a bootloader would find on the medium.
func (b bootControl) load() (control, error) {
	c, _, err := b.read()
	if err != nil {
		return control{}, fmt.Errorf("read boot control %s: %w", b.path, err)
	}
	return c, nil
}

// read returns the newest valid copy, and which of the two it is. It reads past
// the cache: after a sync that failed, the cache can show what is not on the medium.
func (b bootControl) read() (c control, newest int, err error) {
	newest = -1
	var unreadable error
	for i := range 2 {
		sector, err := durable.ReadRange(b.fsys, b.path, int64(i)*copyDistance, sectorSize)
		if errors.Is(err, fs.ErrNotExist) {
			return c, 0, fmt.Errorf("%w: %w; format the device", errNoControl, err)
		}
		if err != nil && err != io.EOF {
			unreadable = errors.Join(unreadable, err)
			continue
		}
		if got, ok := decode(sector); ok && (newest < 0 || got.seq > c.seq) {
			c, newest = got, i
		}
	}
	if newest < 0 {
		return c, 0, errors.Join(errNoControl, unreadable)
	}
	return c, newest, nil
}

// update changes the boot control. When it returns nil, the change is on the
// medium, twice; a cut at any moment leaves the old state or the new one. What is
// there already, in both copies, is not written again.
func (b bootControl) update(change func(*control) error) error {
	if err := b.try(change); err != nil {
		return fmt.Errorf("write boot control %s: %w", b.path, err)
	}
	return nil
}

func (b bootControl) try(change func(*control) error) error {
	if err := durable.SyncFile(b.fsys, b.path); err != nil {
		return pair.FlashError(err)
	}
	c, newest, err := b.read()
	if err != nil {
		return err
	}
	was := c
	if err := change(&c); err != nil {
		return err
	}
	if c == was && b.twice(c) {
		return nil
	}
	c.seq++
	return b.store(c, newest)
}

// twice reports whether both copies on the medium are c.
func (b bootControl) twice(c control) bool {
	for i := range int64(2) {
		sector, err := durable.ReadRange(b.fsys, b.path, i*copyDistance, sectorSize)
		if err != nil || !bytes.Equal(sector, c.encode()) {
			return false
		}
	}
	return true
}

// store writes c over the copy that is older or damaged, and then, once that is
// on the medium, over the newest. So both are the same again, and either may rot.
func (b bootControl) store(c control, newest int) error {
	for _, i := range []int{1 - newest, newest} {
		if err := durable.WriteRange(b.fsys, b.path, int64(i)*copyDistance, c.encode()); err != nil {
			return pair.FlashError(err)
		}
	}
	return nil
}

// create makes a boot control where there is none.
func (b bootControl) create(c control) error {
	whole := make([]byte, controlSize)
	copy(whole, c.encode())
	copy(whole[copyDistance:], c.encode())
	info, err := b.fsys.Stat(b.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || info.Mode().IsRegular() {
		return durable.WriteFile(b.fsys, b.path, whole, 0o600)
	}
	return b.store(c, 0)
}

// PowerOn does what a bootloader does when the device gets its power: it counts
// the boot, picks the slot and writes that down, and only then returns the slot to
// be started. A slot that is to be tried is picked once: the mark is gone, durably,
// before anything of that slot runs. If it was not marked good by the next PowerOn,
// the good slot is picked again, and [ota.Boot] says FellBack until the next Try
// or MarkGood.
//
// The boot control has two copies of 512 bytes, at 0 and 65,536 of its place:
//
//	0    8  "ILBOOT1\n"
//	8    8  sequence number, little endian; the valid copy with the greater one counts
//	16   8  count of boots, little endian
//	24   1  good slot: 'A' or 'B'
//	25   1  slot to try once: 'A', 'B' or '-'
//	26   1  running slot: 'A', 'B' or '-'
//	27   1  fell back: '0' or '1'
//	28 480  zeros
//	508  4  CRC-32 (IEEE) of the bytes before, little endian
//
// If both copies are damaged, or gone, the device is not dead: PowerOn picks slot
// A if it holds something in every component, else slot B, warns in the log, and
// begins new copies. Which slot was good is not known any more then, and something
// is not proven to be whole; whoever starts it must be able to say no.
//
// If the choice cannot be written, PowerOn returns an error with the good slot. A
// bootloader should start that all the same; what runs there will not see this boot.
func (s *Slots) PowerOn(ctx context.Context) (slot string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.powerOns++
	c, err := s.control().load()
	if errors.Is(err, errNoControl) {
		return s.powerOnWithout(err)
	}
	if err != nil {
		return "", fmt.Errorf("power on: %w", err)
	}
	good := c.good
	err = s.control().update(func(c *control) error {
		c.boots++
		if c.try != noSlot {
			c.booted, c.try, c.fellBack = c.try, noSlot, false
		} else {
			c.fellBack = c.fellBack || c.booted != noSlot && c.booted != c.good
			c.booted = c.good
		}
		slot = string(c.booted)
		return nil
	})
	if err != nil {
		return string(good), fmt.Errorf("power on: %w", err)
	}
	return slot, nil
}

// powerOnWithout picks a slot although nobody knows which one is good.
func (s *Slots) powerOnWithout(cause error) (string, error) {
	for _, slot := range s.pair.Names() {
		if !s.pair.Holds(slot) {
			continue
		}
		// The count of boots is lost too. From a random number on, it gives ids that
		// differ from all before.
		var b [8]byte
		rand.Read(b[:]) // never fails (package documentation)
		c := control{seq: 1, boots: binary.LittleEndian.Uint64(b[:]) >> 2, good: slot[0], try: noSlot, booted: slot[0]}
		if err := s.control().create(c); err != nil {
			return slot, fmt.Errorf("power on: write new boot control %s: %w", s.cfg.BootFile, err)
		}
		s.cfg.Log.Warn("boot control was lost; booting the first slot that holds something", "slot", slot, "error", cause)
		return slot, nil
	}
	return "", fmt.Errorf("power on: %w, and no slot holds an image: format the device", cause)
}

// Format makes a new device with images, one for each component, in slot A, which
// is good. Slot B stays as it is. A device that has a boot control already is
// refused: remove that first. It comes last, so a device that was cut off its
// power while it was formatted has none, and is formatted again.
func Format(cfg Config, images map[string]io.Reader) error {
	return FormatOn(durable.OS{}, cfg, images)
}

// FormatOn is Format on any file system.
func FormatOn(fsys durable.FS, cfg Config, images map[string]io.Reader) error {
	s, err := OpenOn(fsys, cfg)
	if err == nil {
		err = s.format(images)
	}
	if err != nil {
		return fmt.Errorf("format the device: %w", err)
	}
	return nil
}

func (s *Slots) format(images map[string]io.Reader) error {
	for name := range images {
		if _, ok := s.cfg.Components[name]; !ok {
			return fmt.Errorf("%w: there is no component %s", ota.ErrIncompatible, name)
		}
	}
	for _, name := range s.pair.Components() {
		if images[name] == nil {
			return fmt.Errorf("there is no image for component %s", name)
		}
	}
	switch _, err := s.control().load(); {
	case err == nil:
		return fmt.Errorf("%s has boot control already: remove it to lose what is there: %w", s.cfg.BootFile, fs.ErrExist)
	case !errors.Is(err, errNoControl):
		return err
	}
	dirs := []string{filepath.Dir(s.cfg.BootFile)}
	for _, name := range s.pair.Components() {
		dirs = append(dirs, filepath.Dir(s.cfg.Components[name][0]), filepath.Dir(s.cfg.Components[name][1]))
	}
	for _, dir := range dirs {
		if err := durable.MkdirAll(s.fsys, dir, 0o700); err != nil {
			return err
		}
	}
	for _, name := range s.pair.Components() {
		if err := s.writeFactory(name, images[name]); err != nil {
			return err
		}
	}
	return s.control().create(control{seq: 1, good: SlotA[0], try: noSlot, booted: noSlot})
}

func (s *Slots) writeFactory(component string, image io.Reader) error {
	slot, err := s.open(component, SlotA, false)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(io.NewOffsetWriter(slot, 0), struct{ io.Reader }{image}, make([]byte, 64<<10))
	if err == nil {
		err = slot.Sync(n)
	}
	return errors.Join(err, slot.Close())
}
