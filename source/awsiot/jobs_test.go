package awsiot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/awsiot"
)

// A job waits in the queue until the device begins, and then hears how it ended.
func TestUpdate(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 100_000, 777)
	r.create("job-1", document)
	s := r.start(running)
	for range 2 {
		signed, err := s.Latest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(signed, rel.Signed) {
			t.Fatalf("got %d bytes, want the envelope", len(signed))
		}
	}
	if got, want := r.execution("job-1").Status, awstest.Queued; got != want {
		t.Errorf("before the device begins the job is %s, want %s", got, want)
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Fatal(err)
	}
	if got, want := r.execution("job-1").Status, awstest.InProgress; got != want {
		t.Errorf("while the device works the job is %s, want %s", got, want)
	}
	for range 2 { // a report may come again
		if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); err != nil {
			t.Fatal(err)
		}
	}
	r.wantFinal("job-1", awstest.Succeeded, "")
	for _, u := range r.jobs.Updates(thing, "job-1") { // what is late must not undo anything
		if u.ExpectedVersion == 0 {
			t.Errorf("an update to %s without the version that it is of", u.Status)
		}
	}
	d := r.execution("job-1").StatusDetails
	for name, want := range map[string]string{"result": "succeeded", "version": "1.1.0", "from": "1.0.0", "running": "1.1.0", "report": "report-1.1.0"} {
		if d[name] != want {
			t.Errorf("detail %s: got %q, want %q", name, d[name], want)
		}
	}
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || errors.Is(err, ota.ErrWithdrawn) {
		t.Errorf("after it: got %v, want %v and nothing withdrawn", err, ota.ErrNoUpdate)
	}
}

// The other form of a document: a manifest, and an address for each image.
func TestManifestAndImages(t *testing.T) {
	r := newRig(t)
	rel := r.key.Release(t, "1.1.0", 50_000, 777)
	r.bucket.put("manifest", rel.Signed)
	r.bucket.put("controller", rel.Images["controller"])
	r.bucket.put("module1", rel.Images["module1"])
	r.create("job-1", fmt.Sprintf(`{"interlock":{"manifest":%q,"images":{"controller":%q,"module1":%q},"product":"bess","digest":%q}}`,
		presigned("manifest"), presigned("controller"), presigned("module1"), rel.Manifest.Digest))
	s := r.start(running)
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Fatal(err)
	}
}

