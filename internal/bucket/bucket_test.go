package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
)

// All that the documents of the old devices need is in one file, under names that
// stay. Programs of other people read it.
func TestCurrentIsForOthers(t *testing.T) {
	store := newMemory()
	soc := 30.0
	file := build(t, "bess", "1.0.0", "better", 1, func(m *ota.Manifest) { m.Mandatory, m.NoReboot, m.Limits.MinSoC = true, true, &soc })
	mustPublish(t, open(store), file, PublishOptions{})
	var got map[string]any
	if err := json.Unmarshal(store.objects["groups/default/current.json"], &got); err != nil {
		t.Fatal(err)
	}
	at := func(path string) any {
		var v any = got
		for name := range strings.SplitSeq(path, "/") {
			if list, ok := v.([]any); ok {
				v = list[0]
				continue
			}
			v = v.(map[string]any)[name]
		}
		return v
	}
	for path, want := range map[string]any{
		"format": 1.0, "group": "default", "given/0": digest(t, file),
		"releases/bess/format": 1.0, "releases/bess/product": "bess", "releases/bess/version": "1.0.0", "releases/bess/digest": digest(t, file),
		"releases/bess/notes": "better", "releases/bess/mandatory": true, "releases/bess/requires_reboot": false,
		"releases/bess/limits/min_soc": 30.0, "releases/bess/published": "2026-03-01T12:00:00Z", "releases/bess/signatures_checked": false,
		"releases/bess/security_version": 0.0, "releases/bess/created": "2026-03-01T11:00:00Z",
		"releases/bess/image":              at("releases/bess/images/0/key"),
		"releases/bess/images/0/component": "controller", "releases/bess/images/0/size": float64(len("bess1.0.0controller") * 300),
		"releases/bess/images/0/key":    "images/" + at("releases/bess/images/0/sha256").(string),
		"releases/bess/bundle/size":     float64(len(file)),
		"releases/bess/bundle/key":      "bundles/" + at("releases/bess/bundle/sha256").(string),
		"releases/bess/manifest/sha256": at("releases/bess/manifest/sha256"),
	} {
		if v := at(path); v != want {
			t.Errorf("%s: got %v, want %v", path, v, want)
		}
	}
	for _, path := range []string{"releases/bess/images/0/md5", "releases/bess/bundle/md5"} {
		if v, ok := at(path).(string); !ok || len(v) != 32 {
			t.Errorf("%s: got %v, want an MD5", path, v)
		}
	}
}

// Objects are written in the order in which they name each other.
func TestOrderOfWrites(t *testing.T) {
	store := newMemory()
	mustPublish(t, open(store), build(t, "bess", "1.0.0+b7", "", 1), PublishOptions{})
	var order []string
	for _, key := range store.writes {
		folder, _, _ := strings.Cut(key, "/")
		if strings.HasSuffix(key, "release.json") {
			folder = "release.json"
		}
		order = append(order, folder)
	}
	want := []string{"images", "images", "bundles", "releases", "release.json", "versions", "groups"}
	if !slices.Equal(order, want) {
		t.Errorf("got %v, want %v", order, want)
	}
	if _, ok := store.objects["versions/bess/1.0.0_b7.json"]; !ok {
		t.Error("the version has no file")
	}
	before := len(store.writes)
	mustPublish(t, open(store), build(t, "bess", "1.0.1", "", 1), PublishOptions{})
	if n := len(store.writes) - before; n != 6 {
		t.Errorf("the next release wrote %d objects, want 6: one of its images is there", n)
	}
}

