// Package memory keeps what was found in the plant in a file, from before the first
// thing is changed until everything is put back. It is for the kinds of package plant.
//
// The first line of the file says what it is, its format, and the SHA-256 of the JSON
// behind it:
//
//	interlock-plant 1 5c7b...e1
//	{"device":"...","found":{...}}
//
// A number in it that has changed would be a power that somebody gets, so a file that
// does not fit its sum is [ErrDamaged], and none of it is believed.
package memory

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/interlock-energy/ota/internal/durable"
)

var (
	// ErrNone means that there is no file: nothing is quiesced.
	ErrNone = errors.New("nothing is remembered")
	// ErrDamaged means that there is a file, and that it cannot be believed.
	ErrDamaged = errors.New("what was remembered is damaged")
)

const (
	magic   = "interlock-plant 1 "
	maxSize = 64 << 10 // bytes; a list of 100 registers takes about 5 KiB
)

// File is where it is kept.
type File struct {
	FS   durable.FS
	Path string // absolute
}

// Save remembers v. It returns once that is durable.
func (f File) Save(v any) error {
	data, err := Encode(v)
	if err == nil {
		err = durable.MkdirAll(f.FS, filepath.Dir(f.Path), 0o700)
	}
	if err == nil {
		err = durable.WriteFile(f.FS, f.Path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("remember what was found in the plant: %w", err)
	}
	return nil
}

// Load reads what was saved last. It errs with [ErrNone] and [ErrDamaged]; a medium
// that cannot be read is damaged too, for nobody can tell whether it will be again.
func (f File) Load(v any) error {
	data, err := durable.ReadFile(f.FS, f.Path, maxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNone
	}
	if err != nil {
		return fmt.Errorf("recall what was found in the plant: %w: %w", ErrDamaged, err)
	}
	if err := Decode(data, v); err != nil {
		return fmt.Errorf("recall what was found in the plant, from %s: %w", f.Path, err)
	}
	return nil
}

// Forget removes the file, and returns once that is durable.
func (f File) Forget() error {
	err := f.FS.Remove(f.Path)
	if err == nil || errors.Is(err, fs.ErrNotExist) { // removed by a process that died before the sync
		err = f.FS.SyncDir(filepath.Dir(f.Path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what was found in the plant: %w", err)
	}
	return nil
}

// Encode returns the content of a file.
func Encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return Sealed(body), nil
}

// Sealed returns the content of a file with a JSON that is there already.
func Sealed(body []byte) []byte {
	return append([]byte(magic+sum(body)+"\n"), body...)
}

// Decode is the inverse of Encode. Fields that it does not know are an error: newer
// software has remembered something that this one would not put back.
func Decode(data []byte, v any) error {
	head, body, found := bytes.Cut(data, []byte("\n"))
	if !found || !bytes.HasPrefix(head, []byte(magic)) {
		return fmt.Errorf("%w: its first line is not %q and a sum", ErrDamaged, magic)
	}
	if got, want := sum(body), string(head[len(magic):]); got != want {
		return fmt.Errorf("%w: the SHA-256 is %s, want %.64s", ErrDamaged, got, want)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func sum(body []byte) string {
	s := sha256.Sum256(body)
	return hex.EncodeToString(s[:])
}
