package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
)

const (
	// Pieces in which an object is read, in bytes. The first is small, because many
	// readers want little; each that follows on it is twice as large. So at most
	// lastPiece is held in memory and fetched for nothing, and no connection stays
	// open while a slow reader thinks.
	firstPiece = 64 << 10
	lastPiece  = 1 << 20

	pieceTries = 3 // of a piece whose bytes did not all come
)

// remote is an object of a store elsewhere as a file. One goroutine uses it.
type remote struct {
	ctx   context.Context // of the one request that reads it; io.Reader has no room for it
	files *Files
	key   string
	size  int64

	at    int64 // of the next Read
	from  int64 // of piece
	piece []byte
}

func (r *remote) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the file")
	}
	r.at = offset
	return offset, nil
}

func (r *remote) Read(p []byte) (int, error) {
	if r.at >= r.size {
		return 0, io.EOF
	}
	if r.at < r.from || r.at >= r.from+int64(len(r.piece)) {
		if err := r.fetch(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.piece[r.at-r.from:])
	r.at += int64(n)
	return n, nil
}

func (r *remote) Close() error {
	r.piece = nil
	return nil
}

// fetch reads the piece that begins at r.at.
func (r *remote) fetch() error {
	n := int64(firstPiece)
	if len(r.piece) > 0 && r.at == r.from+int64(len(r.piece)) {
		n = min(2*int64(len(r.piece)), lastPiece)
	}
	n = min(n, r.size-r.at)
	if int64(cap(r.piece)) < n {
		r.piece = make([]byte, n)
	}
	r.piece = r.piece[:n]
	var err error
	for range pieceTries {
		if err = r.read(); err == nil || r.ctx.Err() != nil || errors.Is(err, ErrNotFound) {
			break
		}
	}
	if r.from = r.at; err != nil {
		r.piece = r.piece[:0]
		return fmt.Errorf("read a release file: %w", r.files.blame(r.ctx, err))
	}
	return nil
}

func (r *remote) read() error {
	body, o, err := r.files.store.Open(r.ctx, r.key, r.at, int64(len(r.piece)))
	if err != nil {
		return err
	}
	defer body.Close()
	if o.Size != r.size {
		return fmt.Errorf("%s has %d bytes now, and had %d", r.key, o.Size, r.size)
	}
	if _, err := io.ReadFull(body, r.piece); err != nil {
		return fmt.Errorf("read %d bytes of %s from %d: %w", len(r.piece), r.key, r.at, err)
	}
	return nil
}
