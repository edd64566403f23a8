package bustest

import (
	"encoding/binary"
	"fmt"
	"time"
)

// AgainUDS follows what a tester and a controller said about a file: 34 says where blocks
// begin (ISO 14229-1, 14.2, with addresses of four bytes), and each 36 brings the next one, of
// any size, or with the counter of the one before it that one again. It returns how many bytes
// from the beginning of the file were acknowledged, how many blocks were sent, and those
// that were sent although all or a part of them had been acknowledged for longer than late,
// which is how long an answer may need on its way from where it was recorded. The
// records carry PDUs, as those of [PDUs] and [Watch] do.
func AgainUDS(records []Record, tester string, late time.Duration) (acknowledged int64, blocks int, again []string) {
	type span struct {
		begin, end int64
		at         time.Time // the acknowledgement
	}
	var acked []span
	var last span                  // block
	var counter byte               // its
	var address int64              // of the last 34
	var announced, begun, due bool // a 34 is to be answered; one was; a 36 is to be
	for _, r := range records {
		switch d := r.Data; {
		case len(d) == 0, r.From == tester && d[0] == 0x3E, r.From != tester && !r.Verdict.arrives():
		case r.From == tester && d[0] == 0x34 && len(d) == 11 && d[2] == 0x44:
			address, announced, due = int64(binary.BigEndian.Uint32(d[3:])), true, false
		case r.From == tester && d[0] == 0x36 && len(d) > 2 && begun:
			blocks++
			if d[1] != counter {
				last, counter = span{begin: last.end, end: last.end + int64(len(d)-2)}, d[1]
			}
			due = true
			for _, a := range acked {
				if last.begin < a.end && a.begin < last.end && !r.Queued.Before(a.at.Add(late)) {
					again = append(again, fmt.Sprintf("bytes %d to %d, of which %d to %d were acknowledged", last.begin, last.end, a.begin, a.end))
				}
			}
		case r.From == tester:
			due = false
		case d[0] == 0x74 && announced:
			last, counter, announced, begun = span{end: address}, 0, false, true
		case d[0] == 0x76 && len(d) > 1 && d[1] == counter && due:
			last.at, due = r.At, false
			acked, acknowledged = append(acked, last), max(acknowledged, last.end)
		}
	}
	return acknowledged, blocks, again
}
