package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

type verifyCmd struct {
	Key       []string `required:"" sep:"none" placeholder:"PUBLIC.pem" help:"Public key to trust. Repeat for more."`
	Threshold int      `default:"1" help:"How many different keys must have signed."`
	File      string   `arg:"" help:"Bundle to verify."`
	JSON      bool     `name:"json" help:"Print JSON."`
}

func (*verifyCmd) Help() string {
	return `Checks what a device checks: the signatures, the form of the manifest, the hash of every chunk and of every image, and that the file ends where it should. Exit code 5 means: do not use this file.

Examples:

    interlock verify --key keys/public.pem bess-1.2.0.bundle
    interlock verify --key a.pem --key b.pem --threshold 2 bess-1.2.0.bundle`
}

func (c *verifyCmd) Run(e *env) error {
	if c.Threshold < 1 {
		return usage("--threshold: got %d, want at least 1", c.Threshold)
	}
	keys, err := bundle.LoadKeys(c.Threshold, c.Key...)
	if err != nil {
		return exitWith(exitFailed, err)
	}
	f, err := openBundle(c.File)
	if err != nil {
		return err
	}
	defer f.close()
	show, end := e.progress("verify", f.size)
	m, err := f.VerifyAll(keys, func(done, _ int64) { show(done) })
	end()
	if err != nil {
		return fmt.Errorf("verify %s: %w", c.File, err)
	}
	signers, err := keys.Signers(f.Signed())
	if err != nil {
		return fmt.Errorf("verify %s: %w", c.File, err)
	}
	expired := !m.Expires.IsZero() && e.now().After(m.Expires)
	if c.JSON {
		return e.printJSON(verifyResult{File: c.File, Verified: true, Signers: signers, Threshold: c.Threshold,
			Expired: expired, Product: m.Product, Update: *m.Info()})
	}
	for i := range signers {
		signers[i] = short(signers[i])
	}
	err = e.list(
		[2]string{"verified", c.File},
		[2]string{"release", m.Product + " " + m.Version},
		[2]string{"digest", m.Digest},
		[2]string{"signed by", fmt.Sprintf("%s (%d wanted)", strings.Join(signers, ", "), c.Threshold)},
		[2]string{"checked", fmt.Sprintf("every byte of %s: %s", size(f.size), count(len(m.Images), "image"))},
	)
	if expired {
		e.say("warning: the release expired on %s; devices refuse it", date(m.Expires))
	}
	return err
}

type verifyResult struct {
	File      string   `json:"file"`
	Verified  bool     `json:"verified"`
	Signers   []string `json:"signers"` // ids of the keys whose signature holds
	Threshold int      `json:"threshold"`
	Expired   bool     `json:"expired"`
	Product   string   `json:"product"`
	ota.Update
}

type inspectCmd struct {
	File string `arg:"" help:"Bundle to look at."`
	JSON bool   `name:"json" help:"Print JSON."`
}

func (*inspectCmd) Help() string {
	return `Needs no key, and proves nothing: anybody can write such a file. Use "interlock verify" before you rely on it.

Examples:

    interlock inspect bess-1.2.0.bundle
    interlock inspect --json bess-1.2.0.bundle | jq -r .version`
}

func (c *inspectCmd) Run(e *env) error {
	f, err := openBundle(c.File)
	if err != nil {
		return err
	}
	defer f.close()
	m, err := bundle.Unsigned(f.Signed())
	if err != nil {
		return fmt.Errorf("inspect %s: %w", c.File, err)
	}
	infos, err := bundle.ReadSignatures(f.Signed())
	if err != nil {
		return fmt.Errorf("inspect %s: %w", c.File, err)
	}
	r := inspectResult{File: c.File, Size: f.size, WantSize: bundle.Size(len(f.Signed()), m), Product: m.Product,
		Hardware: m.Hardware, MinVersion: m.MinVersion, AllowDowngrade: m.AllowDowngrade, Update: *m.Info()}
	for _, s := range infos {
		r.Signatures = append(r.Signatures, signatureResult{s.KeyID, s.Size})
	}
	if c.JSON {
		return e.printJSON(r)
	}
	return r.print(e, m)
}

