//go:build unix

package blob

import (
	"errors"
	"syscall"
)

// notADirectory says whether a part of the path is a file: where a is an object,
// a/b is none.
func notADirectory(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
