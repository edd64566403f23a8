package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/interlock-energy/ota"
)

// open opens the image in the file that Latest found, or else in any file that
// has the release.
func (s *Source) open(ctx context.Context, last found, m *ota.Manifest, im *ota.Image, offset int64) (*reader, error) {
	if last.m != nil && last.m.Digest == m.Digest {
		if r, err := s.openAt(last.place, last, m, im, offset); err == nil {
			return r, nil
		}
	}
	places, problems := s.places(ctx)
	for _, p := range places {
		if err := ctx.Err(); err != nil {
			return nil, gone(err)
		}
		r, err := s.openAt(p, last, m, im, offset)
		if err == nil {
			return r, nil
		}
		problems = append(problems, fmt.Errorf("%v: %w", p, err))
	}
	if len(problems) == 0 {
		return nil, fmt.Errorf("%w: no medium at %q has it; put it back", ota.ErrConnectivity, s.cfg.Path)
	}
	return nil, fmt.Errorf("%w: no medium at %q has it; put it back: %s", ota.ErrConnectivity, s.cfg.Path, summary(problems))
}

// openAt opens the image in the file at p, if the file has the release m. An
// envelope that is that of last to the byte was verified already.
func (s *Source) openAt(p place, last found, m *ota.Manifest, im *ota.Image, offset int64) (*reader, error) {
	file, b, err := p.open()
	if err != nil {
		return nil, err
	}
	there := last.m
	if there == nil || !bytes.Equal(b.Signed(), last.signed) {
		there, err = s.cfg.Verify(b.Signed())
	}
	if err == nil && there.Digest != m.Digest {
		err = fmt.Errorf("%w: is release %s with digest %s, want %s", ota.ErrConnectivity, there.Version, there.Digest, m.Digest)
	}
	var part *io.SectionReader
	if err == nil {
		part, err = b.Image(m, im)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &reader{file: file, part: part, at: offset}, nil
}

// readSize is what one read of the medium asks for. Each costs a goroutine: in steps
// of 64 KiB an installation took a fifth more CPU.
const readSize = 1 << 20

// reader reads an image. Each read of the medium is made apart, because one that
// hangs cannot be interrupted.
type reader struct {
	file  *os.File
	part  *io.SectionReader
	at    int64
	buf   []byte
	rest  []byte // of buf, read and not asked for yet: the bytes from at on
	done  <-chan struct{}
	cause func() error
	close sync.Once
	ended atomic.Bool // Close was called
}

func (r *reader) Read(p []byte) (int, error) {
	if r.at == r.part.Size() {
		return 0, io.EOF
	}
	select {
	case <-r.done:
		return 0, gone(r.cause())
	default:
	}
	if len(r.rest) == 0 || r.ended.Load() { // of a file that is closed, the system says so
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.at += int64(n)
	return n, nil
}

// fill reads on from the medium. It returns an error only if it got nothing: what
// lies behind an error comes back with the read that needs it.
func (r *reader) fill() error {
	if r.buf == nil {
		r.buf = make([]byte, readSize)
	}
	type result struct {
		n   int
		err error
	}
	read := make(chan result, 1)
	buf, part, at := r.buf, r.part, r.at
	go func() {
		n, err := part.ReadAt(buf, at)
		read <- result{n, err}
	}()
	select {
	case <-r.done:
		r.buf = nil // the read under way may still fill it
		return gone(r.cause())
	case got := <-read:
		r.rest = buf[:got.n]
		switch {
		case got.n > 0:
			return nil
		case got.err == nil || errors.Is(got.err, io.EOF):
			got.err = io.ErrUnexpectedEOF
		}
		return gone(fmt.Errorf("read %q: at %d of %d bytes of the image: %w", r.file.Name(), r.at, r.part.Size(), got.err))
	}
}

// Seek implements [io.Seeker], within the image. The medium is here, so that the
// image can be verified as a whole before it is written.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.part.Size()
	}
	if offset < 0 || offset > r.part.Size() {
		return 0, fmt.Errorf("seek to byte %d: %w: the image has %d bytes", offset, ota.ErrInternal, r.part.Size())
	}
	r.at, r.rest = offset, nil
	return offset, nil
}

// Close may be called at any time, also during a Read, and again.
func (r *reader) Close() error {
	var err error
	r.ended.Store(true)
	r.close.Do(func() { err = r.file.Close() })
	return err
}
