package blob_test

import (
	"context"
	"io"
	"iter"

	"github.com/interlock-energy/ota/internal/blob"
)

// turns is several stores on the same place, of which each call takes the next.
type turns struct{ stores chan blob.Store }

func (s turns) next() blob.Store {
	n := <-s.stores
	s.stores <- n
	return n
}

func (s turns) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (blob.Object, error) {
	return s.next().Put(ctx, key, r, o)
}

func (s turns) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	return s.next().Open(ctx, key, offset, n)
}

func (s turns) Stat(ctx context.Context, key string) (blob.Object, error) {
	return s.next().Stat(ctx, key)
}

func (s turns) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return s.next().List(ctx, prefix)
}

func (s turns) Delete(ctx context.Context, key string) error { return s.next().Delete(ctx, key) }
