package otatest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// SignedRelease is a release made for a test, in all the forms in which a source
// can have it.
type SignedRelease struct {
	Manifest *ota.Manifest     // with its digest
	Signed   []byte            // the envelope
	Images   map[string][]byte // by component
	Bundle   []byte            // the bundle file
	Verify   ota.Verify        // accepts this release, and with it all by the same SigningKey
}

// SigningKey signs releases of one test.
type SigningKey struct {
	private bundle.Signer
	keys    *bundle.Keys
}

// NewSigningKey makes a key of its own.
func NewSigningKey(t testing.TB) SigningKey {
	t.Helper()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	var k SigningKey
	if k.private, err = bundle.ParsePrivateKey(private); err != nil {
		t.Fatal(err)
	}
	if k.keys, err = bundle.ParseKeys(1, public); err != nil {
		t.Fatal(err)
	}
	return k
}

// Release makes a release of product "bess" with an image of each size in bytes,
// in chunks of 4 KiB. The first component is "controller", the others "module1"
// and so on. Equal arguments make equal images.
func (k SigningKey) Release(t testing.TB, version string, sizes ...int) *SignedRelease {
	t.Helper()
	return k.Sign(t, &ota.Manifest{Product: "bess", Version: version}, sizes...)
}

// Sign is [SigningKey.Release] for a manifest with more in it than a version. It
// sets what is missing.
func (k SigningKey) Sign(t testing.TB, m *ota.Manifest, sizes ...int) *SignedRelease {
	t.Helper()
	r := &SignedRelease{Images: map[string][]byte{}, Verify: k.keys.Verify}
	m.Format = 1
	if m.Created.IsZero() {
		m.Created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	}
	m.Images = nil
	var readers []io.Reader
	for i, size := range sizes {
		component := "controller"
		if i > 0 {
			component = fmt.Sprintf("module%d", i)
		}
		image := make([]byte, size)
		rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%s %s %d", m.Version, component, size))).Read(image)
		r.Images[component] = image
		im, err := bundle.DescribeImage(component, bytes.NewReader(image), 4<<10, false)
		if err != nil {
			t.Fatal(err)
		}
		m.Images = append(m.Images, im)
		readers = append(readers, bytes.NewReader(image))
	}
	var err error
	if r.Signed, err = bundle.Sign(m, k.private); err != nil {
		t.Fatal(err)
	}
	if r.Manifest, err = r.Verify(r.Signed); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := bundle.Write(&file, r.Signed, readers...); err != nil {
		t.Fatal(err)
	}
	r.Bundle = file.Bytes()
	return r
}

// SourceUnderTest is what [TestSource] needs of an adapter.
type SourceUnderTest struct {
	// New returns a source to which the other side offers r, or nothing if r is
	// nil. Called again with the same r, it returns a fresh source of the same
	// other side, as after a restart of the process. It may call t.Cleanup.
	New func(t *testing.T, r *SignedRelease) ota.Source

	// Break makes the other side, of all sources so far, unreachable.
	Break func(t *testing.T)

	// Hang makes the other side, of all sources so far, send at most 4 KiB of an
	// image that it is asked for from now on, and then nothing, without closing
	// anything. Nil if that cannot be made to happen: the test that needs it then
	// only checks that reading ends when the context is cancelled.
	Hang func(t *testing.T)
}

