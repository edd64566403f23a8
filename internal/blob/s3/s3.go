// Package s3 is a [blob.Store] in a bucket of Amazon S3, or of any server that
// speaks its protocol.
//
// Start with [Open].
package s3

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/blob"
)

// Options say how a bucket is reached. The zero value is Amazon S3 with the
// region and the credentials that the environment, the shared configuration
// files or the machine's role have.
type Options struct {
	Endpoint    string                  // absolute URL of another server
	Region      string                  // of the bucket
	PathStyle   *bool                   // the bucket is in the path and not in the host's name; nil: with another server
	Credentials aws.CredentialsProvider // instead of the usual ones
	HTTPClient  *http.Client            // instead of one of our own
}

// Store is a bucket, or what is below a prefix in one. Methods may be called
// from any goroutine.
type Store struct{}

var (
	_ blob.Store     = (*Store)(nil)
	_ blob.Presigner = (*Store)(nil)
)

var errLater = errors.New("s3 is not there yet")

// Open returns the store at rawURL, s3://bucket/prefix, which need not have a
// prefix. What the query says goes before what o says:
// ?endpoint=https://host:port&region=eu-central-1&path-style=true. It makes no request.
func Open(ctx context.Context, rawURL string, o Options) (*Store, error) { return nil, errLater }

// IsURL says whether text is meant as an URL for [Open].
func IsURL(text string) bool { return len(text) > 5 && text[:5] == "s3://" }

// Put implements [blob.Store].
func (s *Store) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (blob.Object, error) {
	return blob.Object{}, errLater
}

// Open implements [blob.Store].
func (s *Store) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	return nil, blob.Object{}, errLater
}

// Stat implements [blob.Store].
func (s *Store) Stat(ctx context.Context, key string) (blob.Object, error) {
	return blob.Object{}, errLater
}

// List implements [blob.Store].
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) { yield(blob.Object{}, errLater) }
}

// Delete implements [blob.Store].
func (s *Store) Delete(ctx context.Context, key string) error { return errLater }

// PresignGet implements [blob.Presigner]. The lifetime is 1 s to 7 days.
func (s *Store) PresignGet(ctx context.Context, key string, lifetime time.Duration) (string, error) {
	return "", errLater
}

// URLLength returns how many characters an URL of PresignGet for key has: with an
// access key of 20 characters and no session token, and with the present credentials.
func (s *Store) URLLength(ctx context.Context, key string) (plain, present int, err error) {
	return 0, 0, errLater
}
