package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/evidence"
)

type evidenceCmd struct {
	List   evidenceListCmd   `cmd:"" help:"List the updates of which there is evidence."`
	Show   evidenceShowCmd   `cmd:"" help:"Show what happened in an update, and why."`
	Verify evidenceVerifyCmd `cmd:"" help:"Verify that nothing in it was changed or taken out."`
}

func (*evidenceCmd) Help() string {
	return `What a device wrote down about each update: who asked, what was signed by whom, what the battery was like at each decision, and how it ended.

Examples:

    interlock evidence list
    interlock evidence show latest
    interlock evidence verify /var/lib/interlock/evidence`
}

// archive is where evidence is read from.
type archive struct {
	names []string
	read  func(name string) ([]byte, error)
	close func()
}

// folder reads evidence from a directory.
func folder(dir string) (*archive, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	names, err := evidence.List(durable.OS{}, dir)
	if err != nil {
		return nil, err
	}
	return &archive{names, func(name string) ([]byte, error) { return evidence.ReadFile(durable.OS{}, dir, name) }, func() {}}, nil
}

// fromAgent reads evidence from the agent of this device.
func fromAgent(ctx context.Context, f *socketFlag) (*archive, error) {
	client, err := f.dial()
	if err != nil {
		return nil, err
	}
	files, err := client.Evidence(ctx)
	if err != nil {
		client.Close()
		return nil, err
	}
	a := &archive{read: func(name string) ([]byte, error) { return client.EvidenceFile(ctx, name) }, close: client.Close}
	for _, f := range files {
		a.names = append(a.names, f.Name)
	}
	return a, nil
}

// archive is the folder dir, or the agent if that is empty.
func (f *socketFlag) archive(ctx context.Context, dir string) (*archive, error) {
	if dir != "" {
		return folder(dir)
	}
	return fromAgent(ctx, f)
}

type evidenceListCmd struct {
	socketFlag
	Dir string `arg:"" optional:"" help:"Folder with evidence. Default: what the agent on this device has."`
}

func (*evidenceListCmd) Help() string {
	return `Examples:

    interlock evidence list
    interlock evidence list /media/usb/evidence`
}

func (c *evidenceListCmd) Run(ctx context.Context, e *env) error {
	a, err := c.archive(ctx, c.Dir)
	if err != nil {
		return err
	}
	defer a.close()
	all, err := evidence.VerifyAll(a.names, a.read)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(all)
	}
	var rows [][]string
	for _, v := range all {
		rows = append(rows, []string{date(v.First), v.Opened.Version, v.Opened.Attempt, or(v.How, "open"), short(v.Head), or(when(!v.OK(), "DOES NOT VERIFY"), "yes")})
	}
	return e.table([]string{"BEGAN", "VERSION", "ATTEMPT", "ENDED", "HEAD", "VERIFIES"}, rows)
}

type evidenceShowCmd struct {
	socketFlag
	Dir  string `placeholder:"DIR" help:"Folder with evidence. Default: what the agent on this device has."`
	What string `arg:"" default:"latest" help:"A file, an attempt, or latest."`
}

func (*evidenceShowCmd) Help() string {
	return `With --json, the lines are passed on as they are.

Examples:

    interlock evidence show latest
    interlock evidence show 20260301T120000Z-1.2.0-9f0c2d5a7be41c33.jsonl
    interlock evidence show 9f0c2d5a7be41c33 --dir /media/usb/evidence`
}

