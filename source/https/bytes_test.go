package https_test

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

// cutter serves an object and cuts the connection at given places of an image
// in it, each once.
type cutter struct {
	reset bool // with RST; otherwise with an orderly close

	mu   sync.Mutex
	base int64   // of the image in the object
	cuts []int64 // offsets in the image, rising
	sent int64   // bytes of the image
	made int     // cuts
}

func (c *cutter) serve(w http.ResponseWriter, r *http.Request, name string, object []byte) {
	start, end := rangeOf(r)
	c.mu.Lock()
	base := c.base
	for len(c.cuts) > 0 && base+c.cuts[0] < start {
		c.cuts = c.cuts[1:]
	}
	stop, cut := end, false
	if len(c.cuts) > 0 && start >= base && base+c.cuts[0] < end {
		stop, cut = base+c.cuts[0], true
		c.cuts = c.cuts[1:]
		c.made++
	}
	if start >= base {
		c.sent += stop - start
	}
	c.mu.Unlock()
	w.Header().Set("ETag", `"`+name+`"`)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, len(object)))
	w.Header().Set("Content-Length", fmt.Sprint(end-start))
	w.WriteHeader(http.StatusPartialContent)
	w.Write(object[start:stop])
	if !cut {
		return
	}
	rc := http.NewResponseController(w)
	rc.Flush()
	conn, _, err := rc.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if c.reset {
		tcp := conn.(*tls.Conn).NetConn().(*net.TCPConn)
		tcp.SetLinger(0)
		tcp.Close()
		return
	}
	conn.Close()
}

// take downloads an image as the manager does: a chunk counts once it is whole
// and its hash is right, and after a failure the rest is asked for.
func take(t *testing.T, src ota.Source, m *ota.Manifest, im *ota.Image) (opens int) {
	t.Helper()
	buf := make([]byte, im.ChunkSize)
	for have := int64(0); have < im.Size; {
		if opens++; opens > 5000 {
			t.Fatalf("still at %d of %d bytes after %d tries", have, im.Size, opens-1)
		}
		rc, err := src.Open(t.Context(), m, im, have)
		if err != nil {
			t.Fatalf("open at %d: %v", have, err)
		}
		for have < im.Size {
			chunk := buf[:min(im.ChunkSize, im.Size-have)]
			if _, err := io.ReadFull(rc, chunk); err != nil {
				if code := ota.CodeOf(err); code != ota.ErrConnectivity {
					t.Fatalf("read at %d: %v (%s)", have, err, code.Name())
				}
				break
			}
			if sha256.Sum256(chunk) != im.Chunks[have/im.ChunkSize] {
				t.Fatalf("chunk at %d has other bytes", have)
			}
			have += int64(len(chunk))
		}
		rc.Close()
	}
	return opens
}

// Cut at the boundaries of all 4 KiB chunks of 1 MiB, one byte before and one
// behind, and at odd places between: no byte of a verified chunk crosses again,
// and at most one chunk does for every cut.
func TestCutAnywhereCostsAtMostAChunk(t *testing.T) {
	const chunk = 4 << 10
	r := otatest.NewSigningKey(t).Release(t, "1.1.0", 1<<20+137)
	im := &r.Manifest.Images[0]
	var cuts []int64
	for b := int64(0); b < im.Size; b += chunk {
		cuts = append(cuts, b, b+1, b+chunk-1)
	}
	for o := int64(13); o < im.Size; o += 2477 {
		cuts = append(cuts, o)
	}
	cuts = append(cuts, im.Size-1)
	cuts = slices.DeleteFunc(cuts, func(c int64) bool { return c < 0 || c >= im.Size })
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)

	for _, reset := range []bool{true, false} {
		for _, kind := range []https.Kind{https.Server, https.Bundle} {
			t.Run(fmt.Sprintf("%s, reset %v", kind, reset), func(t *testing.T) {
				c := &cutter{reset: reset, cuts: slices.Clone(cuts)}
				if kind == https.Bundle {
					c.base = int64(len(r.Bundle)) - im.Size
				}
				o := newOther(t, r)
				o.object = c.serve
				src := newSource(t, o.config(kind))
				opens := take(t, src, r.Manifest, im)
				limit := im.Size
				for _, at := range cuts {
					limit += at % chunk // the part of a chunk that was cut
				}
				t.Logf("%d cuts, %d requests, %d bytes sent for an image of %d; allowed are %d, and %d with a chunk per cut",
					c.made, opens, c.sent, im.Size, limit, im.Size+int64(c.made)*chunk)
				if c.made != len(cuts) {
					t.Errorf("%d cuts were made, want %d", c.made, len(cuts))
				}
				if c.sent > limit {
					t.Errorf("%d bytes were sent, want at most %d", c.sent, limit)
				}
			})
		}
	}
}
