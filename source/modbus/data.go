package modbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// earlyPause is after what time a block is worth sending again that came before the
// manifest was verified.
const earlyPause = 100 * time.Millisecond

// block takes a block that p, who may write, has written.
func (s *Source) block(p peer, registers []uint16) error {
	var room [profile.BlockSize]byte
	b, err := profile.DecodeBlock(registers, room[:])
	if err != nil {
		return fmt.Errorf("%w: %w", bus.IllegalValue, err)
	}
	return s.put(p, b.Session, int64(b.Number)*profile.BlockSize, b.Data, bus.IllegalValue)
}

// put gives bytes to the inbox, if p has the session; id is 0 where the bytes do not
// say which. beyond is the exception for bytes that are not of the transfer.
func (s *Source) put(p peer, id uint16, offset int64, b []byte, beyond error) error {
	s.transfer.RLock()
	defer s.transfer.RUnlock()
	st := s.cfg.Inbox.State()
	size, err := s.expects(p, id, st)
	if err != nil {
		return err
	}
	if end := offset + int64(len(b)); end > size {
		return beyond
	}
	err = s.cfg.Inbox.Put(offset, b)
	if errors.Is(err, inbox.ErrRange) {
		return beyond
	}
	_, err = resultOf(err)
	if errors.Is(err, inbox.ErrEarly) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.retry = earlyPause
	}
	return err
}

// expects returns the size of what p, whose session it must be, has to write.
func (s *Source) expects(p peer, id uint16, st inbox.State) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.writer(p, id, st)
	if err != nil {
		return 0, err
	}
	return now.offer.Size, nil
}

// writeFile takes records that p, who may write, has written.
func (s *Source) writeFile(p peer, file, record uint16, registers []uint16) error {
	if int(record)+len(registers) > profile.FileRecords {
		return bus.IllegalAddress
	}
	if first, offset, ok := profile.SpecialOffset(file, record); ok {
		if first != profile.FileManifest {
			return bus.IllegalAddress
		}
		return s.manifest(p, offset, registers)
	}
	offset, ok := profile.Offset(file, record)
	if !ok {
		return bus.IllegalAddress
	}
	var room [2 * bus.MaxFileWrite]byte
	b := profile.Bytes(room[:0], registers)
	// The last register is half padding where the size is odd.
	if size := s.cfg.Inbox.State().Offer.Size; size%2 == 1 && offset+int64(len(b)) == size+1 {
		b = b[:len(b)-1]
	}
	return s.put(p, 0, offset, b, bus.IllegalAddress)
}

// upload is the manifest of format 2 while it comes.
type upload struct {
	peer   peer
	length uint32
	data   []byte // with the length, padded to whole registers
	have   []bool // registers
	left   int    // of them that are missing
}

// maxManifest is how many bytes of a manifest fit into its files.
const maxManifest = profile.MaxSpecial - 4

// manifest takes records of the manifest. Those with its length come first; another
// length, or another master, begins anew.
func (s *Source) manifest(p peer, offset int, registers []uint16) error {
	signed, err := s.collect(p, offset, registers)
	if err != nil || signed == nil {
		return err
	}
	if err = s.setEnvelope(signed); err == nil {
		return nil
	}
	result, tell := resultOf(err)
	s.cfg.Log.Warn("manifest refused", "master", p.String(), "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upload = nil
	s.deny(p, 0, result)
	return tell
}

func (s *Source) setEnvelope(signed []byte) error {
	s.transfer.Lock()
	defer s.transfer.Unlock()
	return s.cfg.Inbox.SetEnvelope(signed)
}

// collect puts records of the manifest where they belong, and returns it when the last
// of them has come.
func (s *Source) collect(p peer, offset int, registers []uint16) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.cfg.Inbox.State()
	if now := s.current(st); now != nil && now.peer != p {
		s.deny(p, 0, profile.Busy)
		s.retry = s.idleLeft(st)
		return nil, bus.DeviceBusy
	} else if now != nil {
		now.last = s.cfg.Now()
	}
	u := s.upload
	if offset == 0 {
		if len(registers) < 2 {
			return nil, bus.IllegalValue // the length is written at once
		}
		length := uint32(registers[0])<<16 | uint32(registers[1])
		if length == 0 || length > maxManifest {
			s.deny(p, 0, profile.BadParameter)
			return nil, bus.IllegalValue
		}
		if u == nil || u.peer != p || u.length != length || u.left == 0 {
			n := 2 + (int(length)+1)/2
			u = &upload{peer: p, length: length, data: make([]byte, 2*n), have: make([]bool, n), left: n}
			s.upload = u
		}
	}
	if u == nil || u.peer != p {
		s.retry = earlyPause
		return nil, bus.DeviceBusy // the records with the length are still to come
	}
	if offset+2*len(registers) > len(u.data) {
		return nil, bus.IllegalAddress
	}
	done := u.left == 0
	for i, v := range registers {
		word, at := u.data[offset+2*i:], offset/2+i
		if done && binary.BigEndian.Uint16(word) != v {
			return nil, bus.IllegalValue // it is verified already, and had other bytes
		}
		binary.BigEndian.PutUint16(word, v)
		if !u.have[at] {
			u.have[at] = true
			u.left--
		}
	}
	if done || u.left > 0 {
		return nil, nil
	}
	return bytes.Clone(u.data[4 : 4+u.length]), nil
}
