package awsiot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/awsiot"
)

// bubble is a rig in simulated time: a real broker over pipes instead of sockets, and a
// bucket in memory.
type bubble struct {
	*rig
	server  *mqtt.Server
	objects memory

	mu     sync.Mutex
	refuse bool // connections
	mute   bool // nothing passes any more, and nothing is closed
	dials  []time.Time
	conns  []net.Conn
}

func inBubble(t *testing.T, test func(t *testing.T, b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{rig: &rig{t: t, disk: otatest.NewDisk(), key: otatest.NewSigningKey(t)}, objects: memory{}}
		b.jobs = awstest.NewJobs(awstest.JobsOptions{})
		b.server = mqtt.New(&mqtt.Options{InlineClient: true, SysTopicResendInterval: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
		if err := b.server.AddHook(&front{jobs: b.jobs}, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.server.Serve(); err != nil {
			t.Fatal(err)
		}
		out := make(chan awstest.Message, 1000)
		b.jobs.Attach(func(m awstest.Message) { out <- m })
		go func() {
			for m := range out {
				_ = b.server.Publish(m.Topic, m.Payload, false, 1)
			}
		}()
		t.Cleanup(func() {
			b.jobs.Attach(func(awstest.Message) {})
			close(out)
			_ = b.server.Close()
			b.hangUp()
		})
		if err := durable.MkdirAll(b.disk, dir, 0o700); err != nil {
			t.Fatal(err)
		}
		test(t, b)
	})
}

// front puts Jobs behind the broker. All may do all.
type front struct {
	mqtt.HookBase
	jobs *awstest.Jobs
}

func (f *front) ID() string { return "jobs" }
func (f *front) Provides(b byte) bool {
	return bytes.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPublished}, []byte{b})
}
func (f *front) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (f *front) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }
func (f *front) OnPublished(cl *mqtt.Client, p packets.Packet) {
	if !cl.Net.Inline && strings.HasPrefix(p.TopicName, "$aws/") {
		f.jobs.Receive(cl.ID, p.TopicName, p.Payload)
	}
}

// memory is a fake of an object store without addresses that expire.
type memory map[string][]byte

func (m memory) Fetch(_ context.Context, url string, offset, length int64) (io.ReadCloser, int64, error) {
	data, ok := m[strings.TrimPrefix(url, "https://bucket/")]
	if !ok {
		return nil, 0, fmt.Errorf("%w: %w", ota.ErrServer, awsiot.ErrExpired)
	}
	if length < 0 {
		length = int64(len(data)) - offset
	}
	return io.NopCloser(bytes.NewReader(data[offset : offset+length])), int64(len(data)), nil
}

func (b *bubble) config(version string) awsiot.Config {
	return awsiot.Config{Endpoint: "broker", Thing: thing, Product: "bess", Version: version, Dir: dir, FS: b.disk, HTTP: b.objects,
		AllowPlain: true, Dial: b.dial, Verify: func(signed []byte) (*ota.Manifest, error) { return b.verify(signed) }, Log: testLog(b.t)}
}

func (b *bubble) dial(context.Context, string, string) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dials = append(b.dials, time.Now())
	if b.refuse {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	b.conns = append(b.conns, client, server)
	q := &queued{Conn: server, more: make(chan struct{}, 1)}
	go q.run()
	go func() { _ = b.server.EstablishConnection("pipe", q) }()
	return &muted{Conn: client, b: b}, nil
}

// queued is a pipe with room, as a socket has it: the broker writes from where it reads.
type queued struct {
	net.Conn
	more chan struct{} // has room for one

	mu     sync.Mutex
	out    []byte
	closed bool
}

// run writes what is queued, and then closes if that was asked for.
func (q *queued) run() {
	for range q.more {
		q.mu.Lock()
		out, closed := q.out, q.closed
		q.out = nil
		q.mu.Unlock()
		_, err := q.Conn.Write(out)
		if closed || err != nil {
			q.Conn.Close()
			return
		}
	}
}

func (q *queued) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, net.ErrClosed
	}
	q.out = append(q.out, p...)
	q.wake()
	return len(p), nil
}

func (q *queued) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
	return nil
}

func (q *queued) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (b *bubble) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.Close()
	}
}

// muted is a connection over a network that can vanish without a word.
type muted struct {
	net.Conn
	b *bubble
}

