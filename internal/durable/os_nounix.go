//go:build !unix

package durable

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// Directories cannot be synced here, and devices do not run here.
func syncDir(*os.File) error { return nil }

func free(string) (int64, error) { return math.MaxInt64 / 2, nil }

func lock(name string) (io.Closer, error) {
	return nil, fmt.Errorf("lock %s: %w on this system", name, errors.ErrUnsupported)
}
