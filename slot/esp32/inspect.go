package esp32

import (
	"fmt"
	"io"

	"github.com/interlock-energy/ota/slot/esp32/image"
)

// BootState is what a flash says about its next start.
type BootState struct {
	Table   *image.Table
	Entries [2]Entry // otadata

	Active int // the entry that counts now, 0 or 1; -1: none does
	// Order is in which order the bootloader tries to load the partitions.
	Order []image.Partition
	// Next is the label of the first partition of Order that holds a whole image. It
	// is empty if none does: the chip does not start. A bootloader that does not
	// check images starts the first of Order that is not erased, whole or not.
	Next string
	// Trial says that Next is started on trial: at the start after it, it is another,
	// unless it is marked good.
	Trial bool
	// FellBack says that otadata holds the trace of a try that failed.
	FellBack bool
}

// ReadBoot reads from a flash, or a file with all of it, what boots next. Of cfg
// it needs what the bootloader does and what the chip is; Booted and Flash are not
// used, and FlashSize is not checked if it is 0.
func ReadBoot(r io.ReaderAt, cfg Config) (*BootState, error) {
	b, err := readBoot(r, cfg)
	if err != nil {
		return nil, fmt.Errorf("find out what the flash boots: %w", err)
	}
	return b, nil
}

func readBoot(r io.ReaderAt, cfg Config) (*BootState, error) {
	l, err := readLayout(r, cfg)
	if err != nil {
		return nil, err
	}
	c := control{n: len(l.slots), anti: cfg.AntiRollback}
	sectors := make([]byte, l.otadata.Size)
	if n, err := section(r, l.otadata).ReadAt(sectors, 0); n < len(sectors) {
		return nil, fmt.Errorf("read otadata at %#x: got %d of %d bytes: %w", l.otadata.Offset, n, len(sectors), err)
	}
	for i := range c.entry {
		c.entry[i] = ParseEntry(sectors[i*image.SectorSize:])
	}
	c.setLow(r, l, cfg)
	b := &BootState{Table: l.table, Entries: c.entry, Active: c.active()}
	first, trial := c.first(cfg.Rollback, l.factory != nil)
	b.Order = order(l.table, first)
	for i, p := range b.Order {
		if err := verify(r, p, cfg, false); err == nil {
			b.Next, b.Trial = p.Label, trial && i == 0
			if n, err := l.index(p.Label); err == nil {
				b.FellBack = c.fellBack(n)
			}
			break
		}
	}
	return b, nil
}