// What is certain ends a job at once, with a reason that its operator understands.
func TestVerdicts(t *testing.T) {
	for _, tt := range []struct {
		name     string
		document func(r *rig) string
		config   func(c *awsiot.Config)
		want     awstest.Status
		reason   string
	}{
		{"not for this program", func(*rig) string { return `{"operation":"reboot"}` }, nil, awstest.Rejected, "says nothing to this device"},
		{"no address", func(*rig) string { return `{"interlock":{"version":"1.1.0"}}` }, nil, awstest.Rejected, "neither bundle nor manifest"},
		{"both forms", func(*rig) string { return `{"interlock":{"bundle":"https://a/b","manifest":"https://a/c"}}` }, nil, awstest.Rejected, "want one of the two forms"},
		{"not filled in", func(*rig) string { return `{"interlock":{"bundle":"${aws:iot:s3-presigned:https://b/k}"}}` }, nil, awstest.Rejected, "did not fill in"},
		{"no https", func(*rig) string { return `{"interlock":{"bundle":"ftp://host/b"}}` }, nil, awstest.Rejected, "https://"},
		{"not a bundle", func(r *rig) string {
			r.bucket.put("page", bytes.Repeat([]byte("<html>"), 1000))
			return fmt.Sprintf(`{"interlock":{"bundle":%q}}`, presigned("page"))
		}, nil, awstest.Rejected, "is no bundle"},
		{"other key", func(r *rig) string {
			r.bucket.put("foreign", otatest.NewSigningKey(r.t).Release(r.t, "1.1.0", 100).Bundle)
			return fmt.Sprintf(`{"interlock":{"bundle":%q}}`, presigned("foreign"))
		}, nil, awstest.Rejected, "sign"},
		{"other product", func(r *rig) string { _, d := r.release("1.1.0", 100); return d },
			func(c *awsiot.Config) { c.Product = "charger" }, awstest.Rejected, "is for product bess"},
		{"older", func(r *rig) string { _, d := r.release("0.9.0", 100); return d }, nil, awstest.Rejected, "older than the running 1.0.0"},
		{"runs already", func(r *rig) string { _, d := r.release("1.0.0", 100); return d }, nil, awstest.Succeeded, "runs already"},
		{"failed here", func(r *rig) string { _, d := r.release("1.1.0", 100); return d },
			func(c *awsiot.Config) {
				c.Skipped = func(string) (string, bool) { return "rolled back here: no CAN", true }
			}, awstest.Rejected, "no CAN"},
		{"says another version", func(r *rig) string {
			_, d := r.release("1.1.0", 100)
			return strings.Replace(d, `"version":"1.1.0"`, `"version":"1.2.0"`, 1)
		}, nil, awstest.Rejected, `version "1.2.0"`},
		{"no room", func(r *rig) string { _, d := r.release("1.1.0", 100); return d },
			func(c *awsiot.Config) {
				c.Judge = func(*ota.Manifest) error { return fmt.Errorf("%w: 100 bytes", ota.ErrInsufficientSpace) }
			}, awstest.Rejected, "not enough space"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.create("job-1", tt.document(r))
			next, document := r.release("2.0.0", 100)
			cfg := r.config(running)
			if tt.config != nil {
				tt.config(&cfg)
			} else {
				r.create("job-2", document)
			}
			s, _ := start(t, cfg)
			signed, err := s.Latest(t.Context())
			r.wantFinal("job-1", tt.want, tt.reason)
			if tt.config == nil && (err != nil || !bytes.Equal(signed, next.Signed)) {
				t.Errorf("the job behind it: got %d bytes and %v, want its release", len(signed), err)
			}
			if tt.config != nil && !errors.Is(err, ota.ErrNoUpdate) {
				t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
			}
		})
	}
}

// What may mend does not end a job.
func TestNotFinal(t *testing.T) {
	for name, set := range map[string]func(b *bucket){
		"server error": func(b *bucket) { b.status = http.StatusInternalServerError },
		"throttled":    func(b *bucket) { b.status = http.StatusServiceUnavailable },
		"forbidden":    func(b *bucket) { b.status = http.StatusForbidden },
		"not there":    func(b *bucket) { b.status = http.StatusNotFound },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			rel, document := r.release("1.1.0", 1000)
			r.create("job-1", document)
			s := r.start(running)
			r.bucket.set(func() { set(r.bucket) })
			if _, err := s.Latest(t.Context()); ota.CodeOf(err) != ota.ErrServer {
				t.Errorf("got %v, want %v", err, ota.ErrServer)
			}
			if got := r.execution("job-1").Status; got != awstest.Queued {
				t.Errorf("the job is %s, want it to wait", got)
			}
			r.bucket.set(func() { r.bucket.status = 0 })
			if signed, err := s.Latest(t.Context()); err != nil || !bytes.Equal(signed, rel.Signed) {
				t.Errorf("after it has mended: got %d bytes and %v", len(signed), err)
			}
		})
	}
}

// Addresses expire: the job is asked for new ones, and the download goes on where it was.
func TestExpiredAddresses(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 100_000)
	r.create("job-1", document)
	s := r.start(running)
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	im := &rel.Manifest.Images[0]
	body, err := s.Open(t.Context(), rel.Manifest, im, 0)
	if err != nil {
		t.Fatal(err)
	}
	half := make([]byte, 40_000)
	if _, err := io.ReadFull(body, half); err != nil {
		t.Fatal(err)
	}
	body.Close()
	r.bucket.set(func() { r.bucket.current++ })
	before := len(r.bucket.ranges)
	body, err = s.Open(t.Context(), rel.Manifest, im, int64(len(half)))
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(body)
	body.Close()
	if err != nil || !bytes.Equal(append(half, rest...), rel.Images["controller"]) {
		t.Errorf("got %d bytes and %v, want the image", len(half)+len(rest), err)
	}
	if got := r.bucket.ranges[before:]; len(got) != 2 || got[0] != got[1] {
		t.Errorf("requests for %v, want the same bytes from the old and from the new address", got)
	}
}

