package inbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"path"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

const dir = "/data/inbox"

// config is that of an inbox on a disk of a test.
func config(disk durable.FS, rel *otatest.SignedRelease) inbox.Config {
	return inbox.Config{FS: disk, Dir: dir, Verify: rel.Verify, Log: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, cfg inbox.Config) *inbox.Inbox {
	t.Helper()
	b, err := inbox.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// offer is that of a bundle file.
func offer(rel *otatest.SignedRelease) inbox.Offer {
	return inbox.Offer{Size: int64(len(rel.Bundle)), SHA256: sha256.Sum256(rel.Bundle)}
}

// bare is the offer of images alone, and these.
func bare(rel *otatest.SignedRelease) (inbox.Offer, []byte) {
	var all []byte
	for _, im := range rel.Manifest.Images {
		all = append(all, rel.Images[im.Component]...)
	}
	return inbox.Offer{Size: int64(len(all)), SHA256: sha256.Sum256(all), Bare: true}, all
}

func begin(t testing.TB, b *inbox.Inbox, o inbox.Offer) {
	t.Helper()
	if resumed, err := b.Begin(o); err != nil || resumed {
		t.Fatalf("Begin: got %v, %v, want a new transfer", resumed, err)
	}
}

// putAll puts all bytes in order, in pieces of step.
func putAll(t testing.TB, b *inbox.Inbox, p []byte, step int) {
	t.Helper()
	for at := 0; at < len(p); at += step {
		if err := b.Put(int64(at), p[at:min(at+step, len(p))]); err != nil {
			t.Fatal(err)
		}
	}
}

// wait returns the state as soon as it is one of phases.
func wait(t testing.TB, b *inbox.Inbox, phases ...inbox.Phase) inbox.State {
	t.Helper()
	for {
		changed := b.Changed()
		s := b.State()
		for _, p := range phases {
			if s.Phase == p {
				return s
			}
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("the phase stays %s (%v), want one of %s", s.Phase, s.Err, phases)
		}
	}
}

// finish brings a transfer that is all there to the manager.
func finish(t testing.TB, b *inbox.Inbox) {
	t.Helper()
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if s := wait(t, b, inbox.Verified, inbox.Failed, inbox.Receiving, inbox.Requested); s.Phase != inbox.Verified && s.Phase != inbox.Requested {
		t.Fatalf("after Finish: %s: %v", s.Phase, s.Err)
	}
	if err := b.Request(); err != nil {
		t.Fatal(err)
	}
}

// wantOffered reads the release out of the source, as a manager does.
func wantOffered(t testing.TB, b *inbox.Inbox, rel *otatest.SignedRelease) {
	t.Helper()
	signed, err := b.Latest(context.Background())
	if err != nil || !bytes.Equal(signed, rel.Signed) {
		t.Fatalf("Latest: got %d bytes and %v, want the envelope", len(signed), err)
	}
	for i := range rel.Manifest.Images {
		im := &rel.Manifest.Images[i]
		r, err := b.Open(context.Background(), rel.Manifest, im, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, rel.Images[im.Component]) {
			t.Fatalf("image %s: got %d bytes and %v, want the image of %d bytes", im.Component, len(got), err, im.Size)
		}
	}
}

func report(rel *otatest.SignedRelease, result ota.Result) ota.Report {
	return ota.Report{ID: "id-" + string(result), Digest: rel.Manifest.Digest, Version: rel.Manifest.Version, Result: result}
}

func TestConformance(t *testing.T) {
	for _, isBare := range []bool{false, true} {
		otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
			disk := otatest.NewDisk()
			return otatest.SourceUnderTest{
				New: func(t *testing.T, r *otatest.SignedRelease) ota.Source {
					if r == nil {
						return open(t, config(disk, otatest.NewSigningKey(t).Release(t, "9.9.9", 10)))
					}
					b := open(t, config(disk, r))
					o, p := offer(r), r.Bundle
					if isBare {
						o, p = bare(r)
						if err := b.SetEnvelope(r.Signed); err != nil {
							t.Fatal(err)
						}
					}
					if resumed, err := b.Begin(o); err != nil {
						t.Fatal(err)
					} else if !resumed {
						putAll(t, b, p, 224)
						finish(t, b)
					}
					return b
				},
				Break: func(t *testing.T) {
					entries, err := disk.ReadDir(dir)
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range entries {
						if err := disk.Remove(path.Join(dir, e.Name())); err != nil {
							t.Fatal(err)
						}
					}
				},
			}
		})
	}
}

// A whole life: begun, filled, verified, asked for, installed, reported.
func TestLife(t *testing.T) {
	disk := otatest.NewDisk()
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 50_000, 777)
	b := open(t, config(disk, rel))
	if got := b.State(); got.Phase != inbox.Empty || got.Offer.Size != 0 {
		t.Errorf("a new inbox: got %+v", got)
	}
	o := offer(rel)
	begin(t, b, o)
	if got := b.State(); got.Phase != inbox.Opening || got.Until != 12 || got.Missing != 0 {
		t.Errorf("after Begin: got %+v", got)
	}
	putAll(t, b, rel.Bundle, 224)
	s := b.State()
	if s.Phase != inbox.Received || s.Received != o.Size || s.Missing != o.Size || s.Until != o.Size || s.Version != "1.1.0" || s.Digest != rel.Manifest.Digest {
		t.Errorf("all there: got %+v", s)
	}
	if err := b.Request(); !errors.Is(err, inbox.ErrPhase) {
		t.Errorf("Request before Verified: got %v, want %v", err, inbox.ErrPhase)
	}
	if _, err := b.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("Latest before Request: got %v, want %v", err, ota.ErrNoUpdate)
	}
	finish(t, b)
	<-b.Wake()
	wantOffered(t, b, rel)
	if resumed, err := b.Begin(o); err != nil || !resumed {
		t.Errorf("the same again: got %v, %v, want it to go on", resumed, err)
	}
	r := report(rel, ota.Succeeded)
	for range 2 {
		if err := b.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	s = b.State()
	if s.Phase != inbox.Ended || s.Outcome == nil || s.Outcome.Result != ota.Succeeded || s.Last == nil {
		t.Errorf("after the report: got %+v", s)
	}
	b.Close()
	disk.PowerOff(otatest.DropAll, 1)
	disk.PowerOn()
	b = open(t, config(disk, rel))
	s = b.State()
	if s.Phase != inbox.Ended || s.Outcome == nil || *s.Outcome != r || s.Digest != rel.Manifest.Digest {
		t.Errorf("after a power cut: got %+v", s)
	}
	if resumed, err := b.Begin(o); err != nil || !resumed || b.State().Phase != inbox.Ended {
		t.Errorf("what runs already, again: got %v, %v, and %s", resumed, err, b.State().Phase)
	}
}
