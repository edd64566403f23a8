package bucket

import (
	"context"
	"errors"
	"time"
)

// Token says who may speak to the Lambda. The secret itself is not stored.
type Token struct {
	Format  int       `json:"format"`           // 1
	ID      string    `json:"id"`               // names it and does not allow anything
	Device  string    `json:"device,omitempty"` // the only device that it speaks for; empty: any
	Note    string    `json:"note,omitempty"`   // for people
	Created time.Time `json:"created"`
}

// SpeaksFor reports whether the bearer may say something in the name of device.
func (t Token) SpeaksFor(device string) bool { return t.Device == "" || t.Device == device }

// NewToken makes a token and returns it, the only time that it can be seen. It
// speaks for one device, or for any if device is empty.
func (b *Bucket) NewToken(ctx context.Context, device, note string) (string, error) {
	return "", errors.ErrUnsupported
}

// Token returns what is known of a token that somebody presents. One that does
// not exist, or no longer, is ErrNotFound. It costs one request.
func (b *Bucket) Token(ctx context.Context, token string) (Token, error) {
	return Token{}, errors.ErrUnsupported
}

// Tokens lists the tokens, oldest first.
func (b *Bucket) Tokens(ctx context.Context) ([]Token, error) { return nil, errors.ErrUnsupported }

// Revoke ends the token with this id.
func (b *Bucket) Revoke(ctx context.Context, id string) error { return errors.ErrUnsupported }
