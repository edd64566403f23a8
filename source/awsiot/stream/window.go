package stream

import "time"

// A window decides which blocks to ask for and when to give up on an answer. It has
// no clock, no connection and no goroutine. Blocks are numbered from 0.
//
//	  read   |  have, asked or missing        |  not looked at yet
//	---------+--------------------------------+-----------------------
//	        base                       base+len(slots)              end
type window struct {
	blockSize  int
	size       int64 // of the file
	base, end  int   // next block to read; first behind the file
	fresh      int   // first block that was never asked for
	perRequest int   // blocks
	slots      []slot
	busy       int        // slots that are not missing
	open       []*request // that are still answered, oldest first
	seq        uint64

	rtt      estimate
	backoff  int       // answers that did not come at all, one after the other
	hold     time.Time // nothing is asked for before
	quiet    time.Time // since when nothing has come that is waited for
	received int       // blocks that were new
}

type slotState byte

const (
	missing slotState = iota
	asked
	have
)

type slot struct {
	state slotState
	req   *request // if asked
	data  []byte   // if have
}

// A request is one message to the service.
type request struct {
	seq     uint64
	sent    time.Time
	heard   time.Time // when a block came for it or one before it
	waiting int       // blocks that have not come
	blocks  []int     // rising
}

func newWindow(o *Options) *window {
	w := &window{blockSize: o.BlockSize, size: o.Size, rtt: estimate{rto: firstTimeout}}
	w.end = int((o.Size + int64(o.BlockSize) - 1) / int64(o.BlockSize))
	w.base = int(o.Offset / int64(o.BlockSize))
	w.fresh = w.base
	n := max(o.Window/o.BlockSize, 1)
	// Half of it, so that the next request is on its way while one is answered.
	w.perRequest = min(max(n/2, 1), MaxRequestSize/o.BlockSize)
	w.slots = make([]slot, min(n, max(w.end-w.base, 1)))
	return w
}

func (w *window) slot(block int) *slot { return &w.slots[block%len(w.slots)] }

// length of a block in bytes: only the last may be short.
func (w *window) length(block int) int {
	return int(min(int64(w.blockSize), w.size-int64(block)*int64(w.blockSize)))
}

// top is the first block behind the window.
func (w *window) top() int { return min(w.base+len(w.slots), w.end) }

// next returns the block to read, or nil if it has not come.
func (w *window) next() []byte {
	if w.base == w.end || w.slot(w.base).state != have {
		return nil
	}
	return w.slot(w.base).data
}

// drop forgets the block that next returned.
func (w *window) drop() {
	w.slot(w.base).state, w.slot(w.base).data = missing, nil
	w.base++
	w.busy--
}

// ask returns the next request to send, or nil if there is none now. Lost blocks are
// asked for at once, others when a request is full, so that a slow reader does not
// make a message of every block.
func (w *window) ask(now time.Time) *request {
	w.expire(now)
	if now.Before(w.hold) {
		return nil
	}
	w.hold = time.Time{}
	if w.busy == w.top()-w.base || w.backoff > 0 && len(w.open) > 0 { // one is enough to see whether anybody is there
		return nil
	}
	var blocks []int
	lost := false
	for b := w.base; b < w.top() && len(blocks) < w.perRequest; b++ {
		if w.slot(b).state == missing {
			blocks = append(blocks, b)
			lost = lost || b < w.fresh
		}
	}
	full := len(blocks) == w.perRequest || w.top() == w.end
	if !lost && !full && len(w.open) > 0 {
		return nil
	}
	if !lost && len(w.open) == 0 {
		w.quiet = now
	}
	w.seq++
	r := &request{seq: w.seq, sent: now, heard: now, waiting: len(blocks), blocks: blocks}
	for _, b := range blocks {
		w.slot(b).state, w.slot(b).req = asked, r
	}
	w.busy += len(blocks)
	w.fresh = max(w.fresh, blocks[len(blocks)-1]+1)
	w.open = append(w.open, r)
	return r
}

