package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/interlock-energy/ota/internal/blob"
)

// Open implements [blob.Store]. Reading ends with an error, not with io.EOF, if
// the connection breaks before all bytes are here.
func (s *Store) Open(ctx context.Context, key string, offset, n int64) (io.ReadCloser, blob.Object, error) {
	name, err := s.key(key)
	if err != nil {
		return nil, blob.Object{}, fmt.Errorf("open %s in %s: %w", key, s, err)
	}
	if offset < 0 {
		return nil, blob.Object{}, fmt.Errorf("open %s in %s: from byte %d", key, s, offset)
	}
	if n == 0 { // a range has a byte at least
		return s.openNothing(ctx, key, offset)
	}
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: name}
	switch {
	case n > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	case offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := s.client.GetObject(ctx, in)
	if statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return s.openNothing(ctx, key, offset+max(n, 0))
	}
	if err != nil {
		return nil, blob.Object{}, s.explain("open", key, err)
	}
	obj := blob.Object{Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), ModTime: aws.ToTime(out.LastModified)}
	if in.Range != nil {
		var from int64
		if from, obj.Size, err = contentRange(aws.ToString(out.ContentRange)); err == nil && from != offset {
			err = fmt.Errorf("it sent the bytes from %d on", from)
		}
		if err != nil { // for example a server that knows no ranges
			out.Body.Close()
			return nil, blob.Object{}, fmt.Errorf("open %s in %s: the server did not send the bytes from %d on: %w", key, s, offset, err)
		}
	}
	if n > obj.Size-offset {
		out.Body.Close()
		return nil, blob.Object{}, tooShort(key, s, offset+n, obj.Size)
	}
	return out.Body, obj, nil
}

// openNothing opens no bytes of key, which must have end.
func (s *Store) openNothing(ctx context.Context, key string, end int64) (io.ReadCloser, blob.Object, error) {
	obj, err := s.Stat(ctx, key)
	if err != nil {
		return nil, blob.Object{}, err
	}
	if end > obj.Size {
		return nil, blob.Object{}, tooShort(key, s, end, obj.Size)
	}
	return io.NopCloser(bytes.NewReader(nil)), obj, nil
}

func tooShort(key string, s *Store, end, size int64) error {
	return fmt.Errorf("open %s in %s: it has %d bytes, want %d", key, s, size, end)
}

// contentRange reads the header of this name (RFC 9110, 14.4).
func contentRange(h string) (from, size int64, err error) {
	text, ok := strings.CutPrefix(h, "bytes ")
	span, total, ok2 := strings.Cut(text, "/")
	first, _, ok3 := strings.Cut(span, "-")
	from, err = strconv.ParseInt(first, 10, 64)
	size, err2 := strconv.ParseInt(total, 10, 64)
	if err = errors.Join(err, err2); err != nil || !ok || !ok2 || !ok3 || from < 0 || size <= from {
		return 0, 0, fmt.Errorf("Content-Range is %q", h)
	}
	return from, size, nil
}

// Stat implements [blob.Store].
func (s *Store) Stat(ctx context.Context, key string) (blob.Object, error) {
	name, err := s.key(key)
	if err != nil {
		return blob.Object{}, fmt.Errorf("look at %s in %s: %w", key, s, err)
	}
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: name})
	if err != nil {
		return blob.Object{}, s.explain("look at", key, err)
	}
	return blob.Object{Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), ModTime: aws.ToTime(out.LastModified)}, nil
}

// List implements [blob.Store]. What others put there under names that are no
// keys is left out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) {
		pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.prefix + prefix)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(blob.Object{}, s.explain("list", prefix, err))
				return
			}
			for _, o := range page.Contents {
				key := strings.TrimPrefix(aws.ToString(o.Key), s.prefix)
				if blob.CheckKey(key) != nil {
					continue
				}
				if !yield(blob.Object{Key: key, Size: aws.ToInt64(o.Size), ETag: aws.ToString(o.ETag), ModTime: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
		}
	}
}
