package inbox_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// BenchmarkPut sends 30 MiB in pieces of 224 bytes, and compares that with the same
// pieces written to a plain file. It reports the time of the slowest Put.
func BenchmarkPut(bench *testing.B) {
	rel := otatest.NewSigningKey(bench).Release(bench, "1.1.0", 30<<20)
	const step = 224
	for bench.Loop() {
		f, err := durable.OS{}.OpenFile(filepath.Join(bench.TempDir(), "plain"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			bench.Fatal(err)
		}
		start := time.Now()
		for at := 0; at < len(rel.Bundle); at += step {
			if _, err := f.WriteAt(rel.Bundle[at:min(at+step, len(rel.Bundle))], int64(at)); err != nil {
				bench.Fatal(err)
			}
		}
		plain := time.Since(start)
		f.Close()
		cfg := config(durable.OS{}, rel)
		cfg.Dir = bench.TempDir()
		b, err := inbox.Open(cfg)
		if err != nil {
			bench.Fatal(err)
		}
		begin(bench, b, offer(rel))
		var slowest time.Duration
		slow, n := 0, 0
		start = time.Now()
		for at := 0; at < len(rel.Bundle); at += step {
			one := time.Now()
			if err := b.Put(int64(at), rel.Bundle[at:min(at+step, len(rel.Bundle))]); err != nil {
				bench.Fatal(err)
			}
			took := time.Since(one)
			slowest = max(slowest, took)
			if took > 5*time.Millisecond {
				slow++
			}
			n++
		}
		took := time.Since(start)
		finish(bench, b)
		if err := b.Close(); err != nil {
			bench.Fatal(err)
		}
		bench.ReportMetric(float64(took)/float64(plain), "x-plain")
		bench.ReportMetric(float64(took.Nanoseconds())/float64(n), "ns/put")
		bench.ReportMetric(float64(slowest.Microseconds())/1000, "ms-slowest")
		bench.ReportMetric(float64(slow), "puts-over-5ms")
	}
}
