package awsiot_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/source/awsiot"
)

// A policy that does not allow the topics of our own, which costs the connection at each
// message, keeps nothing from the job.
func TestTopicDenied(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 1000)
	r.create("job-1", document)
	cfg := r.config(running)
	cfg.Topic = "bess/site-1"
	s, _ := start(t, cfg)
	r.broker.Fault(func(p awstest.Packet) awstest.Fate {
		if p.Direction == awstest.ToBroker && strings.HasPrefix(p.Topic, cfg.Topic) {
			return awstest.Fate{Action: awstest.CutBefore}
		}
		return awstest.Fate{}
	})
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Fatal(err)
	}
	u := api.StatusUpdate{Head: api.Head{Status: ota.StatusDownloading, State: ota.Fetching, UpdateDigest: rel.Manifest.Digest, Done: 1, Total: 2}}
	for n := 0; r.execution("job-1").StatusDetails["percent"] != "50"; n++ { // as the agent does, again and again
		if n == 100 {
			t.Fatal("the job does not hear of the progress")
		}
		_ = s.Status(t.Context(), u)
		_, _ = r.jobs.Wait(short(t.Context()), thing, "job-1", awstest.Succeeded)
	}
	for tries := 0; tries < 3 && len(r.finals("job-1")) == 0; {
		err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, ""))
		if err == nil {
			t.Fatal("the report was taken, though it was not published")
		}
		if !strings.Contains(err.Error(), "there is no connection") {
			tries++
		}
	}
	r.wantFinal("job-1", awstest.Succeeded, "")
}

// short is a context for one look.
func short(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// A check that ends without an answer is made again, though nothing changes at the service
// and nobody else wakes the manager.
func TestLookedAtAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s, _ := start(t, b.config(running))
		b.create("job-1", `{"interlock":{"bundle":"https://bucket/1.1.0"}}`)
		woken := 0
		wakeFor := func(d time.Duration, do func()) {
			end := time.After(d)
			for {
				select {
				case <-end:
					return
				case <-s.Wake():
					woken++
					do()
				}
			}
		}
		wakeFor(time.Hour, func() {
			if _, err := s.Latest(t.Context()); ota.CodeOf(err) != ota.ErrServer {
				t.Errorf("without the bundle: got %v, want %v", err, ota.ErrServer)
			}
		})
		if woken < 5 || woken > 30 {
			t.Errorf("woken %d times in an hour, want often at first and then every few minutes", woken)
		}
		b.objects["1.1.0"] = b.key.Release(t, "1.1.0", 10).Bundle
		woken = 0
		wakeFor(10*time.Minute, func() {
			if _, err := s.Latest(t.Context()); err != nil {
				t.Errorf("with the bundle: %v", err)
			}
		})
		if woken != 1 {
			t.Errorf("woken %d times after the bundle was there, want once", woken)
		}
		woken = 0
		wakeFor(time.Hour, func() {})
		if woken != 0 {
			t.Errorf("woken %d times for a job in hand", woken)
		}
		synctest.Wait()
	})
}

// What cannot be read is no reason not to start: the service knows the rest.
func TestUnreadableRecord(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 1000)
	r.create("job-1", document)
	cfg := r.config(running)
	cfg.FS = &badSector{FS: r.disk, name: dir + "/awsiot.json"}
	d := &device{r: r, rel: rel, result: ota.Succeeded}
	s, _ := start(t, cfg)
	if err := d.run(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	r.wantFinal("job-1", awstest.Succeeded, "")
}

// badSector is a disk on which one file cannot be read until it is written anew.
type badSector struct {
	durable.FS
	name string

	mu      sync.Mutex
	renewed bool
}

func (b *badSector) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name == b.name && !b.renewed {
		return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.EIO}
	}
	return b.FS.OpenFile(name, flag, perm)
}

func (b *badSector) Rename(from, to string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renewed = b.renewed || to == b.name
	return b.FS.Rename(from, to)
}

// A job that is cancelled while its file comes is not worked on any more, and leaves nothing
// on the disk. One whose maintenance window ends goes on: it will be back.
func TestFreeRTOSCancelled(t *testing.T) {
	for _, cancelled := range []bool{true, false} {
		r := newRig(t)
		image := make([]byte, 300_000)
		_, _ = rand.Read(image)
		sign := newSigner(t)
		r.bucket.put("image", image)
		r.bucket.set(func() { r.bucket.hang = true })
		r.create("AFR_OTA-1", freeRTOS("/fw/bess-1.1.0.bin", len(image), sign.sign(t, image), "HTTP", presigned("image")))
		cfg := r.config(running)
		r.withSigner(&cfg, sign)
		disk := &coming{FS: r.disk, written: make(chan struct{}, 1)}
		cfg.FS = disk
		s, _ := start(t, cfg)
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Fatal(err)
		}
		<-disk.written
		if cancelled {
			if err := r.jobs.Cancel("AFR_OTA-1", true); err != nil {
				t.Fatal(err)
			}
		} else if err := r.jobs.Window("AFR_OTA-1", false); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Fatal(err)
		}
		_, err := r.disk.Stat(dir + "/awsiot-spool/file")
		if gone := errors.Is(err, fs.ErrNotExist); gone != cancelled {
			t.Errorf("cancelled %v: the file that was on its way: %v", cancelled, err)
		}
	}
}

