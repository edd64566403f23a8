package web

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/fleet"
)

// signer makes and checks tickets: a time and a text that cannot be changed.
type signer struct {
	key []byte
	now func() time.Time
}

const macSize = 16 // bytes of the HMAC-SHA256 that are sent; enough against guessing

var (
	errTicket  = errors.New("the ticket is not ours")
	errExpired = errors.New("the ticket has expired")
)

// ticket returns 27 characters for an URL that vouch for text until expires.
func (s *signer) ticket(expires time.Time, text string) string {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+macSize), uint32(expires.Unix())) // until 2106
	return base64.RawURLEncoding.EncodeToString(append(b, s.mac(b, text)...))
}

func (s *signer) mac(expires []byte, text string) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write(expires)
	io.WriteString(h, text)
	return h.Sum(nil)[:macSize]
}

func (s *signer) check(ticket, text string) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(ticket)
	if err != nil || len(b) != 4+macSize || !hmac.Equal(b[4:], s.mac(b[:4], text)) {
		return errTicket
	}
	if s.now().Unix() >= int64(binary.BigEndian.Uint32(b)) {
		return errExpired
	}
	return nil
}

// expiry is when URLs given out now end: after URLLifetime at least and a
// quarter more at most, the same for all devices for a quarter of it, so that
// an offer is rendered once and not for every device.
func (s *Server) expiry() time.Time {
	step := s.cfg.URLLifetime / 4
	return s.cfg.Now().Truncate(step).Add(step + s.cfg.URLLifetime)
}

// downloadPath returns the path of an image of a release, or of its bundle for
// component "", without a slash in front.
func (s *Server) downloadPath(digest, component string, expires time.Time) string {
	what := digest
	if component != "" {
		what += "/" + component
	}
	return "d/" + s.urls.ticket(expires, what) + "/" + what
}

// download serves what a URL of ours names.
func (s *Server) download(w http.ResponseWriter, r *http.Request) error {
	digest, component := r.PathValue("digest"), r.PathValue("component")
	what := digest
	if component != "" {
		what += "/" + component
	}
	switch err := s.urls.check(r.PathValue("ticket"), what); {
	case errors.Is(err, errExpired):
		return fail(http.StatusForbidden, "this address has expired", "check in again for a new one")
	case err != nil:
		return fail(http.StatusForbidden, "this address was not given out by this server", "check in for one")
	}
	rel, err := s.fleet.ByDigest(digest)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "private, max-age=3600, immutable")
	return s.sendFile(w, r, rel, component)
}

// sendFile serves the image for component, or the bundle for "".
func (s *Server) sendFile(w http.ResponseWriter, r *http.Request, rel *fleet.Release, component string) error {
	offset, size, sum := int64(0), rel.Bundle.Size, rel.Bundle.SHA256
	if component != "" {
		im, err := rel.Image(component)
		if err != nil {
			return err
		}
		offset, size, sum = im.Offset, im.Size, im.SHA256
	}
	f, err := s.fleet.OpenBundle(r.Context(), rel)
	if err != nil {
		return err
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `"`+sum.String()+`"`)
	h.Set("Accept-Ranges", "bytes")
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	http.ServeContent(&slowWriter{w, http.NewResponseController(w)}, r, "", rel.Published, content(&section{f, offset, size, 0}))
	return nil
}

// section is a part of a file as a file of its own. It must be used by one
// goroutine.
type section struct {
	*blob.File
	base, size, at int64
}

// onDisk is a section of a file of this machine. Unlike io.SectionReader it keeps
// the kernel's own copying from file to socket possible, which looks for
// syscall.Conn.
type onDisk struct {
	*section
	syscall.Conn
}

func content(s *section) io.ReadSeeker {
	if c, ok := s.File.ReadSeekCloser.(syscall.Conn); ok {
		return onDisk{s, c}
	}
	return s
}

func (s *section) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the image")
	}
	if _, err := s.File.Seek(s.base+offset, io.SeekStart); err != nil {
		return 0, err
	}
	s.at = offset
	return offset, nil
}

func (s *section) Read(p []byte) (int, error) {
	left := s.size - s.at
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := s.File.Read(p[:min(int64(len(p)), left)])
	s.at += int64(n)
	return n, err
}

// slowWriter lets a transfer take as long as it likes while it moves: every
// piece has its own deadline.
type slowWriter struct {
	http.ResponseWriter
	c *http.ResponseController
}

const (
	pieceSize = 64 << 10         // bytes
	pieceTime = 60 * time.Second // for one; slower than about 1 KiB/s is given up
)

func (w *slowWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		_ = w.c.SetWriteDeadline(time.Now().Add(pieceTime))
		var k int
		k, err = w.ResponseWriter.Write(p[:min(len(p), pieceSize)])
		n, p = n+k, p[k:]
	}
	return n, err
}

// ReadFrom is what io.Copy uses. Src is an *io.LimitedReader here, and must stay
// one for the kernel's copying to be used.
func (w *slowWriter) ReadFrom(src io.Reader) (n int64, err error) {
	all, ok := src.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	for all.N > 0 {
		_ = w.c.SetWriteDeadline(time.Now().Add(pieceTime))
		piece := &io.LimitedReader{R: all.R, N: min(all.N, pieceSize)}
		k, err := io.Copy(w.ResponseWriter, piece)
		n += k
		all.N -= k
		if err != nil || k == 0 {
			return n, err
		}
	}
	return n, nil
}

// slowReader does for an upload what slowWriter does for a download.
type slowReader struct {
	io.ReadCloser
	c *http.ResponseController
}

func (r *slowReader) Read(p []byte) (int, error) {
	_ = r.c.SetReadDeadline(time.Now().Add(pieceTime))
	n, err := r.ReadCloser.Read(p)
	if err == io.EOF {
		// What is done with the upload may take longer, and a deadline that passes
		// then would end the request.
		_ = r.c.SetReadDeadline(time.Time{})
	}
	return n, err
}
