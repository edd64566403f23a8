package awstest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// device is a client of MQTT 5 for these tests: paho, and a channel of what arrives.
type device struct {
	*paho.Client
	t    testing.TB
	id   string
	got  chan *paho.Publish
	lost <-chan struct{}
}

// connect connects as a thing; wrong says what may go wrong: the error is returned.
func connect(t testing.TB, addr string, config *tls.Config, id string, filters ...string) (*device, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	d := &device{t: t, id: id, got: make(chan *paho.Publish, 1000)}
	d.Client = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn), PacketTimeout: 30 * time.Second,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			d.got <- p.Packet
			return true, nil
		}},
	})
	t.Cleanup(func() { conn.Close() })
	most := uint16(100)
	if _, err := d.Connect(ctx, &paho.Connect{
		ClientID: id, KeepAlive: 30, CleanStart: true, Properties: &paho.ConnectProperties{ReceiveMaximum: &most},
	}); err != nil {
		return nil, err
	}
	d.lost = d.Done()
	for _, f := range filters {
		if _, err := d.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: f, QoS: 1}}}); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func mustConnect(t testing.TB, b *Broker, id string, filters ...string) *device {
	t.Helper()
	d, err := connect(t, b.Addr(), b.TLS(id), id, filters...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *device) send(topic, payload string) error {
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	_, err := d.Publish(ctx, &paho.Publish{Topic: topic, Payload: []byte(payload), QoS: 1})
	return err
}

// alive ends with the connection: paho itself would wait for an acknowledgement in
// the next one.
func (d *device) alive() context.Context {
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	d.t.Cleanup(cancel)
	go func() {
		<-d.lost
		cancel()
	}()
	return ctx
}

// next is the next message; a test that hangs here has lost one.
func (d *device) next() string {
	d.t.Helper()
	select {
	case p := <-d.got:
		return p.Topic + " " + string(p.Payload)
	case <-time.After(30 * time.Second):
		d.t.Fatalf("%s: nothing came within 30 s", d.id)
		return ""
	}
}

func TestBrokerAnswersWithoutSubscriptionAndOnlyTheOneWhoAsked(t *testing.T) {
	ca, jobs := NewCA(t), NewJobs(JobsOptions{})
	b := StartBroker(t, ca, jobs)
	asks := mustConnect(t, b, "dev-1")
	other := mustConnect(t, b, "dev-2", "$aws/things/dev-2/jobs/notify-next")
	if err := asks.send(dev+"get", `{"clientToken":"a"}`); err != nil {
		t.Fatal(err)
	}
	if got := asks.next(); !strings.HasPrefix(got, dev+"get/accepted ") {
		t.Errorf("got %s", got)
	}
	if err := jobs.Create(Job{ID: "j", Things: []string{"dev-1", "dev-2"}, Document: `{}`}); err != nil {
		t.Fatal(err)
	}
	if got := other.next(); !strings.HasPrefix(got, "$aws/things/dev-2/jobs/notify-next ") || !strings.Contains(got, `"jobId":"j"`) {
		t.Errorf("got %s", got)
	}
	if len(asks.got) != 0 {
		t.Errorf("a notification came without a subscription: %s", asks.next())
	}
}

func TestBrokerTellsSubscribersInOrder(t *testing.T) {
	ca, jobs := NewCA(t), NewJobs(JobsOptions{})
	b := StartBroker(t, ca, jobs)
	d := mustConnect(t, b, "dev-1", dev+"notify", dev+"notify-next", dev+"+/update/accepted")
	for i := range 20 {
		id := fmt.Sprint("j", i)
		if err := jobs.Create(Job{ID: id, Things: []string{"dev-1"}, Document: `{}`}); err != nil {
			t.Fatal(err)
		}
		if err := d.send(dev+id+"/update", `{"status":"SUCCEEDED"}`); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 5 {
			topic, _, _ := strings.Cut(d.next(), " ")
			got = append(got, strings.TrimPrefix(topic, dev))
		}
		if want := []string{"notify", "notify-next", id + "/update/accepted", "notify", "notify-next"}; !slices.Equal(got, want) {
			t.Fatalf("job %d: got %v, want %v", i, got, want)
		}
	}
}

func TestBrokerWhoMayConnect(t *testing.T) {
	ca := NewCA(t)
	b := StartBroker(t, ca)
	if _, err := connect(t, b.Addr(), b.TLS("dev-1"), "dev-2"); err == nil {
		t.Error("a client id that is not the certificate's name got in")
	}
	if _, err := connect(t, b.Addr(), NewCA(t).ClientTLS(t, "dev-1"), "dev-1"); err == nil {
		t.Error("a client that trusts another authority took the server for genuine")
	}
	foreign := b.TLS("dev-1")
	foreign.Certificates = NewCA(t).ClientTLS(t, "dev-1").Certificates
	if _, err := connect(t, b.Addr(), foreign, "dev-1"); err == nil {
		t.Error("a certificate of another authority got in")
	}
	naked := b.TLS("dev-1")
	naked.Certificates = nil
	if _, err := connect(t, b.Addr(), naked, "dev-1"); err == nil {
		t.Error("a client without a certificate got in")
	}
	plain, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	plain.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"))
	answer := make([]byte, 1)
	if n, _ := plain.Read(answer); n > 0 && answer[0] == 0x20 {
		t.Error("a client without TLS got a CONNACK")
	}
	config := b.TLS("dev-1")
	if _, err := connect(t, b.ALPNAddr(), config, "dev-1"); err == nil {
		t.Error("the second port took a client without ALPN")
	}
	config.NextProtos = []string{"x-amzn-mqtt-ca"}
	if _, err := connect(t, b.ALPNAddr(), config, "dev-1"); err != nil {
		t.Errorf("by ALPN: %v", err)
	}
}

func TestBrokerLimits(t *testing.T) {
	ca := NewCA(t)
	b := StartBroker(t, ca, NewJobs(JobsOptions{}))
	for name, c := range map[string]struct {
		topic   string
		size    int
		qos     byte
		retain  bool
		refused bool
	}{
		"131,072 bytes":        {"data", 131072, 1, false, false},
		"131,073 bytes":        {"data", 131073, 1, false, true},
		"200,000 bytes":        {"data", 200000, 1, false, true},
		"2 MB":                 {"data", 2 << 20, 0, false, true},
		"another thing's jobs": {"$aws/things/dev-2/jobs/get", 2, 1, false, true},
		"its own shadow":       {"$aws/things/dev-1/shadow/get", 2, 1, false, false},
		"a rule":               {"$aws/rules/r", 2, 1, false, true},
		"the broker's own":     {"$SYS/broker", 2, 1, false, true},
		"retained, reserved":   {dev + "get", 2, 1, true, true},
		"8 slashes":            {"a/b/c/d/e/f/g/h/i", 2, 1, false, true},
		"7 slashes":            {"a/b/c/d/e/f/g/h", 2, 1, false, false},
		"257 bytes of topic":   {strings.Repeat("x", 257), 2, 1, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustConnect(t, b, "dev-1")
			ctx := d.alive()
			p := &paho.Publish{Topic: c.topic, Payload: bytes.Repeat([]byte("x"), c.size), QoS: c.qos, Retain: c.retain}
			_, err := d.Publish(ctx, p)
			if c.qos == 0 && err == nil { // not acknowledged: only the end of the connection tells
				<-ctx.Done()
				err = ctx.Err()
			}
			if refused := err != nil; refused != c.refused {
				t.Errorf("got %v, want refused: %t", err, c.refused)
			}
		})
	}
	d := mustConnect(t, b, "dev-1")
	nine := &paho.Subscribe{}
	for i := range 9 {
		nine.Subscriptions = append(nine.Subscriptions, paho.SubscribeOptions{Topic: fmt.Sprint("t", i)})
	}
	if _, err := d.Subscribe(d.alive(), nine); err == nil {
		t.Error("nine topic filters in one SUBSCRIBE were taken, AWS takes eight")
	}
	for _, filter := range []string{"$aws/things/dev-2/jobs/notify", "$aws/#", "$aws/things/+/jobs/notify"} {
		if _, err := connect(t, b.Addr(), b.TLS("dev-1"), "dev-1", filter); err == nil {
			t.Errorf("dev-1 subscribed to %s", filter)
		}
	}
}

