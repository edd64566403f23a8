package modbus

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// session is the right of one master to write one transfer.
type session struct {
	id    uint16
	peer  peer
	offer inbox.Offer
	dry   bool
	last  time.Time // when its master wrote last
}

// answer is what the last command that was taken was answered with.
type answer struct {
	peer    peer
	command profile.Command // whose number is 0 if there is none
	at      time.Time       // a master that begins to count anew, an hour later, means another command
	result  profile.Result
	err     error
}

// refusal is what a master is told that got an exception.
type refusal struct {
	peer   peer
	seq    uint16 // 0: it was no command
	result profile.Result
}

// maxRefused is how many masters' refusals are remembered, so that strangers cost
// bounded memory.
const maxRefused = 8

// warnEvery keeps those who are turned away from filling the log.
const warnEvery = 10 * time.Second

// deny remembers why a master got an exception, for the next time that it reads the
// status. s.mu is held.
func (s *Source) deny(p peer, seq uint16, result profile.Result) {
	s.forgive(p)
	s.refused = append([]refusal{{p, seq, result}}, s.refused[:min(len(s.refused), maxRefused-1)]...)
}

// forgive is the opposite. s.mu is held.
func (s *Source) forgive(p peer) {
	s.refused = slices.DeleteFunc(s.refused, func(r refusal) bool { return r.peer == p })
}

// turnAway notes that somebody wrote who may not.
func (s *Source) turnAway(p peer, at int, values []uint16) {
	seq := uint16(0)
	if at == profile.OffsetCommand && len(values) > 1 {
		seq = values[1]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deny(p, seq, profile.NotAllowed)
	now := s.cfg.Now()
	if since := now.Sub(s.warned); since >= 0 && since < warnEvery {
		return
	}
	s.warned = now
	s.cfg.Log.Warn("a Modbus master that may not write has tried to", "master", p.String())
}

// current returns the session, nil if there is none or its master has been silent for
// too long. While the device verifies there is nothing to write, and no time runs.
// s.mu is held.
func (s *Source) current(st inbox.State) *session {
	if s.session == nil {
		return nil
	}
	if s.idleLeft(st) > 0 {
		return s.session
	}
	s.cfg.Log.Info("session dropped, what was received is kept", "master", s.session.peer.String(), "idle", s.cfg.IdleTimeout)
	s.session, s.last = nil, answer{}
	return nil
}

// idleLeft is for how long the session stays if nothing is written. s.mu is held.
func (s *Source) idleLeft(st inbox.State) time.Duration {
	now, last := s.cfg.Now(), s.session.last
	switch {
	case st.Phase == inbox.Verifying || now.Before(last): // or a clock that was set back
		return s.cfg.IdleTimeout
	case st.Changed.After(last) && !st.Changed.After(now):
		last = st.Changed
	}
	return s.cfg.IdleTimeout - now.Sub(last)
}

// begin gives p the session for an offer: the one that it has, if that is for the same.
// s.mu is held.
func (s *Source) begin(p peer, o inbox.Offer, dry, resumed bool) {
	id := uint16(0)
	if old := s.session; old != nil {
		id = old.id
		if !resumed || old.offer != o {
			id = newID(old.id)
		}
	} else {
		id = newID(0)
	}
	s.session = &session{id: id, peer: p, offer: o, dry: dry, last: s.cfg.Now()}
	s.aborted = false
}

// newID returns a number that is neither 0 nor the one before, and that nobody guesses
// at once.
func newID(before uint16) uint16 {
	for {
		var b [2]byte
		rand.Read(b[:]) // never fails
		if id := binary.BigEndian.Uint16(b[:]); id != 0 && id != before {
			return id
		}
	}
}

// writer checks that p has the session, which is id unless that is 0, and notes that
// it has written. s.mu is held.
func (s *Source) writer(p peer, id uint16, st inbox.State) (*session, error) {
	now := s.current(st)
	switch {
	case now != nil && now.peer != p:
		s.deny(p, 0, profile.Busy)
		s.retry = s.idleLeft(st)
		return nil, bus.DeviceBusy
	case now == nil || id != 0 && now.id != id:
		s.deny(p, 0, profile.NoSession)
		return nil, bus.IllegalValue
	}
	now.last = s.cfg.Now()
	return now, nil
}

// bucket lets something happen so often, and a few times more at once.
type bucket struct {
	every time.Duration
	burst int
	used  int       // of the burst
	at    time.Time // since when used is what it is
}

// take takes one, or says how long to wait for it.
func (b *bucket) take(now time.Time) (wait time.Duration) {
	if gone := now.Sub(b.at); gone < 0 || gone >= time.Duration(b.used)*b.every {
		b.used, b.at = 0, now
	} else {
		n := int(gone / b.every)
		b.used, b.at = b.used-n, b.at.Add(time.Duration(n)*b.every)
	}
	if b.used >= b.burst {
		return b.every - now.Sub(b.at)
	}
	b.used++
	return 0
}
