package stream_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/interlock-energy/ota/source/awsiot/stream"
)

const (
	thing    = "bess-0001"
	streamID = "AFR_OTA-1"
)

// A network is a fake: a connection to a service that has one file, with delays,
// losses and doubles in simulated time. It counts what the reader asks for, and
// fails the test when a request is not one that the service would take.
type network struct {
	t    testing.TB
	file []byte
	id   int
	rnd  *rand.Rand

	delay      time.Duration // one way
	jitter     time.Duration // 0 to this, added to each delay; messages overtake each other
	bandwidth  int64         // bytes a second, to the reader; 0: any
	slowTo     int64         // bandwidth after a quarter of the file; 0: stays
	lose, dupe float64       // of messages
	silent     bool          // the service does not answer
	refuse     func(n int) map[string]any
	change     func(block int, m map[string]any) // an answer, before it is sent

	mu       sync.Mutex
	ctx      context.Context // messages under way end with it
	down     bool
	free     time.Time // when the line to the reader is
	subs     map[string]map[int]func(string, []byte)
	nextSub  int
	requests int
	sent     int64           // bytes of blocks
	asked    map[int]int     // how often, by block
	came     map[string]bool // of an ask, see key: an answer was delivered
	offsets  []int
	bitmaps  int
}

func newNetwork(t testing.TB, size int, seed uint64) *network {
	n := &network{t: t, file: pattern(size), rnd: rand.New(rand.NewPCG(seed, 1)), delay: 50 * time.Millisecond,
		ctx: t.Context(), subs: map[string]map[int]func(string, []byte){}, asked: map[int]int{}, came: map[string]bool{}}
	return n
}

// pattern returns bytes that differ from block to block.
func pattern(size int) []byte {
	b := make([]byte, size+8)
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(i)*0x9E3779B97F4A7C15+1)
	}
	return b[:size]
}

func (n *network) Subscribe(ctx context.Context, filter string, handle func(string, []byte)) (func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, errors.New("not connected")
	}
	if n.subs[filter] == nil {
		n.subs[filter] = map[int]func(string, []byte){}
	}
	n.nextSub++
	key := n.nextSub
	n.subs[filter][key] = handle
	return func() { n.mu.Lock(); delete(n.subs[filter], key); n.mu.Unlock() }, nil
}

func (n *network) Publish(ctx context.Context, topic string, qos byte, payload []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return errors.New("not connected")
	}
	prefix := "$aws/things/" + thing + "/streams/" + streamID + "/"
	kind, ok := strings.CutPrefix(topic, prefix)
	verb, format, _ := strings.Cut(kind, "/")
	if !ok || format != "json" && format != "cbor" {
		n.t.Errorf("published to %s", topic)
		return nil
	}
	n.requests++
	lost := n.rnd.Float64() < n.lose
	copies := 1
	if n.rnd.Float64() < n.dupe {
		copies = 2
	}
	if verb == "describe" {
		n.later(func() { n.describe(payload, format) })
		return nil
	}
	blocks, req := n.parse(payload, format)
	for _, b := range blocks {
		n.asked[b]++
		n.came[req.key(b)] = false
	}
	for range copies {
		if !lost {
			n.later(func() { n.answer(req, blocks, format) })
		}
	}
	return nil
}

// request is what the service reads. It is a type of its own, so that a field that
// the reader writes wrongly is not read wrongly in the same way.
type request struct {
	c          string
	f, l, o, n int
	s          any
}

// key names one time that a block was asked for.
func (r request) key(block int) string { return fmt.Sprint(block, " ", r.c) }

// parse checks a request by the guide's limits and returns the blocks that it means.
func (n *network) parse(payload []byte, format string) ([]int, request) {
	var m map[string]any
	var err error
	if format == "json" {
		err = json.Unmarshal(payload, &m)
	} else {
		err = cbor.Unmarshal(payload, &m)
	}
	if err != nil {
		n.t.Errorf("request %q: %v", payload, err)
	}
	number := func(name string, low, high int) int {
		var v int
		switch x := m[name].(type) {
		case float64:
			v = int(x)
		case uint64:
			v = int(x)
		default:
			n.t.Errorf("request: %s is %v (%T)", name, x, x)
		}
		if v < low || v > high {
			n.t.Errorf("request: %s is %d, want %d to %d", name, v, low, high)
		}
		return v
	}
	r := request{f: number("f", 0, 255), l: number("l", 256, 131072), o: number("o", 0, 98304), n: number("n", 1, 98304), s: m["s"]}
	if r.c, _ = m["c"].(string); r.c == "" || len(r.c) > 64 {
		n.t.Errorf("request: token %q, want 1 to 64 bytes", r.c)
	}
	n.offsets = append(n.offsets, r.o)
	var bitmap []byte
	switch b := m["b"].(type) {
	case nil:
	case []byte:
		bitmap = b
	case string:
		if bitmap, err = hex.DecodeString(strings.TrimPrefix(b, "0x")); err != nil || !strings.HasPrefix(b, "0x") {
			n.t.Errorf("request: bitmap %q: %v", b, err)
		}
	}
	var blocks []int
	if bitmap == nil {
		for i := range r.n {
			blocks = append(blocks, r.o+i)
		}
	} else {
		n.bitmaps++
		for i := range 8 * len(bitmap) {
			if bitmap[i/8]>>(i%8)&1 == 1 && len(blocks) < r.n {
				blocks = append(blocks, r.o+i)
			}
		}
		if len(bitmap) >= 12288 || bitmap[len(bitmap)-1] == 0 {
			n.t.Errorf("request: bitmap of %d bytes, the last %d", len(bitmap), bitmap[len(bitmap)-1])
		}
	}
	total := 0
	for i, b := range blocks {
		if from := b * r.l; from >= len(n.file) {
			n.t.Errorf("request: block %d is behind the end", b)
			blocks = blocks[:i]
			break
		}
		total += r.l
	}
	if total > 131072 {
		n.t.Errorf("request for %d bytes, want at most 131072", total)
	}
	return blocks, r
}