// Every fault, in both directions, at a request whose effect can be seen.
func TestBrokerFaults(t *testing.T) {
	for _, c := range []struct {
		direction Direction
		action    Action
		effects   int // updates that reached the service
		answers   int // that reached the device
		ends      bool
	}{
		{ToBroker, Deliver, 1, 1, false},
		{ToBroker, Lose, 0, 0, false},
		{ToBroker, Double, 2, 2, false},
		{ToBroker, CutBefore, 0, 0, true},
		{ToBroker, CutAfter, 1, 0, true},
		{ToBroker, KillBefore, 0, 0, true},
		{ToBroker, KillAfter, 1, 0, true},
		{ToDevice, Lose, 1, 0, false},
		{ToDevice, Double, 1, 2, false},
		{ToDevice, CutBefore, 1, 0, true},
		{ToDevice, CutAfter, 1, 1, true},
		{ToDevice, KillBefore, 1, 0, true},
		{ToDevice, KillAfter, 1, 1, true},
	} {
		t.Run(fmt.Sprint(c.direction, c.action), func(t *testing.T) {
			ca, jobs := NewCA(t), NewJobs(JobsOptions{})
			b := StartBroker(t, ca, jobs)
			if err := jobs.Create(Job{ID: "j", Things: []string{"dev-1"}, Document: `{}`}); err != nil {
				t.Fatal(err)
			}
			d := mustConnect(t, b, "dev-1")
			b.Fault(At(1, c.direction, c.action))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := d.PublishWithOptions(ctx, &paho.Publish{Topic: dev + "j/update", Payload: []byte(`{"status":"IN_PROGRESS"}`), QoS: 1},
				paho.PublishOptions{Method: paho.PublishMethod_AsyncSend})
			if err != nil {
				t.Fatal(err)
			}
			for range c.answers {
				if got := d.next(); !strings.HasPrefix(got, dev+"j/update/accepted") {
					t.Errorf("got %s", got)
				}
			}
			if c.ends {
				<-d.lost
			}
			if c.action == KillBefore || c.action == KillAfter {
				<-b.Down()
				if _, err := connect(t, b.Addr(), b.TLS("dev-1"), "dev-1"); err == nil {
					t.Error("a dead broker took a connection")
				}
				b.Start()
			}
			// whatever happened: the device comes back, and a request tells the truth (At strikes once)
			if c.ends {
				d = mustConnect(t, b, "dev-1")
			}
			ctxQ, cancelQ := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancelQ()
			if _, err := d.Publish(ctxQ, &paho.Publish{Topic: dev + "j/get", Payload: []byte(`{}`)}); err != nil {
				t.Fatal(err)
			}
			if got, version := d.next(), fmt.Sprintf(`"versionNumber":%d`, 1+c.effects); !strings.Contains(got, version) {
				t.Errorf("got %s, want %s, and nothing before it", got, version)
			}
			if got := len(jobs.Updates("dev-1", "j")); got != c.effects {
				t.Errorf("%d updates took effect, want %d", got, c.effects)
			}
			var fates int
			for _, p := range b.Log() {
				if p.Fate.Action != Deliver {
					fates++
				}
			}
			if want := min(1, int(c.action)); fates != want {
				t.Errorf("the log has %d faults, want %d", fates, want)
			}
		})
	}
}

