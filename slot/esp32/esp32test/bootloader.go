// Package esp32test has the vendor's bootloader as a model, and puts the flash of
// a chip on the disks of package otatest.
//
// The model is written from ESP-IDF (components/bootloader_support/src:
// bootloader_utility.c, bootloader_common_loader.c, esp_image_format.c), and shares
// no code with package esp32: a mistake must not be in both. What real chips do is
// in its tests.
package esp32test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/interlock-energy/ota/internal/durable"
)

// Bootloader is how a bootloader was built. The zero value checks images, and has
// no rollback.
type Bootloader struct {
	Rollback     bool    // CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE
	AntiRollback *uint32 // CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK: the eFuses' security version; nil: without
	// Unchecked takes any image whose first byte is right, as real ones were seen to.
	Unchecked bool
	Table     int64 // offset of the partition table; 0: 0x8000
}

// ErrLoop says that the chip resets again and again.
var ErrLoop = errors.New("no bootable application: the chip resets for ever")

// A part is a partition that the bootloader knows.
type part struct {
	label     string
	off, size int64
}

// parts are bootloader_state_t.
type parts struct {
	otadata, factory, test part
	ota                    [16]part
	count                  uint32
}

const none = -1 // FACTORY_INDEX

// words are esp_ota_select_entry_t as words: number, label (5), state, CRC.
type words [8]uint32

func (w words) sumOK() bool {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], w[0])
	return w[7] == romCRC(b[:])
}

// romCRC is esp_rom_crc32_le(UINT32_MAX, b, n), bit by bit: a register that begins
// with the inverse of its argument, which is 0, and is inverted at the end.
func romCRC(b []byte) uint32 {
	reg := uint32(0)
	for _, c := range b {
		reg ^= uint32(c)
		for range 8 {
			if reg&1 == 1 {
				reg = reg>>1 ^ 0xEDB88320
			} else {
				reg >>= 1
			}
		}
	}
	return ^reg
}

// invalid and valid are bootloader_common_ota_select_invalid and _valid.
func (w words) invalid() bool { return w[0] == 0xFFFFFFFF || w[6] == 3 || w[6] == 4 }
func (w words) valid() bool   { return !w.invalid() && w.sumOK() }

// run is one start of the bootloader.
type run struct {
	b    Bootloader
	fsys durable.FS
	path string
	p    parts
	e    [2]words
}

// Start plays the bootloader up to the start of a partition, whose label it
// returns. It writes what the bootloader writes.
func (b Bootloader) Start(fsys durable.FS, path string) (label string, err error) {
	if b.Table == 0 {
		b.Table = 0x8000
	}
	r := &run{b: b, fsys: fsys, path: path}
	if err := r.loadTable(); err != nil {
		return "", err
	}
	first, initial := none, false
	if r.p.otadata.size >= 0x2000 {
		if first, initial, err = r.choose(); err != nil {
			return "", err
		}
	}
	return r.load(first, initial)
}

func (r *run) read(off, n int64) []byte {
	b := bytes.Repeat([]byte{0xFF}, int(n))
	f, err := r.fsys.OpenFile(r.path, os.O_RDONLY, 0)
	if err != nil {
		return b
	}
	defer f.Close()
	if n, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return bytes.Repeat([]byte{0xFF}, len(b))
	} else if n < len(b) {
		copy(b[n:], bytes.Repeat([]byte{0xFF}, len(b)-n))
	}
	return b
}

// loadTable is bootloader_utility_load_partition_table, without its checks.
func (r *run) loadTable() error {
	t := r.read(r.b.Table, 0xC00)
	for ; len(t) >= 32 && t[0] == 0xAA && t[1] == 0x50; t = t[32:] {
		label, _, _ := bytes.Cut(t[12:28], []byte{0})
		p := part{string(label), int64(binary.LittleEndian.Uint32(t[4:])), int64(binary.LittleEndian.Uint32(t[8:]))}
		switch typ, sub := t[2], t[3]; {
		case typ == 0 && sub == 0:
			r.p.factory = p
		case typ == 0 && sub&0xF0 == 0x10:
			r.p.ota[sub&0x0F] = p
			r.p.count++
		case typ == 0 && sub == 0x20:
			r.p.test = p
		case typ == 1 && sub == 0:
			r.p.otadata = p
		}
	}
	if r.p.otadata == (part{}) && r.p.factory == (part{}) && r.p.test == (part{}) && r.p.count == 0 {
		return fmt.Errorf("%w: there is no partition table", ErrLoop)
	}
	return nil
}

// writeEntry is write_otadata: erase the sector, write 32 bytes.
func (r *run) writeEntry(i int) error {
	f, err := r.fsys.OpenFile(r.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	off := r.p.otadata.off + int64(i)*0x1000
	if e, ok := f.(durable.Eraser); ok {
		err = e.Erase(off, 0x1000)
	} else {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xFF}, 0x1000), off)
	}
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	b := make([]byte, 0, 32)
	for _, w := range r.e[i] {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	return f.Sync()
}

