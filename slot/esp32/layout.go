package esp32

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// layout is what the partition table says.
type layout struct {
	table   *image.Table
	slots   []image.Partition // ota_0 first; at least one
	factory *image.Partition  // or nil
	otadata image.Partition
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
	for i, name := range l.names() {
		if name == "" {
			return l, fmt.Errorf("%w: application partition %d of the table has no label, and slots are named by theirs", ota.ErrIncompatible, i)
		}
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
