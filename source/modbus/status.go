package modbus

import (
	"math"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/inbox/standing"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// registers fills the part of the map from one offset to another, as p sees it.
func (s *Source) registers(p peer, all []uint16, from, to int) {
	overlaps := func(offset, size int) bool { return from < offset+size && offset < to }
	if overlaps(profile.OffsetIdentity, profile.IdentitySize) {
		s.identity.Encode(all[profile.OffsetIdentity:])
	}
	if overlaps(profile.OffsetOffer, profile.OfferSize) {
		s.offer(all[profile.OffsetOffer:])
	}
	status, display := overlaps(profile.OffsetStatus, profile.StatusSize), overlaps(profile.OffsetDisplay, profile.DisplaySize)
	if !status && !display {
		return
	}
	v := s.view(p)
	if status {
		v.Status.Encode(all[profile.OffsetStatus:])
	}
	if display {
		v.Display.Encode(all[profile.OffsetDisplay:])
	}
}

// offer says what the transfer that is there began with.
func (s *Source) offer(dst []uint16) {
	st := s.cfg.Inbox.State()
	if st.Phase == inbox.Empty {
		return
	}
	o := profile.Offer{Size: uint32(st.Offer.Size), Format: profile.FormatBundle, SHA256: st.Offer.SHA256}
	if st.Offer.Bare {
		o.Format = profile.FormatBare
	}
	o.Encode(dst)
}

// view is all that is told of one moment.
type view struct {
	profile.Status
	profile.Display
}

// view returns how it stands, as p sees it.
func (s *Source) view(p peer) view {
	// The manager goes on meanwhile; read first, it cannot be ahead of what was asked of it.
	device := s.cfg.State()
	st := s.cfg.Inbox.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.current(st)
	u := standing.Of(st, device, s.aborted)
	v := view{Status: shown(u), Display: profile.Display{Running: device.Version, Update: device.UpdateVersion, Device: device.Device,
		Product: device.Product, Reason: u.Text, Status: int16(device.Status), Code: int16(device.Code)}}
	if st.Version != "" {
		v.Update = st.Version
	}
	v.measured(device.Signals, s.cfg.Now())
	last := max(0, profile.Blocks(st.Offer.Size)-1) * profile.BlockSize
	v.Blocks, v.Received, v.Missing, v.Window = blocks(st, s.cfg.Inbox.Has(last, st.Offer.Size-last), s.cfg.Window)
	v.RetryAfter = uint16(min(s.retry.Milliseconds(), math.MaxUint16))
	if now != nil {
		v.IdleLeft = uint16((s.idleLeft(st) + time.Second - 1) / time.Second)
		if now.peer == p {
			v.Session = now.id
		}
	}
	if t := s.task; t != nil && !t.running && t.state != u.State && hasEnded(u.State) {
		s.task = nil // what has ended since then has reasons of its own
	}
	if s.task != nil && !s.task.running {
		w := standing.Why(s.task.err)
		v.Safety, v.Reasons = profile.Safety(w.Safety), w.Count
		if s.task.err != nil {
			v.Display.Reason = w.Text
		}
	}
	v.Seq, v.Result = s.last.command.Seq, s.resultFor(p, profile.Result(u.Result))
	for _, r := range s.refused {
		if r.peer == p && r.seq != 0 {
			v.Seq = r.seq
		}
	}
	return v
}

func hasEnded(state standing.State) bool {
	return state == standing.Confirmed || state == standing.RolledBack || state == standing.Failed
}

// resultFor is why p's last command was refused, or what the last one has come to, or
// else the reason for the state. s.mu is held.
func (s *Source) resultFor(p peer, state profile.Result) profile.Result {
	for _, r := range s.refused {
		if r.peer == p {
			return r.result
		}
	}
	switch {
	case s.last.result != profile.OK:
		return s.last.result
	case s.task != nil && s.task.running:
		return profile.Busy
	case s.task != nil:
		return profile.Result(standing.Why(s.task.err).Result)
	}
	return state
}

// blocks counts what was received, and how many blocks are taken now. last says that the
// last block is there, which is shorter than the others.
func blocks(st inbox.State, last bool, most int) (all, received, missing uint32, window uint16) {
	size, whole := st.Offer.Size, st.Received
	all = uint32(profile.Blocks(size))
	if last {
		whole += int64(all)*profile.BlockSize - size
	}
	received, missing = uint32(whole/profile.BlockSize), uint32(st.Missing/profile.BlockSize)
	if st.Received >= size {
		received = all
	}
	if st.Missing >= size {
		missing = all
	}
	if st.Phase == inbox.Opening || st.Phase == inbox.Receiving {
		// What begins before Until is taken, and what is there needs no room.
		window = uint16(min(profile.Blocks(max(0, st.Until-st.Received)), int64(most)))
		if window == 0 && st.Missing < st.Until {
			window = 1 // a power cut took bytes of a block away, and left others behind Until
		}
	}
	return all, received, missing, window
}

// measured shows what the gate saw, of each quantity the first value: that of the
// battery itself.
func (v *view) measured(signals []ota.Signal, now time.Time) {
	v.Charge, v.Health, v.TemperatureMin, v.TemperatureMax = profile.NotAvailable, profile.NotAvailable, profile.NotAvailable, profile.NotAvailable
	v.Display.Current, v.Voltage, v.CellMin, v.CellMax = profile.NotAvailable, profile.NotAvailable, profile.NotAvailable, profile.NotAvailable
	v.Age = math.MaxUint16
	for name, q := range map[string]struct {
		to      *int16
		perUnit float64
	}{ // the names are those of package gate/bms, which never change
		"soc": {&v.Charge, 10}, "soh": {&v.Health, 10}, "temperature_min": {&v.TemperatureMin, 10}, "temperature_max": {&v.TemperatureMax, 10},
		"current": {&v.Display.Current, 10}, "voltage": {&v.Voltage, 10}, "cell_min": {&v.CellMin, 1000}, "cell_max": {&v.CellMax, 1000},
	} {
		for _, signal := range signals {
			if signal.Name != name {
				continue
			}
			*q.to = profile.Scaled(signal.Value, q.perUnit)
			if *q.to != profile.NotAvailable && !signal.At.IsZero() {
				age := uint16(min(max(0, now.Sub(signal.At)/time.Second), math.MaxUint16-1))
				if v.Age == math.MaxUint16 || age > v.Age {
					v.Age = age
				}
			}
			break
		}
	}
}
