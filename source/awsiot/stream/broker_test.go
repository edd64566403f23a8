package stream_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/source/awsiot/stream"
)

// client is a stream.Conn over MQTT 5, which connects again when it is cut off.
type client struct {
	t    *testing.T
	addr string
	tls  *tls.Config

	mu   sync.Mutex
	now  *paho.Client // nil: away
	subs map[string]func(string, []byte)
	cuts int
}

func dial(t *testing.T, b *awstest.Broker) *client {
	c := &client{t: t, addr: b.Addr(), tls: b.TLS(thing), subs: map[string]func(string, []byte){}}
	ctx, cancel := context.WithCancel(context.Background())
	ended, up := make(chan struct{}), make(chan struct{}, 1)
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			lost, err := c.connect(ctx)
			if err == nil {
				select {
				case up <- struct{}{}:
				default:
				}
				select {
				case <-lost:
				case <-ctx.Done():
				}
			}
			c.away()
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	<-up
	return c
}

func (c *client) connect(ctx context.Context) (<-chan struct{}, error) {
	conn, err := (&tls.Dialer{Config: c.tls}).DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, err
	}
	lost := make(chan struct{})
	end := sync.OnceFunc(func() { close(lost) })
	p := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(conn), ClientID: thing,
		OnClientError: func(error) { end() }, OnServerDisconnect: func(*paho.Disconnect) { end() },
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			c.mu.Lock()
			h := c.subs[r.Packet.Topic]
			c.mu.Unlock()
			if h != nil {
				h(r.Packet.Topic, r.Packet.Payload)
			}
			return true, nil
		}}})
	if _, err := p.Connect(ctx, &paho.Connect{ClientID: thing, KeepAlive: 60, CleanStart: true}); err != nil {
		conn.Close()
		return nil, err
	}
	c.mu.Lock()
	c.now = p
	filters := maps.Clone(c.subs)
	c.mu.Unlock()
	for f := range filters {
		if err := c.subscribe(ctx, p, f); err != nil {
			return nil, err
		}
	}
	return lost, nil
}

func (c *client) subscribe(ctx context.Context, p *paho.Client, filter string) error {
	_, err := p.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	return err
}

func (c *client) away() {
	c.mu.Lock()
	p := c.now
	c.now = nil
	c.cuts++
	c.mu.Unlock()
	if p != nil {
		p.Disconnect(&paho.Disconnect{})
	}
}

func (c *client) Publish(ctx context.Context, topic string, qos byte, payload []byte) error {
	c.mu.Lock()
	p := c.now
	c.mu.Unlock()
	if p == nil {
		return errors.New("away")
	}
	_, err := p.Publish(ctx, &paho.Publish{Topic: topic, QoS: qos, Payload: payload})
	return err
}

func (c *client) Subscribe(ctx context.Context, filter string, handle func(string, []byte)) (func(), error) {
	c.mu.Lock()
	p := c.now
	c.subs[filter] = handle
	c.mu.Unlock()
	if p == nil {
		return nil, errors.New("away")
	}
	return func() { c.mu.Lock(); delete(c.subs, filter); c.mu.Unlock() }, c.subscribe(ctx, p, filter)
}

// service starts a broker with a stream, and counts what is asked for.
func service(t *testing.T, file []byte, fate func(awstest.Block) awstest.Action) (b *awstest.Broker, asked, lost map[int]int) {
	s := awstest.NewStreams()
	if err := s.Create(thing, streamID, map[int][]byte{5: file}); err != nil {
		t.Fatal(err)
	}
	asked, lost = map[int]int{}, map[int]int{}
	s.Fault(func(b awstest.Block) awstest.Action { // called by one goroutine at a time
		asked[b.ID]++
		a := fate(b)
		if a == awstest.Lose {
			lost[b.ID]++
		}
		return a
	})
	return awstest.StartBroker(t, awstest.NewCA(t), s), asked, lost
}

