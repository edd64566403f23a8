// Command bench installs a 256 MiB release from a loopback HTTPS server into a
// file slot, and compares what that costs with the least that it could cost:
//
//	floor    a plain Go loop that fetches, hashes, writes and syncs
//	curl+dd  curl | dd conv=fsync, which does not hash
//	install  the manager: verify each chunk, write, sync, read back, verify
//
// The variants run as processes of their own, one after the other in each round,
// so that ratios within a round mean something on a noisy machine. CPU time and
// peak memory are those that the kernel accounts to the process.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/serve"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 5, "rounds")
	size := flag.Int64("size", 256<<20, "bytes of the image")
	dir := flag.String("dir", "", "where to write; default: a new temporary directory")
	child := flag.String("child", "", "internal: the variant to run")
	url := flag.String("url", "", "internal: the server")
	flag.Parse()
	var err error
	switch *child {
	case "":
		err = bench(*dir, *size, *rounds)
	case "serve":
		err = serveFiles(*dir)
	case "floor":
		err = floor(*dir, *url)
	case "install":
		err = install(*dir, *url)
	default:
		err = fmt.Errorf("unknown variant %q", *child)
	}
	if err != nil {
		log.Fatalf("bench: %v", err)
	}
}

// A run is one process, measured.
type run struct {
	wall, cpu time.Duration
	rss       int64 // bytes
}

func bench(dir string, size int64, rounds int) error {
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "interlock-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	if err := prepare(dir, size); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	server := exec.Command(self, "-child", "serve", "-dir", dir)
	out, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	defer func() { server.Process.Kill(); server.Wait() }()
	var url string
	if _, err := fmt.Fscan(out, &url); err != nil {
		return fmt.Errorf("read the server's address: %w", err)
	}
	ca := filepath.Join(dir, "tls", "ca.pem")
	variants := []struct {
		name string
		cmd  func(dir string) *exec.Cmd
	}{
		{"floor", func(d string) *exec.Cmd { return exec.Command(self, "-child", "floor", "-dir", d, "-url", url) }},
		{"curl+dd", func(d string) *exec.Cmd {
			return exec.Command("sh", "-c", fmt.Sprintf("curl -sS --fail --cacert %s %s/image | dd of=%s/image bs=1M iflag=fullblock conv=fsync status=none", ca, url, d))
		}},
		{"install", func(d string) *exec.Cmd { return exec.Command(self, "-child", "install", "-dir", d, "-url", url) }},
	}
	runs := map[string][]run{}
	for i := range rounds {
		for _, v := range variants {
			r, err := measure(dir, ca, v.cmd)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			runs[v.name] = append(runs[v.name], r)
			fmt.Fprintf(os.Stderr, "round %d of %d  %-8s %6.2f s wall %6.2f s CPU %5.1f MiB\n", i+1, rounds, v.name, r.wall.Seconds(), r.cpu.Seconds(), float64(r.rss)/(1<<20))
		}
	}
	report(size, rounds, runs)
	return nil
}

// measure runs one variant in a new directory, so that nothing is there already.
func measure(dir, ca string, command func(dir string) *exec.Cmd) (run, error) {
	d, err := os.MkdirTemp(dir, "run-")
	if err != nil {
		return run{}, err
	}
	defer os.RemoveAll(d)
	if err := os.Link(ca, filepath.Join(d, "ca.pem")); err != nil {
		return run{}, err
	}
	if err := os.Link(filepath.Join(dir, "key.pem"), filepath.Join(d, "key.pem")); err != nil {
		return run{}, err
	}
	syscall.Sync() // what others left to write is not ours
	cmd := command(d)
	cmd.Stderr = os.Stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return run{}, err
	}
	wall := time.Since(start)
	use, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return run{}, errors.New("the system does not account for processes")
	}
	return run{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), use.Maxrss * 1024}, nil
}

func report(size int64, rounds int, runs map[string][]run) {
	fmt.Printf("\n%d MiB over loopback HTTPS into a file, median of %d alternating rounds (lowest to highest)\n\n", size>>20, rounds)
	fmt.Printf("| what | wall s | CPU s | peak MiB | CPU / floor | wall / floor |\n|---|---|---|---|---|---|\n")
	for _, name := range []string{"floor", "curl+dd", "install"} {
		var wall, cpu, rss, cpuRatio, wallRatio []float64
		for i, r := range runs[name] {
			f := runs["floor"][i]
			wall, cpu = append(wall, r.wall.Seconds()), append(cpu, r.cpu.Seconds())
			rss = append(rss, float64(r.rss)/(1<<20))
			cpuRatio = append(cpuRatio, r.cpu.Seconds()/f.cpu.Seconds())
			wallRatio = append(wallRatio, r.wall.Seconds()/f.wall.Seconds())
		}
		fmt.Printf("| %s | %s | %s | %.1f | %s | %s |\n", name, spread(wall), spread(cpu), slices.Max(rss), spread(cpuRatio), spread(wallRatio))
	}
	fmt.Println("\ncurl+dd: both processes; memory of the larger one. install: with chunk verification and read-back.")
}

func spread(v []float64) string {
	s := slices.Sorted(slices.Values(v))
	return fmt.Sprintf("%.2f (%.2f to %.2f)", s[len(s)/2], s[0], s[len(s)-1])
}

// prepare makes image, bundle and keys. The image does not compress and has no
// two equal chunks.
func prepare(dir string, size int64) error {
	if err := os.MkdirAll(filepath.Join(dir, "tls"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), size); err != nil {
		return err
	}
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), public, 0o644); err != nil {
		return err
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		return err
	}
	m := &ota.Manifest{Product: "bench", Version: "1.0.1", Created: time.Now().UTC()}
	return bundle.Build(filepath.Join(dir, "bundle"), m, map[string]string{"controller": filepath.Join(dir, "image")}, key)
}

func serveFiles(dir string) error {
	ca, err := serve.OpenCA(filepath.Join(dir, "tls"), []string{"localhost"}, time.Now)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("https://%s\n", strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1))
	s := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{GetCertificate: ca.Certificate, MinVersion: tls.VersionTLS12}}
	return s.ServeTLS(l, "", "")
}

func client(dir string) (*http.Client, error) {
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in ca.pem")
	}
	return &http.Client{Transport: &http.Transport{DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}, nil
}
