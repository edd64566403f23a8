package s3

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// maxLifetime of an URL ("Sharing objects with presigned URLs", Amazon S3 user guide).
const maxLifetime = 7 * 24 * time.Hour

// PresignGet implements [blob.Presigner]. The lifetime is whole seconds, 1 s to 7
// days; with temporary credentials the URL ends when they do, if that is
// earlier. It makes no request to the bucket.
func (s *Store) PresignGet(ctx context.Context, key string, lifetime time.Duration) (string, error) {
	if lifetime < time.Second || lifetime > maxLifetime {
		return "", fmt.Errorf("make an URL of %s: a lifetime of %v, want 1 s to 7 days", key, lifetime)
	}
	credentials, err := s.client.Options().Credentials.Retrieve(ctx)
	if err != nil {
		return "", s.explain("make an URL of", key, err)
	}
	return s.presign(ctx, key, lifetime, credentials)
}

// URLLength returns how many characters an URL of PresignGet for key has, for a
// lifetime of a day or more: with an access key of 20 characters and no session
// token, which is the shortest there is, and with the present credentials.
// Session tokens of AWS have hundreds of characters, and no fixed length.
func (s *Store) URLLength(ctx context.Context, key string) (plain, present int, err error) {
	shortest, err := s.presign(ctx, key, maxLifetime, aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "x"})
	if err != nil {
		return 0, 0, err
	}
	now, err := s.PresignGet(ctx, key, maxLifetime)
	return len(shortest), len(now), err
}

// presign signs here and not with the SDK's presigning client, which adds
// parameters that nobody needs.
func (s *Store) presign(ctx context.Context, key string, lifetime time.Duration, c aws.Credentials) (string, error) {
	name, err := s.key(key)
	if err != nil {
		return "", fmt.Errorf("make an URL of %s: %w", key, err)
	}
	o := s.client.Options()
	where, err := o.EndpointResolverV2.ResolveEndpoint(ctx, s3.EndpointParameters{Bucket: &s.bucket, Region: &o.Region,
		Endpoint: o.BaseEndpoint, ForcePathStyle: &o.UsePathStyle,
		UseFIPS:      aws.Bool(o.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		UseDualStack: aws.Bool(o.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
		Accelerate:   &o.UseAccelerate})
	if err != nil {
		return "", fmt.Errorf("make an URL of %s in %s: %w", key, s, err)
	}
	u := where.URI.JoinPath(*name)
	u.RawQuery = url.Values{"X-Amz-Expires": {strconv.Itoa(int(lifetime / time.Second))}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", fmt.Errorf("make an URL of %s in %s: %w", key, s, err)
	}
	signed, _, err := s.signer.PresignHTTP(ctx, c, req, "UNSIGNED-PAYLOAD", "s3", o.Region, time.Now())
	if err != nil {
		return "", fmt.Errorf("make an URL of %s in %s: %w", key, s, err)
	}
	return signed, nil
}