func (m *muted) Write(p []byte) (int, error) {
	m.b.mu.Lock()
	mute := m.b.mute
	m.b.mu.Unlock()
	if mute {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

// offered makes a job and begins with it.
func (b *bubble) begun(s *awsiot.Source, job awstest.Job) *otatest.SignedRelease {
	b.t.Helper()
	rel := b.key.Release(b.t, "1.1.0", 10_000)
	b.objects["1.1.0"] = rel.Bundle
	job.Things, job.Document = []string{thing}, `{"interlock":{"bundle":"https://bucket/1.1.0"}}`
	if err := b.jobs.Create(job); err != nil {
		b.t.Fatal(err)
	}
	if _, err := s.Latest(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if err := fetch(b.t.Context(), s, rel); err != nil {
		b.t.Fatal(err)
	}
	return rel
}

// A device that waits for its gate for days keeps its job; one that is not heard of loses it.
func TestStepTimer(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		cfg := b.config(running)
		cfg.StepTimeout = 10 * time.Minute
		s, stop := start(t, cfg)
		b.begun(s, awstest.Job{ID: "job-1"})
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		if got := b.execution("job-1").Status; got != awstest.InProgress {
			t.Fatalf("after half a day the job is %s, want %s", got, awstest.InProgress)
		}
		if n, most := len(b.jobs.Updates(thing, "job-1")), 12*60*3/10+10; n > most {
			t.Errorf("%d updates in half a day, want at most %d", n, most)
		}
		stop()
		time.Sleep(5 * time.Minute) // a restart in the middle
		s, stop = start(t, cfg)
		time.Sleep(9 * time.Minute)
		if got := b.execution("job-1").Status; got != awstest.InProgress {
			t.Errorf("after a restart the job is %s, want %s", got, awstest.InProgress)
		}
		stop()
		time.Sleep(11 * time.Minute)
		if got := b.execution("job-1").Status; got != awstest.TimedOut {
			t.Errorf("without the device the job is %s, want %s", got, awstest.TimedOut)
		}
		s, _ = start(t, cfg)
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrWithdrawn) {
			t.Errorf("the device hears %v, want %v", err, ota.ErrWithdrawn)
		}
	})
}

// A job that takes too long is taken back, and the manager is woken to hear so.
func TestTimedOut(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s, _ := start(t, b.config(running))
		rel := b.begun(s, awstest.Job{ID: "job-1", InProgressTimeout: time.Hour})
		time.Sleep(time.Minute)
		drain(s)
		time.Sleep(time.Hour)
		synctest.Wait()
		select {
		case <-s.Wake():
		default:
			t.Error("the manager was not woken")
		}
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || !errors.Is(err, ota.ErrWithdrawn) {
			t.Errorf("got %v, want %v", err, ota.ErrWithdrawn)
		}
		if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); err != nil {
			t.Errorf("a device that was past the restart reports: %v, want nil", err)
		}
		if got := b.finals("job-1"); len(got) != 0 {
			t.Errorf("final statuses from the device: %v, want none", got)
		}
	})
}

// Progress is told every few seconds, with what the service takes.
func TestProgress(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s, _ := start(t, b.config(running))
		rel := b.begun(s, awstest.Job{ID: "job-1"})
		before := len(b.jobs.Updates(thing, "job-1"))
		for done := range int64(600) {
			u := api.StatusUpdate{Head: api.Head{Status: ota.StatusDownloading, State: ota.Fetching, UpdateVersion: "1.1.0",
				UpdateDigest: rel.Manifest.Digest, Done: done * 10, Total: 10_000, Code: ota.ErrBatteryLow, Reason: strings.Repeat("state of charge 22.0 %\n", 100)}}
			if err := s.Status(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(b.jobs.Updates(thing, "job-1")) - before; n < 5 || n > 8 {
			t.Errorf("%d updates in 70 s, want one every 10 s", n)
		}
		d := b.execution("job-1").StatusDetails
		for name, want := range map[string]string{"state": "DOWNLOADING", "done": "5990", "total": "10000", "percent": "59", "code": "BATTERY_LOW", "version": "1.1.0"} {
			if d[name] != want {
				t.Errorf("detail %s: got %q, want %q", name, d[name], want)
			}
		}
		if n := len([]rune(d["reason"])); n > 1024 || n < 100 || strings.Contains(d["reason"], "\n") {
			t.Errorf("the reason has %d characters: %.60q", n, d["reason"])
		}
		// Another release than the job's is not the job's business.
		_ = s.Status(t.Context(), api.StatusUpdate{Head: api.Head{Status: ota.StatusTrial, UpdateDigest: "other", Total: 1}})
		time.Sleep(time.Minute)
		if got := b.execution("job-1").StatusDetails["state"]; got != "DOWNLOADING" {
			t.Errorf("state %q, want that of the job's release", got)
		}
		// A release that was whole and did not come up has failed, and was not rejected.
		_ = s.Status(t.Context(), api.StatusUpdate{Head: api.Head{Status: ota.StatusReadyToApply, State: ota.Staged, UpdateDigest: rel.Manifest.Digest}})
		time.Sleep(time.Minute)
		if err := s.Report(t.Context(), report(rel, ota.Failed, ota.ErrValidation, "slot B did not stay up")); err != nil {
			t.Fatal(err)
		}
		b.wantFinal("job-1", awstest.Failed, "did not stay up")
	})
}

