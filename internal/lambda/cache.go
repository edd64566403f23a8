package lambda

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/bucket"
)

// How long what can change is answered from memory, and how much is kept.
const (
	currentAge = 5 * time.Second
	tokenAge   = time.Minute

	maxGroups    = 256
	maxTokens    = 4096
	maxEnvelopes = 16 // of some hundred kilobytes at most, as a rule
)

// cache keeps what was read from the bucket. Two who want the same at the same
// time both read it: in a Lambda there is one at a time.
type cache struct {
	now       func() time.Time
	mu        sync.Mutex
	groups    map[string]aged[*bucket.Current]
	tokens    map[string]aged[bucket.Token]
	envelopes map[string]envelope // by key, which says what is in it
	budgets   map[string]budget   // of reports, by device
}

// aged is a value, or that there was none, and when.
type aged[T any] struct {
	value T
	err   error
	at    time.Time
}

// How many reports a device may add: as many at once as it can have gathered in a
// bad year, and one in a while. S3 is paid for each, and they stay.
const (
	reportsAtOnce = 4 * api.MaxReports
	reportPause   = 10 * time.Second
)

// budget is what a device may still add, as it was at a time.
type budget struct {
	left float64
	at   time.Time
}

// spend takes n reports out of the budget of device, or says how long to wait for
// them. What it knows is this instance's, so that the true limit is so many times
// higher; it is there against a flood.
func (c *cache) spend(device string, n int) (wait time.Duration) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.budgets[device]
	if d := now.Sub(b.at); !ok || d < 0 {
		b.left = reportsAtOnce
	} else {
		b.left = min(reportsAtOnce, b.left+d.Seconds()/reportPause.Seconds())
	}
	if b.left < float64(n) {
		return time.Duration((float64(n) - b.left) * float64(reportPause))
	}
	if len(c.budgets) >= maxTokens {
		clear(c.budgets)
	}
	c.budgets[device] = budget{b.left - float64(n), now}
	return 0
}

// envelope is the signed manifest of a release.
type envelope struct {
	signed   []byte
	hardware []string // that may take it; empty: all
}

func (c *cache) init(now func() time.Time) {
	c.now = now
	c.groups, c.tokens, c.envelopes = map[string]aged[*bucket.Current]{}, map[string]aged[bucket.Token]{}, map[string]envelope{}
	c.budgets = map[string]budget{}
}

// remember returns m[key], made by read if it is older than age. That something
// is not there is kept only if absent is set; other errors never.
func remember[T any](c *cache, m map[string]aged[T], key string, age time.Duration, limit int, absent bool, read func() (T, error)) (T, error) {
	c.mu.Lock()
	v, ok := m[key]
	c.mu.Unlock()
	now := c.now()
	if d := now.Sub(v.at); ok && d >= 0 && d < age {
		return v.value, v.err
	}
	value, err := read()
	if err != nil && !(absent && errors.Is(err, bucket.ErrNotFound)) {
		return value, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(m) >= limit {
		clear(m)
	}
	m[key] = aged[T]{value, err, now} // from before it was read: it may be older than the answer
	return value, err
}

func (f *Function) current(ctx context.Context, group string) (*bucket.Current, error) {
	return remember(&f.cache, f.cache.groups, group, currentAge, maxGroups, true, func() (*bucket.Current, error) {
		return f.cfg.Bucket.Current(ctx, group)
	})
}

func (f *Function) token(ctx context.Context, token string) (bucket.Token, error) {
	return remember(&f.cache, f.cache.tokens, token, tokenAge, maxTokens, false, func() (bucket.Token, error) {
		return f.cfg.Bucket.Token(ctx, token)
	})
}

func (f *Function) envelope(ctx context.Context, r *bucket.Release) (envelope, error) {
	c := &f.cache
	c.mu.Lock()
	e, ok := c.envelopes[r.Manifest.Key]
	c.mu.Unlock()
	if ok {
		return e, nil
	}
	signed, err := f.cfg.Bucket.Envelope(ctx, r)
	if err != nil {
		return envelope{}, err
	}
	// The signature is for the device to check. Here only who is not to be bothered
	// is read out of it, and what cannot be read is offered to all.
	if m, err := bundle.Unsigned(signed); err == nil {
		e.hardware = m.Hardware
	}
	e.signed = signed
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.envelopes) >= maxEnvelopes {
		clear(c.envelopes)
	}
	c.envelopes[r.Manifest.Key] = e
	return e, nil
}
