// Package blob keeps named objects, and release files under the hash of their
// content. It is for the update server, for releases that are laid out in a
// bucket without a server, and for the commands that fill them.
//
// [Store] is what a place for objects can do: [Dir] is a directory, package s3 a
// bucket. Start with [OpenDir] or s3.Open. [Files] is the server's view of a
// Store: files that are checked before they are stored, under the SHA-256 of
// their content. Start with [Open] or [OpenFiles].
//
// Promised: an object is under its key either whole and durable or not at all; a
// release file besides only if the caller's check accepted it; what is stored is
// streamed, never held in memory; and what a broken upload leaves behind is
// removed, at the latest by a later Open.
package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Errors by which callers tell what is wrong with a key.
var (
	// ErrNotFound is returned for a key that is not stored. It matches [fs.ErrNotExist].
	ErrNotFound = fmt.Errorf("no such object: %w", fs.ErrNotExist)
	// ErrKey is returned for a key that no store takes; see [CheckKey].
	ErrKey = errors.New("no key for an object")
)

// maxKey is the longest key in bytes, that of Amazon S3 ("Object key naming
// guidelines": 1,024 bytes of UTF-8) less what prefixes need.
const maxKey = 900

// CheckKey says what is wrong with a key, with an error that wraps [ErrKey]. Keys
// have 1 to 900 characters, and are as [Store] says.
func CheckKey(key string) error {
	if len(key) == 0 || len(key) > maxKey {
		return fmt.Errorf("%w: %d characters, want 1 to %d", ErrKey, len(key), maxKey)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("%w: %q has a part %q", ErrKey, key, part)
		}
	}
	if i := strings.IndexFunc(key, notInKeys); i >= 0 {
		return fmt.Errorf("%w: %q has %q in it, want a-z A-Z 0-9 . _ - and / only", ErrKey, key, key[i:i+1])
	}
	return nil
}

func notInKeys(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' || r == '/')
}
