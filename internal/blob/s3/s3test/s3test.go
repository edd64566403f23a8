// Package s3test starts a real S3 server, versitygw, for tests.
package s3test

import (
	"net/http"
	"testing"

	"github.com/interlock-energy/ota/internal/blob/s3"
)

// Options say what to start. The zero value is plain HTTP and a bucket named "bucket".
type Options struct {
	TLS    bool   // https, with a CA of the test
	Bucket string // created at the start
}

// Server is a running S3 server on loopback. It ends with the test.
type Server struct {
	Endpoint             string // http(s)://127.0.0.1:port
	CA                   []byte // PEM of the CA that signed the server's certificate; nil without TLS
	Region               string
	AccessKey, SecretKey string
	Bucket               string
	Dir                  string // where the objects are: Dir/bucket/key
}

// Start starts a server. Without the program the test is skipped, or fails, as
// otatest.Tool does it.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	t.Skip("NOT TESTED: s3test is not there yet")
	return nil
}

// URL returns what s3.Open wants for the bucket: s3://bucket/prefix?endpoint=...&region=...
func (s *Server) URL(prefix string) string { return "" }

// Env returns the environment, as NAME=value, with which the usual clients use
// the server: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
// AWS_ENDPOINT_URL_S3, AWS_EC2_METADATA_DISABLED, and AWS_CA_BUNDLE with TLS.
func (s *Server) Env() []string { return nil }

// Client returns an HTTP client that trusts the server.
func (s *Server) Client() *http.Client { return nil }

// Store returns the store below prefix in the bucket.
func (s *Server) Store(t testing.TB, prefix string) *s3.Store { return nil }
