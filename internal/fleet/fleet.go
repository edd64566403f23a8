// Package fleet is the update server's memory: devices, groups, releases,
// outcomes and tokens, in SQL, and the reason for what every device does.
//
// Start with [Open] and end with [Fleet.Close]. Everything that a check-in needs
// is held in memory, so that a poll costs no query and no write; what was last
// heard of the devices is written in batches. What may not be lost (releases,
// groups, tokens, outcomes) is on the disk before the call returns, many calls
// in one commit.
//
// Promised: an outcome is one row however often it is delivered, and is
// confirmed only once it is durable; a release is stored only after every byte
// of it was compared with its manifest; tokens are stored as hashes only. After
// a crash, at most the last [Config.FlushInterval] of "last seen" and progress
// is missing, which the next check-in brings back.
package fleet

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
)

// Errors by which callers tell what is wrong. They come wrapped, with details.
var (
	ErrNotFound = errors.New("not found")          // no such device, group or release
	ErrInvalid  = errors.New("invalid")            // the request makes no sense, and never will
	ErrConflict = errors.New("conflict")           // the request contradicts what is stored
	ErrFull     = errors.New("the server is full") // a limit of the configuration
)

// Blobs is where release files are; package blob has the implementation. Calls
// may be concurrent. Put stores nothing unless check accepts the file, and
// returns once it is durable; Open returns an error that wraps
// [blob.ErrNotFound] if there is no such file; Delete is idempotent. If HasURLs,
// PutPart stores an image as a file of its own, and URL says where anybody can
// read it for a while, or returns [blob.ErrNotFound].
type Blobs interface {
	Put(ctx context.Context, r io.Reader, check blob.Check) (blob.Info, error)
	Open(ctx context.Context, key ota.Hash) (*blob.File, error)
	Delete(ctx context.Context, key ota.Hash) error

	HasURLs() bool
	PutPart(ctx context.Context, part *io.SectionReader, key ota.Hash) error
	URL(ctx context.Context, key ota.Hash, lifetime time.Duration) (string, error)
}

// Config is how a fleet is kept. The zero value works.
type Config struct {
	// Verify checks the signatures of releases that are published. Nil: only
	// their form and hashes are checked, and the answer says so.
	Verify ota.Verify

	PollInterval  time.Duration    // between check-ins of an idle device; default 5 min
	FlushInterval time.Duration    // between writes of what was last heard; default 5 s
	MaxDevices    int              // more are refused; default 100,000
	Now           func() time.Time // default: time.Now
	Log           *slog.Logger     // default: slog.Default()
}

// Fleet is an open fleet. Its methods may be called from any goroutine.
type Fleet struct {
	cfg   Config
	blobs Blobs
	db    *sql.DB
	w     *writer

	publishing sync.Mutex // from the check of an upload to its commit

	stop     context.CancelFunc // of the flusher
	flushing sync.WaitGroup

	mu       sync.RWMutex
	devices  map[string]*device
	order    []string // ids of devices, sorted
	releases map[string]*Release
	groups   map[string]*group
	tokens   map[tokenHash]Identity
	serial   int64 // of the newest report
	watchers map[chan Change]bool
}

// group is a group in memory, guarded by Fleet.mu.
type group struct {
	current map[string]string // digest by product
	devices int
}

// Open opens the fleet in the SQLite database at path, which it creates if
// needed and brings up to date.
func Open(ctx context.Context, path string, blobs Blobs, cfg Config) (*Fleet, error) {
	if cfg.PollInterval <= 0 {
		cfg.PollInterval = 5 * time.Minute
	}
	if cfg.FlushInterval <= 0 {
		cfg.FlushInterval = 5 * time.Second
	}
	if cfg.MaxDevices <= 0 {
		cfg.MaxDevices = 100_000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	db, err := openSQLite(ctx, path)
	if err != nil {
		return nil, err
	}
	f := &Fleet{cfg: cfg, blobs: blobs, db: db, devices: map[string]*device{}, releases: map[string]*Release{},
		groups: map[string]*group{}, tokens: map[tokenHash]Identity{}, watchers: map[chan Change]bool{}}
	if err := f.load(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("open the fleet's database %s: %w", path, err)
	}
	f.w = startWriter(db)
	var background context.Context
	background, f.stop = context.WithCancel(context.Background())
	f.flushing.Go(func() { f.flushRegularly(background) })
	if _, err := f.group(api.DefaultGroup); err != nil {
		if err := f.CreateGroup(ctx, api.DefaultGroup); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// Close writes what is not yet written, and closes the database.
func (f *Fleet) Close() error {
	f.stop()
	f.flushing.Wait()
	err := f.Flush(context.Background())
	f.w.close()
	return errors.Join(err, f.db.Close())
}

// load fills the memory from the database.
func (f *Fleet) load(ctx context.Context) error {
	for _, part := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"groups", f.loadGroups}, {"releases", f.loadReleases}, {"devices", f.loadDevices},
		{"outcomes", f.loadOutcomes}, {"tokens", f.loadTokens},
	} {
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("load %s: %w", part.what, err)
		}
	}
	return nil
}

