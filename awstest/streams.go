package awstest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Limits of file streams (developer guide, "Using AWS IoT MQTT-based file delivery
// in devices", and the IoT quotas).
const (
	maxStreamFiles   = 10
	maxStreamFileID  = 255
	maxStreamFile    = 24 << 20
	minBlock         = 256
	maxBlock         = 128 << 10
	maxBlockCount    = 98304 // 24 MiB in blocks of 256 bytes
	maxBitmap        = maxBlockCount / 8
	maxStreamRequest = 128 << 10 // bytes of blocks sent for one request
)

// Streams is the MQTT-based file delivery of AWS IoT Core. Safe for use by several
// goroutines.
type Streams struct {
	mu      sync.Mutex
	emit    func(Message)
	streams map[string]*stream
	fault   func(Block) Action
	blocks  int
}

type stream struct {
	thing   string // "": any
	version int
	files   map[int][]byte
}

// Block is one block of a file that is about to be sent.
type Block struct {
	N        int // of all blocks of the service, from 1
	Thing    string
	Stream   string
	File, ID int
	Size     int // bytes
}

// NewStreams makes a service without streams. Give it to [StartBroker] or [ServeClient].
func NewStreams() *Streams {
	return &Streams{emit: func(Message) {}, streams: map[string]*stream{}}
}

// Create makes a stream (1 to 128 of A-Z a-z 0-9 _ -) of 1 to 10 files by their id
// (0 to 255), 1 byte to 24 MiB each, for one thing, or for all if thing is "". Its
// version is 1. The service keeps the slices.
func (s *Streams) Create(thing, id string, files map[int][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !thingPattern.MatchString(id) || s.streams[id] != nil {
		return fmt.Errorf("create stream %q: got a wrong or a known id, want 1 to 128 letters, digits, _ and -", id)
	}
	if err := checkFiles(files); err != nil {
		return fmt.Errorf("create stream %q: %w", id, err)
	}
	s.streams[id] = &stream{thing: thing, version: 1, files: maps.Clone(files)}
	return nil
}

func checkFiles(files map[int][]byte) error {
	if len(files) == 0 || len(files) > maxStreamFiles {
		return fmt.Errorf("got %d files, want 1 to %d", len(files), maxStreamFiles)
	}
	for id, content := range files {
		if id < 0 || id > maxStreamFileID || len(content) == 0 || len(content) > maxStreamFile {
			return fmt.Errorf("file %d: got %d bytes, want 1 to %d, and an id from 0 to %d",
				id, len(content), maxStreamFile, maxStreamFileID)
		}
	}
	return nil
}

// Replace puts other files into a stream; its version is one higher then.
func (s *Streams) Replace(id string, files map[int][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.streams[id]
	if of == nil {
		return fmt.Errorf("replace the files of stream %q: there is none", id)
	}
	if err := checkFiles(files); err != nil {
		return fmt.Errorf("replace the files of stream %q: %w", id, err)
	}
	of.version, of.files = of.version+1, maps.Clone(files)
	return nil
}

// Delete removes a stream.
func (s *Streams) Delete(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, id)
}

// Fault has every block pass through f before it is sent, which may Lose or Double
// it; for cut connections see [Broker.Fault]. nil ends that. f must not call Streams.
func (s *Streams) Fault(f func(Block) Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Blocks is how many blocks were asked for and answered, before faults.
func (s *Streams) Blocks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blocks
}

// Filters, Attach and Receive make it a [Service].
func (s *Streams) Filters() []string { return []string{"$aws/things/+/streams/#"} }

// Attach is part of [Service].
func (s *Streams) Attach(emit func(Message)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.emit = emit
}

// Receive is part of [Service].
func (s *Streams) Receive(client, topic string, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.handle(topic, payload) {
		m.Client = client
		s.emit(m)
	}
}

// handle is what one published message leads to.
func (s *Streams) handle(topic string, payload []byte) []Message {
	at, ok := parseStreamTopic(topic)
	if !ok {
		return nil
	}
	f, known := formats[at.format]
	if !known {
		f = formats["json"]
	}
	r, bad := parseStreamRequest(f, payload)
	of := s.streams[at.stream]
	switch {
	case !known || at.verb != "get" && at.verb != "describe":
		bad = refuse("InvalidTopic", "The topic %s does not map to any API operation", topic)
	case bad != nil:
	case of == nil:
		bad = refuse("ResourceNotFound", "There is no stream %s", at.stream)
	case of.thing != "" && of.thing != at.thing:
		bad = refuse("Unauthorized", "The stream %s is not for thing %s", at.stream, at.thing)
	}
	var messages []Message
	if bad == nil && at.verb == "describe" {
		return []Message{at.message("description", f, of.describe(r))}
	}
	if bad == nil {
		messages, bad = s.get(at, f, of, r)
	}
	if bad != nil {
		return []Message{at.message("rejected", f, map[string]any{"o": bad.code, "m": bad.text, "c": orNil(r.token)})}
	}
	return messages
}

func (of *stream) describe(r streamRequest) map[string]any {
	files := []map[string]any{}
	for _, id := range slices.Sorted(maps.Keys(of.files)) {
		files = append(files, map[string]any{"f": id, "z": len(of.files[id])})
	}
	return map[string]any{"c": orNil(r.token), "s": of.version, "d": "awstest", "r": files}
}

// get sends the blocks that were asked for, one message each: as many as n, as the
// file has, and as fit into 128 KiB; the device asks again for the rest.
func (s *Streams) get(at streamTopic, f format, of *stream, r streamRequest) ([]Message, *refusal) {
	content, bad := of.check(r)
	if bad != nil {
		return nil, bad
	}
	most := maxStreamRequest / r.size
	if r.count > 0 {
		most = min(most, r.count)
	}
	blocks := (len(content) + r.size - 1) / r.size
	var messages []Message
	for id := r.offset; id < blocks && most > 0; id++ {
		if !r.wants(id) {
			continue
		}
		most--
		data := content[id*r.size : min((id+1)*r.size, len(content))]
		s.blocks++
		action := Deliver
		if s.fault != nil {
			action = s.fault(Block{N: s.blocks, Thing: at.thing, Stream: at.stream, File: r.file, ID: id, Size: len(data)})
		}
		m := at.message("data", f, map[string]any{
			"c": orNil(r.token), "f": r.file, "l": len(data), "i": id, "p": f.bytes(data),
		})
		switch action {
		case Lose:
		case Double:
			messages = append(messages, m, m)
		default:
			messages = append(messages, m)
		}
	}
	return messages, nil
}

func (of *stream) check(r streamRequest) ([]byte, *refusal) {
	content, ok := of.files[r.file]
	switch {
	case !r.hasFile || !r.hasSize:
		return nil, refuse("InvalidRequest", "f and l are required")
	case r.file < 0 || r.file > maxStreamFileID:
		return nil, refuse("InvalidRequest", "f: got %d, want 0 to %d", r.file, maxStreamFileID)
	case !ok:
		return nil, refuse("ResourceNotFound", "The stream has no file %d", r.file)
	case r.version != 0 && r.version != of.version:
		return nil, refuse("VersionMismatch", "Expected stream version %d but found version %d", r.version, of.version)
	case r.size < minBlock || r.size > maxBlock:
		return nil, refuse("BlockSizeOutOfBounds", "l: got %d, want %d to %d", r.size, minBlock, maxBlock)
	case r.count < 0 || r.count > maxBlockCount:
		return nil, refuse("BlockCountLimitExceeded", "n: got %d, want 0 to %d", r.count, maxBlockCount)
	case r.offset < 0 || r.offset > maxBlockCount || int64(r.offset)*int64(r.size) >= int64(len(content)):
		return nil, refuse("OffsetOutOfBounds", "o: got block %d of %d bytes, the file has %d bytes", r.offset, r.size, len(content))
	case len(r.bitmap) >= maxBitmap:
		return nil, refuse("BlockBitmapLimitExceeded", "b: got %d bytes, want less than %d", len(r.bitmap), maxBitmap)
	}
	return content, nil
}
