package awstest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

const streamTopicOf = "$aws/things/dev-1/streams/s1/"

func newStreams(t *testing.T, size int) (*Streams, []byte) {
	t.Helper()
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	s := NewStreams()
	if err := s.Create("dev-1", "s1", map[int][]byte{0: content, 255: {1}}); err != nil {
		t.Fatal(err)
	}
	return s, content
}

func sent(s *Streams, verb string, payload []byte) []string {
	var out []string
	for _, m := range s.handle(streamTopicOf+verb, payload) {
		out = append(out, strings.TrimPrefix(m.Topic, streamTopicOf)+" "+string(m.Payload))
	}
	return out
}

func TestStreamDescribe(t *testing.T) {
	s, _ := newStreams(t, 131072)
	want(t, sent(s, "describe/json", []byte(`{"c":"a"}`)),
		`description/json {"c":"a","d":"awstest","r":[{"f":0,"z":131072},{"f":255,"z":1}],"s":1}`)
	request, _ := cbor.Marshal(map[string]any{})
	m := s.handle(streamTopicOf+"describe/cbor", request)
	var got struct {
		S int `cbor:"s"`
		R []struct {
			F int `cbor:"f"`
			Z int `cbor:"z"`
		} `cbor:"r"`
	}
	if err := cbor.Unmarshal(m[0].Payload, &got); err != nil || got.S != 1 || len(got.R) != 2 || got.R[0].Z != 131072 {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.Replace("s1", map[int][]byte{0: {1, 2}}); err != nil {
		t.Fatal(err)
	}
	want(t, sent(s, "describe/json", []byte(`{}`)), `description/json {"d":"awstest","r":[{"f":0,"z":2}],"s":2}`)
}

// block is what one data message says.
type block struct {
	C string `json:"c" cbor:"c"`
	F int    `json:"f" cbor:"f"`
	L int    `json:"l" cbor:"l"`
	I int    `json:"i" cbor:"i"`
}

func TestStreamBlocksAskedForAndSent(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		blocks  []int
	}{
		"one":                            {`{"f":0,"l":256,"n":1}`, []int{0}},
		"from an offset":                 {`{"f":0,"l":256,"o":5,"n":2}`, []int{5, 6}},
		"to the end":                     {`{"f":0,"l":256,"o":30,"n":100}`, []int{30, 31, 32, 33}},
		"AWS's example of a bitmap":      {`{"f":0,"l":256,"b":"0x130080"}`, []int{0, 1, 4, 23}},
		"a bitmap from an offset":        {`{"f":0,"l":256,"o":3,"b":"0x05"}`, []int{3, 5}},
		"n caps the bitmap":              {`{"f":0,"l":256,"b":"0xff","n":3}`, []int{0, 1, 2}},
		"a bitmap beyond the end":        {`{"f":0,"l":256,"o":33,"b":"0xff"}`, []int{33}},
		"version 1, as the C library":    {`{"s":1,"f":0,"l":4096,"o":0,"n":1}`, []int{0}},
		"a block larger than the file":   {`{"f":0,"l":131072}`, []int{0}},
		"n of 0 is no limit":             {`{"f":0,"l":4096,"n":0}`, []int{0, 1, 2}},
		"blocks of which the last is 52": {`{"f":0,"l":8448,"n":2}`, []int{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s, content := newStreams(t, 8500)
			var request struct{ L int }
			if err := json.Unmarshal([]byte(c.request), &request); err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, m := range s.handle(streamTopicOf+"get/json", []byte(c.request)) {
				var b struct {
					block
					P string `json:"p"`
				}
				if err := json.Unmarshal(m.Payload, &b); err != nil || m.Topic != streamTopicOf+"data/json" {
					t.Fatalf("got %s %s", m.Topic, m.Payload)
				}
				p, err := base64.StdEncoding.DecodeString(b.P)
				from := b.I * request.L
				if err != nil || b.L != len(p) || !bytes.Equal(p, content[from:min(from+request.L, len(content))]) {
					t.Errorf("block %d has %d bytes that are not the file's, %v", b.I, len(p), err)
				}
				got = append(got, b.I)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.blocks) {
				t.Errorf("got blocks %v, want %v", got, c.blocks)
			}
		})
	}
}

