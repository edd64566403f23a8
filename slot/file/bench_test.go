//go:build unix

package file_test

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/interlock-energy/ota/slot/file"
	"golang.org/x/sys/unix"
)

const (
	benchSize  = 64 << 20
	benchChunk = 64 << 10
)

// BenchmarkInstall writes 64 MiB in chunks of 64 KiB into a slot, syncs, and reads
// them back past the page cache. It reports the CPU and wall time as ratios to the
// least that any updater does, measured in turn with it: hash every chunk, write
// it into a plain file, and fsync once. The install is measured without the hashes
// of what is read back, which are the caller's.
func BenchmarkInstall(b *testing.B) {
	image := make([]byte, benchSize)
	rand.NewChaCha8([32]byte{}).Read(image)
	dir := b.TempDir()
	if err := file.Format(file.Config{Dir: dir}, factory()); err != nil {
		b.Fatal(err)
	}
	slots, err := file.Open(file.Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := slots.PowerOn(b.Context()); err != nil {
		b.Fatal(err)
	}
	var floor, install cost
	b.SetBytes(benchSize)
	for b.Loop() {
		floor.add(b, func() { plain(b, filepath.Join(dir, "plain"), image) })
		install.add(b, func() {
			sl, err := slots.Open(b.Context(), "controller", "B")
			if err != nil {
				b.Fatal(err)
			}
			for at := 0; at < len(image); at += benchChunk {
				sha256.Sum256(image[at : at+benchChunk])
				if _, err := sl.WriteAt(image[at:at+benchChunk], int64(at)); err != nil {
					b.Fatal(err)
				}
			}
			if err := sl.Sync(benchSize); err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, benchChunk)
			for at := int64(0); at < benchSize; at += benchChunk {
				if _, err := sl.ReadAt(buf, at); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
			if err := sl.Close(); err != nil {
				b.Fatal(err)
			}
		})
		os.Remove(filepath.Join(dir, "plain"))
		os.Remove(filepath.Join(dir, "b", "controller.img"))
	}
	b.ReportMetric(install.cpu.Seconds()/floor.cpu.Seconds(), "cpu/floor")
	b.ReportMetric(install.wall.Seconds()/floor.wall.Seconds(), "wall/floor")
	b.ReportMetric(floor.cpu.Seconds()*1000/float64(b.N), "floor-cpu-ms")
}

func plain(b *testing.B, name string, image []byte) {
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	for at := 0; at < len(image); at += benchChunk {
		sha256.Sum256(image[at : at+benchChunk])
		if _, err := f.WriteAt(image[at:at+benchChunk], int64(at)); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

type cost struct{ cpu, wall time.Duration }

func (c *cost) add(b *testing.B, do func()) {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start, cpu := time.Now(), used()
	do()
	c.wall += time.Since(start)
	c.cpu += used() - cpu
}
