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
//   - No call but [Open] and [Inbox.Report], and [Inbox.Drop] of what the installation was asked for,
//     waits for a sync of the disk: what takes long is done in the background, and shows in
//     [Inbox.State].
//   - How an update ended is kept on the disk until the next transfer begins.
//   - A panic never gets out, and never leads to anything being installed: see [ErrBroken].
package inbox

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/internal/durable"
)

// Config says where the inbox is and what fits in.
type Config struct {
	FS  durable.FS // default: durable.OS
	Dir string     // made if it is not there; nothing else is in it
	Max int64      // bytes of a bundle, at most; default 256 MiB

	Verify ota.Verify // required: the only way from bytes to a manifest
	// Judge says why a release is not for this unit; nil: all that verify are. What wraps
	// [ota.ErrConnectivity], [ota.ErrServer] or [ota.ErrNotNow] is asked again later, all
	// else is final. It must not call the Inbox, except State.
	Judge func(*ota.Manifest) error
	// InHand returns the digest of the release that the manager has in hand, "" for none:
	// that one is not removed. Nil: it never has one. It must not call the Inbox, except State.
	InHand func() string

	Log *slog.Logger     // default: slog.Default()
	Now func() time.Time // default: time.Now

	Crashes *crash.Log // keeps account of panics; nil: the process's
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
	Asked    bool   // Request was called, and what was asked for has not ended; also if pieces have to come again
	Received int64  // bytes of Offer.Size that are there
	Missing  int64  // the first byte that is not; Offer.Size if none is missing
	// Until is how far bytes are taken now: the end of the envelope, and Offer.Size once
	// that holds. What starts at or behind it is ErrEarly.
	Until    int64
	Verified int64       // while Verifying: bytes done
	Err      error       // Failed, or why Opening or Verifying goes wrong for now; has a code
	Outcome  *ota.Report // Ended
	Last     *ota.Report // how the last update ended that the manager has reported, also of another release
	Changed  time.Time   // when a piece came last, or the phase changed
	Images   int         // that the release has, once the envelope holds
}

// Errors of Put and the other calls. What wraps [ota.ErrInsufficientSpace] or
// [ota.ErrFlashWrite] is the disk's.
var (
	ErrNone     = errors.New("no transfer was begun")
	ErrBusy     = errors.New("the release is being installed; wait until it ended")
	ErrRange    = errors.New("the piece is not within what comes")
	ErrEarly    = errors.New("the manifest is not verified yet")          // or space is being freed: ask again a little later, or send the envelope first
	ErrConflict = errors.New("other bytes are there already")             // with the same offset
	ErrMissing  = errors.New("pieces are missing")                        // Finish
	ErrPhase    = errors.New("this does not fit how far the transfer is") // Request before Verified
	// ErrBroken is what all calls return after a panic, until the next [Open]; [State] has it as Failed.
	ErrBroken = errors.New("the inbox takes nothing more, and offers nothing, until the agent is restarted")
)

// Inbox is an [ota.Source], an [ota.Reporter] and an [ota.Waker]. Its methods may be
// called from any goroutine.
//
// What is in Dir:
//
//	journal      which bytes are there, and how far the transfer is; see journal.go
//	data.N       the bytes, as a bundle file; another N for each transfer
//	envelope     what SetEnvelope was given last
//
// Put writes the bytes, then says so in the journal, and syncs neither: what is in the
// page cache survives the end of the process. The goroutine that [Open] starts syncs
// both, in that order, every MiB or 5 s. After a power cut the two may not agree. So
// Open believes only entries whose bytes still have the CRC, or the hash, that they had.
type Inbox struct {
	cfg  Config
	quit chan struct{} // closed by Close
	done chan struct{} // closed when the goroutine has ended
	kick chan struct{} // there is something for the goroutine to do
	woke chan struct{} // see Wake

	// op is held by what changes something, while the disk writes, and never while it syncs.
	// What is below is changed with op and mu held, and read with one of them.
	op sync.Mutex

	journal     durable.File // nil: there is none yet
	journalSize int64
	compactAt   int64 // size of the journal from which on it is written anew
	frozen      bool  // nothing is appended to the journal
	rewrite     bool  // the journal on the medium is not what was written: write it anew
	recalled    bool  // what was given up may still be asked for on the medium, until the journal was written anew and synced
	changes     int   // of what cannot be appended to a journal that is being written anew
	data        durable.File
	garbage     []rubbish
	offered     []byte // of SetEnvelope
	offeredM    *ota.Manifest

	queue   []int // chunks to be compared with their hashes
	checked []byte
	wrong   map[int]int // times that a chunk had another hash

	since     time.Time // of the oldest byte that is not synced; zero: there is none
	room      int64     // bytes that may be written before what is free is looked at again
	unsynced  int64     // bytes
	hull      span      // all of them lie in here
	urgent    bool      // do not wait
	names     bool      // a name is new
	syncPause time.Time // not before, after a failure
	judgeAt   time.Time // Opening: when to ask Judge again; zero: the envelope is not there
	verifyAt  time.Time // Verifying: not before, after a failure
	rewriteAt time.Time // not before, after a failure
	garbageAt time.Time // not before, after a failure
	closed    bool

	mu       sync.Mutex // never held while the disk works
	s        state
	gen      int   // of transfers
	base     int64 // bytes of the spooled file before the first that comes: 0, or those of the head
	head     int64 // bytes of header and envelope; 0: not known
	got      set
	signed   []byte        // once it is there as a whole
	m        *ota.Manifest // once the envelope holds
	lay      *layout       // with m
	verified int64
	err      error
	changed  time.Time
	waiting  chan struct{} // see Changed; nil: nobody waits
	broken   error         // see ErrBroken
}