// TestSource checks that a source keeps the contract of [ota.Source].
func TestSource(t *testing.T, newTest func(t *testing.T) SourceUnderTest) {
	key := NewSigningKey(t)
	const chunk = 4 << 10
	r := key.Release(t, "1.1.0", 5*chunk+1234, 777)

	t.Run("Latest returns exactly the signed bytes, again and again", func(t *testing.T) {
		src := newTest(t).New(t, r)
		for i := range 3 {
			got, err := src.Latest(t.Context())
			if err != nil {
				t.Fatalf("Latest, call %d: %v", i+1, err)
			}
			if !bytes.Equal(got, r.Signed) {
				t.Fatalf("Latest, call %d: got %d bytes %.60q, want %d bytes %.60q", i+1, len(got), got, len(r.Signed), r.Signed)
			}
			clear(got) // the caller owns what it got
		}
	})

	t.Run("nothing offered is ErrNoUpdate", func(t *testing.T) {
		src := newTest(t).New(t, nil)
		got, err := src.Latest(t.Context())
		if !errors.Is(err, ota.ErrNoUpdate) || ota.CodeOf(err) != ota.ErrNoUpdate || got != nil {
			t.Errorf("Latest: got %d bytes and %v, want %v", len(got), err, ota.ErrNoUpdate)
		}
	})

	t.Run("Open from any offset", func(t *testing.T) {
		src := newTest(t).New(t, r)
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range r.Manifest.Images {
			im := &r.Manifest.Images[i]
			offsets := []int64{0, 1, 2, im.Size - 1, im.Size, im.Size / 2, im.Size / 3}
			for o := int64(chunk); o < im.Size; o += chunk {
				offsets = append(offsets, o-1, o, o+1)
			}
			for _, offset := range offsets {
				checkOpen(t, src, r, im, offset)
			}
		}
	})

	t.Run("Open past the end is an error", func(t *testing.T) {
		src := newTest(t).New(t, r)
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		im := &r.Manifest.Images[0]
		for _, offset := range []int64{im.Size + 1, im.Size + chunk, -1} {
			rc, err := src.Open(t.Context(), r.Manifest, im, offset)
			if err == nil {
				rc.Close()
				t.Errorf("Open at %d of %d bytes: no error", offset, im.Size)
			}
		}
	})

	t.Run("a fresh source opens without Latest", func(t *testing.T) {
		test := newTest(t)
		if _, err := test.New(t, r).Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range r.Manifest.Images {
			checkOpen(t, test.New(t, r), r, &r.Manifest.Images[i], 100)
		}
	})

	t.Run("two readers at once", func(t *testing.T) {
		src := newTest(t).New(t, r)
		im := &r.Manifest.Images[0]
		a, err := src.Open(t.Context(), r.Manifest, im, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := src.Open(t.Context(), r.Manifest, im, chunk)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		image := r.Images[im.Component]
		for at := 0; at < 4*chunk; at += 1000 {
			for name, half := range map[string]struct {
				r    io.Reader
				want []byte
			}{"first": {a, image[at:]}, "second": {b, image[chunk+at:]}} {
				got := make([]byte, 1000)
				if _, err := io.ReadFull(half.r, got); err != nil {
					t.Fatalf("%s reader at %d: %v", name, at, err)
				}
				if !bytes.Equal(got, half.want[:1000]) {
					t.Fatalf("%s reader at %d: other bytes than the image has", name, at)
				}
			}
		}
	})

	t.Run("cancelling unblocks a Read", func(t *testing.T) {
		test := newTest(t)
		src := test.New(t, r)
		im := &r.Manifest.Images[0]
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if test.Hang != nil {
			test.Hang(t)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rc, err := src.Open(ctx, r.Manifest, im, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		done := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, rc)
			done <- err
		}()
		cancel()
		err = <-done // the test's own deadline catches a Read that stays
		if test.Hang != nil && ota.CodeOf(err) != ota.ErrConnectivity {
			t.Errorf("reading after cancelling: got %v, want an error that counts as %v", err, ota.ErrConnectivity)
		}
	})

	t.Run("a cancelled context gets nothing done", func(t *testing.T) {
		src := newTest(t).New(t, r)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := src.Latest(ctx); ota.CodeOf(err) != ota.ErrConnectivity {
			t.Errorf("Latest: got %v, want an error that counts as %v", err, ota.ErrConnectivity)
		}
		rc, err := src.Open(ctx, r.Manifest, &r.Manifest.Images[0], 0)
		if err == nil {
			_, err = io.Copy(io.Discard, rc)
			rc.Close()
		}
		if ota.CodeOf(err) != ota.ErrConnectivity {
			t.Errorf("Open: got %v, want an error that counts as %v", err, ota.ErrConnectivity)
		}
	})

	t.Run("a source that is away is neither no update nor internal", func(t *testing.T) {
		test := newTest(t)
		src := test.New(t, r)
		if _, err := src.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		test.Break(t)
		_, err := src.Latest(t.Context())
		if code := ota.CodeOf(err); err != nil && code == ota.ErrInternal {
			t.Errorf("Latest: %v: is %v", err, code) // a removed stick may honestly be no update
		}
		im := &r.Manifest.Images[0]
		rc, err := src.Open(t.Context(), r.Manifest, im, chunk)
		if err == nil {
			_, err = io.Copy(io.Discard, rc)
			rc.Close()
		}
		switch code := ota.CodeOf(err); code {
		case ota.ErrConnectivity, ota.ErrServer, ota.ErrAuthentication:
		default:
			t.Errorf("Open: got %v, which is %v, want one of %v, %v, %v", err, code.Name(),
				ota.ErrConnectivity.Name(), ota.ErrServer.Name(), ota.ErrAuthentication.Name())
		}
	})

	t.Run("another release than the one there is not opened", func(t *testing.T) {
		src := newTest(t).New(t, r)
		other := key.Release(t, "1.2.0", 3*chunk)
		rc, err := src.Open(t.Context(), other.Manifest, &other.Manifest.Images[0], 0)
		if err == nil {
			rc.Close()
			t.Fatal("Open of a release that is not there: no error")
		}
		if code := ota.CodeOf(err); code == ota.ErrInternal || code == ota.ErrNoUpdate {
			t.Errorf("Open: %v: is %s", err, code.Name())
		}
	})
}

// checkOpen reads im from offset to its end.
func checkOpen(t *testing.T, src ota.Source, r *SignedRelease, im *ota.Image, offset int64) {
	t.Helper()
	rc, err := src.Open(t.Context(), r.Manifest, im, offset)
	if err != nil {
		t.Errorf("Open %s at %d: %v", im.Component, offset, err)
		return
	}
	got, err := io.ReadAll(rc)
	if err != nil {
		t.Errorf("Open %s at %d: read: %v", im.Component, offset, err)
	}
	if want := r.Images[im.Component][offset:]; !bytes.Equal(got, want) {
		t.Errorf("Open %s at %d: got %d bytes, want the image's last %d", im.Component, offset, len(got), len(want))
	}
	if n, err := rc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Open %s at %d: read at the end: got %d, %v, want 0, EOF", im.Component, offset, n, err)
	}
	if err := rc.Close(); err != nil {
		t.Errorf("Open %s at %d: close: %v", im.Component, offset, err)
	}
}