// What runs on trial has not succeeded yet, whoever installed it.
func TestTrialIsNoSuccess(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		s, _ := start(t, b.config("1.1.0"))
		b.objects["1.1.0"] = b.key.Release(t, "1.1.0", 10).Bundle
		b.create("job-1", `{"interlock":{"bundle":"https://bucket/1.1.0"}}`)
		_ = s.Status(t.Context(), api.StatusUpdate{Head: api.Head{Status: ota.StatusTrial, State: ota.Trial}})
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
		}
		if got := b.execution("job-1").Status; got != awstest.Queued {
			t.Errorf("on trial: the job is %s, want %s", got, awstest.Queued)
		}
		_ = s.Status(t.Context(), api.StatusUpdate{Head: api.Head{Status: ota.StatusIdle, State: ota.Idle}})
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
		}
		b.wantFinal("job-1", awstest.Succeeded, "runs already")
	})
}

// A broker that is away is tried again, in growing pauses, and not at the same moment by all.
func TestBackoff(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.refuse = true
		s, _ := start(t, b.config(running))
		began := time.Now()
		if _, err := s.Latest(t.Context()); ota.CodeOf(err) != ota.ErrConnectivity || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v, want %v and why", err, ota.ErrConnectivity)
		}
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("it took %v to say so", waited)
		}
		time.Sleep(10 * time.Hour)
		b.mu.Lock()
		n, longest := len(b.dials), time.Duration(0)
		for i := range n - 1 {
			longest = max(longest, b.dials[i+1].Sub(b.dials[i]))
		}
		b.refuse = false
		b.mu.Unlock()
		if n < 100 || n > 180 || longest > 6*time.Minute+15*time.Second {
			t.Errorf("%d tries in 10 hours, %v apart at most; want one every 5 minutes ± 25 %%", n, longest)
		}
		time.Sleep(7 * time.Minute)
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("the broker is back: got %v, want %v", err, ota.ErrNoUpdate)
		}
	})
}

// A network that vanishes without a word is noticed.
func TestDeadLine(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		cfg := b.config(running)
		cfg.Keepalive = time.Minute
		s, _ := start(t, cfg)
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Fatal(err)
		}
		b.mu.Lock()
		b.mute, b.refuse = true, true
		b.mu.Unlock()
		began := time.Now()
		if _, err := s.Latest(t.Context()); ota.CodeOf(err) != ota.ErrConnectivity {
			t.Errorf("got %v, want %v", err, ota.ErrConnectivity)
		}
		if waited := time.Since(began); waited > 20*time.Second {
			t.Errorf("it took %v to give up one question", waited)
		}
		time.Sleep(3 * time.Minute)
		began = time.Now()
		if _, err := s.Latest(t.Context()); ota.CodeOf(err) != ota.ErrConnectivity || time.Since(began) > 0 {
			t.Errorf("after three minutes: got %v in %v, want %v at once", err, time.Since(began), ota.ErrConnectivity)
		}
	})
}

// Two devices with one client id throw each other out, but not at the speed of the network.
func TestTakenOver(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		var said safeBuffer
		cfg := b.config(running)
		cfg.Log = slog.New(slog.NewTextHandler(&said, nil))
		start(t, cfg)
		other := b.config(running)
		other.Dir = "/other"
		if err := durable.MkdirAll(b.disk, other.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		start(t, other)
		time.Sleep(3 * time.Hour)
		b.mu.Lock()
		n := len(b.dials)
		b.mu.Unlock()
		if n < 10 || n > 3*60 {
			t.Errorf("%d connections in 3 hours, want less than one a minute", n)
		}
		if text := said.String(); !strings.Contains(text, "are there two devices with one id?") {
			t.Errorf("the log does not say what is wrong: %.300s", text)
		}
	})
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
