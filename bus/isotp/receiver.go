package isotp

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/internal/patience"
)

// queueMost is how many PDUs wait for somebody to receive them.
const queueMost = 32

// result is what Receive returns.
type result struct {
	pdu []byte
	err error
}

type phase byte

const (
	idle      phase = iota
	asking          // for time: a first frame is here and no room for its PDU
	receiving       // consecutive frames
)

// receiver is the receiving side of a channel: frames and the time go in, PDUs and flow
// control come out. It knows no clock and no bus.
//
//	idle ──first, room──▶ receiving ──last frame──▶ idle, a PDU
//	  └────first, none──▶ asking ──room──▶ receiving
//
// Whatever breaks a PDU (N_Cr, a wrong number, WFTmax, a first or single frame, the link)
// leads to idle, and an error for Receive.
type receiver struct {
	settings
	offset int  // in frames
	only   bool // single frames

	phase    phase
	buf      []byte
	size     int
	sn       byte      // of the next frame
	last     []byte    // data of the one before, with Mend
	ahead    []byte    // data of the one after the next, with Mend; nil: it is not here
	block    int       // frames until the next flow control, with a BlockSize
	waits    int       // made in a row
	deadline time.Time // of the phase; zero: none
	answer   status    // to be sent, if owed
	owed     bool
	turn     uint64 // changes with each frame that belongs here: what is older is out of date

	gaps  patience.Timer // N_Cr
	heard time.Time      // when the last frame came, or it was told to go on; zero: neither

	results []result
	bytes   int // of their PDUs
	stats   Stats
}

// Stats count what a channel received and sent since it was opened.
type Stats struct {
	Sent     uint64 // PDUs
	Received uint64 // PDUs that were complete
	Broken   uint64 // PDUs that began to come in and were not completed
	Refused  uint64 // PDUs that were longer than MaxPDU, or came when there was no room
	Stray    uint64 // frames that belonged to no PDU, or were none of ISO-TP
	Mended   uint64 // frames that came twice or late and broke nothing
}

// frame takes a frame of the peer, but no flow control.
func (r *receiver) frame(now time.Time, p part) {
	r.expire(now)
	switch p.kind {
	case single:
		r.replaced()
		if !r.room(len(p.data)) {
			r.stats.Refused++
			return
		}
		r.turn++
		r.deliver(append([]byte(nil), p.data...))
	case first:
		if r.only {
			r.stats.Stray++
			return
		}
		r.replaced()
		r.begin(p)
	case consecutive:
		if r.phase != receiving {
			r.stats.Stray++
			return
		}
		r.more(now, p)
	}
}

// replaced ends a PDU because another one begins (ISO 15765-2, table 23).
func (r *receiver) replaced() {
	if r.phase != idle {
		r.end(fmt.Errorf("%w after %d of %d bytes", ErrReplaced, len(r.buf), r.size))
	}
}

func (r *receiver) begin(p part) {
	r.turn++
	if int64(p.size) > int64(r.MaxPDU) {
		r.stats.Refused++
		r.owe(overflow)
		return
	}
	if !r.room(int(p.size)) && r.WFTmax == 0 {
		r.stats.Refused++
		r.owe(overflow)
		return
	}
	// The length is what the peer says. Memory is taken as bytes come.
	r.buf = append(r.buf[:0], p.data...)
	r.size, r.sn, r.block, r.waits = int(p.size), 1, r.BlockSize, 0
	r.last, r.ahead = r.last[:0], nil
	r.ask()
}

// ask answers a first frame: go on, or wait.
func (r *receiver) ask() {
	if r.room(r.size) {
		r.phase = receiving
		r.owe(proceed)
		return
	}
	if r.waits == r.WFTmax {
		r.stats.Refused++
		r.end(fmt.Errorf("%w: %d, and nobody received what waits", ErrWaits, r.waits))
		return
	}
	r.phase = asking
	r.waits++
	r.owe(wait)
}

func (r *receiver) owe(s status) {
	r.answer, r.owed = s, true
	r.deadline, r.heard = time.Time{}, time.Time{} // the next timer starts when the answer has been sent
}

// room reports whether a PDU of size may come. What waits and what comes take up to
// twice MaxPDU.
func (r *receiver) room(size int) bool {
	return r.waiting() < queueMost && r.bytes+size <= 2*r.MaxPDU
}

func (r *receiver) waiting() int {
	n := 0
	for _, result := range r.results {
		if result.err == nil {
			n++
		}
	}
	return n
}

func (r *receiver) more(now time.Time, p part) {
	if r.Mend && p.sn != r.sn && r.mend(p) {
		r.stats.Mended++
		return
	}
	data, ok := r.cut(p.data, 0)
	if !ok {
		r.stats.Stray++ // too short to be in the middle: ignored (9.6.4)
		return
	}
	if p.sn != r.sn {
		r.end(fmt.Errorf("%w after %d of %d bytes: frame number %d, want %d", ErrSequence, len(r.buf), r.size, p.sn, r.sn))
		return
	}
	r.turn++
	if !r.heard.IsZero() {
		r.gaps.Took(now.Sub(r.heard))
	}
	r.heard = now
	r.deadline = now.Add(r.gaps.Now())
	ahead := r.ahead
	r.ahead = nil
	if r.next(data) && ahead != nil {
		r.next(ahead)
	}
}

