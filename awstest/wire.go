package awstest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// wire is a connection that knows where MQTT packets begin and end, so that a
// message can be lost, doubled or held up between a device and the broker, and the
// connection cut right before or after it.
type wire struct {
	net.Conn
	broker *Broker

	client  string        // of CONNECT; written and read by the reader only, others ask who
	who     atomic.Value  // the same, for the writer
	version atomic.Uint32 // of MQTT
	in      *bufio.Reader
	pending []byte            // to be handed to the broker
	raw     bool              // too large to look at: the broker will refuse it
	aliases map[uint16]string // of MQTT 5, from the device
	after   Action            // what to do when the broker has worked off what is pending

	mute atomic.Bool // nothing reaches the device any more

	mu     sync.Mutex // of what follows
	out    []byte     // of a packet that is not whole yet
	topics map[uint16]string

	gone chan struct{}
	once sync.Once
}

func newWire(c net.Conn, b *Broker) *wire {
	return &wire{
		Conn: c, broker: b, in: bufio.NewReader(c), gone: make(chan struct{}),
		aliases: map[uint16]string{}, topics: map[uint16]string{},
	}
}

// maxWirePacket is more than any packet that the broker takes (maxPacket).
const maxWirePacket = 1 << 20

// Close ends the connection without a word: also without TLS's, as when a cable is pulled.
func (w *wire) Close() error {
	w.once.Do(func() { close(w.gone) })
	if c, ok := w.Conn.(*tls.Conn); ok {
		return c.NetConn().Close()
	}
	return w.Conn.Close()
}

func (w *wire) Read(p []byte) (int, error) {
	for len(w.pending) == 0 {
		if w.raw {
			return w.in.Read(p)
		}
		if w.after != Deliver { // the broker has worked off the packet, so it asks for more
			return 0, w.cut(w.after == KillAfter)
		}
		if err := w.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.pending)
	w.pending = w.pending[n:]
	return n, nil
}

var errCut = errors.New("the test cut the connection")

func (w *wire) cut(kill bool) error {
	w.mute.Store(true)
	if kill {
		w.broker.killed()
	}
	w.Close()
	return errCut
}

// next reads one packet and decides what of it the broker is to see.
func (w *wire) next() error {
	packet, whole, err := readPacket(w.in)
	if err != nil {
		return err
	}
	w.pending = packet
	if !whole {
		w.raw = true
		return nil
	}
	switch packet[0] >> 4 {
	case packets.Connect:
		w.connect(packet)
	case packets.Publish:
		return w.publish(packet)
	}
	return nil
}

func (w *wire) connect(packet []byte) {
	pk, ok := decode(packet, 0)
	if !ok {
		return // the broker says what is wrong
	}
	w.client = pk.Connect.ClientIdentifier
	w.who.Store(w.client)
	w.version.Store(uint32(pk.ProtocolVersion))
}

func (w *wire) publish(packet []byte) error {
	pk, ok := decode(packet, byte(w.version.Load()))
	if !ok {
		return nil
	}
	fate := w.broker.fate(w.describe(pk, ToBroker, w.client, w.aliases))
	if err := w.wait(fate.Delay); err != nil {
		return err
	}
	switch fate.Action {
	case Lose:
		w.pending = nil
	case Double:
		w.pending = append(slices.Clip(packet), again(packet)...)
	case CutBefore, KillBefore:
		w.pending = nil
		return w.cut(fate.Action == KillBefore)
	case CutAfter, KillAfter:
		w.mute.Store(true)
		w.after = fate.Action
	}
	return nil
}

// Write takes what the broker has for the device: whole packets, or parts of them.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, p...)
	for {
		packet, rest, ok := splitPacket(w.out)
		if !ok {
			return len(p), nil
		}
		w.out = rest
		if err := w.send(packet); err != nil {
			return 0, err
		}
	}
}

