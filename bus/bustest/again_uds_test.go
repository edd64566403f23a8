package bustest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
)

func TestAgainUDS(t *testing.T) {
	type say = bustest.Record
	tester := func(b ...byte) say { return say{From: "tester", Data: b} }
	answer := func(v bustest.Verdict, b ...byte) say { return say{From: "ECU", Verdict: v, Data: b} }
	begin := func(at byte) []say {
		return []say{tester(0x34, 0, 0x44, 0, 0, 0, at, 0, 0, 0, 9), answer("", 0x74, 0x20, 0, 7)}
	}
	block := func(n, length byte) say { return tester(append([]byte{0x36, n}, make([]byte, length)...)...) }
	late := func(s say) say { s.Queued = time.Unix(0, 0); return s } // it was sent earlier than all others
	for name, tt := range map[string]struct {
		records []say
		bytes   int64
		blocks  int
		again   int
	}{
		"in order":                 {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x76, 1), block(2, 4), answer("", 0x76, 2)}), 9, 2, 0},
		"answer lost":              {slices.Concat(begin(0), []say{block(1, 5), answer(bustest.Lose, 0x76, 1), block(1, 5), answer("", 0x76, 1), block(2, 4)}), 5, 3, 0},
		"refused":                  {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x7F, 0x36, 0x72), block(1, 5), answer("", 0x76, 1)}), 5, 2, 0},
		"resumed behind":           {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x76, 1)}, begin(5), []say{block(1, 4), answer("", 0x76, 1)}), 9, 2, 0},
		"acknowledged, again":      {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x76, 1)}, begin(0), []say{block(1, 5)}), 5, 2, 1},
		"a part again":             {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x76, 1)}, begin(4), []say{block(1, 5)}), 5, 2, 1},
		"the same counter again":   {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x76, 1), block(1, 5)}), 5, 2, 1},
		"it was on its way":        {slices.Concat(begin(0), []say{block(1, 5), answer("", 0x76, 1), late(block(1, 5)), answer("", 0x76, 1), block(2, 4), answer("", 0x76, 2)}), 9, 3, 0},
		"tester present":           {slices.Concat(begin(0), []say{block(1, 5), tester(0x3E, 0x80), answer("", 0x76, 1)}), 5, 1, 0},
		"asked something else":     {slices.Concat(begin(0), []say{block(1, 5), tester(0x22, 0xFD, 3), answer("", 0x76, 1)}), 0, 1, 0},
		"34 is refused":            {[]say{begin(0)[0], answer("", 0x7F, 0x34, 0x22), block(1, 5), answer("", 0x76, 1)}, 0, 0, 0},
		"a tester that says again": {slices.Concat(begin(0), begin(0), []say{block(1, 5), answer(bustest.Double, 0x76, 1), answer("", 0x76, 1), block(2, 4)}), 5, 2, 0},
	} {
		now := time.Unix(1, 0)
		for i := range tt.records {
			now = now.Add(time.Millisecond)
			if tt.records[i].Queued.IsZero() {
				tt.records[i].Queued = now
			}
			tt.records[i].At = now
		}
		bytes, blocks, again := bustest.AgainUDS(tt.records, "tester", 0)
		if bytes != tt.bytes || blocks != tt.blocks || len(again) != tt.again {
			t.Errorf("%s: got %d bytes, %d blocks, again %q; want %d, %d and %d", name, bytes, blocks, again, tt.bytes, tt.blocks, tt.again)
		}
		if _, _, again := bustest.AgainUDS(tt.records, "tester", time.Second); len(again) > 0 {
			t.Errorf("%s: got %q within the second that an answer may need, want nothing", name, again)
		}
	}
}