// bitmap returns the fields of a request for r's blocks: without a bitmap if there
// are no gaps.
func (r *request) bitmap() (offset, count int, b bitmap) {
	offset, count = r.blocks[0], len(r.blocks)
	last := r.blocks[count-1]
	if last-offset+1 == count {
		return offset, count, nil
	}
	b = make(bitmap, (last-offset)/8+1)
	for _, block := range r.blocks {
		b[(block-offset)/8] |= 1 << ((block - offset) % 8)
	}
	return offset, count, b
}

// arrived takes a block that came at now in answer to a request that was sent took
// ago; took is negative if that is not known. It reports whether the block is new.
// Data of another length than the block's is the caller's to refuse; data is kept.
func (w *window) arrived(now time.Time, block int, data []byte, seq uint64, took time.Duration) bool {
	if took >= 0 {
		w.rtt.add(took)
	}
	for _, r := range w.open { // answers come in turn: those of later requests are still behind
		if r.seq >= seq {
			r.heard = now
		}
	}
	if block < w.base || block >= w.top() || w.slot(block).state == have {
		return false
	}
	s := w.slot(block)
	if s.state == asked {
		s.req.waiting--
		w.close()
	} else { // it was given up too early
		w.busy++
	}
	s.state, s.req, s.data = have, nil, data
	w.backoff, w.quiet = 0, now
	w.received++
	return true
}

// close forgets requests that were answered.
func (w *window) close() {
	open := w.open[:0]
	for _, r := range w.open {
		if r.waiting > 0 {
			open = append(open, r)
		}
	}
	clear(w.open[len(open):])
	w.open = open
}

// timeout is how long after the last sign of an answer it is given up.
func (w *window) timeout() time.Duration {
	return max(w.rtt.rto, min(w.rtt.rto<<min(w.backoff, 6), maxBackoff))
}

// expire gives up on answers that are overdue.
func (w *window) expire(now time.Time) {
	silent := false
	for _, r := range w.open {
		if now.Before(r.heard.Add(w.timeout())) {
			continue
		}
		silent = silent || r.heard.Equal(r.sent) && !w.quiet.After(r.sent)
		w.lose(r)
	}
	if silent { // not some of it was lost but all: the network or the service is gone
		w.backoff++
	}
	w.close()
}

// lose makes the blocks that r still waits for missing again.
func (w *window) lose(r *request) {
	for _, b := range r.blocks {
		if s := w.slot(b); b >= w.base && s.state == asked {
			s.state, s.req = missing, nil
			w.busy--
		}
	}
	r.waiting = 0
}

// refused is called for a request that was not sent, or was refused for now. Seq 0
// stands for the oldest.
func (w *window) refused(now time.Time, seq uint64) {
	for _, r := range w.open {
		if r.seq == seq || seq == 0 {
			w.lose(r)
			break
		}
	}
	w.close()
	w.hold = now.Add(min(time.Second<<min(w.backoff, 6), maxHold))
	w.backoff++
}

// wake is when ask must be called again though nothing has come; the zero time: never.
func (w *window) wake() time.Time {
	at := w.hold
	for _, r := range w.open {
		if t := r.heard.Add(w.timeout()); at.IsZero() || t.Before(at) {
			at = t
		}
	}
	return at
}

// waiting reports whether anything is expected from the service.
func (w *window) waiting() bool { return len(w.open) > 0 || !w.hold.IsZero() }

// Bounds of the timeout. AWS's own client waits 10 s for a block
// (aws-iot-core-mqtt-file-streams-embedded-c); here the first answer tells more.
const (
	firstTimeout = 10 * time.Second
	minTimeout   = time.Second
	maxTimeout   = time.Minute
	maxBackoff   = 15 * time.Second
	maxHold      = 10 * time.Second // between two tries without a connection
)

// estimate is the timeout of RFC 6298, section 2, over the blocks' times. The token
// in an answer says which request it is for, so that all can be counted.
type estimate struct {
	mean, deviation, rto time.Duration
}

func (e *estimate) add(d time.Duration) {
	d = min(d, maxTimeout)
	if e.mean == 0 {
		e.mean, e.deviation = d, d/2
	} else {
		e.deviation += ((e.mean - d).Abs() - e.deviation) / 4
		e.mean += (d - e.mean) / 8
	}
	e.rto = min(max(e.mean+4*e.deviation, minTimeout), maxTimeout)
}
