package modbus

import (
	"encoding/binary"
	"errors"
	"io"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// readFile fills dst from records. What the transfer consists of, and the evidence,
// are for those who may write; the manifest and the bitmap for all that may read.
func (s *Source) readFile(p peer, file, record uint16, dst []uint16) error {
	if int(record)+len(dst) > profile.FileRecords {
		return bus.IllegalAddress
	}
	first, offset, special := profile.SpecialOffset(file, record)
	switch {
	case !special || first == profile.FileEvidence:
		if !s.mayWrite(p) {
			return bus.IllegalFunction
		}
	}
	switch {
	case !special:
		return s.readReceived(file, record, dst)
	case first == profile.FileBitmap:
		s.readBitmap(8*int64(offset), dst)
	case first == profile.FileManifest:
		readCounted(dst, s.cfg.Inbox.Envelope(), offset)
	default:
		readCounted(dst, s.evidenceAt(offset), offset)
	}
	return nil
}

// readReceived reads the transfer as it was received; bytes that are not there are 0.
func (s *Source) readReceived(file, record uint16, dst []uint16) error {
	offset, ok := profile.Offset(file, record)
	size := s.cfg.Inbox.State().Offer.Size
	if !ok || offset+2*int64(len(dst)) > size+size%2 {
		return bus.IllegalAddress
	}
	var room [2 * bus.MaxReadRegisters]byte
	b := room[:min(2*int64(len(dst)), size-offset)]
	if n, err := s.cfg.Inbox.ReadAt(b, offset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return bus.DeviceFailure // another transfer has begun
		}
		_, err = resultOf(err)
		return err
	}
	fill(dst, room[:])
	return nil
}

// readBitmap reads which blocks were received, from a multiple of 16 on: the first is
// the lowest bit.
func (s *Source) readBitmap(block int64, dst []uint16) {
	size := s.cfg.Inbox.State().Offer.Size
	for i := range dst {
		for bit := range 16 {
			offset := (block + int64(16*i+bit)) * profile.BlockSize
			if offset >= size {
				return
			}
			if s.cfg.Inbox.Has(offset, min(profile.BlockSize, size-offset)) {
				dst[i] |= 1 << bit
			}
		}
	}
}

// evidenceAt is the evidence as it was when somebody last began to read it.
func (s *Source) evidenceAt(offset int) []byte {
	if s.cfg.Evidence == nil {
		return nil
	}
	if offset == 0 {
		fresh := s.cfg.Evidence()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.evidence = fresh
		return fresh
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.evidence
}

// readCounted fills dst from a file that begins with the length of b, and has b then.
// Behind the end are zeros.
func readCounted(dst []uint16, b []byte, offset int) {
	b = b[:min(len(b), maxManifest)]
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(b)))
	at := func(i int) uint16 {
		switch {
		case i < len(length):
			return uint16(length[i])
		case i-len(length) < len(b):
			return uint16(b[i-len(length)])
		}
		return 0
	}
	for i := range dst {
		dst[i] = at(offset+2*i)<<8 | at(offset+2*i+1)
	}
}

// fill puts bytes into all of dst.
func fill(dst []uint16, b []byte) {
	for i := range dst {
		dst[i] = binary.BigEndian.Uint16(b[2*i:])
	}
}
