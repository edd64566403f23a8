//go:build !unix

package serial

import "os"

// lockPort has nothing to do where the system opens a port only once.
func lockPort(string) (*os.File, error) { return nil, nil }
