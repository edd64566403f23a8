package main

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

type buildCmd struct {
	Product string   `required:"" placeholder:"P" help:"Product that the firmware is for; other devices refuse it."`
	Version string   `name:"version" required:"" placeholder:"V" help:"Version of the firmware, for example 1.4.2 or 1.4.2-rc.1."`
	Image   []string `required:"" sep:"none" placeholder:"COMPONENT=FILE" help:"Firmware of a component, for example controller=fw.img. Repeat for more components."`
	Key     []string `required:"" sep:"none" placeholder:"PRIVATE.pem" help:"Private key to sign with. Repeat for more signers."`
	Out     string   `required:"" placeholder:"FILE" help:"Bundle to write."`

	Hardware        []string `group:"rules" sep:"none" placeholder:"REVISION" help:"Hardware revision that may take it. Repeat for more. Default: all."`
	SecurityVersion uint64   `group:"rules" placeholder:"N" help:"A device that has run N never goes back below it. Raise it when a hole was closed."`
	MinVersion      string   `group:"rules" placeholder:"V" help:"Oldest version to update from."`
	AllowDowngrade  bool     `group:"rules" help:"May replace a newer version."`
	Expires         string   `group:"rules" placeholder:"WHEN" help:"Not taken after this: a date (2027-06-30), a time (2027-06-30T12:00:00Z) or from now on (90d, 12h)."`
	Mandatory       bool     `group:"rules" help:"Does not wait for a person's consent. The battery is always asked."`
	NoReboot        bool     `group:"rules" help:"Takes effect at the next restart, whoever causes it."`

	MinSoC         *float64 `name:"min-soc" group:"limits" placeholder:"PERCENT" help:"At least this state of charge."`
	MaxTemperature *float64 `group:"limits" placeholder:"CELSIUS" help:"At most this battery temperature."`
	MinTemperature *float64 `group:"limits" placeholder:"CELSIUS" help:"At least this battery temperature."`
	MaxCurrent     *float64 `group:"limits" placeholder:"AMPERE" help:"At most this battery current, in either direction."`

	Notes     string `xor:"notes" placeholder:"TEXT" help:"Release notes for people."`
	NotesFile string `xor:"notes" placeholder:"FILE" help:"Release notes from a file."`
	ChunkSize int64  `placeholder:"BYTES" help:"Bytes that are verified and written at once, a power of two. Default: 65536."`
	JSON      bool   `name:"json" help:"Print JSON."`
}

func (*buildCmd) Help() string {
	return `A bundle is one file with the signed manifest (what the release is, for whom, under which rules, and the hash of every chunk) and the images. Build replaces FILE when the new one is complete, and not before.

The battery's limits can only be stricter than the device's own.

With SOURCE_DATE_EPOCH set (seconds since 1970), and Ed25519 keys, the same input gives the same bytes.

Examples:

    interlock build --product bess-100 --version 1.2.0 --image controller=fw.img \
        --key keys/private.pem --out bess-1.2.0.bundle
    interlock build --product bess-100 --version 1.2.1 --image controller=fw.img \
        --image converter=pcs.bin --hardware rev-b --hardware rev-c --min-version 1.1.0 \
        --min-soc 40 --expires 90d --notes-file NOTES.txt \
        --key keys/private.pem --out bess-1.2.1.bundle`
}

func (c *buildCmd) Run(e *env) error {
	m, files, err := c.manifest(e)
	if err != nil {
		return err
	}
	var keys []crypto.Signer
	for _, name := range c.Key {
		key, err := loadPrivateKey(name)
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	if err := bundle.Build(c.Out, m, files, keys...); err != nil {
		return exitWith(exitFailed, err)
	}
	info, err := os.Stat(c.Out)
	if err != nil {
		return fmt.Errorf("build %s: %w", c.Out, err)
	}
	if c.JSON {
		return e.printJSON(buildResult{File: c.Out, Size: info.Size(), Product: m.Product, Update: *m.Info()})
	}
	if err := e.list(
		[2]string{"bundle", fmt.Sprintf("%s (%s)", c.Out, size(info.Size()))},
		[2]string{"release", m.Product + " " + m.Version},
		[2]string{"digest", m.Digest},
	); err != nil {
		return err
	}
	for _, w := range c.warnings(m, e.now()) {
		e.say("warning: %s", w)
	}
	return nil
}

type buildResult struct {
	File    string `json:"file"`
	Size    int64  `json:"file_size"` // bytes
	Product string `json:"product"`
	ota.Update
}

// manifest makes the manifest that the flags describe, without hashes, and the
// image files by component. Whatever is wrong with it is an error of usage.
func (c *buildCmd) manifest(e *env) (*ota.Manifest, map[string]string, error) {
	created := e.now().UTC().Truncate(time.Second)
	if s := e.getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return nil, nil, usage("SOURCE_DATE_EPOCH is %q, want seconds since 1970", s)
		}
		created = time.Unix(n, 0).UTC()
	}
	m := &ota.Manifest{Format: 1, Product: c.Product, Hardware: c.Hardware, Version: c.Version,
		SecurityVersion: c.SecurityVersion, MinVersion: c.MinVersion, AllowDowngrade: c.AllowDowngrade,
		Created: created, Mandatory: c.Mandatory, NoReboot: c.NoReboot, Notes: c.Notes,
		Limits: ota.Limits{MinSoC: c.MinSoC, MaxTemperature: c.MaxTemperature, MinTemperature: c.MinTemperature, MaxCurrent: c.MaxCurrent}}
	var err error
	if c.Expires != "" {
		if m.Expires, err = parseExpiry(c.Expires, created); err != nil {
			return nil, nil, err
		}
	}
	if c.NotesFile != "" {
		if m.Notes, err = readNotes(c.NotesFile); err != nil {
			return nil, nil, err
		}
	}
	files := map[string]string{}
	for _, s := range c.Image {
		component, file, ok := strings.Cut(s, "=")
		if !ok || component == "" || file == "" {
			return nil, nil, usage("--image %s: want COMPONENT=FILE, for example --image controller=%s", s, filepath.Base(s))
		}
		if files[component] != "" {
			return nil, nil, usage("--image %s: component %s is given twice", s, component)
		}
		files[component] = file
		m.Images = append(m.Images, ota.Image{Component: component, ChunkSize: c.ChunkSize})
	}
	if err := c.check(m); err != nil {
		return nil, nil, err
	}
	return m, files, nil
}