// TestOverBroker: 24 MiB over a real broker with mutual TLS, 30 % of the blocks lost
// or doubled.
func TestOverBroker(t *testing.T) {
	for _, format := range []stream.Format{stream.CBOR, stream.JSON} {
		t.Run(string(format), func(t *testing.T) {
			size := 24 << 20
			if format == stream.JSON {
				size = 2<<20 + 77
			}
			file := pattern(size)
			b, asked, lost := service(t, file, awstest.SeededBlocks(3, .15, .15))
			c := dial(t, b)
			o := stream.Options{Thing: thing, Stream: streamID, FileID: 5, Size: int64(size), BlockSize: 64 << 10, Window: size, Format: format, Version: 1}
			d, err := stream.Describe(t.Context(), c, o)
			if err != nil || d.Files[5] != int64(size) || d.Version != 1 {
				t.Fatalf("got %+v, %v", d, err)
			}
			start := time.Now()
			got, _, err := fetchOver(t, c, o)
			if err != nil || !bytes.Equal(got, file) {
				t.Fatalf("got %d bytes, %v, want %d", len(got), err, size)
			}
			for id, n := range asked {
				if n > lost[id]+1 {
					t.Errorf("block %d was asked for %d times, and lost %d times", id, n, lost[id])
				}
			}
			t.Logf("%d bytes in %v; %d blocks, %d lost", size, time.Since(start).Round(time.Millisecond), len(asked), sum(lost))
			if sum(lost) == 0 {
				t.Error("nothing was lost")
			}
		})
	}
}

func fetchOver(t *testing.T, c *client, o stream.Options) ([]byte, time.Duration, error) {
	start := time.Now()
	r, err := stream.Open(t.Context(), c, o)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	return b.Bytes(), time.Since(start), err
}

// TestBrokerDies: the connection is cut again and again, and the reader goes on.
func TestBrokerDies(t *testing.T) {
	file := pattern(3 << 20)
	deliver := func(awstest.Block) awstest.Action { return awstest.Deliver }
	b, _, _ := service(t, file, deliver)
	n := 0
	b.Fault(func(p awstest.Packet) awstest.Fate {
		if p.Direction != awstest.ToDevice {
			return awstest.Fate{}
		}
		if n++; n == 5 || n == 60 || n == 130 {
			return awstest.Fate{Action: awstest.CutBefore}
		}
		return awstest.Fate{}
	})
	c := dial(t, b)
	got, _, err := fetchOver(t, c, stream.Options{Thing: thing, Stream: streamID, FileID: 5, Size: int64(len(file))})
	if err != nil || !bytes.Equal(got, file) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cuts < 3 {
		t.Errorf("the connection was cut %d times, want 3", c.cuts)
	}
}

// TestSpeedOverBroker is the figure for a loopback, with nothing lost.
func TestSpeedOverBroker(t *testing.T) {
	file := pattern(24 << 20)
	b, _, _ := service(t, file, func(awstest.Block) awstest.Action { return awstest.Deliver })
	c := dial(t, b)
	got, took, err := fetchOver(t, c, stream.Options{Thing: thing, Stream: streamID, FileID: 5, Size: int64(len(file))})
	if err != nil || !bytes.Equal(got, file) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	t.Logf("%.1f MB/s with the default window, mutual TLS, loopback", float64(len(file))/1e6/took.Seconds())
}

// TestStreamReplaced: another version of the stream is not mixed in.
func TestStreamReplaced(t *testing.T) {
	s := awstest.NewStreams()
	file := pattern(2 << 20)
	if err := s.Create(thing, streamID, map[int][]byte{0: file}); err != nil {
		t.Fatal(err)
	}
	b := awstest.StartBroker(t, awstest.NewCA(t), s)
	c := dial(t, b)
	o := stream.Options{Thing: thing, Stream: streamID, Size: int64(len(file)), Version: 1}
	r, err := stream.Open(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 1000)
	if _, err := r.Read(head); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(streamID, map[int][]byte{0: make([]byte, len(file))}); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	_, err = rest.ReadFrom(r)
	got := append(head, rest.Bytes()...)
	if !errors.Is(err, stream.ErrStale) || !bytes.Equal(got[:min(len(got), 1000)], file[:1000]) {
		t.Errorf("got %d bytes, %v, want ErrStale", len(got), err)
	}
	if i := bytes.Index(got, make([]byte, 4096)); i >= 0 {
		t.Errorf("bytes of the new version at %d", i)
	}
}