// A job that is cancelled takes its release back, at whatever moment.
func TestCancelled(t *testing.T) {
	setup := func(t *testing.T) (*rig, *awsiot.Source, *otatest.SignedRelease) {
		r := newRig(t)
		rel, document := r.release("1.1.0", 100_000)
		r.create("job-1", document)
		s := r.start(running)
		if _, err := s.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r, s, rel
	}
	withdrawn := func(t *testing.T, s *awsiot.Source) {
		t.Helper()
		for range 2 {
			if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || !errors.Is(err, ota.ErrWithdrawn) {
				t.Errorf("got %v, want %v and %v", err, ota.ErrNoUpdate, ota.ErrWithdrawn)
			}
		}
	}
	t.Run("while it waits", func(t *testing.T) {
		r, s, _ := setup(t)
		drain(s)
		if err := r.jobs.Cancel("job-1", false); err != nil {
			t.Fatal(err)
		}
		<-s.Wake()
		withdrawn(t, s)
		again, _ := start(t, r.config(running)) // and the next process knows it, too
		withdrawn(t, again)
	})
	t.Run("while the device is off", func(t *testing.T) {
		r := newRig(t)
		_, document := r.release("1.1.0", 1000)
		r.create("job-1", document)
		s, stop := start(t, r.config(running))
		if _, err := s.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := r.jobs.Cancel("job-1", false); err != nil {
			t.Fatal(err)
		}
		withdrawn(t, r.start(running))
	})
	t.Run("while it is fetched", func(t *testing.T) {
		r, s, rel := setup(t)
		r.bucket.set(func() { r.bucket.hang = true })
		body, err := s.Open(t.Context(), rel.Manifest, &rel.Manifest.Images[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		drain(s)
		if err := r.jobs.Cancel("job-1", true); err != nil {
			t.Fatal(err)
		}
		<-s.Wake()
		if _, err := io.Copy(io.Discard, body); ota.CodeOf(err) != ota.ErrServer {
			t.Errorf("what hangs ends with %v, want %v", err, ota.ErrServer)
		}
		withdrawn(t, s)
		if _, err := s.Open(t.Context(), rel.Manifest, &rel.Manifest.Images[0], 0); ota.CodeOf(err) != ota.ErrServer {
			t.Errorf("open again: got %v, want %v", err, ota.ErrServer)
		}
	})
	t.Run("before the report", func(t *testing.T) {
		r, s, rel := setup(t)
		if err := fetch(t.Context(), s, rel); err != nil {
			t.Fatal(err)
		}
		if err := r.jobs.Delete("job-1", true); err != nil {
			t.Fatal(err)
		}
		if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); err != nil {
			t.Errorf("a report that nobody wants any more: %v, want nil", err)
		}
	})
	t.Run("by somebody who is to say what the manager has", func(t *testing.T) {
		r := newRig(t)
		_, document := r.release("1.1.0", 1000)
		r.create("job-1", document)
		cfg := r.config(running)
		cfg.InHand = func() string { return "the digest of a release from elsewhere" }
		s, _ := start(t, cfg)
		if _, err := s.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.jobs.Cancel("job-1", false); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) || errors.Is(err, ota.ErrWithdrawn) {
			t.Errorf("got %v, want %v only", err, ota.ErrNoUpdate)
		}
	})
}

func drain(s *awsiot.Source) {
	select {
	case <-s.Wake():
	default:
	}
}

// How updates end, in the words of the service.
func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		result ota.Result
		code   ota.ErrorCode
		want   awstest.Status
	}{
		{ota.Succeeded, ota.ErrNone, awstest.Succeeded},
		{ota.Failed, ota.ErrFlashWrite, awstest.Failed},
		{ota.Failed, ota.ErrValidation, awstest.Rejected},
		{ota.Failed, ota.ErrIncompatible, awstest.Rejected},
		{ota.RolledBack, ota.ErrValidation, awstest.Failed},
		{ota.Lost, ota.ErrInternal, awstest.Failed},
		{ota.Aborted, ota.ErrInternal, awstest.Failed},
	} {
		t.Run(fmt.Sprint(tt.result, " ", tt.code.Name()), func(t *testing.T) {
			r := newRig(t)
			rel, document := r.release("1.1.0", 1000)
			r.create("job-1", document)
			s := r.start(running)
			if _, err := s.Latest(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := fetch(t.Context(), s, rel); err != nil {
				t.Fatal(err)
			}
			if err := s.Report(t.Context(), report(rel, tt.result, tt.code, "why\nso")); err != nil {
				t.Fatal(err)
			}
			r.wantFinal("job-1", tt.want, "why so")
			if got, want := r.execution("job-1").StatusDetails["code"], tt.code.Name(); tt.code != ota.ErrNone && got != want {
				t.Errorf("code %q, want %q", got, want)
			}
		})
	}
}

