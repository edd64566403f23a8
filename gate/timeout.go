package gate

import (
	"context"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// DefaultTimeout is the patience of a [Timeout] that states none.
const DefaultTimeout = time.Second

// Timeout returns a gate that refuses, with [ota.ErrBMSUnsafe], when g has not
// answered within d; 0 or less is [DefaultTimeout]. An answer that comes later is
// thrown away, also if it is yes.
//
// A gate that ignores its context leaves one goroutine behind, never more: until
// it returns, every question is refused at once.
func Timeout(d time.Duration, g ota.Gate) ota.Gate {
	if d <= 0 {
		d = DefaultTimeout
	}
	var mu sync.Mutex
	var busy time.Time // since when g has been thinking about a question nobody waits for; zero: it is not
	return func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
		mu.Lock()
		if !busy.IsZero() {
			since := time.Since(busy)
			mu.Unlock()
			return unsafe("a gate has not answered for %s", seconds(since, d))
		}
		asked := time.Now()
		busy = asked
		mu.Unlock()

		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		answer := make(chan *ota.Refusal, 1)
		go func() {
			r := unsafe("a gate ended its goroutine without an answer") // runtime.Goexit
			defer func() {
				mu.Lock()
				busy = time.Time{}
				mu.Unlock()
				answer <- r
			}()
			r = ask(ctx, g, m, at)
		}()
		select {
		case r := <-answer:
			if r != nil {
				return r
			}
			if ctx.Err() == nil && time.Since(asked) < d { // a yes that comes with the deadline is too late
				return nil
			}
		case <-ctx.Done():
		}
		if ctx.Err() == context.Canceled {
			return unsafe("a gate was not waited for: %v", ctx.Err())
		}
		return unsafe("a gate did not answer within %s", seconds(d, 0))
	}
}