func (n *network) answer(r request, blocks []int, format string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.silent {
		return
	}
	if n.refuse != nil {
		if m := n.refuse(n.requests); m != nil {
			if m["c"] == "same" {
				m["c"] = r.c
			}
			n.send("rejected/"+format, m, format)
			return
		}
	}
	for _, b := range blocks {
		data := n.file[b*r.l : min((b+1)*r.l, len(n.file))]
		n.sent += int64(len(data))
		m := map[string]any{"c": r.c, "f": n.id, "l": len(data), "i": b, "p": data}
		if n.change != nil {
			n.change(b, m)
		}
		if n.down || n.rnd.Float64() < n.lose {
			continue
		}
		n.came[r.key(b)] = true
		n.send("data/"+format, m, format)
		if n.rnd.Float64() < n.dupe {
			n.send("data/"+format, m, format)
		}
	}
}

func (n *network) describe(payload []byte, format string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var q struct {
		C string `json:"c" cbor:"c"`
	}
	if format == "json" {
		json.Unmarshal(payload, &q)
	} else {
		cbor.Unmarshal(payload, &q)
	}
	if n.silent {
		return
	}
	if n.refuse != nil {
		if m := n.refuse(n.requests); m != nil {
			n.send("rejected/"+format, m, format)
			return
		}
	}
	n.send("description/"+format, map[string]any{"c": q.C, "s": 3, "d": "a file",
		"r": []any{map[string]any{"f": n.id, "z": len(n.file)}}}, format)
}

func (n *network) send(topic string, m map[string]any, format string) {
	var payload []byte
	var err error
	if format == "json" {
		payload, err = json.Marshal(m)
	} else {
		payload, err = cbor.Marshal(m)
	}
	if err != nil {
		n.t.Error(err)
	}
	n.deliver(topic, payload)
}

// deliver brings a message to the reader after the delay, and after what is on the
// line before it.
func (n *network) deliver(topic string, payload []byte) {
	topic = "$aws/things/" + thing + "/streams/" + streamID + "/" + topic
	var line time.Duration
	if n.bandwidth > 0 {
		now := time.Now()
		if n.free.Before(now) {
			n.free = now
		}
		speed := n.bandwidth
		if n.slowTo > 0 && n.sent > int64(len(n.file)/4) {
			speed = n.slowTo
		}
		n.free = n.free.Add(time.Duration(int64(len(payload)) * int64(time.Second) / speed))
		line = n.free.Sub(now)
	}
	n.after(line+n.wait(), func() {
		n.mu.Lock()
		var handlers []func(string, []byte)
		for _, h := range n.subs[topic] {
			handlers = append(handlers, h)
		}
		n.mu.Unlock()
		b := bytes.Clone(payload)
		for _, h := range handlers {
			h(topic, b)
		}
		for i := range b { // whoever has kept it reads nonsense
			b[i] = 0xEE
		}
	})
}

func (n *network) wait() time.Duration {
	d := n.delay
	if n.jitter > 0 {
		d += time.Duration(n.rnd.Int64N(int64(n.jitter)))
	}
	return d
}

func (n *network) later(do func()) { n.after(n.wait(), do) }

func (n *network) after(d time.Duration, do func()) {
	go func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			do()
		case <-n.ctx.Done():
		}
	}()
}

// tooOften returns what is wrong with how often blocks were asked for: at most once,
// and once more for each time that nothing came of it.
func (n *network) tooOften() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	lost := n.lost()
	for b, asked := range n.asked {
		if asked > lost[b]+1 {
			return fmt.Errorf("block %d was asked for %d times, and lost %d times", b, asked, lost[b])
		}
	}
	return nil
}

func (n *network) lost() map[int]int {
	lost := map[int]int{}
	for key, came := range n.came {
		var b int
		fmt.Sscan(key, &b)
		if !came {
			lost[b]++
		}
	}
	return lost
}

func sum(m map[int]int) (sum int) {
	for _, v := range m {
		sum += v
	}
	return sum
}

func (n *network) options() stream.Options {
	return stream.Options{Thing: thing, Stream: streamID, FileID: n.id, Size: int64(len(n.file))}
}
