package awsiot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/interlock-energy/ota"
)

// steady is how long a connection must have lasted for the next one to be made at
// once. AWS accepts a client and drops it when it subscribes to what its policy does
// not allow: that must not become a loop.
const steady = time.Minute

// takenOver is the least pause after another client took the client id. Two devices
// with one id would otherwise throw each other out for ever, at the speed of the network.
const takenOver = time.Minute

// errDown is what is returned while there is no connection.
var errDown = errors.New("there is no connection to the broker")

// line keeps the connection to the broker. It implements stream.Conn.
type line struct {
	cfg   *Config
	tls   *tls.Config // nil: plain
	log   *slog.Logger
	up    func()        // called when the connection is there and subscribed
	known chan struct{} // closed when the first try to connect has ended

	mu     sync.Mutex
	client *paho.Client // nil: down
	gone   chan struct{}
	why    error // of the last end or failed try
	subs   []*subscription
}

type subscription struct {
	filter string
	handle func(topic string, payload []byte)
}

func newLine(cfg *Config, tls *tls.Config, up func()) *line {
	return &line{cfg: cfg, tls: tls, log: cfg.Log, up: up, known: make(chan struct{}), why: errors.New("Run has not connected yet")}
}

// run connects, and connects again, until ctx ends.
func (l *line) run(ctx context.Context) error {
	var pause time.Duration
	said := ""
	for {
		if pause > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(jitter(pause)):
			}
		}
		began := time.Now()
		err := l.once(ctx, &said)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if text := err.Error(); text != said { // the same again is said once
			l.log.Warn("no connection to the broker, trying again", "endpoint", l.cfg.Endpoint, "error", err)
			said = text
		}
		l.ended(err)
		switch {
		case errors.Is(err, errTakenOver):
			pause = min(max(2*pause, takenOver), max(l.cfg.MaxBackoff, takenOver))
		case time.Since(began) > steady:
			pause = l.cfg.MinBackoff
		default:
			pause = min(max(2*pause, l.cfg.MinBackoff), l.cfg.MaxBackoff)
		}
	}
}

// jitter returns d ± 25 %, so that a fleet does not come back at one moment.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// once makes one connection, and returns why it ended.
func (l *line) once(ctx context.Context, said *string) error {
	c, lost, err := l.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { <-c.Done() }()
	gone := make(chan struct{})
	defer close(gone)
	l.mu.Lock()
	filters := l.filters()
	l.mu.Unlock()
	if err := subscribe(ctx, c, filters); err != nil {
		_ = c.Disconnect(&paho.Disconnect{})
		if errors.Is(err, ota.ErrAuthentication) {
			return err
		}
		select {
		case err = <-lost: // says more
		default:
		}
		// AWS ends the connection of a client that asks for what its policy does not allow.
		return fmt.Errorf("the connection ended while the device subscribed to the topics of its jobs: %w (does the policy of its certificate allow %s/*?)", err, l.cfg.JobsPrefix)
	}
	l.mu.Lock()
	l.client, l.gone = c, gone // only now: an answer must find its subscription
	l.mu.Unlock()
	l.log.Info("connected to the broker", "endpoint", l.cfg.Endpoint, "client", l.cfg.ClientID)
	*said = ""
	l.first()
	l.up()
	select {
	case <-ctx.Done():
		l.ended(errors.New("the agent stops"))
		_ = c.Disconnect(&paho.Disconnect{})
		return ctx.Err()
	case err := <-lost:
		return err
	}
}

func (l *line) ended(err error) {
	l.mu.Lock()
	l.client, l.why = nil, err
	l.mu.Unlock()
	l.first()
}

func (l *line) first() {
	select {
	case <-l.known:
	default:
		close(l.known)
	}
}

// filters returns the filters of all subscriptions, each once. The caller holds mu.
func (l *line) filters() []string {
	var fs []string
	for _, s := range l.subs {
		if !slices.Contains(fs, s.filter) {
			fs = append(fs, s.filter)
		}
	}
	return fs
}

// maxFilters is how many filters AWS takes in one SUBSCRIBE (AWS IoT Core endpoints and
// quotas, "Subscriptions per subscribe call").
const maxFilters = 8

