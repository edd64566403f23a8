package broadcast

import (
	"errors"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

// Profile is a dialect.
type Profile struct{ Name string }

// Named returns a profile.
func Named(name string) (*Profile, error) { return nil, errors.ErrUnsupported }

// Names are those of all profiles, sorted.
func Names() []string { return nil }

// Keepalive returns what the other side must send, once per cycle of the battery, so that it talks.
func (p *Profile) Keepalive(o Options) []can.Frame { return nil }

// Encode returns the frames of one cycle.
func (p *Profile) Encode(b Battery, o Options) ([]can.Frame, error) {
	return nil, errors.ErrUnsupported
}

// Decoder collects what a battery says.
type Decoder struct{}

// New returns a decoder for the named profile.
func New(profile string, o Options) (*Decoder, error) { return nil, errors.ErrUnsupported }

// Add takes a frame.
func (d *Decoder) Add(f can.Frame, at time.Time) (known bool, err error) {
	return false, errors.ErrUnsupported
}

// State returns what is known.
func (d *Decoder) State() State { return State{} }
