package uds

import (
	"errors"
	"slices"
)

// transfer is a Transfer and the blocks that it was given (ISO 14229-1:2020, 14.5).
type transfer struct {
	Transfer
	counted bool   // the size is known
	left    uint64 // bytes that are still to come, if counted
	some    bool   // a block was taken
	last    byte   // its counter
	answer  []byte // to it
}

// closeTransfer closes what is open.
func (h *held) closeTransfer() {
	if h.transfer != nil {
		h.transfer.Close()
		h.transfer = nil
	}
	h.exited = nil
}

// errNoTransfer is a handler that accepts data and has nowhere to put them.
var errNoTransfer = errors.New("the handler has returned no transfer")

// download begins a transfer. One that is open is closed before, where the standard
// has the request refused: a tester that lost the answer, or must begin again after a
// wrong counter, would otherwise have to wait for S3.
func (a *answering) download(h *held, pdu []byte) ([]byte, error) {
	r, err := ParseDownloadRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	h.closeTransfer()
	t, err := a.s.Handler.(Downloader).Download(a.ctx, a.call, r)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, errNoTransfer
	}
	h.transfer = &transfer{Transfer: t, counted: r.Format == 0, left: r.Size}
	return DownloadAnswer{uint64(a.s.maxBlock())}.Append(nil), nil
}

func (a *answering) file(h *held, pdu []byte) ([]byte, error) {
	r, err := ParseFileRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	h.closeTransfer()
	answer, t, err := a.s.Handler.(FileTransferer).TransferFile(a.ctx, a.call, r)
	if err != nil {
		return nil, err
	}
	answer.Mode = orElse(answer.Mode, r.Mode)
	answer.MaxBlock = orElse(answer.MaxBlock, uint64(a.s.maxBlock()))
	answer.Format = orElse(answer.Format, r.Format)
	switch {
	case t != nil:
		h.transfer = &transfer{Transfer: t}
	case r.Mode != DeleteFile:
		return nil, errNoTransfer
	}
	if r.Mode.writes() {
		h.transfer.counted = true
		h.transfer.left = r.Compressed
		if r.Mode == ResumeFile {
			if answer.Position > r.Compressed {
				h.closeTransfer()
				return nil, RequestOutOfRange
			}
			h.transfer.left -= answer.Position
		}
	}
	return answer.Append(nil), nil
}

// block takes a block, or answers one again that was taken.
func (a *answering) block(h *held, pdu []byte) ([]byte, error) {
	r, err := ParseTransferRequest(pdu)
	if err != nil || len(pdu) > a.s.maxBlock() {
		return nil, IncorrectMessageLength
	}
	t := h.transfer
	switch {
	case t == nil:
		return nil, RequestSequenceError
	case t.some && r.Counter == t.last:
		return TransferAnswer{r.Counter, t.answer}.Append(nil), nil
	case r.Counter != t.last+1:
		return nil, WrongBlockSequenceCounter
	case t.counted && len(r.Data) == 0:
		return nil, IncorrectMessageLength
	case t.counted && uint64(len(r.Data)) > t.left:
		return nil, TransferDataSuspended
	}
	answer, err := t.Data(a.ctx, a.call, r.Data)
	if err != nil {
		return nil, nrcOf(err, GeneralProgrammingFailure)
	}
	if t.counted {
		t.left -= uint64(len(r.Data))
	}
	t.some, t.last, t.answer = true, r.Counter, slices.Clone(answer)
	return TransferAnswer{r.Counter, answer}.Append(nil), nil
}

// exit closes a transfer. Said again, with nothing between, it is answered as it was:
// the first answer may have been lost.
func (a *answering) exit(h *held, pdu []byte) ([]byte, error) {
	r, err := ParseExitRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	t := h.transfer
	switch {
	case t == nil && h.exited != nil:
		return h.exited, nil
	case t == nil, t.counted && t.left > 0:
		return nil, RequestSequenceError
	}
	parameters, err := t.Exit(a.ctx, a.call, r.Parameters)
	if err != nil {
		return nil, nrcOf(err, GeneralProgrammingFailure)
	}
	h.closeTransfer()
	h.exited = ExitAnswer{parameters}.Append(nil)
	return h.exited, nil
}