// choose is bootloader_utility_get_selected_boot_partition.
func (r *run) choose() (first int, initial bool, err error) {
	for i := range r.e {
		b := r.read(r.p.otadata.off+int64(i)*0x1000, 32)
		for k := range r.e[i] {
			r.e[i][k] = binary.LittleEndian.Uint32(b[4*k:])
		}
	}
	if r.b.Rollback {
		for i := range r.e {
			if r.e[i][6] == 1 { // PENDING_VERIFY
				r.e[i][6] = 4 // ABORTED
				if err := r.writeEntry(i); err != nil {
					return none, false, err
				}
			}
		}
	}
	fresh := (r.e[0][0] == 0xFFFFFFFF || !r.e[0].sumOK()) && (r.e[1][0] == 0xFFFFFFFF || !r.e[1].sumOK())
	active := -1
	if r.b.AntiRollback != nil {
		if fresh {
			initial = true
		} else {
			active = r.active()
		}
	} else if r.e[0].invalid() && r.e[1].invalid() || r.p.count == 0 {
		if r.p.factory.size > 0 {
			return none, false, nil
		}
		return 0, fresh, nil
	} else {
		active = r.active()
	}
	if active < 0 {
		return none, initial, nil
	}
	if r.b.Rollback && r.e[active][6] == 0 { // NEW
		r.e[active][6] = 1
		if err := r.writeEntry(active); err != nil {
			return none, false, err
		}
	}
	if r.e[active][6] == 2 { // VALID
		r.burn(r.p.ota[r.slot(active)])
	}
	return r.slot(active), initial, nil
}

// burn is update_anti_rollback.
func (r *run) burn(p part) {
	if r.b.AntiRollback == nil {
		return
	}
	if v, ok := r.secure(p); ok && v > *r.b.AntiRollback {
		*r.b.AntiRollback = v
	}
}

func (r *run) slot(i int) int { return int((r.e[i][0] - 1) % r.p.count) }

// active is bootloader_common_select_otadata, with the greater number.
func (r *run) active() int {
	var ok [2]bool
	for i := range ok {
		ok[i] = r.e[i].valid()
		if ok[i] && r.b.AntiRollback != nil {
			v, known := r.secure(r.p.ota[r.slot(i)])
			ok[i] = known && v >= *r.b.AntiRollback
		}
	}
	switch {
	case ok[0] && ok[1]:
		if r.e[1][0] > r.e[0][0] {
			return 1
		}
		return 0
	case ok[0]:
		return 0
	case ok[1]:
		return 1
	}
	return -1
}

// secure reads the security version of an application.
func (r *run) secure(p part) (uint32, bool) {
	b := r.read(p.off+32, 8)
	return binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b) == 0xABCD5432
}

// load is bootloader_utility_load_boot_image.
func (r *run) load(first int, initial bool) (string, error) {
	at := func(i int) part {
		if i == none {
			return r.p.factory
		}
		return r.p.ota[i]
	}
	var list []int
	for i := first; i >= none; i-- {
		list = append(list, i)
	}
	for i := first + 1; i < int(r.p.count); i++ {
		list = append(list, i)
	}
	for _, i := range list {
		if at(i).size == 0 {
			continue
		}
		ok, err := r.loads(at(i))
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		if i != none && initial {
			r.e[0] = words{uint32(i) + 1, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 2}
			r.e[0][7] = romCRC(binary.LittleEndian.AppendUint32(nil, r.e[0][0]))
			if err := r.writeEntry(0); err != nil {
				return "", err
			}
			r.burn(at(i))
		}
		return at(i).label, nil
	}
	if r.p.test.size > 0 {
		if ok, err := r.loads(r.p.test); ok || err != nil {
			return r.p.test.label, err
		}
	}
	return "", ErrLoop
}

// loads is try_load_partition, for what it needs: is the image whole?
func (r *run) loads(p part) (bool, error) {
	if v, ok := r.secure(p); r.b.AntiRollback != nil && (!ok || v < *r.b.AntiRollback) {
		return false, nil
	}
	if !r.b.Unchecked {
		return r.whole(p), nil
	}
	switch r.read(p.off, 1)[0] {
	case 0xE9:
		return true, nil
	case 0xFF:
		return false, nil
	}
	return false, ErrLoop
}

// whole is esp_image_verify without signatures: header, segments, checksum, SHA-256.
// It reads what belongs to the image, and nothing behind.
func (r *run) whole(p part) bool {
	head := r.read(p.off, 24)
	if head[0] != 0xE9 || head[1] == 0 || head[1] > 16 {
		return false
	}
	at, sum := int64(24), byte(0xEF)
	for range head[1] {
		if at+8 > p.size {
			return false
		}
		n := int64(binary.LittleEndian.Uint32(r.read(p.off+at, 8)[4:]))
		at += 8
		if n%4 != 0 || n >= 16<<20 || at+n > p.size {
			return false
		}
		for _, c := range r.read(p.off+at, n) {
			sum ^= c
		}
		at += n
	}
	end := (at + 16) &^ 15
	if end > p.size || r.read(p.off+end-1, 1)[0] != sum {
		return false
	}
	if head[23] == 0 {
		return true
	}
	if end+32 > p.size {
		return false
	}
	h := sha256.Sum256(r.read(p.off, end))
	return bytes.Equal(h[:], r.read(p.off+end, 32))
}
