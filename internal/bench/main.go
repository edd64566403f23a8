//go:build linux

// Command bench installs a release of 256 MiB, and compares what that costs with
// the least that it could cost. Without -install, it goes from a loopback HTTPS
// server into a file slot:
//
//	floor    a plain Go loop that fetches, hashes, writes and syncs
//	curl+dd  curl | dd conv=fsync, which does not hash
//	install  the manager: verify each chunk, write, sync, read back, verify
//
// With -install, it goes into block devices, also from a local file, and the
// updaters RAUC and SWUpdate do the same; see benchInstall. That needs root.
//
// With -modbus, it reads registers instead, beside libmodbus and pymodbus; see
// benchModbus.
//
// The variants run as processes of their own, one after the other in each round,
// so that ratios within a round mean something on a noisy machine. CPU time and
// peak memory are those that the kernel accounts to the processes.
package main

import (
	"context"
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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 5, "rounds")
	size := flag.Int64("size", 256<<20, "bytes of the image")
	dir := flag.String("dir", "", "where to write; default: a new temporary directory")
	whole := flag.Bool("install", false, "into block devices, beside RAUC and SWUpdate")
	registers := flag.Bool("modbus", false, "read Modbus registers, beside libmodbus and pymodbus")
	seconds := flag.Float64("seconds", 0.25, "of each run of -modbus")
	asJSON := flag.Bool("json", false, "print all runs of -modbus as JSON")
	var c child
	flag.StringVar(&c.name, "child", "", "internal: the variant to run")
	flag.StringVar(&c.url, "url", "", "internal: the server")
	flag.StringVar(&c.from, "from", "", "internal: a file instead of the server")
	flag.StringVar(&c.slot, "slot", "", "internal: the loop device to write")
	flag.Parse()
	c.dir = *dir
	ctx, stop := context.Background(), func() {}
	if c.name == "" { // a child just ends
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
	}
	var err error
	switch {
	case c.name == "measure":
		err = measured(c.from, flag.Args())
	case c.name == "modbus":
		err = ownModbus(ctx, flag.Args())
	case c.name != "":
		err = c.run()
	case *size < 1<<20 || *size%4096 != 0 || *rounds < 1:
		err = errors.New("want at least one round, and a size of 1 MiB or more in steps of 4096 bytes")
	case *registers && !(*seconds > 0):
		err = fmt.Errorf("runs of %v s, want more than 0", *seconds)
	case *registers:
		err = benchModbus(ctx, *dir, *rounds, *seconds, *asJSON)
	case *whole:
		err = benchInstall(ctx, *dir, *size, *rounds)
	default:
		err = bench(ctx, *dir, *size, *rounds)
	}
	if err != nil {
		stop()
		log.Fatalf("bench: %v", err)
	}
}

// A variant is one way to install.
type variant struct {
	name, floor string // floor: the variant that it is compared with
	install     func(ctx context.Context, dir string) (run, error)
}