func (f *Fleet) loadGroups(ctx context.Context) error {
	err := each(ctx, f.db, `SELECT name FROM device_groups`, func(scan scanner) error {
		var name string
		if err := scan(&name); err != nil {
			return err
		}
		f.groups[name] = &group{current: map[string]string{}}
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, f.db, `SELECT group_name, product, digest FROM current_releases`, func(scan scanner) error {
		var name, product, digest string
		if err := scan(&name, &product, &digest); err != nil {
			return err
		}
		f.groups[name].current[product] = digest
		return nil
	})
}

func (f *Fleet) loadDevices(ctx context.Context) error {
	return each(ctx, f.db, `SELECT id, group_name, first_seen, last_seen, said FROM devices ORDER BY id`, func(scan scanner) error {
		var id, said string
		var first, last int64
		d := &device{}
		if err := scan(&id, &d.Group, &first, &last, &said); err != nil {
			return err
		}
		var req api.CheckinRequest
		if err := json.Unmarshal([]byte(said), &req); err != nil {
			return fmt.Errorf("device %s: %w", id, err)
		}
		d.Head, d.Skipped, d.Poll = req.Head, req.Skipped, f.cfg.PollInterval
		if req.Status != ota.StatusChecking {
			d.settled = req.Status
		}
		d.FirstSeen, d.LastSeen = time.UnixMilli(first), time.UnixMilli(last)
		f.devices[id] = d
		f.order = append(f.order, id)
		f.groups[d.Group].devices++
		return nil
	})
}

// Secret returns the secret with this name, 32 bytes that are made at random
// when they are asked for first, and stay the same from then on.
func (f *Fleet) Secret(ctx context.Context, name string) ([]byte, error) {
	var fresh [32]byte
	rand.Read(fresh[:])
	var value string
	err := f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
			"secret."+name, hex.EncodeToString(fresh[:])); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = $1`, "secret."+name).Scan(&value)
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("load the secret %s: %w", name, err)
	}
	b, err := hex.DecodeString(value)
	if err != nil || len(b) != len(fresh) {
		return nil, fmt.Errorf("load the secret %s: it is damaged in the database", name)
	}
	return b, nil
}

// Groups lists the groups by name.
func (f *Fleet) Groups() []api.Group {
	f.mu.RLock()
	defer f.mu.RUnlock()
	names := make([]string, 0, len(f.groups))
	for name := range f.groups {
		names = append(names, name)
	}
	slices.Sort(names)
	out := make([]api.Group, len(names))
	for i, name := range names {
		out[i] = f.describeGroup(name)
	}
	return out
}

// Group returns one group, or ErrNotFound.
func (f *Fleet) Group(name string) (api.Group, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if _, ok := f.groups[name]; !ok {
		return api.Group{}, f.noGroup(name)
	}
	return f.describeGroup(name), nil
}

func (f *Fleet) describeGroup(name string) api.Group {
	g := f.groups[name]
	out := api.Group{Name: name, Devices: g.devices}
	for product, digest := range g.current {
		out.Current = append(out.Current, api.Current{Product: product, Version: f.releases[digest].Manifest.Version, Digest: digest})
	}
	slices.SortFunc(out.Current, func(a, b api.Current) int { return strings.Compare(a.Product, b.Product) })
	return out
}

// CreateGroup makes a group if there is none with this name.
func (f *Fleet) CreateGroup(ctx context.Context, name string) error {
	if err := ota.CheckName(name); err != nil {
		return fmt.Errorf("create a group: %w: %w", ErrInvalid, err)
	}
	err := f.w.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO device_groups (name, created) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
			name, f.cfg.Now().UnixMilli())
		return err
	}, func() {
		f.mu.Lock()
		if f.groups[name] == nil {
			f.groups[name] = &group{current: map[string]string{}}
		}
		f.mu.Unlock()
		f.tell(Change{Kind: "group", Group: name})
	})
	if err != nil {
		return fmt.Errorf("create group %s: %w", name, err)
	}
	return nil
}

// group returns an error that names the groups there are, if name is none.
func (f *Fleet) group(name string) (*group, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if g, ok := f.groups[name]; ok {
		return g, nil
	}
	return nil, f.noGroup(name)
}

func (f *Fleet) noGroup(name string) error {
	names := make([]string, 0, len(f.groups))
	for n := range f.groups {
		names = append(names, n)
	}
	slices.Sort(names)
	return fmt.Errorf("group %q: %w; groups are %v", name, ErrNotFound, names)
}
