package bustest

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// PDUs puts together what ISO-TP carried (ISO 15765-2, 9.6) in the frames of a CAN bus
// whose identifiers are given; others, and flow control, are left out. A PDU counts as
// passed if each of its frames was; otherwise its Verdict is that of the last that was not.
// One whose last frame was never sent is left out.
func PDUs(records []Record, ids ...uint32) []Record {
	var whole []Record
	parts := map[uint32]*Record{}
	want := map[uint32]int{}
	for _, r := range records {
		id, data := r.Frame.ID, r.Frame.Bytes()
		if !slices.Contains(ids, id) || len(data) < 2 {
			continue
		}
		switch data[0] >> 4 {
		case 0: // single
			n := int(data[0] & 15)
			if n == 0 || n >= len(data) {
				continue
			}
			parts[id], want[id] = part(r, data[1:]), n
		case 1: // first
			n, from := int(data[0]&15)<<8|int(data[1]), 2
			if n == 0 && len(data) == 8 {
				n, from = int(binary.BigEndian.Uint32(data[2:])), 6
			}
			parts[id], want[id] = part(r, data[from:]), n
		case 2: // consecutive
			p := parts[id]
			if p == nil {
				continue
			}
			p.Data, p.At = append(p.Data, data[1:]...), r.At
			if !r.Verdict.arrives() {
				p.Verdict = r.Verdict
			}
		}
		if p := parts[id]; p != nil && len(p.Data) >= want[id] {
			p.Data = p.Data[:want[id]]
			p.N = len(whole)
			whole = append(whole, *p)
			delete(parts, id)
		}
	}
	return whole
}

func part(r Record, data []byte) *Record {
	r.Data = slices.Clone(data)
	if r.Verdict.arrives() {
		r.Verdict = Pass
	}
	return &r
}

// Conn carries PDUs, as those of packages isotp and uds do.
type Conn interface {
	Send(ctx context.Context, pdu []byte) error
	Receive(ctx context.Context) ([]byte, error)
	Close() error
}

// Watch records what goes over c: what is sent as from name, what is received as from
// peer. A PDU that could not be sent is recorded as lost.
func Watch(c Conn, name, peer string, t *Tap) Conn {
	return &watched{Conn: c, name: name, peer: peer, tap: t, n: map[string]int{}}
}

type watched struct {
	Conn
	name, peer string
	tap        *Tap

	mu sync.Mutex
	n  map[string]int
}

func (w *watched) add(r Record) {
	w.mu.Lock()
	r.N = w.n[r.From]
	w.n[r.From]++
	w.mu.Unlock()
	w.tap.add(r)
}

func (w *watched) Send(ctx context.Context, pdu []byte) error {
	r := Record{From: w.name, Data: pdu, Queued: time.Now()}
	err := w.Conn.Send(ctx, pdu)
	r.At = time.Now()
	if err != nil {
		r.Verdict = Lose
	}
	w.add(r)
	return err
}

func (w *watched) Receive(ctx context.Context) ([]byte, error) {
	pdu, err := w.Conn.Receive(ctx)
	if err == nil {
		w.add(Record{From: w.peer, Data: pdu, Queued: time.Now(), At: time.Now()})
	}
	return pdu, err
}
