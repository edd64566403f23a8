package https_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

// What servers do to a request for a part, on purpose or by mistake. The image
// has 20,000 bytes, and bytes 5000 to the end are asked for.
func TestServersThatDoNotDoAsAsked(t *testing.T) {
	const size, from = 20_000, 5000
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", size)
	im := &r.Manifest.Images[0]
	image := r.Images["controller"]
	ranged := func(contentRange string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", contentRange)
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(body)
		}
	}
	whole := fmt.Sprintf("bytes %d-%d/%d", from, size-1, size)
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		code    ota.ErrorCode // of Open or of the Read that follows; ErrNone: all is well
		say     string
	}{
		{"exactly as asked", ranged(whole, image[from:]), ota.ErrNone, ""},
		{"total not told", ranged(fmt.Sprintf("bytes %d-%d/*", from, size-1), image[from:]), ota.ErrNone, ""},
		{"chunked, without a length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", whole)
			w.WriteHeader(http.StatusPartialContent)
			http.NewResponseController(w).Flush()
			w.Write(image[from:])
		}, ota.ErrNone, ""},
		{"Range ignored", func(w http.ResponseWriter, _ *http.Request) { w.Write(image) }, ota.ErrNone, ""},
		{"Range ignored, without a length", func(w http.ResponseWriter, _ *http.Request) {
			http.NewResponseController(w).Flush()
			w.Write(image)
		}, ota.ErrNone, ""},
		{"Range ignored, without a length, endless", func(w http.ResponseWriter, _ *http.Request) {
			http.NewResponseController(w).Flush()
			w.Write(image)
			for w != nil {
				if _, err := w.Write(image); err != nil {
					return
				}
			}
		}, ota.ErrNone, ""},
		{"Range ignored, another length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size+1))
			w.Write(append(bytes.Clone(image), 0))
		}, ota.ErrServer, "Content-Length of 20001, want 20000"},
		{"Range ignored, object too short", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size-1))
			w.Write(image[:size-1])
		}, ota.ErrServer, "has 19999 bytes, want at least 20000"},
		{"Range ignored, cut while skipping", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(image[:from/2])
		}, ota.ErrConnectivity, "skip to byte 5000"},
		{"endless body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", whole)
			w.WriteHeader(http.StatusPartialContent)
			w.Write(image[from:])
			for w != nil {
				if _, err := w.Write(image); err != nil {
					return
				}
			}
		}, ota.ErrNone, ""},
		{"short body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", whole)
			w.Header().Set("Content-Length", fmt.Sprint(size-from))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(image[from : size-1])
		}, ota.ErrConnectivity, "1 bytes before its end"},
		{"short body, chunked", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", whole)
			w.WriteHeader(http.StatusPartialContent)
			http.NewResponseController(w).Flush()
			w.Write(image[from : size-7])
		}, ota.ErrConnectivity, "7 bytes before its end"},
		{"Content-Length of another range", ranged(whole, image[from+1:]), ota.ErrServer, "Content-Length of 14999, want 15000"},
		{"starts too early", ranged(fmt.Sprintf("bytes 0-%d/%d", size-1, size), image), ota.ErrServer, "bytes 0 to 19999"},
		{"starts too late", ranged(fmt.Sprintf("bytes %d-%d/%d", from+1, size-1, size), image[from+1:]), ota.ErrServer, "bytes 5001 to 19999"},
		{"ends too early", ranged(fmt.Sprintf("bytes %d-%d/%d", from, size-2, size), image[from:size-1]), ota.ErrServer, "to 19998"},
		{"another total", ranged(fmt.Sprintf("bytes %d-%d/%d", from, size-1, size+1), image[from:]), ota.ErrServer, "of 20001"},
		{"no Content-Range", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusPartialContent)
			w.Write(image[from:])
		}, ota.ErrServer, `Content-Range ""`},
		{"Content-Range in another unit", ranged("items 5000-19999/20000", image[from:]), ota.ErrServer, "items"},
		{"Content-Range backwards", ranged("bytes 19999-5000/20000", image[from:]), ota.ErrServer, "19999-5000"},
		{"Content-Range beyond 2^63", ranged("bytes 5000-99999999999999999999/99999999999999999999", image[from:]), ota.ErrServer, "9999"},
		{"Content-Range with a sign", ranged("bytes +5000-19999/20000", image[from:]), ota.ErrServer, "+5000"},
		{"multipart/byteranges", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprintf(w, "--x\r\nContent-Range: %s\r\n\r\n%s\r\n--x--", whole, image[from:])
		}, ota.ErrServer, "multipart"},
		{"gzip", func(w http.ResponseWriter, _ *http.Request) {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write(image)
			z.Close()
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(b.Bytes())
		}, ota.ErrServer, "Content-Encoding"},
		{"gzip on a range", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			ranged(whole, image[from:])(w, r)
		}, ota.ErrServer, "Content-Encoding"},
		{"nothing", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, ota.ErrServer, "204"},
		{"reset before an answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ota.ErrConnectivity, ""},
		{"header bomb", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 200 {
				w.Header().Set(fmt.Sprintf("X-Bomb-%d", i), strings.Repeat("x", 1000))
			}
			w.Write(image)
		}, ota.ErrServer, "headers"},
		{"500", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the disk\x1b[31m is full\nat line 7", http.StatusInternalServerError)
		}, ota.ErrServer, "500 Internal Server Error: the disk?[31m is full"},
		{"500 with an endless text", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusInternalServerError)
			for w != nil {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
					return
				}
			}
		}, ota.ErrServer, "xxx..."},
		{"500 with a JSON error", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"error": "Firmware file not found", "details": "NoSuchKey", "hint": "upload it"}`)
		}, ota.ErrServer, "Firmware file not found: NoSuchKey (upload it)"},
		{"416", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes */4000")
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, ota.ErrServer, `"bytes */4000"`},
		{"429", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, ota.ErrServer, "429"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOther(t, r)
			src := newSource(t, o.config(https.Server))
			if _, err := src.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			o.set(func() {
				o.object = func(w http.ResponseWriter, req *http.Request, _ string, _ []byte) { tt.handler(w, req) }
			})
			rc, err := src.Open(t.Context(), r.Manifest, im, from)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(rc)
				rc.Close()
			}
			if !bytes.HasPrefix(image[from:], got) {
				t.Errorf("got %d other bytes than the image has from %d", len(got), from)
			}
			if tt.code == ota.ErrNone {
				if err != nil || len(got) != size-from {
					t.Errorf("got %d bytes and %v, want %d", len(got), err, size-from)
				}
				return
			}
			if code := ota.CodeOf(err); code != tt.code || err == nil {
				t.Errorf("got %v (%s), want %s", err, code.Name(), tt.code.Name())
			}
			if err != nil && !strings.Contains(err.Error(), tt.say) {
				t.Errorf("error %q does not say %q", err, tt.say)
			}
			if tt.code == ota.ErrConnectivity && strings.Contains(tt.name, "short") && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("error %q is not %v", err, io.ErrUnexpectedEOF)
			}
		})
	}
}

// The same server sends the ETag of another object: part of one, part of another
// would be the result.
func TestObjectChangesBetweenParts(t *testing.T) {
	key := otatest.NewSigningKey(t)
	r, next := key.Release(t, "1.1.0", 20_000), key.Release(t, "1.2.0", 20_000)
	im := &r.Manifest.Images[0]
	for _, ignore := range []bool{false, true} {
		t.Run(fmt.Sprintf("If-Match ignored %v", ignore), func(t *testing.T) {
			o := newOther(t, r)
			if ignore {
				o.object = func(w http.ResponseWriter, r *http.Request, name string, b []byte) {
					r.Header.Del("If-Match")
					serveObject(w, r, name, b)
				}
			}
			src := newSource(t, o.config(https.Bundle))
			if _, err := src.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			o.set(func() { o.release = next })
			if rc, err := src.Open(t.Context(), r.Manifest, im, 4096); err == nil {
				rc.Close()
				t.Error("Open: no error")
			} else if ota.CodeOf(err) != ota.ErrServer || !strings.Contains(err.Error(), "check again") {
				t.Errorf("Open: %v", err)
			}
			if got, err := src.Latest(t.Context()); err != nil || !bytes.Equal(got, next.Signed) {
				t.Errorf("Latest: got %.60q, %v, want the new release", got, err)
			}
			o.set(func() { o.release = r }) // and back: the old one can be opened again
			rc, err := src.Open(t.Context(), r.Manifest, im, 4096)
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, r.Images["controller"][4096:]) {
				t.Errorf("after it came back: got %d bytes, %v", len(got), err)
			}
		})
	}
}

// A resume asks for the part that is missing, under the ETag that was seen.
func TestRequestsForParts(t *testing.T) {
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 20_000)
	im := &r.Manifest.Images[0]
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			o := newOther(t, r)
			src := newSource(t, o.config(kind))
			if _, err := src.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			base := 0
			if kind != https.Server {
				base = len(r.Bundle) - 20_000
			}
			for _, offset := range []int{0, 8192} {
				rc, err := src.Open(t.Context(), r.Manifest, im, int64(offset))
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, rc)
				rc.Close()
				h := o.headers[len(o.headers)-1]
				if got, want := h.Get("Range"), fmt.Sprintf("bytes=%d-%d", base+offset, base+19_999); got != want {
					t.Errorf("Range at %d: got %q, want %q", offset, got, want)
				}
				etag := `"` + r.Manifest.Digest + `"`
				if kind == https.Server {
					etag = `"` + r.Manifest.Digest + `controller"`
				}
				if offset == 0 && kind == https.Server {
					etag = "" // none was seen yet
				}
				if got := h.Get("If-Match"); got != etag {
					t.Errorf("If-Match at %d: got %q, want %q", offset, got, etag)
				}
				if got := h.Get("Accept-Encoding"); got != "identity" {
					t.Errorf("Accept-Encoding: got %q", got)
				}
				if h.Get("If-Range") != "" {
					t.Error("If-Range was sent")
				}
			}
		})
	}
}