func (w *wire) send(packet []byte) error {
	if w.mute.Load() {
		return nil
	}
	if packet[0]>>4 != packets.Publish {
		return w.write(packet)
	}
	pk, ok := decode(packet, byte(w.version.Load()))
	if !ok {
		return w.write(packet)
	}
	who, _ := w.who.Load().(string)
	fate := w.broker.fate(w.describe(pk, ToDevice, who, w.topics))
	if err := w.wait(fate.Delay); err != nil {
		return err
	}
	switch fate.Action {
	case Lose:
		return nil
	case CutBefore, KillBefore:
		return w.cut(fate.Action == KillBefore)
	}
	if err := w.write(packet); err != nil {
		return err
	}
	switch fate.Action {
	case Double:
		return w.write(again(packet))
	case CutAfter, KillAfter:
		return w.cut(fate.Action == KillAfter)
	}
	return nil
}

func (w *wire) write(packet []byte) error {
	_, err := w.Conn.Write(packet)
	return err
}

func (w *wire) wait(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-w.gone:
		return errCut
	}
}

// describe also follows the topic aliases of MQTT 5 (section 3.3.2.3.4).
func (w *wire) describe(pk packets.Packet, d Direction, client string, aliases map[uint16]string) Packet {
	topic := pk.TopicName
	if pk.Properties.TopicAliasFlag {
		if topic == "" {
			topic = aliases[pk.Properties.TopicAlias]
		} else {
			aliases[pk.Properties.TopicAlias] = topic
		}
	}
	return Packet{
		Client: client, Direction: d, Topic: topic, Payload: pk.Payload,
		QoS: pk.FixedHeader.Qos, Dup: pk.FixedHeader.Dup,
	}
}

// again is the packet as it looks when it is sent again: with DUP if it may have
// that (MQTT-3.3.1-2).
func again(packet []byte) []byte {
	packet = bytes.Clone(packet)
	if packet[0]>>1&3 > 0 {
		packet[0] |= 8
	}
	return packet
}

// readPacket reads one packet whole, or, if it is larger than maxWirePacket, only
// its fixed header (MQTT 5, section 2.1).
func readPacket(r *bufio.Reader) (packet []byte, whole bool, err error) {
	for n := 1; ; n++ {
		head, err := r.Peek(n + 1)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, false, err
		}
		if head[n] >= 0x80 && n < 4 {
			continue
		}
		size, ok := remaining(head[1:])
		if !ok || size > maxWirePacket {
			packet = make([]byte, n+1)
		} else {
			packet, whole = make([]byte, n+1+size), true
		}
		_, err = io.ReadFull(r, packet)
		return packet, whole, err
	}
}

// splitPacket cuts the first packet off, if it is whole.
func splitPacket(b []byte) (packet, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, b, false
	}
	n := 1
	for ; n < len(b) && b[n] >= 0x80 && n < 4; n++ {
	}
	if n == len(b) {
		return nil, b, false
	}
	size, ok := remaining(b[1 : n+1])
	if !ok {
		return b, nil, true // not ours to judge
	}
	if end := n + 1 + size; end <= len(b) {
		return b[:end:end], b[end:], true
	}
	return nil, b, false
}

// remaining is a variable byte integer (MQTT 5, section 1.5.5).
func remaining(b []byte) (n int, ok bool) {
	for i, c := range b {
		n |= int(c&0x7f) << (7 * i)
	}
	return n, len(b) > 0 && len(b) <= 4 && b[len(b)-1] < 0x80
}

// decode reads a CONNECT or PUBLISH that is whole.
func decode(packet []byte, version byte) (packets.Packet, bool) {
	var pk packets.Packet
	if pk.FixedHeader.Decode(packet[0]) != nil {
		return pk, false
	}
	body := packet[1:]
	for len(body) > 0 {
		c := body[0]
		body = body[1:]
		if c < 0x80 {
			break
		}
	}
	pk.ProtocolVersion = version
	pk.FixedHeader.Remaining = len(body)
	body = bytes.Clone(body)
	if pk.FixedHeader.Type == packets.Connect {
		return pk, pk.ConnectDecode(body) == nil
	}
	return pk, pk.PublishDecode(body) == nil
}
