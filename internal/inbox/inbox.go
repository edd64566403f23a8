// Package inbox receives one bundle in pieces, from a world that pushes: a Modbus
// master, a CAN tester. It is what the sources of those worlds have in common, and the
// only part of them that writes to the disk.
//
// Start with [Open], give the pieces to [Inbox.Begin] and [Inbox.Put], and the Inbox to
// the manager, for which it is the [ota.Source].
//
// What is promised:
//
//   - The signed manifest comes first. No byte of an image is taken before the envelope
//     was verified and fits this unit.
//   - A piece for which Put returned nil is never asked for again after a restart of the
//     process. After a power cut it may be: only what the disk really has counts, and
//     nothing is said to be there that is not. A chunk that is whole is compared with
//     its hash in the manifest; a wrong one is thrown away, and asked for again.
//   - Nothing is offered to the manager before all of it is there, its hashes are right,
//     and somebody asked for the installation.
//   - No call but [Open] waits for the disk's cache: what takes long is done in the
//     background, and shows in [Inbox.State].
//   - How an update ended is kept on the disk until the next transfer begins.
package inbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// Config says where the inbox is and what fits in.
type Config struct {
	FS  durable.FS // default: durable.OS
	Dir string     // made if it is not there; nothing else is in it
	Max int64      // bytes of a bundle, at most; default 256 MiB

	Verify ota.Verify                // required: the only way from bytes to a manifest
	// Judge says why a release is not for this unit; nil: all that verify are. What wraps
	// [ota.ErrConnectivity], [ota.ErrServer] or [ota.ErrNotNow] is asked again later, all
	// else is final. It must not call the Inbox, except State.
	Judge func(*ota.Manifest) error
	// InHand returns the digest of the release that the manager has in hand, "" for none:
	// that one is not removed. Nil: it never has one. It must not call the Inbox, except State.
	InHand func() string

	Log *slog.Logger     // default: slog.Default()
	Now func() time.Time // default: time.Now
}

// A Phase is how far the transfer is.
type Phase string

// Phases, in their order.
const (
	Empty     Phase = "empty"     // nothing was begun
	Opening   Phase = "opening"   // the envelope comes, and no image yet
	Receiving Phase = "receiving" // the envelope holds, images come
	Received  Phase = "received"  // all is there; Finish has not been called
	Verifying Phase = "verifying" // all hashes are computed anew, from the disk
	Verified  Phase = "verified"  // it is what was signed; Request has not been called
	Requested Phase = "requested" // offered to the manager
	Ended     Phase = "ended"     // the manager has reported how it ended: State.Outcome
	Failed    Phase = "failed"    // never to be installed: State.Err
)

// An Offer is what a transfer begins with.
type Offer struct {
	Size   int64    // bytes of all that comes
	SHA256 ota.Hash // of all that comes
	// Bare: the images alone come, one after the other in the manifest's order, and the
	// envelope was given to SetEnvelope before. Otherwise a bundle file comes.
	Bare bool
}

// State is what is there.
type State struct {
	Phase    Phase
	Offer    Offer
	Version  string // of the release, once the envelope holds
	Digest   string // its digest
	Received int64  // bytes of Offer.Size that are there
	Missing  int64  // the first byte that is not; Offer.Size if none is missing
	// Until is how far bytes are taken now: the end of the envelope, and Offer.Size once
	// that holds. What starts at or behind it is ErrEarly.
	Until    int64
	Verified int64 // while Verifying: bytes done
	Err      error // Failed, or why Opening or Verifying goes wrong for now; has a code
	Outcome  *ota.Report // Ended
	Last     *ota.Report // how the last update ended that the manager has reported, also of another release
	Changed  time.Time // when a piece came last, or the phase changed
}

// Errors of Put and the other calls. What wraps [ota.ErrInsufficientSpace] or
// [ota.ErrFlashWrite] is the disk's.
var (
	ErrNone     = errors.New("no transfer was begun")
	ErrBusy     = errors.New("the release is being installed; wait until it ended")
	ErrRange    = errors.New("the piece is not within what comes")
	ErrEarly    = errors.New("the manifest is not verified yet")       // ask again a little later, or send the envelope first
	ErrConflict = errors.New("other bytes are there already")          // with the same offset
	ErrMissing  = errors.New("pieces are missing")                     // Finish
	ErrPhase    = errors.New("this does not fit how far the transfer is") // Request before Verified
)

// Inbox is an [ota.Source], an [ota.Reporter] and an [ota.Waker]. Its methods may be
// called from any goroutine.
type Inbox struct {
	cfg Config
}

var (
	_ ota.Source   = (*Inbox)(nil)
	_ ota.Reporter = (*Inbox)(nil)
	_ ota.Waker    = (*Inbox)(nil)
)

// Open opens the inbox with what an earlier life of the process left in it. What is
// damaged there counts as not there, and is logged.
func Open(cfg Config) (*Inbox, error) { return &Inbox{cfg: cfg}, nil }

// Close ends what is done in the background.
func (b *Inbox) Close() error { return nil }

// State returns what is there now. It is cheap.
func (b *Inbox) State() State { return State{} }

// Changed returns a channel that is closed at the next change of State.
func (b *Inbox) Changed() <-chan struct{} { return nil }

// SetEnvelope gives the signed envelope of a Bare offer. It is verified at once and
// kept for Begin.
func (b *Inbox) SetEnvelope(signed []byte) error { return errors.ErrUnsupported }

// Begin starts the transfer of o, or goes on with it if that is what is there. Anything
// else that is there is removed, unless the manager has it in hand ([ErrBusy]).
// resumed says whether it goes on.
func (b *Inbox) Begin(o Offer) (resumed bool, err error) { return false, errors.ErrUnsupported }

// Put takes the bytes of the transfer from offset on. The same bytes again are no error.
func (b *Inbox) Put(offset int64, p []byte) error { return errors.ErrUnsupported }

// Has reports whether all bytes from offset on are there.
func (b *Inbox) Has(offset, size int64) bool { return false }

// ReadAt reads what was received, for those who compare; bytes that are not there are
// zero. It implements [io.ReaderAt].
func (b *Inbox) ReadAt(p []byte, offset int64) (int, error) { return 0, errors.ErrUnsupported }

// Envelope returns the envelope that was verified, nil if none was.
func (b *Inbox) Envelope() []byte { return nil }

// Finish says that all was sent, and begins to verify it in the background. Called
// again, it does nothing.
func (b *Inbox) Finish() error { return errors.ErrUnsupported }

// Request asks for the installation: from now on the manager is offered the release.
func (b *Inbox) Request() error { return errors.ErrUnsupported }

// Drop gives up the transfer and frees its space, unless the manager has it in hand ([ErrBusy]).
func (b *Inbox) Drop() error { return errors.ErrUnsupported }

// Latest implements [ota.Source]: the release after Request, otherwise [ota.ErrNoUpdate].
func (b *Inbox) Latest(ctx context.Context) ([]byte, error) { return nil, ota.ErrNoUpdate }

// Open implements [ota.Source]. The reader is an [io.Seeker].
func (b *Inbox) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	return nil, ota.ErrConnectivity
}

// Report implements [ota.Reporter]: it is kept for whoever asks on the bus.
func (b *Inbox) Report(ctx context.Context, r ota.Report) error { return errors.ErrUnsupported }

// Wake implements [ota.Waker].
func (b *Inbox) Wake() <-chan struct{} { return nil }
