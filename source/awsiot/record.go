package awsiot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/interlock-energy/ota/internal/durable"
)

// recordName is the file in Dir. Its format is version 1 of [record], as JSON.
const recordName = "awsiot.json"

const maxRecord = 256 << 10 // bytes
const maxEnded = 16

// record is what survives a restart. It is replaced as a whole, before anything that
// relies on it is done. Names in its JSON never change.
type record struct {
	Format int `json:"format"` // 1
	// Hand is the job whose release the manager was or is offered.
	Hand *hand `json:"hand,omitempty"`
	// Ended are the executions that got their final status, the newest last.
	Ended []ended `json:"ended,omitempty"`
	// Withdrawn is the release of a job that was taken back by the service: the manager
	// must be told, also by a process that starts later.
	Withdrawn string `json:"withdrawn,omitempty"` // its digest
}

// key names one execution of a job. A job that was deleted may come back under its
// name, and with the same execution number, but not at the same second.
type key struct {
	Job       string `json:"job"`
	Execution int64  `json:"execution"`
	QueuedAt  int64  `json:"queued_at,omitempty"` // seconds since 1970
}

// hand is a job that is being worked on.
type hand struct {
	key
	Digest  string `json:"digest"`            // of its release; "" if that was never seen
	Release string `json:"release,omitempty"` // its version
	AFR     bool   `json:"afr,omitempty"`     // it is a FreeRTOS OTA job
	Staged  bool   `json:"staged,omitempty"`  // the device has said that all of it is written
	Started bool   `json:"started,omitempty"` // the service was told, or was about to be, that it is in progress
	Final   *final `json:"final,omitempty"`   // how it ended here; the service has not confirmed it

	version   int64 // of the execution, as far as it is known; 0: not since the start of the process
	confirmed bool  // the service has said to this process that it is in progress
}

// final is a final status that is to be sent, exactly like this.
type final struct {
	Status  string            `json:"status"`
	Details map[string]string `json:"details,omitempty"`
	Report  string            `json:"report,omitempty"` // ID of the manager's report, if that is where it is from
}

// ended is an execution that is over for this device.
type ended struct {
	key
	Digest string `json:"digest,omitempty"`
	final
}

func (r record) clone() record {
	r.Ended = slices.Clone(r.Ended)
	if r.Hand != nil {
		h := *r.Hand
		r.Hand = &h
	}
	return r
}

// note remembers that an execution has ended.
func (r *record) note(e ended) {
	r.Ended = slices.DeleteFunc(r.Ended, func(o ended) bool { return o.key == e.key })
	r.Ended = append(r.Ended, e)
	if n := len(r.Ended) - maxEnded; n > 0 {
		r.Ended = r.Ended[n:]
	}
}

// ended returns how an execution ended here, or nil if it did not.
func (r *record) ended(k key) *ended {
	for i := range r.Ended {
		if r.Ended[i].key == k {
			e := r.Ended[i]
			return &e
		}
	}
	return nil
}

func loadRecord(fsys durable.FS, dir string) (record, error) {
	b, err := durable.ReadFile(fsys, filepath.Join(dir, recordName), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return record{Format: 1}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("read what is known of the job in hand: %w", err)
	}
	r, err := parseRecord(b)
	if err != nil {
		return record{}, fmt.Errorf("read %s: the file is damaged: %w", filepath.Join(dir, recordName), err)
	}
	return r, nil
}

func parseRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	if r.Format != 1 {
		return record{}, fmt.Errorf("format %d is not known here, want 1", r.Format)
	}
	if h := r.Hand; h != nil && (!jobName.MatchString(h.Job) || h.Execution < 1) {
		return record{}, fmt.Errorf("job %q, execution %d: that is none", clean(h.Job, 80), h.Execution)
	}
	return r, nil
}

func saveRecord(fsys durable.FS, dir string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save what is known of the job in hand: %w", err)
	}
	if err := durable.MkdirAll(fsys, dir, 0o700); err != nil {
		return fmt.Errorf("save what is known of the job in hand: %w", err)
	}
	name := filepath.Join(dir, recordName)
	err = durable.WriteFile(fsys, name, b, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // the directory
		if err = durable.MkdirAll(fsys, dir, 0o700); err == nil {
			err = durable.WriteFile(fsys, name, b, 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("save what is known of the job in hand: %w", err)
	}
	return nil
}
