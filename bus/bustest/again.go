package bustest

import (
	"bytes"
	"encoding/binary"
	"fmt"
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
	a := newAgain()
	for _, r := range records {
		pdu, open := r.Data, "line"
		switch {
		case tcp && len(r.Data) > 7:
			pdu, open = r.Data[7:], fmt.Sprint(r.Conn, " ", binary.BigEndian.Uint16(r.Data))
		case !tcp && len(r.Data) > 3:
			pdu = r.Data[1 : len(r.Data)-2]
		default:
			continue
		}
		if r.From == Master {
			a.request(r, open, pdu, key)
		} else if r.Verdict.arrives() {
			a.answer(r, open, pdu[0]&0x80 == 0, pdu)
		}
	}
	return a.keys
}

// AgainUDS returns the keys of what a UDS tester sent again after it had got a positive
// answer to it. The records carry PDUs, as those of [PDUs] and [Watch] do.
func AgainUDS(records []Record, tester string, key Key) []string {
	a := newAgain()
	for _, r := range records {
		switch {
		case len(r.Data) == 0:
		case r.From == tester:
			a.request(r, "", r.Data, key)
		case r.Verdict.arrives() && r.Data[0] == a.service+0x40: // 14229-1, 8.2
			a.answer(r, "", true, nil)
		}
	}
	return a.keys
}

// again follows requests and their answers.
type again struct {
	open    map[string]string // key of the request that waits for an answer
	echoes  map[string][]byte // what the answer to it begins with, if that is known
	service byte
	acked   map[string]time.Time
	keys    []string
}

func newAgain() *again {
	return &again{open: map[string]string{}, echoes: map[string][]byte{}, acked: map[string]time.Time{}}
}

func (a *again) request(r Record, open string, pdu []byte, key Key) {
	k, ok := key(pdu)
	a.service = pdu[0]
	delete(a.open, open)
	if !ok {
		return
	}
	a.open[open] = k
	if pdu[0] == 16 && len(pdu) > 5 { // V1.1b3, 6.12: function, address and count
		a.echoes[open] = pdu[:5]
	} else {
		delete(a.echoes, open)
	}
	if at, ok := a.acked[k]; ok && !r.Queued.Before(at) {
		a.keys = append(a.keys, k)
	}
}

// answer notes one. On a serial line, where answers have no number, a late one to something
// else is told apart by what it echoes, as far as a master can.
func (a *again) answer(r Record, open string, positive bool, pdu []byte) {
	if e := a.echoes[open]; pdu != nil && positive && e != nil && !bytes.Equal(pdu, e) {
		return
	}
	if k, ok := a.open[open]; ok && positive {
		if _, before := a.acked[k]; !before {
			a.acked[k] = r.At
		}
	}
	delete(a.open, open)
}
