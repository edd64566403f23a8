package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
)

// EvidenceHead says where the evidence of updates stands. Whoever notes the hash
// elsewhere can show later that nothing before it was changed.
type EvidenceHead struct {
	File  string `json:"file"`
	Hash  string `json:"hash"`            // SHA-256 of the last line
	Lines int    `json:"lines"`           // in the file
	Error string `json:"error,omitempty"` // why nothing can be written now
}

// EvidenceFile is a file of evidence, oldest first in lists.
type EvidenceFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
}

// An Archive is a [Device] that keeps evidence of its updates.
type Archive interface {
	Evidence() ([]EvidenceFile, error)
	// EvidenceFile returns a file's content, or an error that is [fs.ErrNotExist].
	EvidenceFile(name string) ([]byte, error)
}

var errNoArchive = fmt.Errorf("evidence: %w: this device keeps none", ErrBadRequest)

func evidenceList(w http.ResponseWriter, d Device) error {
	a, ok := d.(Archive)
	if !ok {
		return errNoArchive
	}
	files, err := a.Evidence()
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, files)
}

func evidenceFile(w http.ResponseWriter, d Device, name string) error {
	a, ok := d.(Archive)
	if !ok {
		return errNoArchive
	}
	b, err := a.EvidenceFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("evidence: %w: there is no file %.80q", ErrBadRequest, name)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(b) // an error means that nobody listens any more
	return nil
}

// maxEvidence bounds a file of evidence, in bytes; the agent's are at most 9 MiB.
const maxEvidence = 16 << 20

// Evidence lists the evidence of the device's updates, oldest first.
func (c *Client) Evidence(ctx context.Context) ([]EvidenceFile, error) {
	return call[[]EvidenceFile](ctx, c, http.MethodGet, PathEvidence, nil)
}

// EvidenceFile returns a file of evidence as the device has it.
func (c *Client) EvidenceFile(ctx context.Context, name string) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, PathEvidence+"/"+url.PathEscape(name), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, readError(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxEvidence+1))
	if err == nil && len(b) > maxEvidence {
		err = fmt.Errorf("it is more than %d bytes", maxEvidence)
	}
	if err != nil {
		return nil, fmt.Errorf("read evidence %s: %w", name, err)
	}
	return b, nil
}
