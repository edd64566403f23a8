//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// peers are the other updaters, with the same image, signed for them. Nothing of
// them is installed into the system: configuration, sockets and mounts are in dir.
type peers struct {
	dir     string
	devices map[string]string // media by the path of their loop device
}

func newPeers(ctx context.Context, dir string, slots map[string]*loop) (*peers, error) {
	p := &peers{dir, map[string]string{}}
	for medium, s := range slots {
		p.devices[s.path] = medium
	}
	for _, step := range []func(context.Context) error{p.keys, p.makeRAUC, p.makeSWUpdate} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("make the peers' files: %w", err)
		}
	}
	return p, nil
}

func (p *peers) path(name string) string { return filepath.Join(p.dir, name) }

func (p *peers) command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// keys makes a CA and a signer with the purposes that RAUC ("codesign") and
// SWUpdate (emailProtection) ask for.
func (p *peers) keys(context.Context) error {
	return certificates(p.path("peer-ca.pem"), p.path("peer.pem"), p.path("peer.key"),
		&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection}})
}

func (p *peers) makeRAUC(ctx context.Context) error {
	in := p.path("rauc.in")
	if err := os.Mkdir(in, 0o755); err != nil {
		return err
	}
	if err := os.Link(p.path("image"), filepath.Join(in, "rootfs.img")); err != nil {
		return err
	}
	manifest := "[update]\ncompatible=bench\nversion=1.0.1\n\n[bundle]\nformat=plain\n\n[image.rootfs]\nfilename=rootfs.img\n"
	if err := os.WriteFile(filepath.Join(in, "manifest.raucm"), []byte(manifest), 0o644); err != nil {
		return err
	}
	// The image does not compress, and to try would cost RAUC time for nothing.
	return p.command(ctx, p.dir, "rauc", "--cert=peer.pem", "--key=peer.key", "--keyring=peer-ca.pem", "--mksquashfs-args=-noD -noI -noF -noX", "bundle", in, "rauc.bundle")
}

func (p *peers) makeSWUpdate(ctx context.Context) error {
	sum, err := hashFile(p.path("image"))
	if err != nil {
		return err
	}
	var slots strings.Builder
	for device, medium := range p.devices {
		fmt.Fprintf(&slots, "    %s: { images: ( { filename = \"image\"; device = %q; type = \"raw\"; installed-directly = true; sha256 = \"%x\"; } ); };\n", medium, device, sum)
	}
	description := fmt.Sprintf("software = {\n  version = \"1.0.1\";\n  hardware-compatibility = [ \"1.0\" ];\n  main: {\n%s  };\n};\n", slots.String())
	if err := os.WriteFile(p.path("sw-description"), []byte(description), 0o644); err != nil {
		return err
	}
	if err := p.command(ctx, p.dir, "openssl", "cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-signer", "peer.pem", "-inkey", "peer.key",
		"-outform", "DER", "-nosmimecap", "-binary"); err != nil {
		return err
	}
	// sw-description comes first, and its signature second (SWUpdate manual, "Update images from verified source").
	return p.command(ctx, p.dir, "sh", "-c", `printf 'sw-description\nsw-description.sig\nimage\n' | cpio --quiet -o -H crc -O swupdate.swu`)
}

func (p *peers) swupdate(ctx context.Context, d string, s *loop, environ []string, args ...string) (run, error) {
	environ = append(environ, "TMPDIR="+d)
	return measure(ctx, d, environ, append([]string{"swupdate", "-l", "3", "-H", "bench:1.0", "-k", p.path("peer-ca.pem"), "-e", "main," + p.devices[s.path]}, args...)...)
}

func (p *peers) swupdateLocal(ctx context.Context, d string, s *loop) (run, error) {
	return p.swupdate(ctx, d, s, nil, "-i", p.path("swupdate.swu"))
}

func (p *peers) swupdateFrom(url, ca string) func(context.Context, string, *loop) (run, error) {
	return func(ctx context.Context, d string, s *loop) (run, error) {
		return p.swupdate(ctx, d, s, []string{"SSL_CERT_FILE=" + ca}, "-d", "-u "+url+"/swupdate.swu")
	}
}

// rauc starts the service, installs, and adds what the service has spent.
func (p *peers) rauc(ctx context.Context, d string, s *loop) (r run, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	system := fmt.Sprintf("[system]\ncompatible=bench\nbootloader=noop\nmountprefix=%s/mnt\n\n[keyring]\npath=%s\ncheck-purpose=codesign\n\n"+
		"[slot.rootfs.0]\ndevice=%s/factory\ntype=raw\nbootname=A\n\n[slot.rootfs.1]\ndevice=%s\ntype=raw\nbootname=B\n", d, p.path("peer-ca.pem"), d, s.path)
	bus := "unix:path=" + filepath.Join(d, "bus")
	policy := fmt.Sprintf("<busconfig><type>system</type><listen>%s</listen><auth>EXTERNAL</auth>"+
		"<policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>", bus)
	conf := filepath.Join(d, "rauc.conf")
	if err := errors.Join(os.WriteFile(conf, []byte(system), 0o644), os.WriteFile(filepath.Join(d, "bus.conf"), []byte(policy), 0o644),
		os.WriteFile(filepath.Join(d, "factory"), []byte("the factory's image"), 0o644), os.Mkdir(filepath.Join(d, "mnt"), 0o755)); err != nil {
		return r, err
	}
	environ := []string{"DBUS_SYSTEM_BUS_ADDRESS=" + bus}
	daemon, err := service(ctx, nil, "dbus-daemon", "--nofork", "--config-file="+filepath.Join(d, "bus.conf"))
	if err != nil {
		return r, err
	}
	defer func() { cancel(); daemon.Wait() }()
	if err := until(ctx, func() error { _, err := os.Stat(filepath.Join(d, "bus")); return err }); err != nil {
		return r, fmt.Errorf("wait for the D-Bus daemon: %w", err)
	}
	rauc, err := service(ctx, environ, "rauc", "-c", conf, "service", "--override-boot-slot=A")
	if err != nil {
		return r, err
	}
	defer func() { cancel(); rauc.Wait() }()
	err = until(ctx, func() error {
		cmd := exec.CommandContext(ctx, "timeout", "5", "rauc", "status")
		cmd.Env = append(os.Environ(), environ...)
		return cmd.Run()
	})
	if err != nil {
		return r, fmt.Errorf("wait for RAUC's service: %w", err)
	}
	var before, after time.Duration
	services := []*exec.Cmd{daemon, rauc}
	for _, s := range services {
		cpu, _, err := spent(s.Process.Pid)
		if err != nil {
			return r, err
		}
		before += cpu
	}
	r, err = measure(ctx, d, environ, "rauc", "install", p.path("rauc.bundle"))
	if err != nil {
		return r, err
	}
	for _, s := range services {
		cpu, rss, err := spent(s.Process.Pid)
		if err != nil {
			return r, err
		}
		after += cpu
		r.RSS = max(r.RSS, rss)
	}
	r.CPU += after - before
	return r, nil
}

// service starts a process that ends with ctx, in a mount namespace of its own, so
// that what it has mounted goes with it.
func service(ctx context.Context, environ []string, name string, args ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// until tries for five seconds at most.
func until(ctx context.Context, ready func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if err := ready(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return errors.Join(errors.New("it is not there after 5 s"), ready())
}
