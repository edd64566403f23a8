package bucket

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob"
)

// Token says who may speak to the Lambda. The secret itself is not stored.
type Token struct {
	Format  int       `json:"format"`           // 1
	ID      string    `json:"id"`               // names it and does not allow anything
	Device  string    `json:"device,omitempty"` // the only device that it speaks for; empty: any
	Note    string    `json:"note,omitempty"`   // for people
	Created time.Time `json:"created"`
}

const (
	maxNote  = 200 // bytes of a token's note
	maxToken = 512 // bytes of what is presented as a token
	tokenID  = 12  // hexadecimal digits of the hash; 48 bits tell a fleet's tokens apart
)

// SpeaksFor reports whether the bearer may say something in the name of device.
func (t Token) SpeaksFor(device string) bool { return t.Device == "" || t.Device == device }

// NewToken makes a token and returns it, the only time that it can be seen. It
// speaks for one device, or for any if device is empty. The note is for people,
// at most 200 bytes.
func (b *Bucket) NewToken(ctx context.Context, device, note string) (string, error) {
	if device != "" {
		if err := ota.CheckName(device); err != nil {
			return "", fmt.Errorf("make a token: device: %w: %w", ErrInvalid, err)
		}
	}
	if len(note) > maxNote {
		return "", fmt.Errorf("make a token: %w: the note is %d bytes, want at most %d", ErrInvalid, len(note), maxNote)
	}
	var secret [32]byte
	rand.Read(secret[:]) // never fails
	token := "ilk_dev_" + base64.RawURLEncoding.EncodeToString(secret[:])
	hash := hashOf(token)
	t := Token{Format, hash[:tokenID], device, strings.ToValidUTF8(note, "\uFFFD"), b.now().UTC().Round(0)}
	// Nobody else can have been faster with this name.
	if err := b.save(ctx, tokens+hash+".json", "", t); err != nil && !errors.Is(err, errThere) {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return token, nil
}

// Token returns what is known of a token that somebody presents. One that does
// not exist, or no longer, is ErrNotFound. It costs one request.
func (b *Bucket) Token(ctx context.Context, token string) (Token, error) {
	if token == "" || len(token) > maxToken {
		return Token{}, fmt.Errorf("token: %w", ErrNotFound)
	}
	// The key is a hash of the secret, so that timing tells nothing of the secret.
	return b.token(ctx, hashOf(token))
}

func (b *Bucket) token(ctx context.Context, hash string) (t Token, err error) {
	_, err = b.load(ctx, tokens+hash+".json", maxSmall, &t)
	if errors.Is(err, blob.ErrNotFound) {
		return Token{}, fmt.Errorf("token %s: %w", hash[:tokenID], ErrNotFound)
	}
	if err == nil {
		err = t.check(hash)
	}
	if err != nil {
		return Token{}, fmt.Errorf("token %s: %w", hash[:tokenID], err)
	}
	return t, nil
}

// check refuses what is not a token: without a device it would speak for all.
func (t *Token) check(hash string) error {
	if t.Format != Format || t.ID != hash[:tokenID] {
		return fmt.Errorf("%w: format %d and id %.64q, want %d and %s", ErrDamaged, t.Format, t.ID, Format, hash[:tokenID])
	}
	if t.Device != "" && ota.CheckName(t.Device) != nil {
		return fmt.Errorf("%w: %.64q is no device", ErrDamaged, t.Device)
	}
	return nil
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Tokens lists the tokens, oldest first. With an error that is ErrDamaged the list
// has all tokens that are not.
func (b *Bucket) Tokens(ctx context.Context) ([]Token, error) {
	hashes, err := b.tokenHashes(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	out, err := collect(ctx, len(hashes), func(ctx context.Context, i int) (Token, error) { return b.token(ctx, hashes[i]) })
	if err != nil {
		err = fmt.Errorf("list tokens: %w", err)
	}
	slices.SortFunc(out, func(a, b Token) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out, err
}

func (b *Bucket) tokenHashes(ctx context.Context, id string) ([]string, error) {
	var out []string
	for o, err := range b.store.List(ctx, tokens+id) {
		if err != nil {
			return nil, err
		}
		hash, isToken := strings.CutSuffix(strings.TrimPrefix(o.Key, tokens), ".json")
		if isToken && isDigest(hash) {
			out = append(out, hash)
		}
	}
	return out, nil
}

// Revoke ends the token with this id. A Lambda that has seen it lately may take
// it for as long as it remembers tokens.
func (b *Bucket) Revoke(ctx context.Context, id string) error {
	if len(id) != tokenID || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("revoke a token: token %.64q: %w", id, ErrNotFound)
	}
	hashes, err := b.tokenHashes(ctx, id)
	if err == nil && len(hashes) == 0 {
		err = fmt.Errorf("token %s: %w", id, ErrNotFound)
	}
	for _, hash := range hashes {
		err = errors.Join(err, b.store.Delete(ctx, tokens+hash+".json"))
	}
	if err != nil {
		return fmt.Errorf("revoke a token: %w", err)
	}
	return nil
}
