//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An installer brings the release in the work directory into a slot.
type installer struct {
	name, floor string
	install     func(ctx context.Context, dir string, s *loop) (run, error)
	payload     string // the file in which one byte is changed to see what that does; "" for those that do not verify
}

// benchInstall installs into block devices, from a local file and from a loopback
// HTTPS server, and shows what a payload leaves behind in which a byte was changed:
//
//	floor       the Go loop: read or fetch, hash, write in pieces of 1 MiB, sync
//	sha256+dd   sha256sum, then dd conv=fsync
//	curl+dd     curl | dd conv=fsync, which does not hash
//	interlock   the manager, as above
//	rauc        RAUC with its service: a signed plain bundle, which is only read locally
//	swupdate    SWUpdate: a signed update, installed-directly
//
// It writes nothing but its work directory and loop devices that it has made
// itself. Before each run the slot gets other content, and after it must hold
// the image.
func benchInstall(ctx context.Context, parent string, size int64, rounds int) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("install into block devices: this needs root, for loop devices and for RAUC's service: run it as root, or run make bench, which does without")
	}
	dir, err := os.MkdirTemp(parent, "interlock-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	slots := map[string]*loop{}
	for name, make := range map[string]func() (*loop, error){
		"memory": func() (*loop, error) { return memoryLoop(size + 1<<20) },
		"disk":   func() (*loop, error) { return diskLoop(dir, size+1<<20) },
	} {
		if slots[name], err = make(); err != nil {
			return fmt.Errorf("make a slot: %w", err)
		}
		defer slots[name].Close()
	}
	fmt.Fprintln(os.Stderr, "making image, bundle and the peers' files in", dir)
	if err := prepare(dir, size); err != nil {
		return err
	}
	p, err := newPeers(ctx, dir, slots)
	if err != nil {
		return err
	}
	url, stop, err := startServer(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	all := installers(dir, url, p)
	for _, medium := range []string{"memory", "disk"} {
		if err := benchMedium(ctx, dir, medium, slots[medium], size, rounds, all); err != nil {
			return err
		}
	}
	fmt.Print(`
CPU: user and system time of all processes that install, RAUC's service and its D-Bus daemon included; not the server's,
and not that of the kernel's loop workers, which nobody is charged for. Machine: what both processors were busy with, with
kernel and server, and with everything else that ran. Memory: of the largest process.
`)
	return tamper(ctx, dir, slots["memory"], size, all)
}

func installers(dir, url string, p *peers) []installer {
	image, ca := filepath.Join(dir, "image"), filepath.Join(dir, "ca.pem")
	own := func(c child) func(context.Context, string, *loop) (run, error) {
		return func(ctx context.Context, d string, s *loop) (run, error) {
			c.dir, c.slot = d, s.path
			return measureChild(ctx, c)
		}
	}
	shell := func(format string, a ...any) func(context.Context, string, *loop) (run, error) {
		return func(ctx context.Context, d string, s *loop) (run, error) {
			return measure(ctx, d, nil, "sh", "-c", fmt.Sprintf(format, append(a, s.path)...))
		}
	}
	const local, remote = "floor, local", "floor, https"
	return []installer{
		{local, local, own(child{name: "floor", from: image}), ""},
		{"sha256+dd, local", local, shell("sha256sum %s && dd if=%s of=%s bs=1M conv=notrunc,fsync status=none", image, image), ""},
		{"interlock, local", local, own(child{name: "install", from: filepath.Join(dir, "bundle")}), "bundle"},
		{"rauc, local", local, p.rauc, "rauc.bundle"},
		{"swupdate, local", local, p.swupdateLocal, "swupdate.swu"},
		{remote, remote, own(child{name: "floor", url: url}), ""},
		{"curl+dd, https", remote, shell("curl -sS --fail --cacert %s %s/image | dd of=%s bs=1M iflag=fullblock conv=notrunc,fsync status=none", ca, url), ""},
		{"interlock, https", remote, own(child{name: "install", url: url}), "bundle"},
		{"swupdate, https", remote, p.swupdateFrom(url, ca), "swupdate.swu"},
	}
}

func benchMedium(ctx context.Context, dir, medium string, s *loop, size int64, rounds int, all []installer) error {
	want, err := hashFile(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	var variants []variant
	for _, in := range all {
		variants = append(variants, variant{in.name, in.floor, func(ctx context.Context, d string) (run, error) { return in.install(ctx, d, s) }})
	}
	seed := byte(0)
	runs, err := alternate(ctx, dir, rounds, variants,
		func() error { seed++; return s.fill(seed) },
		func() error {
			if got, err := s.hash(size); err != nil || got != want {
				return fmt.Errorf("the slot does not hold the image: its SHA-256 is %x, want %x (%w)", got, want, err)
			}
			return nil
		})
	if err != nil {
		return err
	}
	fmt.Printf("\n%d MiB into a loop device in %s, median of %d alternating rounds (lowest to highest)\n\n", size>>20, medium, rounds)
	report(variants, runs)
	return nil
}

const block = 1 << 20

// old is what a slot holds before an installation, again and again.
func old(seed byte) []byte {
	b := make([]byte, block)
	rand.NewChaCha8([32]byte{2, seed}).Read(b)
	return b
}

// fill overwrites the whole slot, and leaves nothing of it in the page cache.
func (s *loop) fill(seed byte) error {
	b := old(seed)
	for at := int64(0); at < s.size; at += block {
		if _, err := s.WriteAt(b[:min(block, s.size-at)], at); err != nil {
			return fmt.Errorf("fill the slot: %w", err)
		}
	}
	return errors.Join(s.Sync(), s.forget())
}

// forget makes the next reads come from the medium.
func (s *loop) forget() error {
	return os.NewSyscallError("BLKFLSBUF", unix.IoctlSetInt(int(s.Fd()), unix.BLKFLSBUF, 0))
}

func (s *loop) hash(size int64) (sum [32]byte, err error) {
	if err := s.forget(); err != nil {
		return sum, err
	}
	h := sha256.New()
	_, err = io.CopyBuffer(h, io.NewSectionReader(s, 0, size), make([]byte, block))
	return [32]byte(h.Sum(nil)), err
}

func hashFile(name string) (sum [32]byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [32]byte(h.Sum(nil)), err
}

// tamper changes one byte of the payload, three quarters into it, and shows what
// each installer says, and what the slot holds afterwards.
func tamper(ctx context.Context, dir string, s *loop, size int64, all []installer) error {
	fmt.Printf("\nOne byte of the payload is changed, at %d MiB of %d\n\n| what | refused | slot afterwards | the changed byte |\n|---|---|---|---|\n", size/4*3>>20, size>>20)
	image, err := os.Open(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	defer image.Close()
	at := size/4*3 + 12345
	for _, in := range all {
		if in.payload == "" {
			continue
		}
		if err := s.fill(99); err != nil {
			return err
		}
		restore, err := flip(filepath.Join(dir, in.payload), image, at)
		if err != nil {
			return fmt.Errorf("%s: %w", in.name, err)
		}
		refused := ""
		v := variant{in.name, in.floor, func(ctx context.Context, d string) (run, error) { return in.install(ctx, d, s) }}
		_, installErr := alone(ctx, dir, v, func() error { return nil }, func() error { return nil })
		if err := restore(); err != nil {
			return err
		}
		var said *commandError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case installErr == nil:
			refused = "no"
		case errors.As(installErr, &said):
			refused = "yes"
			fmt.Fprintf(os.Stderr, "%s: %v\n", in.name, said)
		default:
			return fmt.Errorf("%s: %w", in.name, installErr)
		}
		state, unverified, err := s.compare(image, size, at)
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %s | %s | %s |\n", in.name, refused, state, unverified)
	}
	return nil
}

// flip changes the byte at offset at of the image inside a file, which it finds
// by what comes before it. The file is closed when it returns: RAUC takes no
// bundle that somebody has open.
func flip(name string, image io.ReaderAt, at int64) (restore func() error, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	before, buf := make([]byte, 64), make([]byte, block+64)
	if _, err := image.ReadAt(before, at-64); err != nil {
		return nil, err
	}
	for off := int64(0); ; off += block {
		n, err := f.ReadAt(buf, off)
		if i := bytes.Index(buf[:n], before); i >= 0 && i+64 < n {
			place, b := off+int64(i)+64, buf[i+64]
			return func() error { return poke(name, place, b) }, poke(name, place, b^1)
		}
		if err != nil {
			return nil, fmt.Errorf("the image is not in %s as it is: %w", name, err)
		}
	}
}

func poke(name string, at int64, b byte) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{b}, at)
	return errors.Join(err, f.Close())
}

// compare says how much of the slot is still what it was, and whether it holds
// the byte that was changed.
func (s *loop) compare(image io.ReaderAt, size, at int64) (state, unverified string, err error) {
	if err := s.forget(); err != nil {
		return "", "", err
	}
	was, got, want := old(99), make([]byte, 4096), make([]byte, 4096)
	var changed, release int64
	unverified = "not in the slot"
	for off := int64(0); off < size; off += 4096 {
		if _, err := s.ReadAt(got, off); err != nil {
			return "", "", err
		}
		if _, err := image.ReadAt(want, off); err != nil {
			return "", "", err
		}
		if !bytes.Equal(got, was[off%block:off%block+4096]) {
			changed += 4096
		}
		if bytes.Equal(got, want) {
			release += 4096
		}
		if i := at - off; i >= 0 && i < 4096 && got[i] == want[i]^1 && bytes.Equal(got[:i], want[:i]) {
			unverified = "in the slot"
		}
	}
	if changed == 0 {
		return "untouched", unverified, nil
	}
	return fmt.Sprintf("%.1f MiB overwritten, %.1f MiB of it as in the release", float64(changed)/(1<<20), float64(release)/(1<<20)), unverified, nil
}