// What somebody else has put under the key of an image, or cut, is written anew.
func TestForeignObjects(t *testing.T) {
	file := build(t, "bess", "1.0.0", "", 1)
	store := newMemory()
	b := open(store)
	mustPublish(t, b, file, PublishOptions{})
	for key, content := range store.clone().objects {
		if !strings.HasPrefix(key, "groups/") && !strings.HasPrefix(key, "versions/") {
			store.objects[key] = content[:len(content)-1]
		}
	}
	mustPublish(t, b, file, PublishOptions{})
	if now := whole(t, store); now["default"]["bess"] != digest(t, file) {
		t.Errorf("got %v, want the release", now)
	}
	for key, content := range store.objects {
		if strings.HasPrefix(key, "images/") && key != imageKey(sha256.Sum256(content)) {
			t.Errorf("%s is still cut", key)
		}
	}
}

func TestPublish(t *testing.T) {
	one, two := build(t, "bess", "1.0.0", "", 1), build(t, "bess", "2.0.0", "", 1)
	changed := build(t, "bess", "1.0.0", "changed", 1)
	_, public := signer()
	keys, err := bundle.ParseKeys(1, public[0])
	if err != nil {
		t.Fatal(err)
	}
	b := open(newMemory())
	const unsigned = "signatures not checked: no public keys are given; devices do check them"
	for i, step := range []struct {
		file      []byte
		o         PublishOptions
		want      error
		known     bool
		groups    string
		note, has string
	}{
		{one, PublishOptions{}, nil, false, "default", unsigned, "1.0.0"},
		{one, PublishOptions{Verify: keys.Verify}, nil, true, "default", "", "1.0.0"},
		{one, PublishOptions{Group: "canary"}, ErrNotFound, false, "", "", "1.0.0"},
		{two, PublishOptions{Verify: keys.Verify, Hold: true}, nil, false, "", "", "1.0.0"},
		{two, PublishOptions{Verify: keys.Verify}, nil, true, "default", "", "2.0.0"},
		{one, PublishOptions{Verify: keys.Verify}, nil, true, "", "1.0.0 was published before; default stays with 2.0.0; to go back: interlock releases promote 1.0.0 --group default", "2.0.0"},
		{changed, PublishOptions{}, ErrConflict, false, "", "", "2.0.0"},
		{changed, PublishOptions{Verify: keys.Verify, Replace: true}, nil, false, "default", "devices that run 2.0.0 stay with it: 1.0.0 is older and does not allow a downgrade", "1.0.0"},
		{one, PublishOptions{}, ErrConflict, false, "", "", "1.0.0"},
		{two, PublishOptions{Verify: keys.Verify}, nil, true, "", "2.0.0 was current in default before, which stays with 1.0.0; to give it again: interlock releases promote 2.0.0 --group default", "1.0.0"},
		{one, PublishOptions{Verify: keys.Verify, Replace: true}, nil, true, "default", "", "1.0.0"},
		{changed, PublishOptions{Verify: keys.Verify, Replace: true, Hold: true}, nil, true, "", "", ""},
		{build(t, "bess", "3.0.0", "", 1, func(m *ota.Manifest) { m.Expires = start.Add(-time.Minute) }), PublishOptions{}, ErrInvalid, false, "", "", ""},
		{build(t, "bess", "3.0.0+23456789.123456789.123456", "", 1), PublishOptions{Hold: true}, nil, false, "", unsigned, ""},
		{build(t, "bess", "3.0.0+23456789.123456789.1234567", "", 1), PublishOptions{Hold: true}, ErrTooLong, false, "", "", ""},
		{build(t, "bess", "3.0.0+23456789.123456789.1234567", "", 1), PublishOptions{Hold: true, LongURLs: true}, nil, false, "", unsigned, ""},
	} {
		out, err := b.Publish(t.Context(), bytes.NewReader(step.file), int64(len(step.file)), step.o)
		if !errors.Is(err, step.want) || out.Known != step.known || strings.Join(out.Release.Groups, ",") != step.groups || out.Note != step.note {
			t.Errorf("step %d: got known %t, groups %v, note %q, %v; want %t, %s, %q, %v", i, out.Known, out.Release.Groups, out.Note, err,
				step.known, step.groups, step.note, step.want)
		}
		has := ""
		if c, err := b.Current(t.Context(), api.DefaultGroup); err == nil && c.Releases["bess"] != nil {
			has = c.Releases["bess"].Version
		}
		if has != step.has {
			t.Errorf("step %d: default has %q, want %q", i, has, step.has)
		}
	}
	list, err := b.Releases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, r := range list {
		versions[r.Version] += r.Digest
	}
	if versions["1.0.0"] != digest(t, changed) || len(list) != 4 {
		t.Errorf("got %d releases, 1.0.0 is %s, want 4 and the one that replaced the other", len(list), versions["1.0.0"])
	}
}