// cut is what of a frame belongs to the PDU, if so many bytes come before it that are not
// here. It is not ok if more should come and the frame is not full.
func (r *receiver) cut(data []byte, before int) ([]byte, bool) {
	if rest := r.size - len(r.buf) - before; len(data) >= rest {
		return data[:max(0, rest)], true
	}
	return data, len(data) == r.full()
}

// full is how many bytes a consecutive frame holds.
func (r *receiver) full() int { return can.MaxLen - 1 - r.offset }

// mend says whether a frame with another number than the next one is no reason to give the
// PDU up: it came twice, or one frame too early. Nothing wrong comes out of that: if 15
// frames are missing instead, or 16, the PDU will not have its length. What comes before the
// peer was told to go on is left over from another PDU.
func (r *receiver) mend(p part) bool {
	switch p.sn {
	case (r.sn - 1) & 0x0F:
		return len(r.last) > 0 && bytes.Equal(p.data, r.last)
	case (r.sn + 1) & 0x0F:
		data, ok := r.cut(p.data, r.full())
		if !ok || r.owed || len(data) == 0 || r.ahead != nil && !bytes.Equal(data, r.ahead) {
			return false
		}
		r.ahead = slices.Clone(data)
		return true
	}
	return false
}

// next appends the data of the next frame, and says whether more are to come.
func (r *receiver) next(data []byte) bool {
	r.buf = append(r.buf, data...)
	r.sn = (r.sn + 1) & 0x0F
	if r.Mend {
		r.last = append(r.last[:0], data...)
	}
	if len(r.buf) == r.size {
		pdu := r.buf
		r.buf, r.phase, r.deadline, r.owed = nil, idle, time.Time{}, false
		r.deliver(pdu)
		return false
	}
	if r.BlockSize > 0 {
		if r.block--; r.block == 0 {
			r.block = r.BlockSize
			r.owe(proceed)
		}
	}
	return true
}

func (r *receiver) deliver(pdu []byte) {
	r.stats.Received++
	r.bytes += len(pdu)
	r.results = append(r.results, result{pdu: pdu})
}

// end breaks what is coming in, if anything is.
func (r *receiver) end(err error) {
	if r.phase == idle {
		return
	}
	r.stats.Broken++
	r.phase, r.deadline, r.owed = idle, time.Time{}, false
	r.turn++
	if cap(r.buf) > defaultMaxPDU {
		r.buf = nil
	}
	result := result{err: err}
	if n := len(r.results); n > 0 && r.results[n-1].err != nil {
		r.results[n-1] = result // so that a peer that only breaks PDUs takes no memory
		return
	}
	r.results = append(r.results, result)
}

// reset forgets all but what there is to count, because of err.
func (r *receiver) reset(err error) {
	r.stats.Broken++
	r.phase, r.deadline, r.heard, r.owed = idle, time.Time{}, time.Time{}, false
	r.buf, r.last, r.ahead = nil, nil, nil
	r.turn++
	r.results, r.bytes = []result{{err: err}}, 0
}

// expire does what is due at now.
func (r *receiver) expire(now time.Time) {
	if r.deadline.IsZero() || !now.After(r.deadline) {
		return
	}
	switch r.phase {
	case asking:
		r.ask()
	case receiving:
		waited := r.gaps.Now()
		r.gaps.Over()
		r.end(fmt.Errorf("%w after %d of %d bytes: no frame within %v (N_Cr)", ErrTimeout, len(r.buf), r.size, waited))
	}
}

// take returns the oldest result, and asks a peer that waits for the room to go on.
func (r *receiver) take() (result, bool) {
	if len(r.results) == 0 {
		return result{}, false
	}
	one := r.results[0]
	r.results[0] = result{}
	r.results = r.results[1:]
	r.bytes -= len(one.pdu)
	if r.phase == asking && r.room(r.size) {
		r.ask()
	}
	return one, true
}

// due returns the flow control to send, once. What came of it is told to sent.
func (r *receiver) due() (status, uint64, bool) {
	owed := r.owed
	r.owed = false
	return r.answer, r.turn, owed
}

// sent says that the flow control was handed to the link, or that it was not.
func (r *receiver) sent(now time.Time, turn uint64, err error) {
	switch {
	case turn != r.turn || r.owed: // the peer was quicker, or there is a new answer
	case err != nil:
		r.end(fmt.Errorf("tell the peer to go on after %d of %d bytes: %w", len(r.buf), r.size, err))
	case r.phase == asking:
		r.deadline = now.Add(r.Wait)
	case r.phase == receiving:
		r.heard = now
		r.deadline = now.Add(r.gaps.Now())
	}
}
