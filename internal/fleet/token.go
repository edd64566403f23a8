package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// Role is what a token allows. It is stored, so a value is never renamed.
type Role string

// Roles.
const (
	Operator Role = "operator" // everything that people do
	Agent    Role = "device"   // to speak for one device, or for any
)

// Identity is who presents a token.
type Identity struct {
	Role   Role
	Device string // the only device that it speaks for; empty: any
	hash   tokenHash
}

type tokenHash [sha256.Size]byte

// SpeaksFor reports whether the bearer may say something in the name of device.
func (id Identity) SpeaksFor(device string) bool {
	return id.Role == Agent && (id.Device == "" || id.Device == device)
}

// MaxNote is the greatest length of a token's note in bytes.
const MaxNote = 200

// NewToken makes a token and returns it, the only time that it can be seen. An
// Agent's token speaks for one device, or for any if device is empty.
func (f *Fleet) NewToken(ctx context.Context, role Role, device, note string) (string, error) {
	prefix := "ilk_op_"
	switch role {
	case Operator:
		if device != "" {
			return "", fmt.Errorf("make a token: %w: an operator's token is not bound to a device", ErrInvalid)
		}
	case Agent:
		prefix = "ilk_dev_"
		if device != "" {
			if err := ota.CheckName(device); err != nil {
				return "", fmt.Errorf("make a token: device: %w: %w", ErrInvalid, err)
			}
		}
	default:
		return "", fmt.Errorf("make a token: %w: role %q is not known", ErrInvalid, role)
	}
	if len(note) > MaxNote {
		return "", fmt.Errorf("make a token: %w: the note is %d bytes, want at most %d", ErrInvalid, len(note), MaxNote)
	}
	var secret [32]byte
	rand.Read(secret[:])
	token := prefix + base64.RawURLEncoding.EncodeToString(secret[:])
	id := Identity{role, device, sha256.Sum256([]byte(token))}
	err := f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO tokens (hash, role, device, note, created) VALUES ($1, $2, $3, $4, $5)`,
			hex.EncodeToString(id.hash[:]), string(role), device, clip(note, MaxNote), f.cfg.Now().UnixMilli())
		return err
	}, func() {
		f.mu.Lock()
		f.tokens[id.hash] = id
		f.mu.Unlock()
	})
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return token, nil
}

// Token describes a token. Its ID names it and does not allow anything.
type Token struct {
	ID      string    `json:"id"`
	Role    Role      `json:"role"`
	Device  string    `json:"device,omitempty"`
	Note    string    `json:"note,omitempty"`
	Created time.Time `json:"created"`
}

const tokenID = 12 // hexadecimal digits of the hash; 48 bits tell a fleet's tokens apart

// Tokens lists the tokens, oldest first.
func (f *Fleet) Tokens(ctx context.Context) ([]Token, error) {
	out := []Token{}
	err := each(ctx, f.db, `SELECT hash, role, device, note, created FROM tokens ORDER BY created, hash`, func(scan scanner) error {
		var t Token
		var hash, role string
		var created int64
		if err := scan(&hash, &role, &t.Device, &t.Note, &created); err != nil {
			return err
		}
		if len(hash) < tokenID {
			return fmt.Errorf("token %q is damaged", hash)
		}
		t.ID, t.Role, t.Created = hash[:tokenID], Role(role), time.UnixMilli(created)
		out = append(out, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return out, nil
}

// Revoke ends a token at once, and with it the sessions that began with it. The
// last operator's token cannot be revoked: nobody could make another.
func (f *Fleet) Revoke(ctx context.Context, id string) error {
	var gone []string
	err := f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
		if len(id) != tokenID || strings.Trim(id, "0123456789abcdef") != "" {
			return fmt.Errorf("token %q: %w", clip(id, maxWord), ErrNotFound)
		}
		if gone, err = column(ctx, tx, `SELECT hash FROM tokens WHERE hash LIKE $1`, id+"%"); err != nil {
			return err
		}
		if len(gone) == 0 {
			return fmt.Errorf("token %s: %w", id, ErrNotFound)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE hash LIKE $1`, id+"%"); err != nil {
			return err
		}
		left, err := column(ctx, tx, `SELECT hash FROM tokens WHERE role = $1`, string(Operator))
		if err == nil && len(left) == 0 {
			return fmt.Errorf("%w: it is the last operator's token; make another first", ErrConflict)
		}
		return err
	}, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for hash := range f.tokens {
			if slices.Contains(gone, hex.EncodeToString(hash[:])) {
				delete(f.tokens, hash)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("revoke a token: %w", err)
	}
	return nil
}

// HasToken reports whether there is a token for this role.
func (f *Fleet) HasToken(role Role) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, id := range f.tokens {
		if id.Role == role {
			return true
		}
	}
	return false
}

// Identify returns who presents this token, and whether it is one.
func (f *Fleet) Identify(token string) (Identity, bool) {
	hash := tokenHash(sha256.Sum256([]byte(token)))
	return f.identify(hash)
}

// IdentifySum is Identify for one who kept the token's SHA-256 only.
func (f *Fleet) IdentifySum(sum [sha256.Size]byte) (Identity, bool) { return f.identify(sum) }

// Sum returns the SHA-256 of the token that was presented.
func (id Identity) Sum() [sha256.Size]byte { return id.hash }

func (f *Fleet) identify(hash tokenHash) (Identity, bool) {
	f.mu.RLock()
	id, ok := f.tokens[hash]
	f.mu.RUnlock()
	// What is looked up is a hash of the secret, so that timing tells nothing of
	// the secret; the comparison keeps that true if the lookup ever changes.
	if !ok || subtle.ConstantTimeCompare(id.hash[:], hash[:]) != 1 {
		return Identity{}, false
	}
	return id, true
}

func (f *Fleet) loadTokens(ctx context.Context) error {
	return each(ctx, f.db, `SELECT hash, role, device FROM tokens`, func(scan scanner) error {
		var hash, role string
		var id Identity
		if err := scan(&hash, &role, &id.Device); err != nil {
			return err
		}
		b, err := hex.DecodeString(hash)
		if err != nil || len(b) != len(id.hash) {
			return fmt.Errorf("token %q is damaged", hash)
		}
		id.Role, id.hash = Role(role), tokenHash(b)
		f.tokens[id.hash] = id
		return nil
	})
}
