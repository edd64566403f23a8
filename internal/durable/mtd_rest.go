//go:build !linux

package durable

import "os"

// Raw flash is known on Linux only.
func wrap(f *os.File) (File, error) { return osFile{f}, nil }
