package awstest

// Streams is the MQTT-based file delivery of AWS IoT Core. Safe for use by several
// goroutines.
type Streams struct {
}

// NewStreams makes a service without streams. Give it to [StartBroker] or [ServeClient].
func NewStreams() *Streams { return &Streams{} }

// Create makes a stream (1 to 128 of A-Z a-z 0-9 _ -) of 1 to 10 files by their id
// (0 to 255), 1 byte to 24 MiB each, for one thing, or for all if thing is "". Its
// version is 1. The service keeps the slices.
func (s *Streams) Create(thing, id string, files map[int][]byte) error { return errStub }

// Replace puts other files into a stream; its version is one higher then.
func (s *Streams) Replace(id string, files map[int][]byte) error { return errStub }

// Delete removes a stream.
func (s *Streams) Delete(id string) {}

// Fault has every block pass through f before it is sent: Lose, Double and a
// Delay... only Lose and Double are possible here. nil ends that.
func (s *Streams) Fault(f func(Block) Action) {}

// Blocks is how many blocks were asked for and answered, before faults.
func (s *Streams) Blocks() int { return 0 }

// Block is one block of a file that is about to be sent.
type Block struct {
	N        int // of all blocks of the service, from 1
	Thing    string
	Stream   string
	File, ID int
	Size     int // bytes
}

// Filters, Attach and Receive make it a [Service].
func (s *Streams) Filters() []string { return []string{"$aws/things/+/streams/#"} }

// Attach is part of [Service].
func (s *Streams) Attach(emit func(Message)) {}

// Receive is part of [Service].
func (s *Streams) Receive(client, topic string, payload []byte) {}
