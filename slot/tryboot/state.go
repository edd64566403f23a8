package tryboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"github.com/interlock-energy/ota/internal/durable"
)

// maxState bounds the state file, in bytes.
const maxState = 4096

// state is what the firmware has no place for. Without it, nothing is tried, and the
// device boots what it booted. Names in it never change.
type state struct {
	Try    string `json:"try,omitempty"`    // slot that the next restart is to try
	Boot   string `json:"boot,omitempty"`   // id of the boot in which that was said: it holds in no other
	Proven bool   `json:"proven,omitempty"` // the firmware of this unit has tried a slot
	// Autoboot is a copy of autoboot.txt as it was last written, or was about to be.
	Autoboot string `json:"autoboot,omitempty"`
}

// encode puts a checksum in front: eight hexadecimal digits and a newline.
func (s state) encode() []byte {
	b, _ := json.Marshal(s) // plain data, cannot fail
	return fmt.Appendf(nil, "%08x\n%s\n", crc32.ChecksumIEEE(b), b)
}

func decode(b []byte) (s state, err error) {
	var sum uint32
	if len(b) < 10 || b[8] != '\n' || b[len(b)-1] != '\n' {
		return s, errors.New("it has no checksum")
	}
	if _, err := fmt.Sscanf(string(b[:8]), "%08x", &sum); err != nil {
		return s, fmt.Errorf("its checksum: %w", err)
	}
	if got := crc32.ChecksumIEEE(b[9 : len(b)-1]); got != sum {
		return s, fmt.Errorf("its checksum is %08x, want %08x", got, sum)
	}
	if err := json.Unmarshal(b[9:len(b)-1], &s); err != nil {
		return state{}, err
	}
	return s, nil
}

// load returns the state. One that is not there is empty; so is a damaged one, with
// an error: what it would say is a wish and a copy.
func (s *Slots) load() (state, error) {
	b, err := durable.ReadFile(s.fsys, s.cfg.State, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	st := state{}
	if err == nil {
		st, err = decode(b)
	}
	if err != nil {
		return state{}, fmt.Errorf("read the state %s: %w", s.cfg.State, err)
	}
	return st, nil
}

func (s *Slots) save(st state) error {
	return durable.WriteFile(s.fsys, s.cfg.State, st.encode(), 0o600)
}

// small reads a file that says nothing of its size, as those of the kernel do.
func small(fsys durable.FS, name string, flag int, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY|flag, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing can be lost
	b := make([]byte, limit+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(n) > limit {
		return nil, fmt.Errorf("read %s: it is more than %d bytes", name, limit)
	}
	return b[:n], nil
}
