//go:build !unix

package blob

// notADirectory says whether a part of the path is a file. Other systems say
// that nothing is there.
func notADirectory(error) bool { return false }