// A retried execution is a new job, also of a release that is not taken again.
func TestRetriedExecution(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 1000)
	if err := r.jobs.Create(awstest.Job{ID: "job-1", Things: []string{thing}, Document: document, Retry: map[awstest.Status]int{awstest.Failed: 2}}); err != nil {
		t.Fatal(err)
	}
	cfg := r.config(running)
	skipped := false
	cfg.Skipped = func(string) (string, bool) { return "failed here", skipped }
	s, _ := start(t, cfg)
	for range 2 {
		if _, err := s.Latest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := fetch(t.Context(), s, rel); err != nil {
			t.Fatal(err)
		}
		if err := s.Report(t.Context(), report(rel, ota.Failed, ota.ErrFlashWrite, "worn out")); err != nil {
			t.Fatal(err)
		}
	}
	skipped = true
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("got %v, want %v", err, ota.ErrNoUpdate)
	}
	var got []awstest.Status
	for _, x := range r.jobs.Executions(thing, "job-1") {
		got = append(got, x.Status)
	}
	if want := "[FAILED FAILED REJECTED]"; fmt.Sprint(got) != want {
		t.Errorf("executions %v, want %v", got, want)
	}
}

// A maintenance window that closes hides a job; it comes back, and what was said stays so.
func TestWindow(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 1000)
	r.create("job-1", document)
	s := r.start(running)
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.jobs.Window("job-1", false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Errorf("closed: got %v, want %v", err, ota.ErrNoUpdate)
	}
	if err := r.jobs.Window("job-1", true); err != nil {
		t.Fatal(err)
	}
	if signed, err := s.Latest(t.Context()); err != nil || !bytes.Equal(signed, rel.Signed) {
		t.Errorf("open: got %d bytes and %v", len(signed), err)
	}
}

// Reports and a status go to the topic of our own, whoever the release was from.
func TestTopic(t *testing.T) {
	r := newRig(t)
	cfg := r.config(running)
	cfg.Topic = "bess/site-1"
	s, _ := start(t, cfg)
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Fatal(err)
	}
	drain(s)
	rel := r.key.Release(t, "3.0.0", 10)
	for range 2 {
		if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for _, p := range r.broker.Log() {
		if p.Topic == "bess/site-1/reports" && bytes.Contains(p.Payload, []byte(`"id":"report-3.0.0"`)) && p.QoS == 1 {
			seen++
		}
	}
	if seen != 1 {
		t.Errorf("the report was published %d times, want once", seen)
	}
	r.broker.Publish("bess/site-1/wake", nil)
	<-s.Wake()
}

// Without a connection nothing waits.
func TestDown(t *testing.T) {
	r := newRig(t)
	rel, document := r.release("1.1.0", 1000)
	r.create("job-1", document)
	s := r.start(running)
	if _, err := s.Latest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Fatal(err)
	}
	r.broker.Kill()
	for ctx := t.Context(); ; {
		_, err := s.Latest(ctx)
		if err != nil && ota.CodeOf(err) == ota.ErrConnectivity {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Errorf("the bucket is still there: %v", err)
	}
	if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("Report: got %v, want %v", err, ota.ErrConnectivity)
	}
	r.broker.Start()
	deliver(t.Context(), t, s, report(rel, ota.Succeeded, ota.ErrNone, ""))
	if got := r.finals("job-1"); len(got) != 1 {
		t.Errorf("final statuses %v, want one", got)
	}
}

// deliver gives the source a report until it is taken, as the manager does.
func deliver(ctx context.Context, t *testing.T, s *awsiot.Source, r ota.Report) {
	t.Helper()
	for {
		err := s.Report(ctx, r)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}
