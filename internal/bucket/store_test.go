package bucket

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

// memory is a fake store: a bucket in a map, as S3 behaves when nothing is wrong.
// What can go wrong is added around it.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	order   map[string]int // of the writes: the age of an object
	writes  []string       // keys, in order
}

func newMemory() *memory { return &memory{objects: map[string][]byte{}, order: map[string]int{}} }

func (m *memory) clone() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{objects: maps.Clone(m.objects), order: maps.Clone(m.order)}
}

func (m *memory) describe(key string) blob.Object {
	return blob.Object{Key: key, Size: int64(len(m.objects[key])), ETag: fmt.Sprintf(`"%08x"`, crc32.ChecksumIEEE(m.objects[key])),
		ModTime: time.Unix(int64(m.order[key]), 0)}
}

func (m *memory) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (blob.Object, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return blob.Object{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, there := m.objects[key]
	if o.IfAbsent && there {
		return blob.Object{}, blob.ErrExists
	}
	if o.IfETag != "" && !there {
		return blob.Object{}, blob.ErrNotFound
	}
	if o.IfETag != "" && m.describe(key).ETag != o.IfETag {
		return blob.Object{}, blob.ErrChanged
	}
	m.objects[key] = b
	m.writes = append(m.writes, key)
	m.order[key] = len(m.writes)
	return m.describe(key), nil
}

func (m *memory) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	if !ok {
		return nil, blob.Object{}, fmt.Errorf("open %s: %w", key, blob.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), m.describe(key), nil // this package reads whole objects only
}

func (m *memory) Stat(ctx context.Context, key string) (blob.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; !ok {
		return blob.Object{}, blob.ErrNotFound
	}
	return m.describe(key), nil
}

func (m *memory) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) {
		m.mu.Lock()
		var list []blob.Object
		for _, key := range slices.Sorted(maps.Keys(m.objects)) {
			if strings.HasPrefix(key, prefix) {
				list = append(list, m.describe(key))
			}
		}
		m.mu.Unlock()
		for _, o := range list {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (m *memory) Delete(ctx context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

// around is a store each of whose operations goes through do, which runs the
// operation, or does not, and says how it ended.
type around struct {
	blob.Store
	do func(op string, run func() error) error
}

func (a *around) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (out blob.Object, err error) {
	err = a.do("put "+key, func() (err error) { out, err = a.Store.Put(ctx, key, r, o); return err })
	return out, err
}

func (a *around) Open(ctx context.Context, key string, offset, n int64) (r io.ReadCloser, o blob.Object, err error) {
	err = a.do("open "+key, func() (err error) { r, o, err = a.Store.Open(ctx, key, offset, n); return err })
	return r, o, err
}

func (a *around) Stat(ctx context.Context, key string) (o blob.Object, err error) {
	err = a.do("stat "+key, func() (err error) { o, err = a.Store.Stat(ctx, key); return err })
	return o, err
}

func (a *around) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	var list []blob.Object
	err := a.do("list "+prefix, func() error {
		for o, err := range a.Store.List(ctx, prefix) {
			if err != nil {
				return err
			}
			list = append(list, o)
		}
		return nil
	})
	return func(yield func(blob.Object, error) bool) {
		for _, o := range list {
			if !yield(o, nil) {
				return
			}
		}
		if err != nil {
			yield(blob.Object{}, err)
		}
	}
}

func (a *around) Delete(ctx context.Context, key string) error {
	return a.do("delete "+key, func() error { return a.Store.Delete(ctx, key) })
}

// errBroken is what a broken store says.
var errBroken = errors.New("connection reset by peer")

// start is the time of all that tests publish.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func open(s blob.Store) *Bucket {
	b := New(s)
	b.now = func() time.Time { return start }
	return b
}

var signer = sync.OnceValues(func() (keys [2]crypto.Signer, public [2][]byte) {
	for i := range keys {
		private, pem, err := bundle.GenerateKey("ed25519")
		if err != nil {
			panic(err) // a test without keys cannot go on
		}
		if keys[i], err = bundle.ParsePrivateKey(private); err != nil {
			panic(err)
		}
		public[i] = pem
	}
	return keys, public
})

// build makes a bundle; notes make it another release with the same version.
func build(t testing.TB, product, version, notes string, signers int, change ...func(*ota.Manifest)) []byte {
	t.Helper()
	m := &ota.Manifest{Format: 1, Product: product, Version: version, Notes: notes, Created: start.Add(-time.Hour)}
	var images [][]byte
	for i, component := range []string{"controller", "bms"} {
		image := bytes.Repeat([]byte(product+version+component), 300) // two components share nothing
		if component == "bms" {
			image = bytes.Repeat([]byte(product+component), 300) // the same in all versions
		}
		im, err := bundle.DescribeImage(component, bytes.NewReader(image), 4<<10, i == 0)
		if err != nil {
			t.Fatal(err)
		}
		m.Images, images = append(m.Images, im), append(images, image)
	}
	for _, c := range change {
		c(m)
	}
	keys, _ := signer()
	signed, err := bundle.Sign(m, keys[:signers]...)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var readers []io.Reader
	for _, im := range images {
		readers = append(readers, bytes.NewReader(im))
	}
	if err := bundle.Write(&out, signed, readers...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// digest returns a bundle's name.
func digest(t *testing.T, file []byte) string {
	t.Helper()
	f, err := bundle.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	m, err := bundle.Unsigned(f.Signed())
	if err != nil {
		t.Fatal(err)
	}
	return m.Digest
}

// good has the keys and ETags of objects that were read and are right.
var good sync.Map

// whole reads all that a device may be told to read, and fails if anything is
// missing or not what it is called. It returns the digests: by group, by product.
func whole(t *testing.T, s blob.Store) map[string]map[string]string {
	t.Helper()
	ctx, b := t.Context(), open(s)
	names, err := b.groupNames(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]string{}
	for _, g := range names {
		c, err := b.Current(ctx, g)
		if err != nil {
			t.Fatal(err)
		}
		out[g] = map[string]string{}
		for product, r := range c.Releases {
			out[g][product] = r.Digest
			if stored, err := b.Release(ctx, r.Digest); err != nil || stored.Version != r.Version {
				t.Fatalf("group %s: release %s is not there: %v", g, r.Version, err)
			}
			objects := []Object{r.Bundle, r.Manifest}
			for _, im := range r.Images {
				objects = append(objects, im.Object)
			}
			for _, o := range objects {
				at, err := s.Stat(ctx, o.Key)
				if _, known := good.Load(o.Key + at.ETag); known && err == nil {
					continue
				}
				content, _, err := b.read(ctx, o.Key, 1<<30)
				if err != nil || int64(len(content)) != o.Size || ota.Hash(sha256.Sum256(content)) != o.SHA256 {
					t.Fatalf("group %s names %s, which is not there whole: %d bytes, want %d: %v", g, o.Key, len(content), o.Size, err)
				}
				if o.Key == r.Manifest.Key {
					if m, err := bundle.Unsigned(content); err != nil || m.Digest != r.Digest {
						t.Fatalf("group %s: the envelope is not that of %s: %v", g, r.Digest, err)
					}
				}
				good.Store(o.Key+at.ETag, true)
			}
		}
	}
	return out
}

func publish(t *testing.T, b *Bucket, file []byte, o PublishOptions) error {
	t.Helper()
	_, err := b.Publish(t.Context(), bytes.NewReader(file), int64(len(file)), o)
	return err
}

func mustPublish(t *testing.T, b *Bucket, file []byte, o PublishOptions) {
	t.Helper()
	if err := publish(t, b, file, o); err != nil {
		t.Fatal(err)
	}
}
