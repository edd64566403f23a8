package awstest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// ServeClient puts services behind any broker: it connects as an ordinary client of
// MQTT 5, subscribes to their requests and publishes their answers, over again
// whenever the connection is lost, until the test ends. On return it is subscribed.
// The client's certificate must allow all $aws topics; on [Mosquitto] that is the
// thing [ServiceName]. Its common name is the client id. What a service says while
// the broker is down is sent afterwards, so a device may get a message late or twice.
func ServeClient(t testing.TB, addr string, config *tls.Config, services ...Service) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &serviceClient{ctx: ctx, addr: addr, config: config, services: services, up: make(chan struct{})}
	for _, s := range services {
		for _, f := range s.Filters() {
			c.filters = append(c.filters, paho.SubscribeOptions{Topic: f, QoS: 1, NoLocal: true})
		}
	}
	if err := c.connect(); err != nil {
		cancel()
		t.Fatalf("put services behind the broker at %s: %v", addr, err)
	}
	box := newOutbox(c.send)
	for _, s := range services {
		s.Attach(box.post)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.keep()
	}()
	t.Cleanup(func() {
		for _, s := range services {
			s.Attach(func(Message) {})
		}
		cancel()
		<-ended
		box.close()
	})
}

// serviceClient is one client that connects again and again.
type serviceClient struct {
	ctx      context.Context // of the whole; ends with the test
	addr     string
	config   *tls.Config
	services []Service
	filters  []paho.SubscribeOptions

	mu     sync.Mutex
	client *paho.Client  // the last one that was connected
	up     chan struct{} // closed while client is usable
}

const connectTimeout = 30 * time.Second

func (c *serviceClient) connect() error {
	ctx, cancel := context.WithTimeout(c.ctx, connectTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: c.config}).DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	client := paho.NewClient(paho.ClientConfig{
		Conn:              packets.NewThreadSafeConn(conn),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){c.received},
	})
	_, err = client.Connect(ctx, &paho.Connect{ClientID: clientID(c.config), KeepAlive: 30, CleanStart: true})
	if err != nil {
		conn.Close()
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := client.Subscribe(ctx, &paho.Subscribe{Subscriptions: c.filters}); err != nil {
		_ = client.Disconnect(&paho.Disconnect{})
		return fmt.Errorf("subscribe: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client = client
	close(c.up)
	return nil
}

// keep connects again whenever the connection has ended.
func (c *serviceClient) keep() {
	for c.ctx.Err() == nil {
		client, _ := c.current()
		select {
		case <-client.Done():
		case <-c.ctx.Done():
			_ = client.Disconnect(&paho.Disconnect{})
			return
		}
		c.mu.Lock()
		c.up = make(chan struct{})
		c.mu.Unlock()
		for c.connect() != nil {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-c.ctx.Done():
				return
			}
		}
	}
}

func (c *serviceClient) current() (*paho.Client, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client, c.up
}

// received knows the topic only: who published is not told to a subscriber.
func (c *serviceClient) received(p paho.PublishReceived) (bool, error) {
	for _, s := range c.services {
		for _, f := range s.Filters() {
			if matches(f, p.Packet.Topic) {
				s.Receive("", p.Packet.Topic, p.Packet.Payload)
				break
			}
		}
	}
	return true, nil
}

// send waits for the broker, and tries again what was not acknowledged; but not for
// ever, as it may be the message that the broker does not like.
func (c *serviceClient) send(m Message) {
	for range 10 {
		client, up := c.current()
		select {
		case <-up:
			client, _ = c.current()
		case <-c.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(c.ctx, connectTimeout)
		go func() { // paho would wait for the acknowledgement in the next connection
			select {
			case <-client.Done():
				cancel()
			case <-ctx.Done():
			}
		}()
		_, err := client.Publish(ctx, &paho.Publish{Topic: m.Topic, Payload: m.Payload, QoS: 1})
		cancel()
		if err == nil {
			return
		}
		select { // until keep has seen that the connection has ended
		case <-time.After(20 * time.Millisecond):
		case <-c.ctx.Done():
		}
	}
}

func clientID(config *tls.Config) string {
	if len(config.Certificates) > 0 {
		if leaf, err := x509.ParseCertificate(config.Certificates[0].Certificate[0]); err == nil {
			return leaf.Subject.CommonName
		}
	}
	return ServiceName
}