// What an API client of the server sees of a release, one of a bucket sees as well.
func TestReleaseIsTheServers(t *testing.T) {
	soc := 20.0
	file := build(t, "bess", "1.0.0", "notes", 1, func(m *ota.Manifest) { m.Limits.MinSoC, m.SecurityVersion, m.Expires = &soc, 7, start.Add(time.Hour) })
	b := open(newMemory())
	out, err := b.Publish(t.Context(), bytes.NewReader(file), int64(len(file)), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := bundle.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	m, err := bundle.Unsigned(f.Signed())
	if err != nil {
		t.Fatal(err)
	}
	want := api.Release{Product: "bess", Update: *m.Info(), Published: start, Groups: []string{"default"}}
	for i := range want.Images {
		want.Images[i].MD5 = out.Release.Images[i].MD5 // the manifest need not have it
	}
	list, err := b.Releases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range append(list, out.Release) {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("release differs (-want +got):\n%s", diff)
		}
	}
}

func TestWithdrawAndPromote(t *testing.T) {
	one := build(t, "bess", "1.0.0", "", 1)
	store := newMemory()
	b := open(store)
	mustPublish(t, b, one, PublishOptions{})
	ctx, d := t.Context(), digest(t, one)
	for i, step := range []struct {
		do   func() error
		want error
		text string
	}{
		{func() error { return b.Withdraw(ctx, "default", strings.Repeat("0", 64)) }, ErrNotFound, ""},
		{func() error { return b.Withdraw(ctx, "canary", d) }, ErrNotFound, "group canary"},
		{func() error { return b.Withdraw(ctx, "default", d) }, nil, ""},
		{func() error { return b.Withdraw(ctx, "default", d) }, ErrConflict, "withdraw 1.0.0: conflict: it is not the current release of group default"},
		{func() error { return publish(t, b, one, PublishOptions{}) }, nil, ""}, // does not bring it back
		{func() error { return b.Withdraw(ctx, "default", d) }, ErrConflict, ""},
		{func() error { return b.Promote(ctx, "default", d[:12]) }, ErrNotFound, ""},
		{func() error { return b.Promote(ctx, "canary", d) }, ErrNotFound, "promote 1.0.0: group canary: not found"},
		{func() error { return b.Promote(ctx, "../x", d) }, ErrInvalid, ""},
		{func() error { return b.Promote(ctx, "default", d) }, nil, ""},
		{func() error { return b.Promote(ctx, "default", d) }, nil, ""},
		{func() error { return publish(t, b, build(t, "bess", "1.0.0", "x", 1), PublishOptions{Replace: true}) }, nil, ""},
		{func() error { return b.Promote(ctx, "default", d) }, ErrConflict, "another release has taken the place of"},
	} {
		before := len(store.writes)
		err := step.do()
		if step.want != nil && len(store.writes) != before {
			t.Errorf("step %d: wrote %v before it refused", i, store.writes[before:])
		}
		if !errors.Is(err, step.want) || step.text != "" && !strings.Contains(err.Error(), step.text) {
			t.Errorf("step %d: got %v, want %v with %q", i, err, step.want, step.text)
		}
	}
}

