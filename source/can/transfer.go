package can

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/can/profile"
)

// code is what a tester is told about an error of the inbox.
func code(err error) uds.NRC {
	switch {
	case errors.Is(err, inbox.ErrBusy):
		return uds.ConditionsNotCorrect
	case errors.Is(err, inbox.ErrRange), errors.Is(err, inbox.ErrConflict):
		return uds.RequestOutOfRange
	case errors.Is(err, inbox.ErrNone), errors.Is(err, inbox.ErrMissing), errors.Is(err, inbox.ErrPhase):
		return uds.RequestSequenceError
	}
	return uds.GeneralProgrammingFailure // the disk, or a manifest that does not hold
}

// begin makes room for o, or goes on with it. What was announced is the same bundle as
// long as its size and hash are.
func (h *handler) begin(o inbox.Offer, announced bool) error {
	if o.Size <= 0 || o.Size > h.cfg.MaxSize {
		return h.no(uds.RequestOutOfRange, fmt.Errorf("%w: a bundle of %d bytes is announced, want 1 to %d", inbox.ErrRange, o.Size, h.cfg.MaxSize))
	}
	resumed, err := h.inbox.Begin(o)
	if errors.Is(err, ota.ErrInsufficientSpace) {
		return h.no(uds.UploadDownloadNotAccepted, err)
	}
	if err != nil {
		return h.no(code(err), err)
	}
	h.cfg.Log.Info("a bundle comes over CAN", "bytes", o.Size, "sha256", o.SHA256.String(), "goes_on", resumed)
	h.mu.Lock()
	h.announced = announced
	h.mu.Unlock()
	h.yes()
	return nil
}

// erase removes what is there. What this session has announced still comes: it begins anew.
func (h *handler) erase() error {
	o := h.inbox.State().Offer
	h.mu.Lock()
	announced := h.announced
	h.mu.Unlock()
	if err := h.inbox.Drop(); err != nil {
		return h.no(code(err), err)
	}
	h.yes()
	if announced {
		return h.begin(o, true)
	}
	return nil
}

// patience is how long the update manager may take to give something up.
const patience = 30 * time.Second

// abort gives up what is there. Once its installation was asked for, it is the update manager's to give up.
func (h *handler) abort(ctx context.Context) error {
	if b := h.inbox.State(); b.Asked && h.cfg.Withdraw != nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := h.cfg.Withdraw(ctx, b.Digest); errors.Is(err, ota.ErrBusy) {
			return h.no(uds.ConditionsNotCorrect, fmt.Errorf("it is too late to take it back: %w", err))
		} else if errors.Is(err, ota.ErrFlashWrite) {
			return h.no(uds.GeneralProgrammingFailure, err)
		} else if err != nil {
			return h.no(uds.ConditionsNotCorrect, err)
		}
	} else if err := h.inbox.Drop(); err != nil {
		return h.no(code(err), err)
	}
	h.mu.Lock()
	h.announced = false
	h.mu.Unlock()
	h.yes()
	return nil
}

// Download implements [uds.Downloader]: the address is an offset in the bundle.
//
//	address 0, announced before      the announced bundle from its beginning: what is there already is compared
//	address 0, not announced         a bundle of which nothing but its size is known; what was there is removed
//	address is what is missing first the transfer goes on, whoever has begun it
//
// Everything else is out of range. After the installation was asked for nothing is taken,
// until that has ended or was given up (31 01 F002).
func (h *handler) Download(_ context.Context, call uds.Call, r uds.DownloadRequest) (uds.Transfer, error) {
	b := h.inbox.State()
	h.mu.Lock()
	announced := h.announced
	h.mu.Unlock()
	offset, size := int64(r.Address), int64(r.Size)
	if r.Format != 0 || r.AddressBytes != 4 || r.SizeBytes != 4 {
		return nil, h.no(uds.RequestOutOfRange, fmt.Errorf("%w: a download with format %02X, %d bytes of address and %d of size, want format 00 and four bytes each",
			inbox.ErrRange, r.Format, r.AddressBytes, r.SizeBytes))
	}
	if b.Phase == inbox.Requested {
		return nil, h.no(uds.ConditionsNotCorrect, inbox.ErrBusy)
	}
	if offset == 0 && !announced {
		if err := h.fresh(size); err != nil {
			return nil, err
		}
		return h.take(0, size), nil
	}
	if size == 0 || offset+size > b.Offer.Size || offset != 0 && offset != b.Missing {
		return nil, h.no(uds.RequestOutOfRange, fmt.Errorf("%w: a download of %d bytes at %d, want address %d and at most %d bytes",
			inbox.ErrRange, size, offset, b.Missing, max(b.Offer.Size-b.Missing, 0)))
	}
	return h.take(offset, size), nil
}

// failed is for a transfer that can come to nothing any more. What is told is the
// transfer's own reason, for as long as it is there.
func (h *handler) failed(b inbox.State) error {
	h.yes()
	h.cfg.Log.Warn("what a tester on CAN has sent cannot be installed", "reason", b.Err)
	return fmt.Errorf("%w: %w", uds.GeneralProgrammingFailure, b.Err)
}