// rubbish is a spooled file that nobody needs any more. It is removed once the journal
// that does not know it is durable.
type rubbish struct {
	name string
	size int64
	f    durable.File // or nil
	safe bool         // the journal is durable
}

var (
	_ ota.Source   = (*Inbox)(nil)
	_ ota.Reporter = (*Inbox)(nil)
	_ ota.Waker    = (*Inbox)(nil)
)

const (
	defaultMax = 256 << 20
	reserve    = 4 << 20 // bytes that stay free, beside what comes; half of it while it comes
)

// Open opens the inbox with what an earlier life of the process left in it. What is
// damaged there counts as not there, and is logged. It reads all that is there of a
// transfer that is not verified yet.
func Open(cfg Config) (*Inbox, error) {
	if cfg.Verify == nil {
		return nil, errors.New("open the inbox: no keys are given")
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if cfg.Max <= 0 {
		cfg.Max = defaultMax
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := durable.MkdirAll(cfg.FS, cfg.Dir, 0o700); err != nil {
		return nil, diskError("open the inbox", err)
	}
	cfg.careful()
	b := restored(cfg)
	if b.s.Phase == Requested && b.broken == nil {
		b.woke <- struct{}{}
	}
	go b.run()
	b.wake()
	return b, nil
}

func newInbox(cfg Config) *Inbox {
	return &Inbox{cfg: cfg, quit: make(chan struct{}), done: make(chan struct{}), kick: make(chan struct{}, 1), woke: make(chan struct{}, 1),
		compactAt: compactAfter, s: state{Format: 1, Phase: Empty}, changed: cfg.Now()}
}

// Close ends what is done in the background, after a last sync.
func (b *Inbox) Close() error {
	b.op.Lock()
	if b.closed {
		b.op.Unlock()
		return nil
	}
	b.closed = true
	close(b.quit)
	b.op.Unlock()
	<-b.done
	b.op.Lock()
	defer b.op.Unlock()
	return b.release()
}

// release closes the files.
func (b *Inbox) release() error {
	var err error
	for _, f := range []durable.File{b.journal, b.data} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	for _, g := range b.garbage {
		if g.f != nil {
			err = errors.Join(err, g.f.Close())
		}
	}
	return err
}

// wake tells the goroutine that there is something to do.
func (b *Inbox) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// State returns what is there now. It is cheap.
func (b *Inbox) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := State{Phase: b.s.Phase, Offer: b.s.offer(), Version: b.s.Version, Digest: b.s.Digest, Asked: b.s.Asked, Verified: b.verified,
		Err: b.err, Outcome: clone(b.s.Outcome), Last: clone(b.s.Last), Changed: b.changed}
	s.Images = b.s.Images
	if b.broken != nil { // what else is said here may be half of a change
		s.Phase, s.Err, s.Asked, s.Outcome = Failed, b.broken, false, nil
	}
	switch s.Phase {
	case Empty, Ended, Failed:
	default:
		s.Received = max(b.got.total-b.base, 0)
		s.Missing = max(b.got.missing(b.base)-b.base, 0)
		s.Until = b.until() - b.base
	}
	return s
}

func clone(r *ota.Report) *ota.Report {
	if r == nil {
		return nil
	}
	c := *r
	return &c
}

// until returns how far bytes of the spooled file are taken.
func (b *Inbox) until() int64 {
	switch {
	case b.s.Phase != Opening:
		return b.base + b.s.Size
	case b.head == 0:
		return int64(bundle.HeaderSize)
	}
	return b.head
}

// Changed returns a channel that is closed at the next change of State.
func (b *Inbox) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting == nil {
		b.waiting = make(chan struct{})
	}
	return b.waiting
}

// update changes what State shows.
func (b *Inbox) update(f func()) {
	now := b.cfg.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	b.changed = now
	if b.waiting != nil {
		close(b.waiting)
		b.waiting = nil
	}
}

// settle makes the phase fit the bytes that are there.
func (b *Inbox) settle() {
	switch b.s.Phase {
	case Receiving, Received:
		b.s.Phase = Receiving
		if b.full() {
			b.s.Phase, b.err = Received, nil
		}
	}
}

// full reports whether all that comes is there.
func (b *Inbox) full() bool { return b.got.has(b.base, b.base+b.s.Size) }

// coded returns an error that wraps code, but shows only its own text.
func coded(code ota.ErrorCode, format string, a ...any) error {
	return &codedError{code, fmt.Errorf(format, a...)}
}

type codedError struct {
	code ota.ErrorCode
	err  error
}

func (e *codedError) Error() string   { return e.err.Error() }
func (e *codedError) Unwrap() []error { return []error{e.code, e.err} }

// diskError says that the disk does not do what it should.
func diskError(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return coded(ota.ErrInsufficientSpace, "%s: %w", doing, err)
	}
	return coded(ota.ErrFlashWrite, "%s: %w", doing, err)
}