// check finds what is wrong before the images are read. It names the flags,
// which the manifest's own validation cannot.
func (c *buildCmd) check(m *ota.Manifest) error {
	if err := ota.CheckName(m.Product); err != nil {
		return usage("--product: %w", err)
	}
	if err := ota.CheckVersion(m.Version); err != nil {
		return usage("--version: %w", err)
	}
	if m.MinVersion != "" {
		if err := ota.CheckVersion(m.MinVersion); err != nil {
			return usage("--min-version: %w", err)
		}
	}
	for _, h := range m.Hardware {
		if err := ota.CheckName(h); err != nil {
			return usage("--hardware: %w", err)
		}
	}
	for _, im := range m.Images {
		if err := ota.CheckName(im.Component); err != nil {
			return usage("--image: component: %w", err)
		}
	}
	if n := c.ChunkSize; n != 0 && (n < ota.MinChunkSize || n > ota.MaxChunkSize || n&(n-1) != 0) {
		return usage("--chunk-size: got %d, want a power of two from %d to %d", n, ota.MinChunkSize, ota.MaxChunkSize)
	}
	if !m.Expires.IsZero() && !m.Expires.After(m.Created) {
		return usage("--expires: %s is not after %s, when the release is made", date(m.Expires), date(m.Created))
	}
	// The rest, with an image that is in order in place of those not yet read.
	probe := *m
	probe.Images = []ota.Image{{Component: "c", Size: 1, ChunkSize: bundle.DefaultChunkSize, Chunks: make(ota.Hashes, 1)}}
	if err := probe.Validate(); err != nil {
		return exitWith(exitUsage, err)
	}
	return nil
}

// warnings are about what is allowed, but surprises people in the field.
func (c *buildCmd) warnings(m *ota.Manifest, now time.Time) []string {
	var w []string
	if !m.Expires.IsZero() && now.After(m.Expires) {
		w = append(w, "the release has expired already, on "+date(m.Expires)+"; devices will refuse it")
	}
	if m.MinVersion != "" && ota.CompareVersions(m.MinVersion, m.Version) >= 0 && !m.AllowDowngrade {
		w = append(w, fmt.Sprintf("--min-version %s is not older than %s; no device can take it", m.MinVersion, m.Version))
	}
	if m.Mandatory && m.NoReboot {
		w = append(w, "the release is mandatory, but with --no-reboot nobody knows when it takes effect")
	}
	return w
}

// parseExpiry reads a point in time, or a time from start on, in days or as Go
// writes durations.
func parseExpiry(s string, start time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		if layout == time.DateOnly { // the whole of that day
			t = t.Add(24*time.Hour - time.Second)
		}
		return t.UTC(), nil
	}
	d, err := parseDays(s)
	if err != nil || d <= 0 {
		return time.Time{}, usage("--expires: %q is not a date like 2027-06-30, a time like 2027-06-30T12:00:00Z, or a duration like 90d or 12h", s)
	}
	return start.Add(d), nil
}

func parseDays(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

func readNotes(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("read release notes: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, ota.MaxNotesSize+1))
	if err != nil {
		return "", fmt.Errorf("read release notes: %w", err)
	}
	if len(b) > ota.MaxNotesSize {
		return "", hint(errors.New("read release notes: "+name+" is too long"), "notes can have %d bytes; link to the rest", ota.MaxNotesSize)
	}
	return string(b), nil
}