// fresh begins a transfer that was not announced. What is there may be of another bundle
// of the same size, so it goes.
func (h *handler) fresh(size int64) error {
	if size <= 0 || size > h.cfg.MaxSize {
		return h.begin(inbox.Offer{Size: size}, false) // refuses
	}
	if err := h.inbox.Drop(); err != nil {
		return h.no(code(err), err)
	}
	return h.begin(inbox.Offer{Size: size}, false)
}

func (h *handler) take(offset, size int64) *transfer {
	h.yes()
	return &transfer{h: h, begin: offset, next: offset, end: offset + size}
}

// TransferFile implements [uds.FileTransferer], for the one file that there is.
func (h *handler) TransferFile(ctx context.Context, call uds.Call, r uds.FileRequest) (uds.FileAnswer, uds.Transfer, error) {
	refuse := func(format string, a ...any) (uds.FileAnswer, uds.Transfer, error) {
		return uds.FileAnswer{}, nil, h.no(uds.RequestOutOfRange, fmt.Errorf("%w: "+format, append([]any{inbox.ErrRange}, a...)...))
	}
	if r.Name != profile.FileName {
		return refuse("a file called %q, want %q", profile.Text(r.Name)[:min(len(profile.Text(r.Name)), 80)], profile.FileName)
	}
	if r.Format != 0 || r.Size != r.Compressed && r.Mode != uds.DeleteFile {
		return refuse("a file in format %02X, %d bytes of which %d come, want it as it is", r.Format, r.Size, r.Compressed)
	}
	if r.Size > uint64(h.cfg.MaxSize) {
		return refuse("a file of %d bytes, want at most %d", r.Size, h.cfg.MaxSize)
	}
	size, b := int64(r.Size), h.inbox.State()
	if b.Phase == inbox.Requested && r.Mode != uds.DeleteFile {
		return uds.FileAnswer{}, nil, h.no(uds.ConditionsNotCorrect, inbox.ErrBusy)
	}
	h.mu.Lock()
	announced := h.announced
	h.mu.Unlock()
	switch r.Mode {
	case uds.DeleteFile:
		return uds.FileAnswer{}, nil, h.abort(ctx)
	case uds.AddFile, uds.ReplaceFile:
		if announced && size == b.Offer.Size {
			return uds.FileAnswer{}, h.take(0, size), nil
		}
		if r.Mode == uds.AddFile && b.Phase != inbox.Empty && b.Phase != inbox.Failed && b.Phase != inbox.Ended {
			return refuse("a file is there already, of %d bytes; resume, replace or delete it", b.Offer.Size)
		}
		if err := h.fresh(size); err != nil {
			return uds.FileAnswer{}, nil, err
		}
		return uds.FileAnswer{}, h.take(0, size), nil
	case uds.ResumeFile:
		if size != b.Offer.Size || b.Phase == inbox.Empty {
			return refuse("a file of %d bytes goes on, there is one of %d", size, b.Offer.Size)
		}
		return uds.FileAnswer{Position: uint64(b.Missing)}, h.take(b.Missing, size-b.Missing), nil
	}
	return refuse("mode %02X, want to add, replace, delete or resume", byte(r.Mode))
}

// transfer is one download: bytes from begin to end, in order.
type transfer struct {
	h                *handler
	begin, next, end int64
}

// Data implements [uds.Transfer]. A block that comes while the manifest before it is
// being verified waits for that.
func (t *transfer) Data(ctx context.Context, call uds.Call, block []byte) ([]byte, error) {
	if len(block) == 0 {
		return nil, uds.IncorrectMessageLength
	}
	if t.next+int64(len(block)) > t.end {
		return nil, t.h.no(uds.RequestOutOfRange, fmt.Errorf("%w: a block of %d bytes at %d, want at most %d", inbox.ErrRange, len(block), t.next, t.end-t.next))
	}
	for {
		changed := t.h.inbox.Changed()
		err := t.h.inbox.Put(t.next, block)
		if err == nil {
			t.next += int64(len(block))
			return nil, nil
		}
		b := t.h.inbox.State()
		switch {
		case b.Phase == inbox.Failed && b.Err != nil: // the manifest does not hold: nothing that comes can help
			return nil, t.h.failed(b)
		case !errors.Is(err, inbox.ErrEarly):
			return nil, t.h.no(code(err), fmt.Errorf("take %d bytes at %d: %w", len(block), t.next, err))
		case t.next >= b.Offer.Size || b.Missing < t.next && b.Missing < b.Until: // what comes first was never sent
			return nil, t.h.no(uds.RequestSequenceError, fmt.Errorf("take %d bytes at %d: %w; %d is missing first", len(block), t.next, err, b.Missing))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, t.h.no(uds.ConditionsNotCorrect, fmt.Errorf("wait until the manifest is verified: %w", ctx.Err()))
		}
	}
}