func (c *evidenceShowCmd) Run(ctx context.Context, e *env) error {
	files, err := c.find(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		for _, f := range files {
			if _, err := e.stdout.Write(f.data); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		return nil
	}
	t := &timeline{out: e.stdout, color: onTerminal(e.stdout, e.getenv) && e.getenv("NO_COLOR") == ""}
	for _, f := range files {
		v := evidence.Verify(f.name, f.data)
		lines, err := evidence.Parse(f.data)
		if err := t.show(lines); err != nil {
			return err
		}
		for _, p := range v.Problems {
			if p.Fault != evidence.Unended {
				e.say("warning: %s: %s", f.name, clean(p.Text))
			}
		}
		if err != nil {
			return fmt.Errorf("show %s: %w", f.name, err)
		}
	}
	return nil
}

type evidenceFile struct {
	name string
	data []byte
}

// find returns the files of what was asked for: one, or all of an attempt.
func (c *evidenceShowCmd) find(ctx context.Context) ([]evidenceFile, error) {
	if info, err := os.Stat(c.What); err == nil && info.Mode().IsRegular() && c.Dir == "" {
		data, err := readEvidence(c.What)
		return []evidenceFile{{c.What, data}}, err
	}
	a, err := c.archive(ctx, c.Dir)
	if err != nil {
		return nil, err
	}
	defer a.close()
	var names []string
	switch i := slices.Index(a.names, c.What); {
	case i >= 0:
		names = a.names[i : i+1]
	case c.What == "latest" && len(a.names) > 0:
		last := a.names[len(a.names)-1]
		names = ofAttempt(a.names, last[strings.LastIndexByte(last, '-')+1:])
	case c.What != "latest":
		names = ofAttempt(a.names, c.What+".jsonl")
	}
	if len(names) == 0 {
		return nil, hint(fmt.Errorf("show evidence: there is none of %q", c.What), "interlock evidence list")
	}
	var files []evidenceFile
	for _, name := range names {
		data, err := a.read(name)
		if err != nil {
			return nil, err
		}
		files = append(files, evidenceFile{name, data})
	}
	return files, nil
}

func ofAttempt(names []string, end string) (out []string) {
	for _, n := range names {
		if strings.HasSuffix(n, "-"+end) {
			out = append(out, n)
		}
	}
	return out
}

// readEvidence reads a file whatever its name is; copies have others.
func readEvidence(path string) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is no regular file", path) // a pipe would be waited for
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = evidence.MaxFile + evidence.MaxLine
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("it is more than %d bytes, which no evidence is", most)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

type evidenceVerifyCmd struct {
	socketFlag
	Head     string   `placeholder:"HASH" help:"A head that was noted elsewhere: it must be a line here."`
	Manifest string   `placeholder:"BUNDLE" help:"The bundle that was installed: its signed manifest must be the one in the evidence."`
	Key      []string `sep:"none" placeholder:"PUBLIC.pem" help:"Public key that must have signed it. Repeat for more; with --manifest."`
	Files    []string `arg:"" optional:"" help:"Files, or one folder. Default: what the agent on this device has."`
}

func (*evidenceVerifyCmd) Help() string {
	return `Checks that every line follows the one before, and, for a folder, every file. That proves that nothing was changed by somebody who did not write all of it anew; compare the head with one that was noted elsewhere to prove that nobody did. Exit code 1 if something is wrong.

Examples:

    interlock evidence verify /var/lib/interlock/evidence
    interlock evidence verify --head 5d41402abc4b2a76b9719d911017c592ae3c0f2b6e1d5b0c4f0b6d7a1e2f3a4b evidence/
    interlock evidence verify --manifest bess-1.2.0.bundle --key public.pem 20260301T120000Z-1.2.0-9f0c2d5a7be41c33.jsonl`
}

func (c *evidenceVerifyCmd) Run(ctx context.Context, e *env) error {
	if (c.Manifest == "") != (len(c.Key) == 0) {
		return usage("--manifest and --key belong together")
	}
	all, data, err := c.verify(ctx)
	if err != nil {
		return err
	}
	wrong := []string{}
	for _, v := range all {
		if !v.OK() {
			wrong = append(wrong, fmt.Sprintf("%s: %s", v.Name, v.Problems[0].Text))
		}
	}
	if len(all) > 0 && !slices.ContainsFunc(all, func(v evidence.Verdict) bool { return v.Head != "" || !v.OK() }) {
		wrong = append(wrong, "there is not one whole line, so that nothing is proven")
	}
	found := ""
	if c.Head != "" {
		if found = findHead(all, c.Head); found == "" {
			wrong = append(wrong, fmt.Sprintf("no line has the hash %s: it was changed, or taken out, or is of another device", c.Head))
		}
	}
	installed, err := c.matches(all, data)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	if c.JSON {
		err = e.printJSON(struct {
			Verified bool               `json:"verified"`
			Wrong    []string           `json:"wrong"`
			Files    []evidence.Verdict `json:"files"`
		}{len(wrong) == 0, wrong, all})
	} else {
		printVerdicts(e, all)
		err = e.list([2]string{"noted head", found}, [2]string{"manifest", installed})
	}
	if err != nil || len(wrong) == 0 {
		return err
	}
	more := ""
	if len(wrong) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(wrong)-1)
	}
	return exitWith(exitFailed, fmt.Errorf("verify the evidence: %s%s", wrong[0], more))
}

