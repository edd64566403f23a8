package bms

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Poller reads a battery all the time, for lines on which one reading takes longer
// than the gate may think: a question is then answered with the latest reading, whose
// age speaks for itself.
type Poller struct {
	read            Reader
	pause, patience time.Duration

	mu   sync.Mutex
	last Reading
	err  error
}

var errNotPolled = errors.New("the first reading is not there yet")

// NewPoller returns a poller that reads with read, pauses, and reads again. One
// reading may take as long as patience. Nothing is read before [Poller.Run].
func NewPoller(read Reader, pause, patience time.Duration) *Poller {
	return &Poller{read: read, pause: pause, patience: patience, err: errNotPolled}
}

// Run reads until ctx ends.
func (p *Poller) Run(ctx context.Context) {
	for ctx.Err() == nil {
		one, cancel := context.WithTimeoutCause(ctx, p.patience, fmt.Errorf("no reading within %v", p.patience))
		r, err := safely(one, p.read)
		if err != nil && one.Err() != nil {
			err = context.Cause(one)
		}
		cancel()
		p.mu.Lock()
		p.last, p.err = r, err
		p.mu.Unlock()
		pause := time.NewTimer(p.pause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// Read is a [Reader]. It returns the latest reading, or why the last attempt brought
// none.
func (p *Poller) Read(context.Context) (Reading, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last, p.err
}
