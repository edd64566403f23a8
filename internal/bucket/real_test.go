package bucket

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
)

// onReal runs a test with a directory and with a real S3 server. Each call of
// fresh gives an empty store.
func onReal(t *testing.T, test func(t *testing.T, fresh func() blob.Store)) {
	t.Run("directory", func(t *testing.T) {
		test(t, func() blob.Store {
			s, err := blob.OpenDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			return s
		})
	})
	t.Run("S3", func(t *testing.T) {
		server, n := s3test.Start(t, s3test.Options{}), 0
		test(t, func() blob.Store {
			n++
			return server.Store(t, fmt.Sprint("test-", n))
		})
	})
}

// What people do ends on real stores as it does on the fake one, and a publisher
// that dies after any operation leaves what a reader can read, and what the next run
// completes.
func TestReal(t *testing.T) {
	onReal(t, func(t *testing.T, fresh func() blob.Store) {
		for _, sc := range scenarios(t) {
			t.Run(sc.name, func(t *testing.T) {
				fake := newMemory()
				sc.before(t, open(fake))
				ops := 0
				if err := sc.act(t, open(&around{fake, func(_ string, run func() error) error { ops++; return run() }})); err != nil {
					t.Fatal(err)
				}
				want := whole(t, fake)
				for last := ops; last > 0; last -= 5 { // with all first, then ever fewer
					store := fresh()
					sc.before(t, open(store))
					n := 0
					err := sc.act(t, open(&around{store, func(_ string, run func() error) error {
						if n++; n > last {
							return errBroken
						}
						return run()
					}}))
					now := whole(t, store)
					if last == ops && (err != nil || !reflect.DeepEqual(now, want)) {
						t.Fatalf("got %v, %v; want %v", now, err, want)
					}
					if err := sc.act(t, open(store)); err != nil && !(sc.again != nil && errors.Is(err, sc.again)) {
						t.Fatalf("died after %d operations; again: %v", last, err)
					}
					if now := whole(t, store); !reflect.DeepEqual(now, want) {
						t.Fatalf("died after %d operations; again: got %v, want %v", last, now, want)
					}
				}
			})
		}
	})
}

// settled reads an object until its content is the one that its ETag is of. The
// server of these tests keeps ETags in files of their own, and changes these first:
// a reader in between gets the old content with the new ETag, and would write over
// what it has not read. Amazon S3 does no such thing.
type settled struct{ blob.Store }

func (s settled) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	for {
		r, o, err := s.Store.Open(ctx, key, offset, n)
		if err != nil {
			return nil, o, err
		}
		content, err := io.ReadAll(r)
		r.Close()
		if hash := strings.Trim(o.ETag, `"`); len(hash) != 32 || err != nil || hash == fmt.Sprintf("%x", md5.Sum(content)) {
			return io.NopCloser(bytes.NewReader(content)), o, err
		}
	}
}

// Eight publishers at the same time, each with a product of its own, and readers
// all the while.
func TestManyPublishers(t *testing.T) {
	onReal(t, func(t *testing.T, fresh func() blob.Store) {
		store := blob.Store(settled{fresh()})
		var files [8][]byte
		for i := range files {
			files[i] = build(t, fmt.Sprint("product-", i), "1.0.0", "", 1)
		}
		var wg, reader sync.WaitGroup
		stop := make(chan struct{})
		reader.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c, err := open(store).Current(t.Context(), "default"); err == nil {
					for product, r := range c.Releases {
						if _, err := open(store).Envelope(t.Context(), r); err != nil {
							t.Errorf("%s: %v", product, err)
						}
					}
				} else if !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
		for _, f := range files {
			wg.Go(func() {
				if _, err := open(store).Publish(t.Context(), bytes.NewReader(f), int64(len(f)), PublishOptions{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(stop)
		reader.Wait()
		if now := whole(t, store); len(now["default"]) != len(files) {
			t.Errorf("got %v, want a release for each of %d products", now, len(files))
		}
	})
}

// On S3 a device can fetch what current.json names with a URL and nothing else,
// and a prefix that makes URLs too long is noticed when something is published.
func TestPresigned(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	file := build(t, "bess", "1.0.0", "", 1)
	store := server.Store(t, "ota")
	b := open(store)
	mustPublish(t, b, file, PublishOptions{})
	c, err := b.Current(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	address, err := store.PresignGet(t.Context(), c.Releases["bess"].Bundle.Key, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, file) {
		t.Errorf("got %d bytes, %v, want the bundle of %d", len(got), err, len(file))
	}
	if got := resp.Header.Get("Cache-Control"); got != unchanging {
		t.Errorf("Cache-Control: got %q, want %q", got, unchanging)
	}

	// What the store says of its URLs decides.
	far := server.Store(t, strings.Repeat("long-path/", 10)[:99])
	n, _, err := far.URLLength(t.Context(), c.Releases["bess"].Image)
	if err != nil {
		t.Fatal(err)
	}
	want := error(nil)
	if n > MaxURL {
		want = ErrTooLong
	}
	if err := publish(t, open(far), file, PublishOptions{}); !errors.Is(err, want) {
		t.Errorf("URL of %d characters: got %v, want %v", n, err, want)
	}
	t.Logf("with a prefix of 99 characters the URL has %d", n)
}

// The Lambda writes reports and may read none: that one is there is all it learns.
func TestReportsWithFewRights(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	store, err := s3.Open(t.Context(), server.URL("ota"), server.OptionsFor(server.AddUser(t, "s3:PutObject")))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		out, err := New(store).AddReports(t.Context(), "bess", reportList())
		if err != nil || len(out.Stored) != 2 {
			t.Fatalf("got %v, %v, want both stored", out, err)
		}
	}
	list, err := New(server.Store(t, "ota")).Reports(t.Context(), "", 10)
	if err != nil || len(list) != 2 {
		t.Errorf("got %v, %v, want both, once", list, err)
	}
}
