package awsiot

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
)

// A spoolRig has a file that openssl has signed, as AWS Signer would, and a network
// that is a fake: it hands out the file from any byte on, and counts.
type spoolRig struct {
	t       testing.TB
	code    []byte // certificate
	keys    *bundle.Keys
	release crypto.Signer
	fs      durable.FS
	file    []byte
	f       afrFile

	fails   int   // a transfer ends with an error after so many bytes; 0: none
	sent    int64 // bytes
	opened  []int64
	corrupt func(b []byte) // changes what is sent
}

func newSpoolRig(t testing.TB, file []byte) *spoolRig {
	t.Helper()
	rig := &spoolRig{t: t, fs: otatest.NewDisk(), file: file}
	dir, openssl := t.TempDir(), otatest.Tool(t, "openssl")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", in("key"), "-subj", "/CN=code", "-days", "1", "-out", in("cert"))
	if err := os.WriteFile(in("file"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	run("dgst", "-sha256", "-sign", in("key"), "-out", in("sig"), in("file"))
	read := func(name string) []byte {
		b, err := os.ReadFile(in(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rig.code = read("cert")
	rig.f = afrFile{Path: "/fw/bess-1.0.1.bin", Size: int64(len(file)), SignatureName: "sig-sha256-ecdsa", Signature: read("sig")}
	return rig
}

// spool is that of a process that has just started.
func (rig *spoolRig) spool() *afrSpool {
	rig.t.Helper()
	code, err := bundle.ParseCodeSigning("bess-controller", "controller", rig.code)
	if err != nil {
		rig.t.Fatal(err)
	}
	s := &afrSpool{FS: rig.fs, Dir: "/data/spool", Max: 64 << 20, Code: code}
	if rig.keys != nil {
		s.Keys = rig.keys.Verify
	}
	return s
}

func (rig *spoolRig) open(_ context.Context, offset int64) (io.ReadCloser, error) {
	rig.opened = append(rig.opened, offset)
	rest := bytes.Clone(rig.file[offset:])
	if rig.corrupt != nil {
		rig.corrupt(rest)
	}
	var r io.Reader = &counted{bytes.NewReader(rest), &rig.sent}
	if rig.fails > 0 && len(rest) > rig.fails {
		r = io.MultiReader(io.LimitReader(r, int64(rig.fails)), broken{})
	}
	return io.NopCloser(r), nil
}

type counted struct {
	r io.Reader
	n *int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func (rig *spoolRig) receive(s *afrSpool) ([]byte, error) {
	return s.receive(rig.t.Context(), rig.f, rig.open, nil)
}

// whole checks that the envelope and what open returns are the file.
func (rig *spoolRig) whole(s *afrSpool, signed []byte) error {
	m, err := bundle.VerifyAny(map[string]ota.Verify{bundle.CodeSignedType: s.Code.Verify, bundle.PayloadType: rig.keys.Verify})(signed)
	if err != nil {
		return err
	}
	im := &m.Images[0]
	r, err := s.open(m, im, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, ok := r.(io.Seeker); !ok {
		return errors.New("the reader is no io.Seeker")
	}
	got, err := bundle.DescribeImage(im.Component, r, im.ChunkSize, false)
	if err != nil {
		return err
	}
	if got.SHA256 != im.SHA256 || fmt.Sprint(got.Chunks) != fmt.Sprint(im.Chunks) || got.Size != im.Size {
		return fmt.Errorf("the spool has another image of %d bytes", got.Size)
	}
	return nil
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i*7)
	}
	return b
}

func TestSpool(t *testing.T) {
	rig := newSpoolRig(t, content(3<<20+123))
	s := rig.spool()
	var said []int64
	signed, err := s.receive(t.Context(), rig.f, rig.open, func(done, total int64) {
		if total != rig.f.Size {
			t.Errorf("total %d, want %d", total, rig.f.Size)
		}
		said = append(said, done)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := rig.whole(s, signed); err != nil {
		t.Error(err)
	}
	if m, err := s.Code.Verify(signed); err != nil || m.Version != "1.0.1" || m.Product != "bess-controller" {
		t.Errorf("got %+v, %v", m, err)
	}
	if said[0] != 0 || said[len(said)-1] != rig.f.Size {
		t.Errorf("progress %v", said)
	}
	r, err := s.open(mustVerify(t, s, signed), &mustVerify(t, s, signed).Images[0], 1_000_001)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, rig.file[1_000_001:]) {
		t.Errorf("from the middle: got %d bytes, %v", len(got), err)
	}

	// A process that starts later fetches nothing, and makes the same release.
	sent, later := rig.sent, rig.spool()
	again, err := rig.receive(later)
	if err != nil || !bytes.Equal(again, signed) || rig.sent != sent {
		t.Errorf("after a restart: got the same %v, %v, %d bytes fetched, want 0", bytes.Equal(again, signed), err, rig.sent-sent)
	}
	if err := later.discard(); err != nil {
		t.Error(err)
	}
	if err := later.discard(); err != nil {
		t.Error("twice:", err)
	}
	if left := rig.fs.(*otatest.Disk).String(); left != "" {
		t.Errorf("left over:\n%s", left)
	}
	if _, err := later.open(mustVerify(t, s, signed), &mustVerify(t, s, signed).Images[0], 0); !errors.Is(err, errSpoolDamaged) {
		t.Errorf("after discard: got %v, want errSpoolDamaged", err)
	}
}

func mustVerify(t *testing.T, s *afrSpool, signed []byte) *ota.Manifest {
	t.Helper()
	m, err := s.Code.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSpoolBroken: transfers that end early go on where they were.
func TestSpoolBroken(t *testing.T) {
	rig := newSpoolRig(t, content(3<<20))
	rig.fails = 700_000
	s := rig.spool()
	var signed []byte
	var err error
	tries := 0
	for tries = 1; ; tries++ {
		if signed, err = rig.receive(s); err == nil {
			break
		}
		if ota.CodeOf(err) != ota.ErrConnectivity || tries > 10 {
			t.Fatal(tries, err)
		}
		if tries%2 == 0 {
			s = rig.spool() // and the process restarts
		}
	}
	if err := rig.whole(s, signed); err != nil {
		t.Error(err)
	}
	if rig.sent != rig.f.Size || tries != 5 {
		t.Errorf("%d bytes in %d tries, want %d in 5", rig.sent, tries, rig.f.Size)
	}
}

// TestSpoolRefused: what is not what was signed is final, and nothing of it stays.
func TestSpoolRefused(t *testing.T) {
	other := newSpoolRig(t, content(5))
	for name, c := range map[string]struct {
		change func(rig *spoolRig, s *afrSpool)
		code   ota.ErrorCode
		says   string
	}{
		"another file":   {func(rig *spoolRig, s *afrSpool) { rig.file = content(200_000); rig.file[99_999] ^= 4 }, ota.ErrValidation, "not signed"},
		"another key":    {func(rig *spoolRig, s *afrSpool) { rig.f.Signature = other.f.Signature }, ota.ErrValidation, "not signed"},
		"no version":     {func(rig *spoolRig, s *afrSpool) { rig.f.Path = "/fw/bess.bin" }, ota.ErrValidation, `add "version"`},
		"no certificate": {func(rig *spoolRig, s *afrSpool) { s.Code = nil }, ota.ErrValidation, "no Interlock bundle"},
		"too large":      {func(rig *spoolRig, s *afrSpool) { s.Max = 199_999 }, ota.ErrInsufficientSpace, "has 200000 bytes, and at most 199999"},
		"no room":        {func(rig *spoolRig, s *afrSpool) { rig.fs.(*otatest.Disk).Capacity = 1 << 20 }, ota.ErrInsufficientSpace, "bytes are free"},
		"full meanwhile": {func(rig *spoolRig, s *afrSpool) {
			s.FS = roomy{rig.fs}
			rig.fs.(*otatest.Disk).Capacity = 150_000
		}, ota.ErrInsufficientSpace, "no space left"},
		"the version that the image holds": {func(rig *spoolRig, s *afrSpool) {
			s.ImageVersion = func(io.ReaderAt, int64) (string, error) { return "0.9.0", nil }
		}, ota.ErrValidation, "the image itself says 0.9.0"},
	} {
		t.Run(name, func(t *testing.T) {
			rig := newSpoolRig(t, content(200_000))
			s := rig.spool()
			c.change(rig, s)
			_, err := rig.receive(s)
			if ota.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.code, c.says)
			}
			if c.code == ota.ErrValidation && rig.fs.(*otatest.Disk).Content("/data/spool/file") != nil && name != "no certificate" {
				t.Error("the file stays")
			}
			if name == "no certificate" && rig.sent > spoolReadPiece {
				t.Error("all of it was fetched")
			}
		})
	}
}

// roomy is a fake: a disk that does not know how full it is.
type roomy struct{ durable.FS }

func (roomy) Free(string) (int64, error) { return 1 << 40, nil }

// TestSpoolSuperseded: another job's file takes the place, and nothing of the first is used.
func TestSpoolSuperseded(t *testing.T) {
	rig := newSpoolRig(t, content(2<<20))
	rig.fails = 1_500_000
	if _, err := rig.receive(rig.spool()); err == nil {
		t.Fatal("no error")
	}
	next := newSpoolRig(t, append([]byte("two"), content(2<<20-3)...))
	next.fs, next.f.Path = rig.fs, "/fw/bess-1.0.2.bin"
	s := next.spool()
	signed, err := next.receive(s)
	if err != nil || next.opened[0] != 0 {
		t.Fatal(err, next.opened)
	}
	if err := next.whole(s, signed); err != nil {
		t.Error(err)
	}
	if got := rig.fs.(*otatest.Disk).Content("/data/spool/file"); len(got) != 2<<20 {
		t.Errorf("the file has %d bytes", len(got))
	}
}

// TestSpoolDamaged: what the disk has lost or changed is received again, before and
// after it was verified; and what is read after a change does not match the manifest.
func TestSpoolDamaged(t *testing.T) {
	for name, damage := range map[string]func(f durable.File) error{
		"changed":   func(f durable.File) error { _, err := f.WriteAt([]byte{0xFF}, 1_234_567); return err },
		"truncated": func(f durable.File) error { return f.Truncate(2_000_000) },
		"emptied":   func(f durable.File) error { return f.Truncate(0) },
	} {
		for _, early := range []bool{true, false} {
			rig := newSpoolRig(t, content(3<<20))
			s := rig.spool()
			if early {
				rig.fails = 2_500_000
			}
			signed, err := rig.receive(s)
			if early != (err != nil) {
				t.Fatal(err)
			}
			var m *ota.Manifest
			if !early {
				m = mustVerify(t, s, signed)
			}
			f, err := rig.fs.OpenFile("/data/spool/file", os.O_RDWR, 0)
			if err := errors.Join(err, damage(f), f.Sync(), f.Close()); err != nil {
				t.Fatal(err)
			}
			if !early {
				if _, err := s.open(m, &m.Images[0], 0); !errors.Is(err, errSpoolDamaged) {
					t.Errorf("%s: open: got %v, want errSpoolDamaged", name, err)
				}
				if r, err := s.open(m, &m.Images[0], 1_200_000); err == nil {
					got, _ := io.ReadAll(r)
					if r.Close(); bytes.Equal(got, rig.file[1_200_000:]) {
						t.Errorf("%s: reads what was not there", name)
					}
				}
			}
			rig.fails = 0
			s = rig.spool()
			if signed, err = rig.receive(s); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if last := rig.opened[len(rig.opened)-1]; last != 0 {
				t.Errorf("%s: went on at byte %d", name, last)
			}
			if err := rig.whole(s, signed); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	rig := newSpoolRig(t, content(100_000))
	if err := errors.Join(durable.MkdirAll(rig.fs, "/data/spool", 0o700), durable.WriteFile(rig.fs, "/data/spool/spool.json", []byte("{nonsense"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := rig.receive(rig.spool()); err != nil {
		t.Error("a state that cannot be read:", err)
	}
}

// TestSpoolLies: a disk that has other bytes than were written is noticed before
// anything is verified, and that is nobody's fault but the disk's.
func TestSpoolLies(t *testing.T) {
	rig := newSpoolRig(t, content(200_000))
	disk := rig.fs.(*otatest.Disk)
	disk.OnRead = func(name string, off int64, p []byte) error {
		if name == "/data/spool/file" && off == 65536 {
			p[0] ^= 1
		}
		return nil
	}
	if _, err := rig.receive(rig.spool()); !errors.Is(err, errSpoolDamaged) || errors.Is(err, ota.ErrValidation) {
		t.Errorf("got %v, want errSpoolDamaged", err)
	}
	disk.OnRead = nil
	if _, err := rig.receive(rig.spool()); err != nil {
		t.Error(err)
	}
}

// TestSpoolBundle: a file that is a bundle needs its own signatures, and the code
// signature where there is a certificate.
func TestSpoolBundle(t *testing.T) {
	dir := t.TempDir()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.ParseKeys(1, public)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, content(300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &ota.Manifest{Product: "bess-controller", Version: "2.0.0", Created: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	if err := bundle.Build(filepath.Join(dir, "b"), m, map[string]string{"controller": image}, key); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	rig := newSpoolRig(t, file)
	rig.keys = keys
	for _, certificate := range []bool{true, false} {
		s := rig.spool()
		if !certificate {
			s.Code = nil
			rig.f.Signature = []byte("not looked at")
		}
		signed, err := rig.receive(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := keys.Verify(signed); err != nil || got.Version != "2.0.0" {
			t.Errorf("got %v, %v", got, err)
		}
		if err := rig.whole(s, signed); err != nil {
			t.Error(err)
		}
	}
	s := rig.spool() // with a certificate, and a signature that is none
	if _, err := rig.receive(s); !errors.Is(err, ota.ErrValidation) {
		t.Errorf("wrong code signature: got %v, want ErrValidation", err)
	}
	s = rig.spool()
	s.Code, s.Keys = nil, nil
	if _, err := rig.receive(s); !errors.Is(err, ota.ErrValidation) {
		t.Errorf("no keys: got %v, want ErrValidation", err)
	}
	good := newSpoolRig(t, file) // signed as code, and as a release by somebody else
	_, public, err = bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	if good.keys, err = bundle.ParseKeys(1, public); err != nil {
		t.Fatal(err)
	}
	if _, err := good.receive(good.spool()); !errors.Is(err, ota.ErrValidation) {
		t.Errorf("another's release: got %v, want ErrValidation", err)
	}
	for _, cut := range []int{10, 100, len(file) - 1} {
		short := newSpoolRig(t, file[:cut])
		short.keys = keys
		if _, err := short.receive(short.spool()); !errors.Is(err, ota.ErrValidation) {
			t.Errorf("cut at %d: got %v, want ErrValidation", cut, err)
		}
	}
}

// TestSpoolCuts takes the power, or the process, away at every effect, in several ways,
// and again while the next life recovers: in the end the file is right, and no more
// of it is fetched again than was not yet safe.
func TestSpoolCuts(t *testing.T) {
	rig := newSpoolRig(t, content(1<<20+150_000))
	life := func(s *afrSpool) (signed []byte, err error, cut bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(*otatest.PowerCut); !ok {
					panic(r)
				}
				cut = true
			}
		}()
		signed, err = rig.receive(s)
		return signed, err, false
	}
	runs := 0
	for _, kind := range []otatest.Cut{{How: otatest.Before, Agent: true}, {How: otatest.After}, {How: otatest.After, Rest: otatest.DropAll},
		{How: otatest.Torn, Rest: otatest.Subset, Seed: 5}, {How: otatest.Before, Rest: otatest.Subset, Seed: 9}} {
		for at, fell := 1, true; fell; at++ {
			for second, again := 0, true; again; second += 23 {
				disk := otatest.NewDisk()
				rig.fs, rig.sent = disk, 0
				kind.At = at
				disk.Arm(kind)
				_, err, cut := life(rig.spool())
				if fell = cut; !cut && err != nil {
					t.Fatal(err)
				}
				again = fell
				disk.PowerOn()
				if second > 0 && fell {
					disk.Arm(otatest.Cut{At: second, How: otatest.After, Rest: otatest.DropAll})
					_, err, again = life(rig.spool())
					if !again && err != nil {
						t.Fatal(err)
					}
					disk.PowerOn()
				}
				s := rig.spool()
				signed, err, _ := life(s)
				if err == nil {
					err = rig.whole(s, signed)
				}
				if err != nil {
					t.Fatalf("cut %v, then at %d: %v", kind, second, err)
				}
				if most := rig.f.Size + 2*(spoolStep+spoolReadPiece); rig.sent > most {
					t.Fatalf("cut %v, then at %d: fetched %d bytes, want at most %d", kind, second, rig.sent, most)
				}
				runs++
			}
		}
	}
	t.Logf("%d runs with cuts", runs)
}

// FuzzSpoolState: whatever is in spool.json, the file that is received in the end is right.
func FuzzSpoolState(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"x","size":100000,"received":50000,"sha256":"` + strings.Repeat("0", 64) + `"}`))
	f.Add([]byte(`{"format":1,"size":-1}`))
	f.Add([]byte(`{}{}`))
	f.Add(bytes.Repeat([]byte(" "), maxSpoolState+1))
	rig := newSpoolRig(f, content(5000))
	f.Add([]byte(fmt.Sprintf(`{"format":1,"id":%q,"size":5000,"received":5000,"sha256":"%064x"}`, rig.f.id(), 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st := parseSpooled(b); st != nil && (st.Received < 0 || st.Received > st.Size || st.Size < 1) {
			t.Errorf("took %+v", st)
		}
		rig.t, rig.fs = t, otatest.NewDisk()
		if err := errors.Join(durable.MkdirAll(rig.fs, "/data/spool", 0o700), durable.WriteFile(rig.fs, "/data/spool/spool.json", b, 0o600)); err != nil {
			t.Fatal(err)
		}
		s := rig.spool()
		signed, err := rig.receive(s)
		if err == nil {
			err = rig.whole(s, signed)
		}
		if err != nil {
			t.Error(err)
		}
	})
}