func bench(ctx context.Context, parent string, size int64, rounds int) error {
	dir, err := os.MkdirTemp(parent, "interlock-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := prepare(dir, size); err != nil {
		return err
	}
	url, stop, err := startServer(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	own := func(name string) func(context.Context, string) (run, error) {
		return func(ctx context.Context, d string) (run, error) {
			return measureChild(ctx, child{name: name, dir: d, url: url})
		}
	}
	variants := []variant{
		{"floor", "floor", own("floor")},
		{"curl+dd", "floor", func(ctx context.Context, d string) (run, error) {
			return measure(ctx, d, nil, "sh", "-c", fmt.Sprintf("curl -sS --fail --cacert %s/ca.pem %s/image | dd of=%s/image bs=1M iflag=fullblock conv=fsync status=none", d, url, d))
		}},
		{"install", "floor", own("install")},
	}
	runs, err := alternate(ctx, dir, rounds, variants, func() error { return nil }, func() error { return nil })
	if err != nil {
		return err
	}
	fmt.Printf("\n%d MiB over loopback HTTPS into a file, median of %d alternating rounds (lowest to highest)\n\n", size>>20, rounds)
	report(variants, runs)
	fmt.Println("\ncurl+dd: both processes; memory of the larger one. install: with chunk verification and read-back.")
	return nil
}

// alternate runs every variant once in each round, beginning with another one
// every time, in a new directory, so that nothing is there already.
func alternate(ctx context.Context, dir string, rounds int, variants []variant, before, after func() error) (map[string][]run, error) {
	runs := map[string][]run{}
	for i := range rounds {
		for j := range variants {
			v := variants[(i+j)%len(variants)]
			r, err := alone(ctx, dir, v, before, after)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
			runs[v.name] = append(runs[v.name], r)
			fmt.Fprintf(os.Stderr, "round %d of %d  %-24s %6.2f s wall %6.2f s CPU %6.1f MiB\n", i+1, rounds, v.name, r.Wall.Seconds(), r.CPU.Seconds(), float64(r.RSS)/(1<<20))
		}
	}
	return runs, nil
}

func alone(ctx context.Context, dir string, v variant, before, after func() error) (run, error) {
	d, err := newRun(dir)
	if err != nil {
		return run{}, err
	}
	defer os.RemoveAll(d)
	if err := before(); err != nil {
		return run{}, err
	}
	r, err := v.install(ctx, d)
	if err == nil {
		err = after()
	}
	return r, err
}

// newRun makes the directory of one installation, with what a device trusts.
func newRun(dir string) (string, error) {
	d, err := os.MkdirTemp(dir, "run-")
	if err != nil {
		return "", err
	}
	return d, errors.Join(os.Link(filepath.Join(dir, "ca.pem"), filepath.Join(d, "ca.pem")), os.Link(filepath.Join(dir, "key.pem"), filepath.Join(d, "key.pem")))
}

func report(variants []variant, runs map[string][]run) {
	fmt.Printf("| what | wall s | CPU s | machine s | peak MiB | CPU / floor | wall / floor |\n|---|---|---|---|---|---|---|\n")
	for _, v := range variants {
		var wall, cpu, machine, rss, cpuRatio, wallRatio []float64
		for i, r := range runs[v.name] {
			f := runs[v.floor][i]
			wall, cpu, machine = append(wall, r.Wall.Seconds()), append(cpu, r.CPU.Seconds()), append(machine, r.Machine.Seconds())
			rss = append(rss, float64(r.RSS)/(1<<20))
			cpuRatio = append(cpuRatio, r.CPU.Seconds()/f.CPU.Seconds())
			wallRatio = append(wallRatio, r.Wall.Seconds()/f.Wall.Seconds())
		}
		fmt.Printf("| %s | %s | %s | %s | %.1f | %s | %s |\n", v.name, spread(wall), spread(cpu), spread(machine), slices.Max(rss), spread(cpuRatio), spread(wallRatio))
	}
}

func spread(v []float64) string {
	s := slices.Sorted(slices.Values(v))
	return fmt.Sprintf("%.2f (%.2f to %.2f)", s[len(s)/2], s[0], s[len(s)-1])
}

// prepare makes image, bundle and keys. The image does not compress and has no
// two equal chunks.
func prepare(dir string, size int64) error {
	if err := certificates(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key"),
		&x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
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

// startServer serves the files of dir from a process of its own, whose work is
// not that of the device.
func startServer(ctx context.Context, dir string) (url string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	server := exec.CommandContext(ctx, self, "-child", "serve", "-dir", dir)
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := server.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { server.Process.Kill(); server.Wait() }
	if _, err := fmt.Fscan(out, &url); err != nil {
		stop()
		return "", nil, fmt.Errorf("read the server's address: %w", err)
	}
	return url, stop, nil
}

func serveFiles(dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("https://%s\n", strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1))
	s := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	return s.ServeTLS(l, filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key"))
}