// The acknowledgement is what CutAfter and KillAfter take away.
func TestBrokerCutsBeforeTheAcknowledgement(t *testing.T) {
	for _, a := range []Action{CutAfter, KillAfter} {
		jobs := NewJobs(JobsOptions{})
		b := StartBroker(t, NewCA(t), jobs)
		if err := jobs.Create(Job{ID: "j", Things: []string{"dev-1"}, Document: `{}`}); err != nil {
			t.Fatal(err)
		}
		d := mustConnect(t, b, "dev-1")
		b.Fault(At(1, ToBroker, a))
		_, err := d.Publish(d.alive(), &paho.Publish{Topic: dev + "j/update", Payload: []byte(`{"status":"FAILED"}`), QoS: 1})
		if e, _ := jobs.Execution("dev-1", "j"); err == nil || e.Status != Failed {
			t.Errorf("%d: acknowledged %t, and the execution is %s", a, err == nil, e.Status)
		}
	}
}

func TestBrokerDropRestartAndLog(t *testing.T) {
	ca := NewCA(t)
	b := StartBroker(t, ca)
	one, two := mustConnect(t, b, "one", "news"), mustConnect(t, b, "two", "news")
	b.Drop("one")
	<-one.lost
	if !b.Connected("two") || b.Connected("nobody") {
		t.Error("Drop of one client ended another, or a stranger is connected")
	}
	b.Publish("news", []byte("1"))
	if got := two.next(); got != "news 1" {
		t.Errorf("got %q", got)
	}
	log := b.Log()
	if p := log[len(log)-1]; p.Client != "two" || p.Direction != ToDevice || p.Topic != "news" || string(p.Payload) != "1" || p.QoS != 1 || p.N != len(log) {
		t.Errorf("got %+v in the log", p)
	}
	addr := b.Addr()
	for range 3 {
		b.Restart()
	}
	<-two.lost
	b.Kill()
	b.Kill()
	b.Start()
	b.Start()
	if b.Addr() != addr {
		t.Errorf("the address changed from %s to %s", addr, b.Addr())
	}
	if got := mustConnect(t, b, "two", "news"); got.send("news", "2") != nil || got.next() != "news 2" {
		t.Error("after a restart messages do not arrive")
	}
}

