package lambda

import (
	"context"
	"errors"
	"sync"
	"time"

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
}

// aged is a value, or that there was none, and when.
type aged[T any] struct {
	value T
	err   error
	at    time.Time
}

// envelope is the signed manifest of a release.
type envelope struct {
	signed   []byte
	hardware []string // that may take it; empty: all
}

func (c *cache) init(now func() time.Time) {
	c.now = now
	c.groups, c.tokens, c.envelopes = map[string]aged[*bucket.Current]{}, map[string]aged[bucket.Token]{}, map[string]envelope{}
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
