package tryboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// eepromUpdate is pieeprom.upd as a directory of FAT has it. In the boot partition of a
// slot it keeps the firmware from booting (raspberrypi/rpi-eeprom#499).
const eepromUpdate = "PIEEPROMUPD"

// maxRoot is the size of the largest directory that FAT allows, in bytes: 65,536 entries.
const maxRoot = 65536 * 32

// checkBoot refuses an image for a boot partition that the firmware would not boot.
func (s *Slots) checkBoot(slot int) error {
	if s.cfg.BootComponent == "" {
		return nil
	}
	place := s.cfg.Components[s.cfg.BootComponent][slot]
	names, err := rootNames(func(off, n int64) ([]byte, error) {
		b, err := durable.ReadRange(s.fsys, place, off, n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return b, err
	})
	if err != nil {
		return fmt.Errorf("%w: look into the boot partition %s: %w", ota.ErrValidation, place, err)
	}
	for _, name := range names {
		if name == eepromUpdate {
			return fmt.Errorf("%w: the boot partition %s holds pieeprom.upd, an update of the EEPROM, with which the device does not start; it belongs on partition 1", ota.ErrValidation, place)
		}
	}
	return nil
}

// rootNames lists the short names, 11 bytes each, in the root directory of a FAT file
// system (Microsoft FAT specification, 1.03: BPB, directory structure).
func rootNames(read func(off, n int64) ([]byte, error)) (names []string, err error) {
	b, err := read(0, 512)
	if err != nil {
		return nil, err
	}
	u16 := func(at int) int64 { return int64(binary.LittleEndian.Uint16(b[at:])) }
	u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(b[at:])) }
	sector, perCluster, reserved, fats := u16(11), int64(b[13]), u16(14), int64(b[16])
	entries, fatSize := u16(17), u16(22)
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector > 4096 || sector&(sector-1) != 0 || perCluster == 0 || reserved == 0 || fats == 0 {
		return nil, errors.New("it is no FAT file system, and the firmware boots no other")
	}
	if entries > 0 { // FAT12 and FAT16: at a fixed place
		dir, err := read((reserved+fats*fatSize)*sector, entries*32)
		if err != nil {
			return nil, err
		}
		names, _ = shortNames(dir)
		return names, nil
	}
	fatSize = u32(36)
	data := (reserved + fats*fatSize) * sector
	size := perCluster * sector
	cluster := u32(44)
	for seen := int64(0); seen < maxRoot; seen += size {
		if cluster < 2 || cluster >= 0x0ffffff8 {
			return names, nil
		}
		dir, err := read(data+(cluster-2)*size, size)
		if err != nil {
			return nil, err
		}
		more, end := shortNames(dir)
		if names = append(names, more...); end {
			return names, nil
		}
		next, err := read(reserved*sector+cluster*4, 4)
		if err != nil {
			return nil, err
		}
		cluster = int64(binary.LittleEndian.Uint32(next) & 0x0fffffff)
	}
	return nil, fmt.Errorf("its root directory is larger than %d bytes", maxRoot)
}

// shortNames returns the names in a piece of a directory, and whether it ends there.
func shortNames(dir []byte) (names []string, end bool) {
	for ; len(dir) >= 32; dir = dir[32:] {
		switch attributes := dir[11]; {
		case dir[0] == 0:
			return names, true
		case dir[0] == 0xe5 || attributes&0x08 != 0: // deleted; the label, and pieces of long names
		default:
			names = append(names, strings.ToUpper(string(dir[:11])))
		}
	}
	return names, false
}