// Exit implements [uds.Transfer].
func (t *transfer) Exit(_ context.Context, call uds.Call, parameters []byte) ([]byte, error) {
	if len(parameters) != 0 {
		return nil, uds.IncorrectMessageLength
	}
	switch b := t.h.inbox.State(); {
	case t.next < t.end:
		return nil, t.h.no(uds.RequestSequenceError, fmt.Errorf("%w: %d of %d bytes came", inbox.ErrMissing, t.next-t.begin, t.end-t.begin))
	case b.Phase == inbox.Failed && b.Err != nil:
		return nil, t.h.failed(b)
	case !t.h.inbox.Has(t.begin, t.end-t.begin):
		return nil, t.h.no(uds.GeneralProgrammingFailure, fmt.Errorf("%w: what came has other hashes than the manifest says; send it again from %d on", ota.ErrValidation, b.Missing))
	}
	t.h.yes()
	return nil, nil
}

// Close implements [uds.Transfer].
func (t *transfer) Close() {}

// check verifies everything that was received, and waits for the end of that.
func (h *handler) check(ctx context.Context, sum []byte) ([]byte, error) {
	failed := func(err error) ([]byte, error) {
		_ = h.no(uds.GeneralProgrammingFailure, err) // the answer is positive, and says no
		return []byte{profile.RoutineFailed}, nil
	}
	over := func(b inbox.State) ([]byte, error) {
		_ = h.failed(b)
		return []byte{profile.RoutineFailed}, nil
	}
	b := h.inbox.State()
	if zero := (ota.Hash{}); len(sum) > 0 && b.Offer.SHA256 != zero && !bytes.Equal(sum, b.Offer.SHA256[:]) {
		return failed(fmt.Errorf("%w: the bundle was announced with SHA-256 %v, and is to be checked with %x", ota.ErrValidation, b.Offer.SHA256, sum))
	}
	if settled(b.Phase) {
		return h.compare(ctx, sum, failed)
	}
	changed := h.inbox.Changed()
	if err := h.inbox.Finish(); err != nil {
		if b := h.inbox.State(); b.Phase == inbox.Failed && b.Err != nil {
			return over(b)
		}
		return nil, h.no(code(err), fmt.Errorf("verify the bundle: %w", err))
	}
	for {
		switch b := h.inbox.State(); {
		case settled(b.Phase):
			return h.compare(ctx, sum, failed)
		case b.Phase == inbox.Failed && b.Err != nil:
			return over(b)
		case b.Phase == inbox.Failed || b.Phase == inbox.Receiving || b.Phase == inbox.Empty || b.Phase == inbox.Opening:
			err := b.Err
			if err == nil {
				err = fmt.Errorf("%w: the transfer is %s again", ota.ErrValidation, b.Phase)
			}
			return failed(err)
		}
		select {
		case <-changed:
			changed = h.inbox.Changed()
		case <-ctx.Done():
			return nil, h.no(uds.ConditionsNotCorrect, fmt.Errorf("verify the bundle: %w", ctx.Err()))
		}
	}
}

// settled reports whether all was verified.
func settled(p inbox.Phase) bool {
	return p == inbox.Verified || p == inbox.Requested || p == inbox.Ended
}

// compare holds what is there against a hash that was not announced.
func (h *handler) compare(ctx context.Context, sum []byte, failed func(error) ([]byte, error)) ([]byte, error) {
	b := h.inbox.State()
	if zero := (ota.Hash{}); len(sum) > 0 && b.Offer.SHA256 == zero && b.Phase == inbox.Verified {
		hash := sha256.New()
		if _, err := io.Copy(hash, &interruptible{ctx, io.NewSectionReader(h.inbox, 0, b.Offer.Size)}); err != nil {
			return nil, h.no(uds.GeneralProgrammingFailure, fmt.Errorf("read what was received: %w", err))
		}
		if got := hash.Sum(nil); !bytes.Equal(got, sum) {
			return failed(fmt.Errorf("%w: the bundle has SHA-256 %x, and is to be checked with %x", ota.ErrValidation, got, sum))
		}
	}
	h.yes()
	return []byte{profile.RoutineDone}, nil
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// dependencies says whether what was verified may be installed here. The inbox has judged
// that with the manifest, before it took the first byte of an image.
func (h *handler) dependencies() ([]byte, error) {
	switch b := h.inbox.State(); {
	case settled(b.Phase):
		h.yes()
		return []byte{profile.RoutineDone}, nil
	case b.Phase == inbox.Failed:
		return []byte{profile.RoutineFailed}, nil
	default:
		return nil, h.no(uds.RequestSequenceError, fmt.Errorf("%w: the transfer is %s, want verified", inbox.ErrPhase, b.Phase))
	}
}

// install asks for the installation. Asked again, it is asked for once.
func (h *handler) install(call uds.Call) error {
	b := h.inbox.State()
	if b.Phase != inbox.Requested {
		if err := h.inbox.Request(); err != nil {
			return h.no(code(err), fmt.Errorf("ask for the installation: %w", err))
		}
		h.cfg.Log.Info("a tester on CAN asks for the installation", "version", b.Version, "tester", call.Tester, "role", call.Role)
		if h.cfg.Requested != nil {
			h.cfg.Requested(call.Tester, b.Digest)
		}
	}
	h.yes()
	return nil
}
