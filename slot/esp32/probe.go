package esp32

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// evidenceMark begins the label of an entry that was written after the bootloader
// had shown that it comes back. Behind it are 16 bytes of the SHA-256 of the flash
// before the partition table, so that it is about this bootloader and no other. The
// vendor's code keeps the label as it is and never looks at it.
const evidenceMark = "ILRB"

// Probe implements [ota.Prober]. The bootloader proves itself at the first trial,
// by the states that only it writes. What is remembered of that in otadata holds
// until the bootloader is replaced.
func (s *Slots) Probe(ctx context.Context) (ota.Rollback, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.now(ctx)
	if err == nil {
		n.label, err = s.evidence(n.control)
	}
	if err != nil {
		return ota.Rollback{}, fmt.Errorf("find out whether the bootloader comes back: %w", err)
	}
	a := n.active()
	switch {
	case !s.cfg.Rollback:
		return ota.Rollback{State: ota.RollbackBroken, Why: "it is said to be built without CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE: a slot stays from its first start"}, nil
	case a >= 0 && n.entry[a].State == New && n.slot(a) == n.running:
		return ota.Rollback{State: ota.RollbackBroken, Why: fmt.Sprintf("it started slot %s and left its state NEW: it is built without CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE", s.partition(n.running).Label)}, nil
	case n.trial(n.running):
		return ota.Rollback{State: ota.RollbackProven, Why: "it has put the running slot on trial"}, nil
	case n.seen():
		return ota.Rollback{State: ota.RollbackProven, Why: "it has put the other slot on trial, and come back"}, nil
	case n.label != blank.Label:
		return ota.Rollback{State: ota.RollbackProven, Why: "it has put a slot on trial before"}, nil
	}
	return ota.Rollback{State: ota.RollbackUnknown, Why: "no trial was seen so far: the first update shows it"}, nil
}

// evidence returns the label for new entries: that the bootloader comes back, if it
// is seen now or was before.
func (s *Slots) evidence(c control) ([20]byte, error) {
	h := sha256.New()
	before := s.cfg.TableOffset
	if before == 0 {
		before = image.TableOffset
	}
	if _, err := io.Copy(h, io.NewSectionReader(s.flash, 0, int64(before))); err != nil {
		return blank.Label, fmt.Errorf("read the bootloader: %w", err)
	}
	label := [20]byte(append([]byte(evidenceMark), h.Sum(nil)[:16]...))
	for _, e := range c.entry {
		if e.Whole() && bytes.Equal(e.Label[:], label[:]) {
			return label, nil
		}
	}
	if c.seen() {
		return label, nil
	}
	return blank.Label, nil
}