// The same file is whole or an error, however a store reads it.
func TestChecked(t *testing.T) {
	file := build(t, "bess", "1.0.0", "", 1, nil...)
	p, err := open(newMemory()).open(bytes.NewReader(file), int64(len(file)), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reader := func(from io.ReaderAt) *checked {
		f, err := bundle.Open(from, int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		c := &checked{progress: func(int64) {}}
		c.add(header(f.Signed()), nil, nil)
		for i := range p.m.Images {
			part, err := f.Image(p.m, &p.m.Images[i])
			if err != nil {
				t.Fatal(err)
			}
			c.add(nil, &p.m.Images[i], part)
		}
		return c
	}
	if err := iotest.TestReader(reader(bytes.NewReader(file)), file); err != nil {
		t.Error(err)
	}
	for at := p.fresh.Manifest.Size + int64(bundle.HeaderSize); at < int64(len(file)); at += 700 {
		bad := bytes.Clone(file)
		bad[at] ^= 1
		got, err := io.ReadAll(reader(bytes.NewReader(bad)))
		if !errors.Is(err, ota.ErrValidation) || !bytes.Equal(got, file[:len(got)]) || int64(len(got)) > at {
			t.Errorf("byte %d changed: got %d bytes, %v; want ErrValidation, and only good bytes before it", at, len(got), err)
		}
	}
}

// shifting is a fake file that somebody writes to while it is uploaded.
type shifting struct {
	good, bad *bytes.Reader
	reads     int // until it changes
}

func (s *shifting) ReadAt(b []byte, at int64) (int, error) {
	if s.reads--; s.reads < 0 {
		return s.bad.ReadAt(b, at)
	}
	return s.good.ReadAt(b, at)
}

// A file that changes at any time gives either a whole release or none.
func TestFileChangesMeanwhile(t *testing.T) {
	good := build(t, "bess", "1.0.0", "", 1)
	bad := bytes.Clone(good)
	for at := len(bad) - 5000; at < len(bad); at++ {
		bad[at] ^= 0xff
	}
	for reads := 0; ; reads++ {
		store := newMemory()
		file := &shifting{bytes.NewReader(good), bytes.NewReader(bad), reads}
		_, err := open(store).Publish(t.Context(), file, int64(len(good)), PublishOptions{})
		if err == nil {
			if file.reads < 0 {
				t.Fatalf("after %d reads: no error, want one", reads)
			}
			whole(t, store)
			break
		}
		if !errors.Is(err, ota.ErrValidation) || len(whole(t, store)) > 0 {
			t.Fatalf("after %d reads: %v, and groups %v; want ErrValidation and none", reads, err, whole(t, store))
		}
	}
}

func TestProgress(t *testing.T) {
	one, two := build(t, "bess", "1.0.0", "", 1), build(t, "bess", "2.0.0", "", 1)
	b := open(newMemory())
	for _, file := range [][]byte{one, two, two} {
		last, whole := int64(0), int64(0)
		mustPublish(t, b, file, PublishOptions{Progress: func(done, total int64) {
			if done < last || done > total {
				t.Errorf("progress %d of %d after %d", done, total, last)
			}
			last, whole = done, total
		}})
		if last != whole || last < int64(len(file)) {
			t.Errorf("progress ended with %d of %d, want all", last, whole)
		}
	}
}

func TestTokens(t *testing.T) {
	store := newMemory()
	b, ctx := open(store), t.Context()
	mine, err := b.NewToken(ctx, "bess-05", "hall 3")
	if err != nil {
		t.Fatal(err)
	}
	all, err := b.NewToken(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for key, content := range store.objects {
		if strings.Contains(key+string(content), mine) || strings.Contains(key+string(content), all) {
			t.Errorf("%s has the secret", key)
		}
	}
	got, err := b.Token(ctx, mine)
	if err != nil || !got.SpeaksFor("bess-05") || got.SpeaksFor("bess-06") || got.Note != "hall 3" {
		t.Errorf("got %v, %v, want the token of bess-05", got, err)
	}
	if any, err := b.Token(ctx, all); err != nil || !any.SpeaksFor("bess-06") {
		t.Errorf("got %v, %v, want one for all", any, err)
	}
	for _, bad := range []string{"", "x", mine + "x", mine[:len(mine)-1], strings.Repeat("x", 1<<20), "../" + mine} {
		if _, err := b.Token(ctx, bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("token %.20q: got %v, want ErrNotFound", bad, err)
		}
	}
	list, err := b.Tokens(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("got %v, %v, want two tokens", list, err)
	}
	for _, id := range []string{"", "0", strings.Repeat("0", 12), got.ID[:11], got.ID + "0"} {
		if err := b.Revoke(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("revoke %q: got %v, want ErrNotFound", id, err)
		}
	}
	if err := b.Revoke(ctx, got.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Token(ctx, mine); !errors.Is(err, ErrNotFound) {
		t.Errorf("revoked: got %v, want ErrNotFound", err)
	}
	if _, err := b.Token(ctx, all); err != nil {
		t.Errorf("the other token: %v", err)
	}
	if _, err := b.NewToken(ctx, "a/b", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	if _, err := b.NewToken(ctx, "", strings.Repeat("n", 201)); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// A file in the place of a token that is none speaks for nobody, not for all.
func TestDamagedToken(t *testing.T) {
	for _, content := range []string{"", "{}", "null", `{"format":1}`, `{"format":2,"id":"%s"}`, `{"format":1,"id":"%s","device":"a/b"}`, `{"format":1,"id":"000000000000"}`} {
		store := newMemory()
		hash := hashOf("secret")
		store.objects["tokens/"+hash+".json"] = []byte(strings.ReplaceAll(content, "%s", hash[:12]))
		if got, err := open(store).Token(t.Context(), "secret"); !errors.Is(err, ErrDamaged) || got != (Token{}) {
			t.Errorf("%s: got %v, %v, want ErrDamaged", content, got, err)
		}
	}
}

func report(id string) ota.Report {
	return ota.Report{ID: id, Version: "1.0.0", Result: ota.Succeeded, Time: start}
}

func reportList() []ota.Report { return []ota.Report{report("a"), report("b")} }

func TestReports(t *testing.T) {
	store := newMemory()
	now := start
	b, ctx := New(store), t.Context()
	b.now = func() time.Time { return now }
	add := func(device string, list ...ota.Report) api.ReportsResponse {
		t.Helper()
		now = now.Add(time.Minute)
		out, err := b.AddReports(ctx, device, list)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ids := []string{"a1", "../../tokens/x", "a/b", "a:b", strings.Repeat("x", 128), "sha256-00", "."}
	var first []ota.Report
	for _, id := range ids {
		first = append(first, report(id))
	}
	bad := report("bad")
	bad.Result = "great"
	out := add("bess-01", append(first, bad, report(""), report("two words"), report(strings.Repeat("x", 129)))...)
	if !slices.Equal(out.Stored, ids) || len(out.Rejected) != 4 {
		t.Errorf("got stored %q and rejected %v, want %q and four", out.Stored, out.Rejected, ids)
	}
	for key := range store.objects {
		if !strings.HasPrefix(key, "reports/bess-01/") || strings.Count(key, "/") != 2 || strings.Contains(key, "..") {
			t.Errorf("a report is at %q", key)
		}
	}
	again := report("a1")
	again.Result = ota.Failed
	if out := add("bess-01", again); !slices.Equal(out.Stored, []string{"a1"}) {
		t.Errorf("the second time: got %v, want it stored", out)
	}
	add("bess-02", report("a1"))
	list, err := b.Reports(ctx, "bess-01", 100)
	if err != nil || len(list) != len(ids) {
		t.Fatalf("got %d reports, %v, want %d", len(list), err, len(ids))
	}
	for _, r := range list {
		if r.Report.Result != ota.Succeeded {
			t.Errorf("%s: got %s, want what came first", r.Report.ID, r.Report.Result)
		}
	}
	list, err = b.Reports(ctx, "", 2)
	if err != nil || len(list) != 2 || list[0].Device != "bess-02" || list[1].Device != "bess-01" {
		t.Errorf("got %v, %v, want the newest first", list, err)
	}
	if _, err := b.AddReports(ctx, "a/b", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	if _, err := b.AddReports(ctx, "a", make([]ota.Report, api.MaxReports+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// Whatever operation fails: what is said to be stored is stored, and what is not is
// stored by sending it again, once.
func TestReportsAreNotLost(t *testing.T) {
	list := []ota.Report{report("a"), report("b"), report("c")}
	for k := range 3 {
		for _, did := range []bool{false, true} {
			store := newMemory()
			n := 0
			s := &around{store, nil}
			var lock = make(chan struct{}, 1)
			s.do = func(op string, run func() error) error {
				lock <- struct{}{}
				defer func() { <-lock }()
				n++
				if n != k+1 {
					return run()
				}
				if did {
					return errors.Join(errBroken, run())
				}
				return errBroken
			}
			out, _ := open(s).AddReports(t.Context(), "bess", list)
			for _, id := range out.Stored {
				if _, ok := store.objects[reportKey("bess", id)]; !ok {
					t.Errorf("operation %d: %s is said to be stored, and is not", k, id)
				}
			}
			if out, err := open(store).AddReports(t.Context(), "bess", list); err != nil || len(out.Stored) != 3 || len(store.objects) != 3 {
				t.Errorf("operation %d, again: got %v, %v, want all stored once", k, out, err)
			}
		}
	}
}

// A store that is told to stop stops.
func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	file := build(t, "bess", "1.0.0", "", 1)
	s := &around{newMemory(), func(_ string, run func() error) error { return context.Cause(ctx) }}
	if _, err := open(s).Publish(ctx, bytes.NewReader(file), int64(len(file)), PublishOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was canceled", err)
	}
}

// urls is a fake store that knows how long its URLs are.
type urls struct {
	*memory
	length int
}

func (u urls) URLLength(_ context.Context, key string) (plain, present int, err error) {
	return u.length + len(key), u.length + len(key) + 1000, nil
}

func TestURLLength(t *testing.T) {
	file := build(t, "bess", "1.0.0", "", 1)
	for _, tt := range []struct {
		length int
		want   error
	}{{MaxURL, nil}, {MaxURL + 1, ErrTooLong}} {
		store := urls{newMemory(), tt.length - len("images/") - 64}
		err := publish(t, open(store), file, PublishOptions{})
		if !errors.Is(err, tt.want) {
			t.Errorf("URL of %d characters: got %v, want %v", tt.length, err, tt.want)
		}
		if tt.want != nil && (!strings.Contains(err.Error(), "has 512 characters, devices of aws-s3-ota take 511") || len(store.writes) > 0) {
			t.Errorf("got %v, and %d objects written", err, len(store.writes))
		}
		if err := publish(t, open(store), file, PublishOptions{LongURLs: true}); err != nil {
			t.Error(err)
		}
	}
}

func ExampleBucket_Publish() {
	store := newMemory() // or blob.OpenDir, or s3.Open
	file := build(new(testing.T), "bess-100", "1.2.0", "", 1)

	b := New(store)
	out, err := b.Publish(context.Background(), bytes.NewReader(file), int64(len(file)), PublishOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	now, err := b.Current(context.Background(), "default")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(out.Release.Version, "is current in", out.Release.Groups)
	fmt.Println("bess-100 runs", now.Releases["bess-100"].Version)
	// Output:
	// 1.2.0 is current in [default]
	// bess-100 runs 1.2.0
}
