package awstest

import "context"

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
	// Attach says where its messages go from now on; emit must not block, and is
	// called in the order in which the messages are to be sent.
	Attach(emit func(Message))
	// Receive takes what a client published.
	Receive(client, topic string, payload []byte)
}

// outbox hands messages on in their order, without ever making the sender wait.
type outbox struct {
}

func newOutbox(ctx context.Context, deliver func(Message)) *outbox { return nil }
