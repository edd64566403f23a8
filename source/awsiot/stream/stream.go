// Package stream reads a file over MQTT from a stream of AWS IoT Core ("MQTT-based
// file delivery"): for devices whose only way out is their MQTT connection.
//
// Start with [Open], over any connection that can publish and subscribe. It returns
// the file from any byte on, in order, whatever the broker loses, doubles or
// reorders. [Describe] says which files a stream has.
//
// What the package promises:
//
//   - A block is asked for again only after it did not come in the time that the
//     service lately needed, and nothing else is asked for with it.
//   - Memory is bounded by [Options.Window], however large the file is.
//   - A connection that is lost and comes back costs what was under way, and time.
//   - What the service sends is compared with what was asked for: stream, file,
//     number and length of the block. The content is NOT verified: the bytes are
//     those of an untrusted source, and their reader compares hashes.
//
// Without losses it takes about one round trip for each Window: the default of 256 KiB
// brings 2.3 MB/s over a line with 100 ms (TestThroughput). AWS itself sends at most 512
// KiB a second on one connection (AWS IoT Core quotas).
//
// Source: AWS IoT Core Developer Guide, "Using AWS IoT MQTT-based file delivery in
// devices", and its service quotas.
package stream

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Limits of the service ("AWS IoT Core MQTT-based file delivery", quotas).
const (
	MinBlockSize   = 256       // bytes
	MaxBlockSize   = 128 << 10 // bytes
	MaxRequestSize = 128 << 10 // bytes that are sent in answer to one request
	MaxFileSize    = 24 << 20  // bytes
	MaxFileID      = 255
)

// Conn is an MQTT connection. It may be lost and come back: subscriptions are the
// connection's to restore, and messages in between are lost.
type Conn interface {
	// Publish sends one message. With QoS 1 it returns once the broker has it; an
	// error means that it may not have. Without a connection it returns an error at
	// once or when ctx ends.
	Publish(ctx context.Context, topic string, qos byte, payload []byte) error

	// Subscribe calls handle for every message that matches filter, from when it
	// returns until unsubscribe is called or ctx ends, also after the connection was
	// lost and came back. Handle must return quickly, and keeps no payload. Others may
	// have subscribed to the same filter: each gets every message, until its own end.
	Subscribe(ctx context.Context, filter string, handle func(topic string, payload []byte)) (unsubscribe func(), err error)
}

// Format is how messages are encoded.
type Format string

// Formats. JSON is a third larger.
const (
	CBOR Format = "cbor"
	JSON Format = "json"
)

// Options say what to read, and how. The zero values of the second half work.
type Options struct {
	Thing  string // whose stream topics are used
	Stream string // its ID
	FileID int    // 0 to 255
	Size   int64  // of the whole file, in bytes: 1 to MaxFileSize
	Offset int64  // the first byte to read: 0 to Size

	Version   int           // of the stream, from 1; default: 0, which takes any
	Format    Format        // default CBOR
	BlockSize int           // bytes in one message; default 16 KiB
	Window    int           // bytes that are asked for or received, and not yet read; default 256 KiB
	Patience  time.Duration // without any block, after which Read fails; default 2 min
}

// ErrStale says that the stream is not what the job said any more: gone, of another
// version, or of a file that was replaced. Get the job again.
var ErrStale = errors.New("the stream is not what the job says; get the job again")

// Rejected is the service's refusal of a request. It wraps [ErrStale] if its code
// says so, and one of ota.ErrAuthentication and ota.ErrServer.
type Rejected struct {
	Code    string // for example ResourceNotFound
	Message string
}

func (e *Rejected) Error() string {
	return fmt.Sprintf("the service refuses: %.64q: %.200q", e.Code, e.Message)
}

// Description is what a stream has.
type Description struct {
	Version int
	Text    string
	Files   map[int]int64 // sizes in bytes, by file ID
}