// coming tells when the file of a job has come in part.
type coming struct {
	durable.FS
	written chan struct{} // has room for one
}

func (c *coming) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := c.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.HasSuffix(name, "awsiot-spool/file") {
		return f, err
	}
	return &comingFile{f, c}, nil
}

type comingFile struct {
	durable.File
	c *coming
}

func (f *comingFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	select {
	case f.c.written <- struct{}{}:
	default:
	}
	return n, err
}

// An object that is replaced between two parts of its download is received again: what is
// on the disk then is no file that anybody has made, and no reason to end the job.
func TestFreeRTOSReplaced(t *testing.T) {
	r := newRig(t)
	image := make([]byte, 300_000)
	_, _ = rand.Read(image)
	sign := newSigner(t)
	r.create("AFR_OTA-1", freeRTOS("/fw/bess-1.1.0.bin", len(image), sign.sign(t, image), "HTTP", presigned("image")))
	cfg := r.config(running)
	r.withSigner(&cfg, sign)
	h := &replacing{old: bytes.Repeat([]byte{7}, len(image)), image: image}
	cfg.HTTP = h
	s, _ := start(t, cfg)
	signed := await(t, r, s)
	if signed == nil {
		t.Fatalf("the job is over: %v", r.execution("AFR_OTA-1").StatusDetails)
	}
	if got, want := h.offsets, []int64{0, 100_000, 0}; !slices.Equal(got, want) {
		t.Errorf("received from %v, want %v", got, want)
	}
}

// replacing is a fake of an object store that has an object's older version until the first
// download has broken off.
type replacing struct {
	old, image []byte
	offsets    []int64
}

func (h *replacing) Fetch(_ context.Context, _ string, offset, length int64) (io.ReadCloser, int64, error) {
	h.offsets = append(h.offsets, offset)
	if len(h.offsets) == 1 {
		return io.NopCloser(io.MultiReader(bytes.NewReader(h.old[:100_000]), broken{})), int64(len(h.old)), nil
	}
	return io.NopCloser(bytes.NewReader(h.image[offset : offset+length])), int64(len(h.image)), nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// A file that has to be read again after a restart is no reason to take back a release
// that was offered: a person may have agreed to it.
func TestFreeRTOSOfferStays(t *testing.T) {
	r := newRig(t)
	image := make([]byte, 300_000)
	_, _ = rand.Read(image)
	sign := newSigner(t)
	r.bucket.put("image", image)
	r.create("AFR_OTA-1", freeRTOS("/fw/bess-1.1.0.bin", len(image), sign.sign(t, image), "HTTP", presigned("image")))
	cfg := r.config(running)
	r.withSigner(&cfg, sign)
	s, stop := start(t, cfg)
	first := await(t, r, s)
	stop()
	r.withSigner(&cfg, sign) // the next process
	s, _ = start(t, cfg)
	for {
		again, err := s.Latest(t.Context())
		if err == nil {
			if !bytes.Equal(again, first) {
				t.Error("after a restart it is another release")
			}
			return
		}
		if errors.Is(err, ota.ErrNoUpdate) {
			t.Fatalf("after a restart: %v", err)
		}
		<-s.Wake()
	}
}

var _ awsiot.Fetcher = (*replacing)(nil)

// A report of another source's release needs no connection: those that come after it would
// reach nobody for as long as there is none.
func TestReportOfOthersWhileDown(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 1000)
	r.create("job-1", document)
	s := r.start(running)
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.broker.Kill()
	for {
		if _, err := s.Latest(t.Context()); err != nil && strings.Contains(err.Error(), "there is no connection") {
			break
		}
	}
	other := r.key.Release(t, "3.0.0", 10)
	if err := s.Report(t.Context(), report(other, ota.Succeeded, ota.ErrNone, "")); err != nil {
		t.Errorf("of another source's release: %v, want nil", err)
	}
	if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("of the job's: got %v, want %v", err, ota.ErrConnectivity)
	}
}
