package bustest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// Key names what a request writes, such as "block 12"; false: nothing that matters here.
// It is called for each request, in their order, with the PDU alone, so that it may
// remember where a transfer was.
type Key func(pdu []byte) (string, bool)

// AgainModbus returns the keys of what a Modbus master sent again after the answer to it,
// which was no exception, had been passed on to the master. What was on its way already
// when the answer came does not count. The records are those of a Proxy, or of a Relay with
// RTU: say which by tcp.
func AgainModbus(records []Record, tcp bool, key Key) []string {
	if !tcp {
		return againSerial(records, key)
	}
	a := newAgain()
	for _, r := range records {
		if len(r.Data) <= 7 {
			continue
		}
		pdu, open := r.Data[7:], fmt.Sprint(r.Conn, " ", binary.BigEndian.Uint16(r.Data))
		if r.From == Master {
			a.request(r, open, pdu, key)
		} else if r.Verdict.arrives() {
			a.answer(r, open, pdu[0]&0x80 == 0)
		}
	}
	return a.keys
}

// unanswered is for how long a slave may think. Masters wait longer before they ask again.
const unanswered = 500 * time.Millisecond

// againSerial tells by their order which request an answer belongs to, for answers have no
// number: a slave answers each request that it gets, one after the other. So the second
// answer to a doubled request does not acknowledge the next one, whatever the master thinks.
func againSerial(records []Record, key Key) []string {
	a := newAgain()
	var waiting []request
	for _, r := range records {
		if len(r.Data) <= 3 {
			continue
		}
		pdu := r.Data[1 : len(r.Data)-2]
		if r.From == Master {
			if n := len(waiting); n > 0 && r.Queued.Sub(waiting[n-1].at) >= unanswered {
				waiting = waiting[:0] // the slave was away
			}
			a.request(r, "", pdu, key)
			copies := map[Verdict]int{Pass: 1, Swap: 1, CutAfter: 1, Double: 2}[r.Verdict]
			for range copies {
				waiting = append(waiting, request{pdu, a.open[""], r.At})
			}
			continue
		}
		i := slices.IndexFunc(waiting, func(q request) bool { return q.fits(pdu) })
		if i < 0 {
			continue
		}
		a.open[""] = waiting[i].key
		if waiting = waiting[i+1:]; r.Verdict.arrives() {
			a.answer(r, "", pdu[0]&0x80 == 0)
		}
	}
	return a.keys
}

// request is one that a slave has got.
type request struct {
	pdu []byte
	key string // "": it writes nothing that matters
	at  time.Time
}

// fits says whether an answer can be one to it (V1.1b3, 6.12: those to function 16 have
// function, address and count).
func (q request) fits(answer []byte) bool {
	return q.pdu[0] == answer[0]&^0x80 && (answer[0] != 16 || len(q.pdu) > 5 && bytes.Equal(q.pdu[:5], answer))
}

// again follows requests and their answers.
type again struct {
	open  map[string]string // key of the request that waits for an answer
	acked map[string]time.Time
	keys  []string
}

func newAgain() *again {
	return &again{open: map[string]string{}, acked: map[string]time.Time{}}
}

func (a *again) request(r Record, open string, pdu []byte, key Key) {
	k, ok := key(pdu)
	delete(a.open, open)
	if !ok {
		return
	}
	a.open[open] = k
	if at, ok := a.acked[k]; ok && !r.Queued.Before(at) {
		a.keys = append(a.keys, k)
	}
}

// answer notes one to what is open.
func (a *again) answer(r Record, open string, positive bool) {
	if k := a.open[open]; k != "" && positive {
		if _, before := a.acked[k]; !before {
			a.acked[k] = r.At
		}
	}
	delete(a.open, open)
}