type inspectResult struct {
	File              string            `json:"file"`
	SignaturesChecked bool              `json:"signatures_checked"` // always false
	Signatures        []signatureResult `json:"signatures"`
	Size              int64             `json:"file_size"`      // bytes
	WantSize          int64             `json:"want_file_size"` // bytes, by the manifest
	Product           string            `json:"product"`
	Hardware          []string          `json:"hardware,omitempty"`
	MinVersion        string            `json:"min_version,omitempty"`
	AllowDowngrade    bool              `json:"allow_downgrade,omitempty"`
	ota.Update
}

type signatureResult struct {
	KeyID string `json:"key_id"` // as the file claims
	Size  int    `json:"size"`   // bytes
}

func (r *inspectResult) print(e *env, m *ota.Manifest) error {
	fmt.Fprint(e.stdout, "SIGNATURES NOT CHECKED: anybody can write what follows; use \"interlock verify\"\n\n")
	file := fmt.Sprintf("%s (%s)", r.File, size(r.Size))
	if r.Size != r.WantSize {
		file += fmt.Sprintf(" DAMAGED: %d bytes, want %d", r.Size, r.WantSize)
	}
	reboot := "no: takes effect at the next restart"
	if r.RequiresReboot {
		reboot = "yes"
	}
	expires := "never"
	if !r.Expires.IsZero() {
		expires = date(r.Expires)
		if e.now().After(r.Expires) {
			expires += " (expired)"
		}
	}
	if err := e.list(
		[2]string{"file", file},
		[2]string{"product", r.Product},
		[2]string{"version", r.Version},
		[2]string{"digest", r.Digest},
		[2]string{"created", date(r.Created)},
		[2]string{"expires", expires},
		[2]string{"hardware", or(strings.Join(r.Hardware, ", "), "all")},
		[2]string{"update from", or(r.MinVersion, "any version") + when(r.MinVersion != "", " or newer")},
		[2]string{"downgrade", or(when(r.AllowDowngrade, "allowed"), "not allowed")},
		[2]string{"security", strconv.FormatUint(r.SecurityVersion, 10)},
		[2]string{"mandatory", or(when(r.Mandatory, "yes: does not wait for a person"), "no")},
		[2]string{"restart", reboot},
		[2]string{"battery", or(limits(r.Limits), "the device's own limits")},
	); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout)
	rows := make([][]string, 0, len(m.Images))
	for i := range m.Images {
		im := &m.Images[i]
		rows = append(rows, []string{im.Component, size(im.Size), strconv.Itoa(len(im.Chunks)), im.SHA256.String()})
	}
	if err := e.table([]string{"COMPONENT", "SIZE", "CHUNKS", "SHA-256"}, rows); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "\nclaims to be signed by (not checked)")
	for _, s := range r.Signatures {
		fmt.Fprintf(e.stdout, "  %q\n", s.KeyID)
	}
	if r.Notes != "" {
		fmt.Fprintln(e.stdout, "\nnotes")
		for line := range strings.Lines(r.Notes) {
			fmt.Fprintln(e.stdout, "  "+strings.TrimRight(clean(strings.TrimRight(line, "\r\n")), " "))
		}
	}
	return nil
}

// limits writes a release's conditions on the battery.
func limits(l ota.Limits) string {
	var parts []string
	for _, p := range []struct {
		v      *float64
		format string
	}{
		{l.MinSoC, "state of charge at least %g %%"},
		{l.MaxTemperature, "at most %g °C"},
		{l.MinTemperature, "at least %g °C"},
		{l.MaxCurrent, "at most %g A"},
	} {
		if p.v != nil {
			parts = append(parts, fmt.Sprintf(p.format, *p.v))
		}
	}
	return strings.Join(parts, ", ")
}

// count writes a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func when(yes bool, s string) string {
	if yes {
		return s
	}
	return ""
}

// opened is a bundle file, and what to close.
type opened struct {
	*bundle.File
	f    *os.File
	size int64
}

func openBundle(name string) (*opened, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	b, err := bundle.Open(f, info.Size())
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &opened{b, f, info.Size()}, nil
}

// close closes a file that was only read, so that nothing can be lost.
func (o *opened) close() { _ = o.f.Close() }
