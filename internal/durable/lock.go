package durable

import (
	"errors"
	"io"
)

// ErrLocked is what [Lock] returns if the lock is taken.
var ErrLocked = errors.New("locked by another process")

// Lock takes the exclusive lock on the file name, which is created if needed,
// until the returned lock is closed or the process ends, however it ends. It does
// not wait: [ErrLocked] says that somebody has it. The file stays; it is the lock
// on it that counts.
func Lock(name string) (io.Closer, error) { return lock(name) }