func subscribe(ctx context.Context, c *paho.Client, filters []string) error {
	for part := range slices.Chunk(filters, maxFilters) {
		p := &paho.Subscribe{}
		for _, f := range part {
			p.Subscriptions = append(p.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
		}
		ack, err := c.Subscribe(ctx, p)
		for range 4 { // a broker that takes numbers of its own messages of the last connection for ours
			if err == nil || ack == nil || !slices.Contains(ack.Reasons, packets.SubackPacketIdentifierinuse) {
				break
			}
			ack, err = c.Subscribe(ctx, p)
		}
		if err == nil {
			continue
		}
		if ack != nil {
			for i, code := range ack.Reasons {
				if (code == packets.SubackNotauthorized || code == packets.SubackUnspecifiederror) && i < len(part) {
					return fmt.Errorf("%w: the broker does not let this device subscribe to %s (reason 0x%02x): does the policy of its certificate allow that?",
						ota.ErrAuthentication, part[i], code)
				}
			}
		}
		return fmt.Errorf("%w: subscribe to %s: %w", ota.ErrConnectivity, strings.Join(part, ", "), err)
	}
	return nil
}

// wait returns once it is known whether there is a connection: nil if there is.
func (l *line) wait(ctx context.Context) error {
	select {
	case <-l.known:
	case <-ctx.Done():
		return l.down(context.Cause(ctx))
	case <-time.After(l.cfg.ConnectTimeout):
	}
	_, _, err := l.now()
	return err
}

// now returns the connection, and a channel that is closed when it ends.
func (l *line) now() (*paho.Client, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client == nil {
		return nil, nil, l.down(l.why)
	}
	return l.client, l.gone, nil
}

// down says that there is no connection. That it is our certificate's fault does not
// change within seconds, so that it is a code of its own.
func (l *line) down(why error) error {
	code := ota.ErrConnectivity
	if errors.Is(why, ota.ErrAuthentication) {
		code = ota.ErrAuthentication
	}
	return &codedError{code, fmt.Errorf("%w at %s: %w", errDown, l.cfg.Endpoint, why)}
}

// Publish implements stream.Conn. With qos 1 it returns once the broker has the message.
func (l *line) Publish(ctx context.Context, topic string, qos byte, payload []byte) error {
	c, gone, err := l.now()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.AnswerTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { // paho waits out its timeout when the connection ends meanwhile
		_, err := c.Publish(ctx, &paho.Publish{Topic: topic, QoS: qos, Payload: payload})
		done <- err
	}()
	select {
	case err = <-done:
	case <-gone:
		err = errors.New("the connection ended")
	}
	if err != nil {
		return fmt.Errorf("%w: publish to %s: %w", ota.ErrConnectivity, topic, err)
	}
	return nil
}

// Subscribe implements stream.Conn. The subscription outlives the connection. handle is
// called from the goroutine that reads the connection, so it must not wait for it.
func (l *line) Subscribe(ctx context.Context, filter string, handle func(topic string, payload []byte)) (unsubscribe func(), err error) {
	s := &subscription{filter, handle}
	l.mu.Lock()
	c := l.client
	l.subs = append(l.subs, s)
	l.mu.Unlock()
	if c == nil {
		l.remove(s)
		return nil, l.down(errDown)
	}
	if err := subscribe(ctx, c, []string{filter}); err != nil {
		l.remove(s)
		return nil, err
	}
	return func() {
		c := l.remove(s)
		if c == nil {
			return
		}
		go func() { // nobody waits for it
			ctx, cancel := context.WithTimeout(context.Background(), l.cfg.AnswerTimeout)
			defer cancel()
			if _, err := c.Unsubscribe(ctx, &paho.Unsubscribe{Topics: []string{filter}}); err != nil {
				l.log.Debug("unsubscribe", "filter", filter, "error", err)
			}
		}()
	}, nil
}

// remove forgets s. It returns the connection if the broker should forget its filter, too.
func (l *line) remove(s *subscription) *paho.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subs = slices.DeleteFunc(l.subs, func(o *subscription) bool { return o == s })
	if slices.ContainsFunc(l.subs, func(o *subscription) bool { return o.filter == s.filter }) {
		return nil
	}
	return l.client
}

// deliver hands a message to those that want it.
func (l *line) deliver(p paho.PublishReceived) (bool, error) {
	l.mu.Lock()
	subs := slices.Clone(l.subs)
	l.mu.Unlock()
	for _, s := range subs {
		if matches(s.filter, p.Packet.Topic) {
			s.handle(p.Packet.Topic, p.Packet.Payload)
		}
	}
	return true, nil
}

// matches reports whether a topic is one of a filter (MQTT 5.0, section 4.7).
func matches(filter, topic string) bool {
	for {
		f, fRest, fMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, tRest, tMore := strings.Cut(topic, "/")
		if f != "+" && f != t || fMore != tMore && !(fMore && fRest == "#") {
			return false
		}
		if !fMore || !tMore {
			return true
		}
		filter, topic = fRest, tRest
	}
}

// reason returns what a DISCONNECT of the broker's means.
func (l *line) reason(d *paho.Disconnect) error {
	text := ""
	if d.Properties != nil && d.Properties.ReasonString != "" {
		text = ": " + clean(d.Properties.ReasonString, 200)
	}
	switch d.ReasonCode {
	case packets.DisconnectSessionTakenOver:
		return fmt.Errorf("%w: another client has connected with the client id %q%s; are there two devices with one id?", errTakenOver, l.cfg.ClientID, text)
	case packets.DisconnectNotAuthorized:
		return fmt.Errorf("%w: the broker ended the connection, not authorized%s", ota.ErrAuthentication, text)
	}
	return fmt.Errorf("the broker ended the connection, reason 0x%02x%s", d.ReasonCode, text)
}

var errTakenOver = errors.New("taken over")
