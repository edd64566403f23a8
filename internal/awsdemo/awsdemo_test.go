package awsdemo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/lambda/event"
	"github.com/interlock-energy/ota/internal/lambda/lambdatest"
	"github.com/interlock-energy/ota/internal/original/awsota"
	"github.com/interlock-energy/ota/internal/original/bessota"
	"github.com/interlock-energy/ota/internal/simulate"
)

const (
	product = "bess-100"
	device  = "bess-04"

	// urlLifetime is how long presigned URLs work in the part about expired ones. The
	// function gives out the same ones for a quarter longer at most.
	urlLifetime = 2 * time.Second

	patience = 90 * time.Second // for anything, on a busy machine
)

// stage is everything that runs.
type stage struct {
	*testing.T
	ctx   context.Context
	begun time.Time
	dir   string
	bin   string
	s3    *s3test.Server
	place string // for --to
	fn    *lambdatest.Function
	log   *output // of the function
}

// say tells what happens, for people.
func (s *stage) say(format string, a ...any) {
	fmt.Printf("%6.1f s  %s\n", time.Since(s.begun).Seconds(), fmt.Sprintf(format, a...))
}

func (s *stage) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// interlock runs a command as a person does.
func (s *stage) interlock(args ...string) string {
	s.Helper()
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.bin, "interlock"), args...)
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), append(s.s3.Env(), "INTERLOCK_BUCKET="+s.place)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.Fatalf("interlock %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// image returns firmware that says its version and works until it is stopped.
func image(version string) []byte {
	b := bytes.NewBufferString(fmt.Sprintf("#!/bin/sh\necho interlock-firmware %s\nwhile read -r line; do :; done\nexit 0\n", version))
	for n := 0; b.Len() < 1<<20; n++ {
		fmt.Fprintf(b, "# %s %08d\n", version, n)
	}
	return b.Bytes()
}

// release builds and signs a release, and returns the bundle's name.
func (s *stage) release(version string) string {
	s.Helper()
	s.must(os.WriteFile(filepath.Join(s.dir, version+".img"), image(version), 0o600))
	name := "bess-" + version + ".bundle"
	s.interlock("build", "--product", product, "--version", version, "--image", "controller="+version+".img", "--key", "keys/private.pem", "--out", name)
	return name
}

// object is the file in which the S3 server keeps a release's image.
func (s *stage) object(version string) string {
	sum := sha256.Sum256(image(version))
	return filepath.Join(s.s3.Dir, s.s3.Bucket, "fleet", "images", hex.EncodeToString(sum[:]))
}

// startFunction starts the function behind its gateways, with more of an environment.
func (s *stage) startFunction(env ...string) {
	s.Helper()
	if s.fn != nil {
		s.must(s.fn.Close())
	}
	s.log = &output{}
	fn, err := lambdatest.Start(s.ctx, lambdatest.Options{Binary: filepath.Join(s.bin, "bootstrap"), Log: s.log,
		Env: append(append(s.s3.Env(), "INTERLOCK_BUCKET=s3://"+s.s3.Bucket+"/fleet", "POLL_SECONDS=1"), env...)})
	s.must(err)
	s.fn = fn
	s.Cleanup(func() { fn.Close() })
}

// startDevice starts interlockd, gated by a battery, until the test ends or stop is called.
func (s *stage) startDevice(automatic bool, modbus string) (stop func()) {
	s.Helper()
	config := fmt.Sprintf(`device: {id: %s, product: %s}
state_dir: state
source: {https: {url: "%s", cert_pem_file: roots.pem, token_file: device.token}}
keys: {files: [keys/public.pem]}
check_interval: 1h
startup_delay: 0s
automatic_update: %v
validation_time: 1s
battery: {reader: sunspec, modbus: {address: "%s"}}
dwell: 1s
health: [{battery: as_before}]
retries: 1
slot: {kind: file, dir: slots, run: true, factory: 1.0.0.img, start_timeout: 30s}
control: {socket: agent.sock}
`, device, product, s.fn.URL(event.HTTP), automatic, modbus)
	s.must(os.WriteFile(filepath.Join(s.dir, "interlockd.yaml"), []byte(config), 0o600))
	// The gateways of each function have a CA of their own.
	s.must(os.WriteFile(filepath.Join(s.dir, "roots.pem"), append(s.fn.CA(), s.s3.CA...), 0o600))
	log, err := os.OpenFile(filepath.Join(s.dir, "interlockd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(err)
	cmd := exec.Command(filepath.Join(s.bin, "interlockd"), "--config", filepath.Join(s.dir, "interlockd.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	s.must(cmd.Start())
	ended := sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		log.Close()
	})
	s.Cleanup(ended)
	return ended
}

// status waits until what the device says is as wanted.
func (s *stage) status(what string, want func(control.Status) bool) control.Status {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	var last control.Status
	for {
		if c, err := control.Dial(filepath.Join(s.dir, "agent.sock")); err == nil {
			now, err := c.Status(ctx)
			c.Close()
			if err == nil {
				if last = now; want(now) {
					return now
				}
			}
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(s.dir, "interlockd.log"))
			s.Fatalf("wait for %s: the device is %+v\n%s\nthe function says:\n%s", what, last.Snapshot, log, s.log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func runs(version string) func(control.Status) bool {
	return func(c control.Status) bool {
		return c.Snapshot.Running == version && c.Snapshot.State == ota.Idle && c.Snapshot.Unsent == 0
	}
}

// TestWithoutAServer is the whole path.
func TestWithoutAServer(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute; make aws-demo runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	s := &stage{T: t, ctx: ctx, begun: time.Now(), dir: t.TempDir(), bin: t.TempDir()}
	s.say("building interlock, interlockd and the function")
	build := exec.CommandContext(ctx, "go", "build", "-o", s.bin+"/", "./cmd/interlock", "./cmd/interlockd")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	_, err := lambdatest.Build(ctx, s.bin)
	s.must(err)
	s.s3 = s3test.Start(t, s3test.Options{TLS: true, Bucket: "firmware-of-the-fleet", Region: "eu-central-1"})
	s.place = "s3://" + s.s3.Bucket + "/fleet"
	s.say("an S3 server at %s, whose bucket is private", s.s3.Endpoint)

	s.interlock("keygen", "--out", "keys")
	s.release("1.0.0")
	s.say("%s", oneLine(s.interlock("publish", "--key", "keys/public.pem", s.release("1.0.1"))))
	token := s.interlock("devices", "token", device)
	s.must(os.WriteFile(filepath.Join(s.dir, "device.token"), []byte(token+"\n"), 0o600))
	s.startFunction()

	plant, err := simulate.Start(ctx, simulate.Config{SunSpec: "127.0.0.1:0", Battery: battery.Config{Start: battery.Settings{
		SoC: ptr(57.5), TemperatureMin: ptr(22.0), TemperatureMax: ptr(26.0), Current: ptr(2.0)}}})
	s.must(err)
	defer plant.Close()
	modbus := plant.Where("sunspec")

	stop := s.startDevice(true, modbus)
	got := s.status("1.0.1, proven", runs("1.0.1"))
	s.say("interlockd: 1.0.0 -> %s in slot %s, proven; the function started in %v", got.Snapshot.Running, got.Snapshot.Slot, s.fn.InitTime().Round(time.Millisecond))
	if reports := s.interlock("reports"); !strings.Contains(reports, "succeeded") {
		t.Errorf("the bucket has no report of the success:\n%s", reports)
	} else {
		s.say("the report is in the bucket: %s", lastLine(reports))
	}

	s.field("1.0.1")
	s.tampered(got.Snapshot.Slot)
	stop()
	s.expired(modbus)
	s.say("done")
}

var gateways = map[event.Kind]string{event.REST: "a REST API", event.HTTP: "an HTTP API", event.FunctionURL: "a function URL"}

// field: devices of the two documents, which are in the field already.
func (s *stage) field(version string) {
	s.Helper()
	roots := append(s.fn.CA(), s.s3.CA...)
	for _, kind := range []event.Kind{event.REST, event.HTTP, event.FunctionURL} {
		var flash bytes.Buffer
		esp, err := awsota.New(awsota.Config{ManifestURL: s.fn.URL(kind) + "/firmware", Version: "1.0.0", RootCA: roots, Flash: &flash})
		s.must(err)
		r, err := esp.Update(s.ctx)
		if err != nil || !r.Updated || r.Version != version || !bytes.Equal(flash.Bytes(), image(version)) {
			s.Errorf("the ESP32 of aws-s3-ota behind %s: %+v, %v, %d bytes", kind, r, err, flash.Len())
			continue
		}
		s.say("ESP32 of aws-s3-ota behind %s: 1.0.0 -> %s, %d bytes", gateways[kind], r.Version, r.Size)
	}
	var flash bytes.Buffer
	bess, err := bessota.New(bessota.Config{URL: s.fn.URL(event.HTTP) + "/image/default", CertPEM: roots, Version: "1.0.0", Flash: &flash})
	s.must(err)
	if r, err := bess.Update(s.ctx); err != nil || !bytes.Equal(flash.Bytes(), image(version)) {
		s.Errorf("the controller of bess-ota-manager: %+v, %v, %d bytes", r, err, flash.Len())
		return
	}
	s.say("controller of bess-ota-manager: 1.0.0 -> %s, MD5 and SHA-256 compared", version)
}

// tampered: somebody who can write to the bucket changes an image. Nothing of it
// reaches a slot.
func (s *stage) tampered(booted string) {
	s.Helper()
	s.interlock("publish", "--hold", s.release("1.0.2"))
	b, err := os.ReadFile(s.object("1.0.2"))
	s.must(err)
	changed := bytes.Clone(b)
	changed[40] ^= 1
	s.must(os.WriteFile(s.object("1.0.2"), changed, 0o600))
	before := s.slots()
	s.interlock("releases", "promote", "1.0.2")
	got := s.status("the refusal of 1.0.2", func(c control.Status) bool {
		s.ask(control.Check) // again and again: the function may remember for 5 s what was current
		return c.Snapshot.Last != nil && c.Snapshot.Last.Version == "1.0.2"
	})
	if got.Snapshot.Running != "1.0.1" || got.Snapshot.Slot != booted {
		s.Errorf("after a tampered image the device runs %s in slot %s", got.Snapshot.Running, got.Snapshot.Slot)
	}
	if after := s.slots(); after != before {
		s.Errorf("the slots have changed:\nbefore %s\nafter  %s", before, after)
	}
	s.say("1.0.2 was tampered with in the bucket: %s; no byte of it is in a slot", got.Snapshot.Last.Reason)
	s.must(os.WriteFile(s.object("1.0.2"), b, 0o600))
	s.interlock("releases", "withdraw", "1.0.2")
}

// slots returns hashes of what is in both slots.
func (s *stage) slots() string {
	s.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(s.dir, "slots"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), "controller") {
			return err
		}
		b, err := os.ReadFile(path)
		out = append(out, fmt.Sprintf("%s %d %x", d.Name(), len(b), sha256.Sum256(b)))
		return err
	})
	s.must(err)
	if len(out) != 2 {
		s.Fatalf("slots are %q, want two files", out)
	}
	return strings.Join(out, "; ")
}

// expired: the URLs of an offer end before its download begins.
func (s *stage) expired(modbus string) {
	s.Helper()
	s.startFunction(fmt.Sprintf("URL_LIFETIME=%d", int(urlLifetime.Seconds())))
	s.interlock("publish", s.release("1.0.3"))
	defer s.startDevice(false, modbus)()
	s.status("the offer of 1.0.3", func(c control.Status) bool { return c.Snapshot.Update != nil && c.Snapshot.Update.Version == "1.0.3" })
	time.Sleep(urlLifetime + urlLifetime/4 + time.Second) // the URL's own clock is that of the S3 server
	before := strings.Count(s.log.String(), api.PathCheckin)
	if before == 0 {
		s.Fatalf("the function has not noted a check-in:\n%s", s.log)
	}
	s.ask(control.Install)
	s.status("1.0.3, written", func(c control.Status) bool { return c.Snapshot.State == ota.Staged })
	s.ask(control.Apply)
	got := s.status("1.0.3, proven", runs("1.0.3"))
	if after := strings.Count(s.log.String(), api.PathCheckin); after <= before {
		s.Errorf("%d check-ins before the download and %d after it; want a fresh one, for a URL that works", before, after)
	}
	s.say("the URL of 1.0.3 had expired: a fresh one was asked for, and %s runs, proven", got.Snapshot.Running)
}

// ask gives the device a command, as "interlock device" does.
func (s *stage) ask(command control.Command) {
	s.Helper()
	c, err := control.Dial(filepath.Join(s.dir, "agent.sock"))
	s.must(err)
	defer c.Close()
	for {
		_, err := c.Command(s.ctx, command, false) // what else comes of it is seen in the status
		if !errors.Is(err, ota.ErrBusy) {          // a check may be under way
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// output keeps what a process prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

func ptr[T any](v T) *T { return &v }
