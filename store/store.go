// Package store keeps a device's record in files that survive power cuts and
// bit rot.
//
// Start with [Open]. There are two files, written in turn, so that writing one
// never touches the other:
//
//	record        interlock-record 1 7 5c7b...e1\n{"format":1,"state":"trial",...}
//	record.alt    interlock-record 1 6 a930...0d\n{"format":1,"state":"activating",...}
//	record.lock   held by the process that has the store open
//
// The first line says the version of this layout, a serial number that grows with
// every save, and the SHA-256 of the serial number and the JSON behind it. The
// greater serial counts.
//
// Promised is: after [File.Save] has returned nil, [File.Load] returns that
// record, whatever happens to the power. If one file is damaged later, the other
// one counts, which is at most one save older: the machine then repeats its last
// step, which is made for that, and may deliver a report twice, but never loses
// one. If no file can be read, that is an error and never an empty record, because
// an empty record forgets which releases are skipped and which security version
// must not be gone below.
package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

// Format is the only format of [ota.Record] that this package takes.
//
// Fields that it does not know are ignored, and gone after the next Save: when
// new firmware on trial has written the record and the old firmware comes back,
// the old agent must be able to read it. A new format is for the day when that
// would be wrong; firmware must then know it one release before it writes it.
const Format = 1

// maxSize of a file in bytes. A record holds at most one manifest without its
// signatures, and the names of images.
const maxSize = 2 * ota.MaxManifestSize

const magic = "interlock-record"

// File is an [ota.Store] in two files. Its methods may be called from any goroutine.
type File struct {
	// Log gets a warning if one of the files is damaged. Default: slog.Default().
	Log *slog.Logger

	fsys  durable.FS
	paths [2]string
	lock  io.Closer

	mu     sync.Mutex
	loaded bool
	newest int    // index of the file that must not be written next
	serial uint64 // of that file
}

// Open opens the store at path, for example /var/lib/interlock/record, on the
// real file system, and creates its directory. Only one process can have it open:
// two agents would overwrite each other's steps.
func Open(path string) (*File, error) {
	f, err := OpenOn(durable.OS{}, path)
	if err != nil {
		return nil, err
	}
	lock, err := durable.Lock(path + ".lock")
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("open record %s: %w; stop the other agent, or give this one another path", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	f.lock = lock
	return f, nil
}

// OpenOn is Open on any file system, without anything that keeps a second process away.
func OpenOn(fsys durable.FS, path string) (*File, error) {
	if err := durable.MkdirAll(fsys, filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open record %s: %w", path, err)
	}
	return &File{fsys: fsys, paths: [2]string{path, path + ".alt"}}, nil
}

// Close lets another process open the store.
func (f *File) Close() error {
	if f.lock == nil {
		return nil
	}
	return f.lock.Close()
}

// Load implements [ota.Store]. Both files damaged, or a record of a later
// format, is an error that says what to do.
func (f *File) Load() (ota.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.load()
	if err != nil {
		return ota.Record{}, fmt.Errorf("load record %s: %w", f.paths[0], err)
	}
	return r, nil
}

func (f *File) load() (ota.Record, error) {
	f.loaded = false
	// A process that was killed between the renaming of a file and its sync has
	// left a name that may yet be gone after a power cut. Whoever acts on the
	// record must be sure that it stays.
	if err := f.fsys.SyncDir(filepath.Dir(f.paths[0])); err != nil {
		return ota.Record{}, fmt.Errorf("sync its directory: %w", err)
	}
	var damaged error
	var best []byte
	f.newest, f.serial = 1, 0 // so that the first save goes to path itself
	for i, path := range f.paths {
		serial, body, err := f.read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			damaged = errors.Join(damaged, fmt.Errorf("%s: %w", path, err))
		case serial > f.serial:
			f.newest, f.serial, best = i, serial, body
		}
	}
	if best == nil && damaged != nil {
		return ota.Record{}, fmt.Errorf("no copy can be read: %w; the record tells which releases are not to be installed again and which security version not to go below: "+
			"restore a file, or delete %s and %s if the device may forget that", damaged, f.paths[0], f.paths[1])
	}
	if best == nil {
		f.loaded = true
		return ota.Record{}, nil
	}
	var r ota.Record
	if err := decode(best, &r); err != nil {
		return ota.Record{}, err
	}
	if damaged != nil {
		f.log().Warn("a copy of the record is damaged; going on with the other, which may be one step older", "error", damaged, "serial", f.serial)
	}
	f.loaded = true
	return r, nil
}

func (f *File) log() *slog.Logger {
	if f.Log != nil {
		return f.Log
	}
	return slog.Default()
}

// Save implements [ota.Store]. After an error, either record may be loaded.
func (f *File) Save(r ota.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.save(r); err != nil {
		return fmt.Errorf("save record: %w", err)
	}
	return nil
}

func (f *File) save(r ota.Record) error {
	if r.Format == 0 {
		r.Format = Format
	}
	if r.Format != Format {
		return fmt.Errorf("format %d is not known here, want %d", r.Format, Format)
	}
	if !f.loaded {
		// Which file holds the older record? To guess would be to overwrite the newer.
		if _, err := f.load(); err != nil {
			return err
		}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	data := encode(f.serial+1, body)
	if len(data) > maxSize {
		return fmt.Errorf("%d bytes, want at most %d", len(data), maxSize)
	}
	next := 1 - f.newest
	if err := durable.WriteFile(f.fsys, f.paths[next], data, 0o600); err != nil {
		// It may have got there or not. The next save writes the same file again,
		// so the one that is known to be good stays untouched.
		return err
	}
	f.newest, f.serial = next, f.serial+1
	return nil
}

// encode returns the content of a file.
func encode(serial uint64, body []byte) []byte {
	return append(fmt.Appendf(nil, "%s 1 %d %x\n", magic, serial, sum(serial, body)), body...)
}

func sum(serial uint64, body []byte) [sha256.Size]byte {
	return sha256.Sum256(append(fmt.Appendf(nil, "%d\n", serial), body...))
}

// read returns what encode was given, or why the file is not to be believed.
func (f *File) read(path string) (serial uint64, body []byte, err error) {
	data, err := durable.ReadFile(f.fsys, path, maxSize)
	if err != nil {
		return 0, nil, err
	}
	line, body, ok := bytes.Cut(data, []byte("\n"))
	head := bytes.Split(line, []byte(" "))
	if !ok || len(head) != 4 || string(head[0]) != magic {
		return 0, nil, fmt.Errorf("%d bytes that do not begin like a record", len(data))
	}
	if string(head[1]) != "1" {
		return 0, nil, fmt.Errorf("layout %q is not known here, want 1: it was written by later software, or is damaged", head[1])
	}
	serial, err = strconv.ParseUint(string(head[2]), 10, 64)
	if err != nil || serial == 0 {
		return 0, nil, fmt.Errorf("serial number %q is not a number from 1", head[2])
	}
	if got := fmt.Sprintf("%x", sum(serial, body)); got != string(head[3]) {
		return 0, nil, fmt.Errorf("checksum is %s, want %s", got, head[3])
	}
	return serial, body, nil
}

func decode(body []byte, r *ota.Record) error {
	// The format first: the rest of a later one may not fit the struct.
	var f struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return fmt.Errorf("its checksum holds, but it is no record: %w", err)
	}
	if f.Format != Format {
		return fmt.Errorf("format %d is not known here, want %d: it was written by later software; update the agent", f.Format, Format)
	}
	if err := json.Unmarshal(body, r); err != nil {
		return fmt.Errorf("its checksum holds, but it is no record: %w", err)
	}
	return nil
}
