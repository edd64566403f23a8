package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/interlock-energy/ota"
)

// open opens the image in the file that Latest found, or else in any file that
// has the release.
func (s *Source) open(ctx context.Context, last found, m *ota.Manifest, im *ota.Image, offset int64) (*reader, error) {
	if last.m != nil && last.m.Digest == m.Digest {
		if r, err := s.openAt(last.place, m, im, offset); err == nil {
			return r, nil
		}
	}
	places, problems := s.places(ctx)
	for _, p := range places {
		if err := ctx.Err(); err != nil {
			return nil, gone(err)
		}
		r, err := s.openAt(p, m, im, offset)
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

// openAt opens the image in the file at p, if the file has the release m.
func (s *Source) openAt(p place, m *ota.Manifest, im *ota.Image, offset int64) (*reader, error) {
	file, b, err := p.open()
	if err != nil {
		return nil, err
	}
	there, err := s.cfg.Verify(b.Signed())
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

const readSize = 64 << 10

// reader reads an image. Each read of the medium is made apart, because one that
// hangs cannot be interrupted.
type reader struct {
	file  *os.File
	part  *io.SectionReader
	at    int64
	buf   []byte
	done  <-chan struct{}
	cause func() error
	close sync.Once
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
	if r.buf == nil {
		r.buf = make([]byte, readSize)
	}
	type result struct {
		n   int
		err error
	}
	read := make(chan result, 1)
	buf, part, at := r.buf[:min(len(p), len(r.buf))], r.part, r.at
	go func() {
		n, err := part.ReadAt(buf, at)
		read <- result{n, err}
	}()
	select {
	case <-r.done:
		r.buf = nil // the read under way may still fill it
		return 0, gone(r.cause())
	case got := <-read:
		n := copy(p, buf[:got.n])
		r.at += int64(n)
		switch {
		case got.err == nil || errors.Is(got.err, io.EOF) && r.at == r.part.Size():
			return n, nil
		case errors.Is(got.err, io.EOF):
			got.err = io.ErrUnexpectedEOF
		}
		return n, gone(fmt.Errorf("read %q: at %d of %d bytes of the image: %w", r.file.Name(), r.at, r.part.Size(), got.err))
	}
}

// Close may be called at any time, also during a Read, and again.
func (r *reader) Close() error {
	var err error
	r.close.Do(func() { err = r.file.Close() })
	return err
}
