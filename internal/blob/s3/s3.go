// Package s3 is a [blob.Store] in a bucket of Amazon S3, or of any server that
// speaks its protocol and checks what it is sent.
//
// Start with [Open], which makes no request; [Store.Check] makes one, and says in
// a sentence what is wrong with the bucket, the region or the credentials.
//
// Promised: an object is sent in one PUT together with its SHA-256, which the
// server checks before the object is there, so that there is never a part of
// one, and nothing to clean up after a broken upload. Every try may be repeated;
// there are at most four. A connection on which nothing moves for two minutes is
// given up. Errors name the bucket and the key, and say what to do.
//
// The credentials need s3:GetObject, s3:PutObject and s3:DeleteObject for the
// objects, and s3:ListBucket for the bucket: without the last, S3 answers 403
// instead of 404 for what is not there, which is then no [blob.ErrNotFound].
//
// URLs of [Store.PresignGet] that were signed with temporary credentials, as
// those of a role are, end with these, and are too long for the devices of
// aws-s3-ota.md, which take 511 characters: see [Store.URLLength].
package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/interlock-energy/ota/internal/blob"
)

// Options say how a bucket is reached. The zero value is Amazon S3 with the
// region and the credentials that the environment, the shared configuration
// files or the machine's role have, as for every program that uses AWS's SDK;
// that includes AWS_ENDPOINT_URL_S3, AWS_CA_BUNDLE and AWS_PROFILE.
type Options struct {
	Endpoint    string                  // absolute URL of another server
	Region      string                  // of the bucket
	PathStyle   *bool                   // the bucket is in the path and not in the host's name; nil: with another server
	Credentials aws.CredentialsProvider // instead of the usual ones
	HTTPClient  *http.Client            // instead of one of our own
}

// Store is a bucket, or what is below a prefix in one. Methods may be called
// from any goroutine.
type Store struct {
	bucket string
	prefix string // ends with a slash, or is empty
	client *s3.Client
	signer *v4.Signer
}

var (
	_ blob.Store     = (*Store)(nil)
	_ blob.Presigner = (*Store)(nil)
)

const (
	tries     = 4               // of a request
	longest   = 2 * time.Second // pause between two of them; the shortest is below 1 s
	quiet     = 2 * time.Minute // without a byte, after which a connection is given up
	maxPrefix = 100             // characters; with keys of 900 less than the 1,024 of S3
)

// IsURL says whether text is meant as an URL for [Open].
func IsURL(text string) bool { return strings.HasPrefix(text, "s3://") }

// Open returns the store at rawURL, s3://bucket/prefix, which need not have a
// prefix. What the query says goes before what o says:
// ?endpoint=https://host:port&region=eu-central-1&path-style=true. It makes no
// request to the bucket.
func Open(ctx context.Context, rawURL string, o Options) (*Store, error) {
	s := &Store{}
	if err := s.parse(rawURL, &o); err != nil {
		return nil, fmt.Errorf("open %s: %w; want s3://bucket/prefix?region=eu-central-1", shown(rawURL), err)
	}
	var load []func(*config.LoadOptions) error
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(o.Credentials))
	}
	if o.HTTPClient == nil {
		load = append(load, config.WithHTTPClient(client())) // here, so that AWS_CA_BUNDLE is added to it
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w; give the credentials in the environment, or in ~/.aws", shown(rawURL), err)
	}
	s.client = s3.NewFromConfig(cfg, func(c *s3.Options) {
		c.BaseEndpoint = cmp.Or(pointer(o.Endpoint), c.BaseEndpoint)
		if c.BaseEndpoint != nil && c.Region == "" {
			c.Region = "us-east-1" // what other servers mean if they do not say
		}
		c.UsePathStyle = c.BaseEndpoint != nil
		if o.PathStyle != nil {
			c.UsePathStyle = *o.PathStyle
		}
		if o.HTTPClient != nil {
			c.HTTPClient = o.HTTPClient
		}
		// Ours are sent with every PUT. Those that the SDK adds of itself are not
		// taken by all servers, and make URLs longer.
		c.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		c.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		c.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
			r.MaxAttempts, r.MaxBackoff = tries, longest
		})
	})
	if s.client.Options().Region == "" {
		return nil, fmt.Errorf("open %s: the region is not known; add ?region=eu-central-1, or set AWS_REGION", shown(rawURL))
	}
	s.signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }) // as S3 wants it
	return s, nil
}

func (s *Store) parse(rawURL string, o *Options) error {
	u, err := url.Parse(rawURL)
	switch {
	case strings.Contains(rawURL, "@"): // also where it cannot be parsed, as no bucket and no prefix has one
		return errors.New("this is not the URL of a bucket: keys do not belong there, but in the environment or in ~/.aws")
	case err != nil:
		return err
	case u.Scheme != "s3" || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("this is not the URL of a bucket")
	}
	for name, values := range u.Query() {
		value := values[len(values)-1]
		switch name {
		case "endpoint":
			o.Endpoint = value
		case "region":
			o.Region = value
		case "path-style":
			path, err := strconv.ParseBool(value)
			if err != nil {
				return fmt.Errorf("path-style=%s: want true or false", value)
			}
			o.PathStyle = &path
		default:
			return fmt.Errorf("parameter %q: want endpoint, region or path-style", name)
		}
	}
	if o.Endpoint != "" {
		e, err := url.Parse(o.Endpoint)
		if err != nil || e.Scheme != "https" && e.Scheme != "http" || e.Host == "" || e.RawQuery != "" || e.User != nil {
			return fmt.Errorf("endpoint %q: want a form like https://s3.example.com:9000", shown(o.Endpoint))
		}
	}
	s.bucket = u.Host
	if s.prefix = strings.Trim(u.Path, "/"); s.prefix == "" {
		return nil
	}
	if len(s.prefix) > maxPrefix {
		return fmt.Errorf("the prefix has %d characters, want %d at most", len(s.prefix), maxPrefix)
	}
	err = blob.CheckKey(s.prefix)
	s.prefix += "/"
	return err
}

// shown is an URL as it may be seen in a log: without its query, and without a
// user, whom somebody may have put there as he does for other programs.
func shown(raw string) string {
	raw, _, _ = strings.Cut(raw, "?")
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		scheme, rest = "", raw
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = "..." + rest[i:]
	}
	if !ok {
		return rest
	}
	return scheme + "://" + rest
}

func pointer(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// client returns an HTTP client that waits for as long as something moves.
func client() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		dial := t.DialContext
		t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &conn{c}, nil
		}
	})
}

// conn gives up when nothing moves. The SDK's own limit, which counts what is
// read only, would end every upload that takes longer.
type conn struct{ net.Conn }

func (c *conn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(quiet))
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(quiet))
	n, err := c.Conn.Write(p)
	_ = c.SetReadDeadline(time.Now().Add(quiet))
	return n, err
}

// String names the store as people know it.
func (s *Store) String() string { return "s3://" + s.bucket + "/" + strings.TrimSuffix(s.prefix, "/") }

// key returns the name in the bucket.
func (s *Store) key(key string) (*string, error) {
	if err := blob.CheckKey(key); err != nil {
		return nil, err
	}
	return aws.String(s.prefix + key), nil
}

// Check asks the bucket for one key, so that what is wrong is said at the start
// and not at the first release.
func (s *Store) Check(ctx context.Context) error {
	_, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(1)})
	return s.explain("look into", "", err)
}