func printVerdicts(e *env, all []evidence.Verdict) {
	for _, v := range all {
		o := &v.Opened
		word := "verified"
		switch {
		case !v.OK():
			word = "WRONG"
		case v.Head == "":
			word = "NOTHING"
		}
		if fmt.Fprintf(e.stdout, "%s  %s\n", word, clean(v.Name)); v.Head == "" {
			fmt.Fprintf(e.stdout, "  no whole line\n")
		} else {
			fmt.Fprintf(e.stdout, "  %s %s on %s: %s, %s to %s, %s\n  head %s\n", clean(o.Product), clean(o.Version), clean(o.Device),
				count(v.Lines, "line"), date(v.First), date(v.Last), clean(or(v.How, "no end")), v.Head)
		}
		for _, p := range v.Problems {
			fmt.Fprintf(e.stdout, "  %s: %s%s\n", strings.ToUpper(string(p.Fault)), when(p.Line > 0, fmt.Sprintf("line %d: ", p.Line)), clean(p.Text))
		}
		for _, n := range v.Notes {
			fmt.Fprintf(e.stdout, "  note: %s\n", clean(n))
		}
	}
}

// verify verifies what was asked for, and returns the content of each file too.
func (c *evidenceVerifyCmd) verify(ctx context.Context) (all []evidence.Verdict, data map[string][]byte, err error) {
	data = map[string][]byte{}
	keep := func(read func(string) ([]byte, error)) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			b, err := read(name)
			data[name] = b
			return b, err
		}
	}
	dir := ""
	if len(c.Files) == 1 {
		if info, err := os.Stat(c.Files[0]); err == nil && info.IsDir() {
			dir = c.Files[0]
		}
	}
	if dir == "" && len(c.Files) > 0 {
		for _, path := range c.Files {
			b, err := keep(readEvidence)(path)
			if err != nil {
				return nil, nil, err
			}
			all = append(all, evidence.Verify(path, b))
		}
		return all, data, nil
	}
	a, err := c.archive(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer a.close()
	if len(a.names) == 0 {
		return nil, nil, fmt.Errorf("verify the evidence: %w: there is none in %s", fs.ErrNotExist, or(dir, "what the agent has"))
	}
	all, err = evidence.VerifyAll(a.names, keep(a.read))
	return all, data, err
}

// findHead says which line has the hash, "" for none.
func findHead(all []evidence.Verdict, head string) string {
	for _, v := range all {
		if i := slices.Index(v.Hashes, strings.ToLower(head)); i >= 0 {
			return fmt.Sprintf("line %d of %s, of %d: nothing before it was changed since it was noted", i+1, filepath.Base(v.Name), v.Lines)
		}
	}
	return ""
}

// matches says in which file the manifest of the bundle is, after it has verified it.
func (c *evidenceVerifyCmd) matches(all []evidence.Verdict, data map[string][]byte) (string, error) {
	if c.Manifest == "" {
		return "", nil
	}
	keys, err := bundle.LoadKeys(len(c.Key), c.Key...)
	if err != nil {
		return "", err
	}
	f, err := openBundle(c.Manifest)
	if err != nil {
		return "", err
	}
	defer f.close()
	m, err := keys.Verify(f.Signed())
	if err != nil {
		return "", fmt.Errorf("%s: %w", c.Manifest, err)
	}
	var others []string
	for _, v := range all {
		lines, _ := evidence.Parse(data[v.Name]) // what is wrong was told already
		for _, l := range lines {
			var in evidence.Manifest
			if l.Kind != evidence.KindManifest || l.Decode(&in) != nil {
				continue
			}
			if in.Digest == m.Digest {
				return fmt.Sprintf("%s %s, digest %s, is line %d of %s; signed by %d of %d keys", m.Product, m.Version, m.Digest, l.Seq, filepath.Base(v.Name), len(c.Key), len(c.Key)), nil
			}
			others = append(others, in.Version+" "+short(in.Digest))
		}
	}
	return "", fmt.Errorf("the manifest of %s is %s %s, and the evidence is of %s", c.Manifest, m.Version, short(m.Digest), or(strings.Join(others, ", "), "none"))
}