// Messages of QoS 1 in both directions at once, as fast as they go.
func TestBrokerBothWaysAtOnce(t *testing.T) {
	const n = 3000
	b := StartBroker(t, NewCA(t))
	d := mustConnect(t, b, "dev-1", "down")
	go func() {
		for i := range n {
			b.Publish("down", fmt.Append(nil, i))
		}
	}()
	received := make(chan struct{})
	go func() {
		defer close(received)
		for range n {
			<-d.got
		}
	}()
	for range n {
		if err := d.send("up", "x"); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-received:
	case <-d.lost:
		t.Error("the connection ended")
	}
}

func TestBrokerDelay(t *testing.T) {
	ca, jobs := NewCA(t), NewJobs(JobsOptions{})
	b := StartBroker(t, ca, jobs)
	d := mustConnect(t, b, "dev-1")
	b.Fault(func(p Packet) Fate { return Fate{Delay: 50 * time.Millisecond} })
	start := time.Now()
	if err := d.send(dev+"get", `{}`); err != nil {
		t.Fatal(err)
	}
	d.next()
	if got := time.Since(start); got < 100*time.Millisecond { // a lower bound cannot fail on a slow machine
		t.Errorf("there and back took %v, want at least 100 ms", got)
	}
}

func TestSeededIsTheSameAgain(t *testing.T) {
	count := map[Action]int{}
	a, b := Seeded(7, 0.2, 0.1), Seeded(7, 0.2, 0.1)
	for range 10000 {
		x, y := a(Packet{}), b(Packet{})
		if x != y {
			t.Fatal("the same seed gave different fates")
		}
		count[x.Action]++
	}
	if count[Lose] < 1800 || count[Lose] > 2200 || count[Double] < 850 || count[Double] > 1150 {
		t.Errorf("got %v of 10,000, want about 2000 lost and 1000 doubled", count)
	}
}

// The wire must cut the stream into packets as it was, however it comes in pieces.
func FuzzWirePackets(f *testing.F) {
	f.Add([]byte("\x30\x05\x00\x01aXY\xd0\x00\x82\x80\x01"), uint8(3))
	f.Add([]byte("\x30\xff\xff\xff\xff\x01"), uint8(1))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		var out, whole []byte
		for rest := stream; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			out = append(out, rest[:n]...)
			rest = rest[n:]
			for {
				packet, left, ok := splitPacket(out)
				if !ok {
					break
				}
				if len(packet) == 0 {
					t.Fatal("an empty packet")
				}
				decode(packet, 5)
				whole = append(whole, packet...)
				out = bytes.Clone(left)
			}
		}
		if got := append(whole, out...); !bytes.Equal(got, stream) {
			t.Fatalf("got % x, want % x", got, stream)
		}
	})
}

// has waits a moment for a message.
func (d *device) has() bool {
	select {
	case <-d.got:
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}

// A session that lasts gets what it was promised (QoS 1) after the connection is back.
func TestBrokerKeepsPromisesToSessionsThatLast(t *testing.T) {
	ca := NewCA(t)
	b := StartBroker(t, ca)
	resume := func(subscribe bool) *device {
		t.Helper()
		conn, err := tls.Dial("tcp", b.Addr(), b.TLS("dev-1"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		d := &device{t: t, id: "dev-1", got: make(chan *paho.Publish, 100)}
		d.Client = paho.NewClient(paho.ClientConfig{
			Conn: packets.NewThreadSafeConn(conn),
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				d.got <- p.Packet
				return true, nil
			}},
		})
		expiry := uint32(3600)
		if _, err := d.Connect(t.Context(), &paho.Connect{
			ClientID: "dev-1", KeepAlive: 30, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
		}); err != nil {
			t.Fatal(err)
		}
		d.lost = d.Done()
		if subscribe {
			if _, err := d.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "news", QoS: 1}}}); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	d := resume(true)
	b.Fault(At(1, ToDevice, Lose))
	b.Publish("news", []byte("lost on the way"))
	b.Publish("news", []byte("second"))
	if got := d.next(); got != "news second" {
		t.Fatalf("got %q", got)
	}
	b.Drop("dev-1")
	<-d.lost
	d = resume(false)
	for got := d.next(); got != "news lost on the way"; got = d.next() {
		if got != "news second" {
			t.Errorf("got %q", got)
		}
	}
	for b.Drop("dev-1"); b.Connected("dev-1"); {
		<-time.After(time.Millisecond)
	}
	b.Publish("news", []byte("while away"))
	d = resume(false)
	for got := d.next(); got != "news while away"; got = d.next() {
		if got != "news second" && got != "news lost on the way" { // again: its acknowledgement was cut off
			t.Errorf("got %q", got)
		}
	}
}
