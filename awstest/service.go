package awstest

import "sync"

// Message is what a service says.
type Message struct {
	// Client is the client that asked, if this is an answer: AWS delivers it to
	// that client only, and even if it has not subscribed to the topic. Empty: to
	// all subscribers. A front end on a foreign broker cannot do this; there
	// everything goes to subscribers.
	Client  string
	Topic   string
	Payload []byte
}

// Service is what answers behind a broker: [Jobs] and [Streams].
type Service interface {
	// Filters are the topics on which it is asked.
	Filters() []string
	// Attach says where its messages go from now on. It calls emit, which must not
	// block, in the order in which the messages are to be sent.
	Attach(emit func(Message))
	// Receive takes what a client published. It must not block for long.
	Receive(client, topic string, payload []byte)
}

// outbox hands messages on in their order, one at a time, without ever making the
// one who posts wait.
type outbox struct {
	mu      sync.Mutex
	waiting []Message
	closed  bool
	wake    chan struct{} // holds one
	done    chan struct{}
}

func newOutbox(deliver func(Message)) *outbox {
	o := &outbox{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go o.run(deliver)
	return o
}

func (o *outbox) post(m Message) {
	o.mu.Lock()
	o.waiting = append(o.waiting, m)
	o.mu.Unlock()
	o.poke()
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// close drops what waits and returns when nothing is being delivered any more.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed, o.waiting = true, nil
	o.mu.Unlock()
	o.poke()
	<-o.done
}

func (o *outbox) run(deliver func(Message)) {
	defer close(o.done)
	for range o.wake {
		for {
			o.mu.Lock()
			if o.closed {
				o.mu.Unlock()
				return
			}
			if len(o.waiting) == 0 {
				o.mu.Unlock()
				break
			}
			m := o.waiting[0]
			o.waiting = o.waiting[1:]
			o.mu.Unlock()
			deliver(m)
		}
	}
}
