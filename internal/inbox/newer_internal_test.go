package inbox

import (
	"bytes"
	"encoding/json"
	"hash/crc32"
	"testing"

	"github.com/interlock-energy/ota"
)

// The device has gone back to an agent that does not know all that a newer one has written down: neither the
// transfer nor how the last update ended is lost over that. Another format is not guessed at.
func TestJournalOfANewerAgent(t *testing.T) {
	s := state{Format: 1, Phase: Requested, Size: 700, File: 3, Version: "1.1.0", Digest: "d", Asked: true,
		Last: &ota.Report{ID: "7", Digest: "e", Result: ota.Failed}}
	p, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	p = bytes.Replace(p, []byte(`"id":"7"`), []byte(`"id":"7","of_tomorrow":{"a":[1]}`), 1)
	p = bytes.Replace(p, []byte(`"asked":true`), []byte(`"asked":true,"also":"x"`), 1)
	journal := func(p []byte) []byte {
		b := append(appendCell(nil, cellBegin, crc32.ChecksumIEEE(p), 0, int64(len(p))), p...)
		return append(b, make([]byte, roundUp(int64(len(b)))-int64(len(b)))...)
	}
	got := parseJournal(journal(p)).state
	if got == nil || got.Phase != Requested || !got.Asked || got.Digest != "d" || got.Last == nil || got.Last.ID != "7" {
		t.Errorf("got %+v, want what was asked for, and how the last update ended", got)
	}
	if got := parseJournal(journal(bytes.Replace(p, []byte(`"format":1`), []byte(`"format":2`), 1))).state; got != nil {
		t.Errorf("got %+v of another format, want nothing", got)
	}
}