func TestStreamSendsAtMost128KiBForOneRequest(t *testing.T) {
	s, _ := newStreams(t, 1<<20)
	for size, blocks := range map[int]int{256: 512, 4096: 32, 100000: 1, 131072: 1} {
		if got := len(s.handle(streamTopicOf+"get/json", fmt.Appendf(nil, `{"f":0,"l":%d,"n":98304}`, size))); got != blocks {
			t.Errorf("blocks of %d: got %d, want %d", size, got, blocks)
		}
	}
}

// AWS's C library in CBOR: the token "rdy", and as bitmap the four ASCII bytes MQ==.
func TestStreamToTheCLibrary(t *testing.T) {
	s, content := newStreams(t, 20*4096+17)
	request, err := cbor.Marshal(map[string]any{"c": "rdy", "f": 0, "l": 4096, "o": 18, "n": 4, "b": []byte("MQ==")})
	if err != nil {
		t.Fatal(err)
	}
	var got []int // M is 0x4d: bits 0, 2, 3, 6
	for _, m := range s.handle(streamTopicOf+"get/cbor", request) {
		var b struct {
			block
			P []byte `cbor:"p"`
		}
		if err := cbor.Unmarshal(m.Payload, &b); err != nil || b.C != "rdy" || m.Topic != streamTopicOf+"data/cbor" {
			t.Fatalf("got %s, %+v, %v", m.Topic, b, err)
		}
		if !bytes.Equal(b.P, content[b.I*4096:min(b.I*4096+4096, len(content))]) || b.L != len(b.P) {
			t.Errorf("block %d is not the file's", b.I)
		}
		got = append(got, b.I)
	}
	if want := []int{18, 20}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestStreamRejections(t *testing.T) {
	for request, code := range map[string]string{
		`x`:                                    "InvalidJson",
		`[]`:                                   "InvalidJson",
		`{}`:                                   "InvalidRequest",
		`{"f":0}`:                              "InvalidRequest",
		`{"f":"0","l":256}`:                    "InvalidRequest",
		`{"f":256,"l":256}`:                    "InvalidRequest",
		`{"f":-1,"l":256}`:                     "InvalidRequest",
		`{"f":1,"l":256}`:                      "ResourceNotFound",
		`{"f":0,"l":255}`:                      "BlockSizeOutOfBounds",
		`{"f":0,"l":131073}`:                   "BlockSizeOutOfBounds",
		`{"f":0,"l":256,"o":4}`:                "OffsetOutOfBounds",
		`{"f":0,"l":256,"o":-1}`:               "OffsetOutOfBounds",
		`{"f":0,"l":256,"o":9223372036854775}`: "OffsetOutOfBounds",
		`{"f":0,"l":256,"n":98305}`:            "BlockCountLimitExceeded",
		`{"f":0,"l":256,"n":-1}`:               "BlockCountLimitExceeded",
		`{"s":2,"f":0,"l":256}`:                "VersionMismatch",
		`{"f":0,"l":256,"b":"0x1"}`:            "InvalidRequest",
		`{"f":0,"l":256,"b":""}`:               "InvalidRequest",
		`{"f":0,"l":256,"b":"MQ=="}`:           "InvalidRequest",
		`{"f":0,"l":256,"b":7}`:                "InvalidRequest",
		`{"f":0,"l":256,"c":"` + strings.Repeat("x", 65) + `"}`:     "InvalidRequest",
		`{"f":0,"l":256,"b":"` + strings.Repeat("00", 12288) + `"}`: "BlockBitmapLimitExceeded",
	} {
		s, _ := newStreams(t, 1024)
		got := sent(s, "get/json", []byte(request))
		if len(got) != 1 || !strings.HasPrefix(got[0], "rejected/json {") || !strings.Contains(got[0], `"o":"`+code+`"`) {
			t.Errorf("%.60s: got %.200v, want %s", request, got, code)
		}
	}
	s, _ := newStreams(t, 1024)
	for topic, code := range map[string]string{
		"$aws/things/dev-1/streams/s2/get/json": "ResourceNotFound",
		"$aws/things/dev-2/streams/s1/get/json": "Unauthorized",
		"$aws/things/dev-1/streams/s1/put/json": "InvalidTopic",
		"$aws/things/dev-1/streams/s1/get/xml":  "InvalidTopic",
	} {
		if got := s.handle(topic, []byte(`{"f":0,"l":256,"c":"t"}`)); len(got) != 1 || !contains(got[0].Payload, code) {
			t.Errorf("%s: got %v, want %s", topic, got, code)
		}
	}
	if got := s.handle(streamTopicOf+"get/cbor", []byte(`{"f":0}`)); len(got) != 1 || !contains(got[0].Payload, "InvalidCbor") {
		t.Errorf("JSON for CBOR: got %v", got)
	}
	for _, own := range []string{"data/json", "rejected/cbor", "description/json"} {
		if got := s.handle(streamTopicOf+own, []byte(`{}`)); got != nil {
			t.Errorf("%s: got %v, want silence", own, got)
		}
	}
}

func TestStreamCreateRefuses(t *testing.T) {
	s, _ := newStreams(t, 1)
	eleven := map[int][]byte{}
	for i := range 11 {
		eleven[i] = []byte{1}
	}
	for name, c := range map[string]struct {
		id    string
		files map[int][]byte
	}{
		"a known id": {"s1", map[int][]byte{0: {1}}}, "no file": {"s", nil}, "an empty file": {"s", map[int][]byte{0: {}}},
		"file 256": {"s", map[int][]byte{256: {1}}}, "eleven files": {"s", eleven}, "a slash": {"a/b", map[int][]byte{0: {1}}},
		"more than 24 MiB": {"s", map[int][]byte{0: make([]byte, 24<<20+1)}},
	} {
		if err := s.Create("", c.id, c.files); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// Over the broker, with a third of the blocks lost or doubled: asking again for
// what is missing brings the file.
func TestStreamOverTheBrokerWithLosses(t *testing.T) {
	s, content := newStreams(t, 100_000)
	s.Fault(SeededBlocks(1, 0.2, 0.1))
	b := StartBroker(t, NewCA(t), s)
	d := mustConnect(t, b, "dev-1", streamTopicOf+"data/cbor")
	have := map[int][]byte{}
	const size = 1024
	blocks := (len(content) + size - 1) / size
	rounds := 0
	for ; len(have) < blocks && rounds < 50; rounds++ {
		bitmap := make([]byte, (blocks+7)/8)
		for i := range blocks {
			if have[i] == nil {
				bitmap[i/8] |= 1 << (i % 8)
			}
		}
		before := s.Blocks()
		request, _ := cbor.Marshal(map[string]any{"f": 0, "l": size, "b": bitmap, "c": fmt.Sprint(rounds)})
		if err := d.send(streamTopicOf+"get/cbor", string(request)); err != nil {
			t.Fatal(err)
		}
		if s.Blocks() == before {
			t.Fatal("nothing was sent")
		}
		b.Publish(streamTopicOf+"data/cbor", []byte("end")) // of this round: it comes behind all blocks
		for {
			_, payload, _ := strings.Cut(d.next(), " ")
			if payload == "end" {
				break
			}
			var got struct {
				block
				P []byte `cbor:"p"`
			}
			if err := cbor.Unmarshal([]byte(payload), &got); err != nil {
				t.Fatal(err)
			}
			have[got.I] = got.P
		}
	}
	var whole []byte
	for i := range blocks {
		whole = append(whole, have[i]...)
	}
	if !bytes.Equal(whole, content) || rounds < 2 {
		t.Errorf("got %d bytes in %d rounds, want the %d of the file in several", len(whole), rounds, len(content))
	}
}

func FuzzStreamRequest(f *testing.F) {
	f.Add("get/json", []byte(`{"c":"t","s":1,"f":0,"l":256,"o":1,"n":2,"b":"0x0f"}`))
	f.Add("describe/json", []byte(`{}`))
	c, _ := cbor.Marshal(map[string]any{"f": 0, "l": 4096, "b": []byte("MQ=="), "n": 1})
	f.Add("get/cbor", c)
	f.Fuzz(func(t *testing.T, verb string, payload []byte) {
		if tooLong(streamTopicOf+verb) != "" {
			t.Skip("no broker would bring it")
		}
		s := NewStreams()
		if err := s.Create("", "s1", map[int][]byte{0: make([]byte, 5000)}); err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, m := range s.handle(streamTopicOf+verb, payload) {
			if _, again := parseStreamTopic(m.Topic); again {
				t.Fatalf("its own message on %q would be taken for a request", m.Topic)
			}
			total += len(m.Payload)
		}
		if total > 20000 {
			t.Fatalf("%d bytes for a file of 5000", total)
		}
	})
}
