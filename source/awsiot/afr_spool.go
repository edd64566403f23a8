package awsiot

import (
	"context"
	"errors"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/durable"
)

// afrSpool keeps the one file of a FreeRTOS OTA job on the device's disk: it is
// signed as a whole, so that nothing of it may be used before all of it is there.
type afrSpool struct {
	FS   durable.FS
	Dir  string // made if it is not there; nothing else is in it
	Max  int64  // bytes of a file, at most
	Code *bundle.CodeSigning
	// Keys verifies the envelope of a file that is a bundle. Nil: none are taken.
	Keys ota.Verify
	// ImageVersion reads the version in a raw image. Nil: it is not looked for.
	ImageVersion func(r io.ReaderAt, size int64) (string, error)
	Component    string // default controller
}

// receive brings f into the spool, whole and verified, and returns the envelope
// for Latest. What an earlier call or an earlier life of the process left is used.
// Open returns the file from offset on; it is called again after an error that may
// mend. Progress may be nil.
func (s *afrSpool) receive(ctx context.Context, f afrFile, open func(ctx context.Context, offset int64) (io.ReadCloser, error),
	progress func(done, total int64)) (signed []byte, err error) {
	return nil, errors.New("receive: not written yet")
}

// open returns im of m from the spool, from offset on; it is also an io.Seeker.
func (s *afrSpool) open(m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	return nil, errors.New("open: not written yet")
}

// discard removes what is in the spool, if anything.
func (s *afrSpool) discard() error { return nil }
