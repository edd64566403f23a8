package stream

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/interlock-energy/ota"
)

// FuzzMessages: whatever comes, on whichever topic, a reader takes nothing but blocks
// of its file with their length, and never more memory than its window.
func FuzzMessages(f *testing.F) {
	for _, m := range []map[string]any{
		{"c": "x-1-0", "f": 0, "l": 300, "i": 0, "p": make([]byte, 300)},
		{"f": 0, "l": 100, "i": 3, "p": make([]byte, 100)},
		{"f": 0, "l": 0, "i": -1, "p": []byte{}},
		{"o": "InternalError", "m": "m"}, {"code": "ETagMismatch", "message": "m", "clientToken": "x-1-0"},
		{"c": "t", "s": 1, "d": "text", "r": []any{map[string]any{"f": 0, "z": 1000}}},
	} {
		j, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		c, err := cbor.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		for topic := range byte(3) {
			f.Add(j, topic, true)
			f.Add(c, topic, false)
		}
	}
	f.Add([]byte{0xBF, 0x61, 'i', 0x00, 0x61, 'i', 0x01, 0xFF}, byte(0), false)         // indefinite length, a key twice
	f.Add([]byte{0x9B, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}, byte(0), false) // a list of 2^64-1
	f.Add([]byte(`{"f":0,"l":1e2,"i":0.5,"p":"AA=="}`), byte(0), true)
	f.Fuzz(func(t *testing.T, b []byte, topic byte, inJSON bool) {
		o := Options{Thing: "t", Stream: "s", Size: 1000, BlockSize: 300, Window: 900}
		if inJSON {
			o.Format = JSON
		}
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
		r := &reader{o: o, token: "x", start: time.Now(), w: newWindow(&o), came: make(chan struct{}, 1), asking: make(chan struct{}, 1)}
		r.w.ask(time.Now())
		for range maxBad {
			switch topic % 3 {
			case 0:
				r.data(b)
			case 1:
				r.rejected(b)
			case 2:
				if _, d, err := o.Format.parseDescription(b); err == nil && len(d.Files) > MaxFileID+1 {
					t.Errorf("%d files", len(d.Files))
				}
			}
		}
		busy := 0
		for block := r.w.base; block < r.w.top(); block++ {
			s := r.w.slot(block)
			if s.state != missing {
				busy++
			}
			if s.state == have && len(s.data) != r.w.length(block) {
				t.Errorf("block %d has %d bytes, want %d", block, len(s.data), r.w.length(block))
			}
		}
		if busy != r.w.busy {
			t.Errorf("%d blocks are not missing, counted %d", busy, r.w.busy)
		}
		if r.err != nil && !errors.Is(r.err, ota.ErrServer) && !errors.Is(r.err, ota.ErrAuthentication) {
			t.Errorf("ended by %v", r.err)
		}
	})
}

// TestRequestsAsInTheGuide compares with the example of the Developer Guide, "Build a
// bitmap for a GetStream request": blocks 20, 21, 24 and 43.
func TestRequestsAsInTheGuide(t *testing.T) {
	offset, count, b := (&request{blocks: []int{20, 21, 24, 43}}).bitmap()
	got, err := JSON.encode(getRequest{Token: "1", Version: 1, File: 1, Length: 256, Offset: offset, Count: count, Bitmap: b})
	if want := `{"c":"1","s":1,"f":1,"l":256,"o":20,"n":4,"b":"0x130080"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	binary, err := CBOR.encode(getRequest{Token: "1", File: 1, Length: 256, Offset: offset, Count: count, Bitmap: b})
	var m map[string]any
	if err := errors.Join(err, cbor.Unmarshal(binary, &m)); err != nil {
		t.Fatal(err)
	}
	if got, ok := m["b"].([]byte); !ok || string(got) != "\x13\x00\x80" || len(m) != 6 {
		t.Errorf("got %v, want a byte string 13 00 80 and six fields", m)
	}
}
