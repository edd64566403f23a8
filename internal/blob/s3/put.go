package s3

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/interlock-energy/ota/internal/blob"
)

// maxPut is what one PUT takes at most, in bytes ("Uploading objects", Amazon S3
// user guide).
const maxPut = 5 << 30

// MaxSize is how large an object may be, in bytes.
func (*Store) MaxSize() int64 { return maxPut }

// putName is the metadata by which a conditional Put knows its own object again.
const putName = "interlock-put"

// Put implements [blob.Store]. It reads r twice, or more often if a try fails.
func (s *Store) Put(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (blob.Object, error) {
	in, sum, err := s.describe(ctx, key, r, o)
	if err != nil {
		return blob.Object{}, fmt.Errorf("store %s in %s: %w", key, s, err)
	}
	start, err := r.Seek(-*in.ContentLength, io.SeekCurrent)
	for try := 1; err == nil; try++ {
		var out *s3.PutObjectOutput
		out, err = s.client.PutObject(ctx, in, signedHash(sum))
		status := statusOf(err)
		switch {
		case err == nil:
			at, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
			if !ok {
				at = time.Now()
			}
			return blob.Object{Key: key, Size: *in.ContentLength, ETag: aws.ToString(out.ETag), ModTime: at}, nil
		case status == http.StatusConflict && try < tries: // another writer is at it
			if err = pause(ctx, try); err == nil {
				_, err = r.Seek(start, io.SeekStart)
			}
			continue
		case status == http.StatusPreconditionFailed:
			// Perhaps by ourselves: a try that seemed to fail may have been stored.
			if mine, ok := s.mine(ctx, key, in); ok {
				return mine, nil
			}
			if o.IfAbsent {
				return blob.Object{}, fmt.Errorf("store %s in %s: %w", key, s, blob.ErrExists)
			}
			return blob.Object{}, fmt.Errorf("store %s in %s: %w", key, s, blob.ErrChanged)
		case status == http.StatusConflict:
			return blob.Object{}, fmt.Errorf("store %s in %s: others write it all the time: %w", key, s, blob.ErrChanged)
		case status == http.StatusNotFound && o.IfETag != "" && codeOf(err) != "NoSuchBucket":
			return blob.Object{}, fmt.Errorf("store %s in %s: %w: it was deleted", key, s, blob.ErrChanged)
		}
	}
	return blob.Object{}, s.explain("store", key, err)
}

// describe reads r to its end, and makes the request of what it finds.
func (s *Store) describe(ctx context.Context, key string, r io.ReadSeeker, o blob.PutOptions) (*s3.PutObjectInput, []byte, error) {
	name, err := s.key(key)
	if err != nil {
		return nil, nil, err
	}
	hash := sha256.New()
	size, err := io.Copy(hash, &reader{ctx, r})
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read it: after %d bytes: %w", size, err)
	case size > maxPut:
		return nil, nil, fmt.Errorf("it has %d bytes, S3 takes %d at a time", size, int64(maxPut))
	}
	sum := hash.Sum(nil)
	in := &s3.PutObjectInput{Bucket: &s.bucket, Key: name, Body: r, ContentLength: &size,
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum)),
		ContentType:    pointer(o.ContentType), CacheControl: pointer(o.CacheControl)}
	if o.ContentType == "" {
		in.ContentType = aws.String("application/octet-stream")
	}
	if o.IfAbsent {
		in.IfNoneMatch = aws.String("*")
	}
	in.IfMatch = pointer(o.IfETag)
	if o.IfAbsent || o.IfETag != "" {
		in.Metadata = map[string]string{putName: rand.Text()}
	}
	return in, sum, nil
}

// mine looks whether the object is that of in.
func (s *Store) mine(ctx context.Context, key string, in *s3.PutObjectInput) (blob.Object, bool) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: in.Bucket, Key: in.Key})
	if err != nil || out.Metadata[putName] != in.Metadata[putName] {
		return blob.Object{}, false
	}
	return blob.Object{Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), ModTime: aws.ToTime(out.LastModified)}, true
}

// signedHash signs the content's hash instead of letting the SDK read it again.
func signedHash(sum []byte) func(*s3.Options) {
	return func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("PayloadHash",
				func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
					return next.HandleInitialize(v4.SetPayloadHash(ctx, hex.EncodeToString(sum)), in)
				}), middleware.Before)
		})
	}
}

// pause waits before another try: up to 100, 200, 400 ms.
func pause(ctx context.Context, try int) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Duration(mathrand.Int64N(int64(50 * time.Millisecond << try)))):
		return nil
	}
}

// reader ends with ctx's error once that is over.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// Delete implements [blob.Store].
func (s *Store) Delete(ctx context.Context, key string) error {
	name, err := s.key(key)
	if err != nil {
		return fmt.Errorf("delete %s from %s: %w", key, s, err)
	}
	_, err = s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: name})
	if err = s.explain("delete", key, err); errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	return err
}
