package awsiot

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/c", false}, {"a/b", "a", false}, {"a", "a/b", false}, {"a/+/c", "a/b/c", true},
		{"a/+", "a/b/c", false}, {"a/+/c", "a/c", false}, {"a/#", "a/b/c", true}, {"a/#", "a", true}, {"a/#", "b/a", false}, {"#", "a/b", true},
		{"$aws/things/x/jobs/+/get/accepted", "$aws/things/x/jobs/$next/get/accepted", true},
		{"a/+", "a/", true}, {"+", "", true},
	} {
		if got := matches(tt.filter, tt.topic); got != tt.want {
			t.Errorf("matches(%q, %q) = %v, want %v", tt.filter, tt.topic, got, tt.want)
		}
	}
}

var (
	detailKey   = regexp.MustCompile(`^[a-zA-Z0-9:_-]{1,128}$`)
	detailValue = regexp.MustCompile(`^[^\p{C}]+$`)
)

// checkDetails holds details against the limits of the service.
func checkDetails(t *testing.T, d map[string]string) {
	t.Helper()
	if len(d) > 10 {
		t.Errorf("%d details, want at most 10", len(d))
	}
	for k, v := range d {
		if n := len([]rune(v)); n > 1024 || !detailKey.MatchString(k) || !detailValue.MatchString(v) {
			t.Errorf("detail %q: %.80q (%d characters) is not taken by the service", k, v, n)
		}
	}
}

func FuzzDetails(f *testing.F) {
	f.Add("state of charge 22 %\n", "1.0.0", int64(5), int64(10), true)
	f.Add(strings.Repeat("ä", 3000)+"\x00\xff\u200b", "", int64(-1), int64(-5), false)
	f.Fuzz(func(t *testing.T, reason, version string, done, total int64, afr bool) {
		h := api.Head{Status: ota.StatusDownloading, State: ota.Fetching, Reason: reason, UpdateVersion: version, Done: done, Total: total, Code: ota.ErrBatteryLow}
		checkDetails(t, liveDetails(h, version, afr).bounded())
		r := ota.Report{ID: reason, Version: version, From: version, Running: reason, Result: ota.Failed, Code: ota.ErrInternal, Reason: reason}
		checkDetails(t, new(Source).reportDetails(r, afr).bounded())
	})
}

func FuzzDocument(f *testing.F) {
	for _, s := range []string{
		`{"interlock":{"bundle":"https://b.s3.eu-central-1.amazonaws.com/x?X-Amz-Signature=0","product":"bess","version":"1.0.0"}}`,
		`{"interlock":{"manifest":"https://h/m","images":{"controller":"https://h/i"}}}`,
		`{"interlock":{"bundle":"${aws:iot:s3-presigned-url:https://b/k}"}}`, `{"interlock":null}`, `{"interlock":[]}`, `null`, `{}`, `[]`, ``,
		`{"afr_ota":{"protocols":["MQTT"],"streamname":"s","files":[{"filepath":"/a","filesize":"1","fileid":0,"certfile":"c","sig-sha256-rsa":"AAAA"}]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, j []byte) {
		d, err := parseDocument(j, false)
		if err != nil {
			if len(err.Error()) > 2000 || strings.Contains(err.Error(), "X-Amz-Signature") {
				t.Errorf("an error of %d bytes: %.200q", len(err.Error()), err.Error())
			}
			return
		}
		ways := 0
		for _, has := range []bool{d.bundle != "", d.manifest != "", d.afr != nil} {
			if has {
				ways++
			}
		}
		if ways != 1 {
			t.Errorf("%d ways to the release, want 1: %+v", ways, d)
		}
		for _, u := range append([]string{d.bundle, d.manifest}, values(d.images)...) {
			if u != "" && (!strings.HasPrefix(strings.ToLower(u), "https://") || strings.Contains(u, "${aws:iot:")) {
				t.Errorf("address %q was taken", u)
			}
		}
	})
}

func values(m map[string]string) (vs []string) {
	for _, v := range m {
		vs = append(vs, v)
	}
	return vs
}

// A broker can say anything on any topic: what it was not asked for changes nothing, and
// what it was is sound.
func FuzzAnswer(f *testing.F) {
	const prefix = "$aws/things/x/jobs"
	f.Add(prefix+"/$next/get/accepted", []byte(`{"clientToken":"t","timestamp":1,"execution":{"jobId":"j","status":"QUEUED","queuedAt":1,"versionNumber":1,"executionNumber":1,"jobDocument":{"interlock":{}}}}`))
	f.Add(prefix+"/j/update/rejected", []byte(`{"clientToken":"t","code":"VersionMismatch","message":"m","executionState":{"status":"QUEUED","versionNumber":1}}`))
	f.Add(prefix+"/j/get/accepted", []byte(`{"clientToken":"t","execution":{"jobId":"../../x","status":"QUEUED","versionNumber":1,"executionNumber":1}}`))
	f.Add(prefix+"/j/get/accepted", []byte(`{"clientToken":"t","execution":{"jobId":"j","status":"IN_PROGRESS","versionNumber":1,"executionNumber":1,"jobDocument":"{\"a\":1}"}}`))
	f.Add(prefix+"/j/get/accepted", []byte(`[]`))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		s := &service{line: &line{log: slog.New(slog.DiscardHandler)}, prefix: prefix, waiting: map[string]question{}}
		q := question{prefix + "/$next/get", make(chan answer, 1)}
		s.waiting["t"] = q
		s.receive(topic, payload)
		select {
		case a := <-q.answer:
			if want := prefix + "/$next/get/"; !strings.HasPrefix(topic, want) || a.Token != "t" {
				t.Errorf("an answer on %q with token %q was taken", topic, a.Token)
			}
			if x := a.Execution; x != nil && (!jobName.MatchString(x.JobID) || x.VersionNumber < 1 || x.ExecutionNumber < 1) {
				t.Errorf("an execution was taken: %+v", x)
			}
		default:
			if len(s.waiting) != 1 {
				t.Error("the question is gone without an answer")
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	b, _ := json.Marshal(record{Format: 1, Hand: &hand{key: key{"j", 1, 2}, Digest: "d", Started: true,
		Final: &final{Status: failed, Details: map[string]string{"a": "b"}, Report: "r"}}, Ended: []ended{{key: key{"k", 1, 1}}}, Withdrawn: "w"})
	f.Add(b)
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"hand":{"job":"../x","execution":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		r2, err := parseRecord(again)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v\n%s", err, again)
		}
		if third, _ := json.Marshal(r2); !bytes.Equal(again, third) {
			t.Errorf("it changes:\n%s\n%s", again, third)
		}
	})
}

// The record of the first version of this package is read for ever.
func TestGoldenRecord(t *testing.T) {
	r, err := parseRecord([]byte(`{"format":1,"hand":{"job":"job-1","execution":2,"queued_at":3,"digest":"aa","release":"1.1.0","afr":true,"staged":true,"started":true,` +
		`"final":{"status":"FAILED","details":{"reason":"r"},"report":"id"}},"ended":[{"job":"job-0","execution":1,"digest":"bb","status":"SUCCEEDED"}],"withdrawn":"cc"}`))
	if err != nil {
		t.Fatal(err)
	}
	h := r.Hand
	if h.Job != "job-1" || h.Execution != 2 || h.QueuedAt != 3 || h.Digest != "aa" || h.Release != "1.1.0" || !h.AFR || !h.Staged || !h.Started ||
		h.Final.Status != "FAILED" || h.Final.Details["reason"] != "r" || h.Final.Report != "id" || r.Withdrawn != "cc" ||
		len(r.Ended) != 1 || r.Ended[0].Job != "job-0" || r.Ended[0].Status != "SUCCEEDED" || r.Ended[0].Digest != "bb" {
		t.Errorf("got %+v with %+v", r, h)
	}
}

// canned is a connection that has these bytes to read.
type canned struct {
	net.Conn
	io.Reader
}

func (c canned) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (canned) Close() error                 { return nil }

// No packet of a broker makes the device hold more than maxPacket bytes, in whatever
// pieces it comes.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0}, 3)
	f.Add([]byte{0xd0, 0, 0x30, 5, 0, 1, 'a', 0, 'x', 0x20, 0xff, 0xff, 0xff, 0xff, 0x01}, 1)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		var r io.Reader = bytes.NewReader(b)
		if piece > 0 {
			r = pieces{r, piece}
		}
		guard := &bounded{Conn: canned{Reader: r}}
		for range len(b) + 1 {
			p, err := packets.ReadPacket(guard)
			if err != nil {
				break
			}
			if n := p.PacketID(); n > 0xffff {
				t.Errorf("packet %d", n)
			}
		}
		if guard.length > maxPacket && guard.left > 0 {
			t.Errorf("a packet of %d bytes was let through", guard.length)
		}
	})
}

// pieces returns at most n bytes for each Read.
type pieces struct {
	io.Reader
	n int
}

func (p pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.n)]) }

func TestBounded(t *testing.T) {
	for _, tt := range []struct {
		name string
		size []byte
		ok   bool
	}{
		{"the largest", []byte{0x80, 0xa0, 0x08}, true},             // 135168
		{"one more", []byte{0x81, 0xa0, 0x08}, false},               //
		{"268 MB", []byte{0xff, 0xff, 0xff, 0x7f}, false},           //
		{"five bytes", []byte{0x80, 0x80, 0x80, 0x80, 0x01}, false}, // not MQTT
	} {
		body := bytes.Repeat([]byte{0}, maxPacket+1)
		b := &bounded{Conn: canned{Reader: bytes.NewReader(append(append([]byte{0x30}, tt.size...), body...))}}
		_, err := io.CopyN(io.Discard, b, int64(1+len(tt.size)+maxPacket))
		if (err == nil) != tt.ok {
			t.Errorf("%s: got %v, want it let through: %v", tt.name, err, tt.ok)
		}
	}
}

// Only what the service says clearly ends an execution: what was to be said of it is not said
// any more then.
func TestGone(t *testing.T) {
	for _, tt := range []struct {
		refusal string
		want    bool
	}{
		{`{"code":"ResourceNotFound"}`, true},
		{`{"code":"TerminalStateReached"}`, true},
		{`{"code":"InvalidStateTransition","executionState":{"status":"CANCELED","versionNumber":3}}`, true},
		{`{"code":"VersionMismatch","executionState":{"status":"TIMED_OUT"}}`, true},
		{`{"code":"VersionMismatch","executionState":{"status":"IN_PROGRESS","versionNumber":3}}`, false},
		{`{"code":"VersionMismatch","executionState":{"versionNumber":3}}`, false},
		{`{"code":"RequestThrottled","executionState":{}}`, false},
		{`{"code":"InvalidRequest","executionState":{"status":"PAUSED"}}`, false},
		{`{"code":"InternalError"}`, false},
		{`{}`, false},
	} {
		a, err := parseAnswer([]byte(tt.refusal))
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Refused{a.Code, a.Message, a.State}).gone(); got != tt.want {
			t.Errorf("%s: gone %v, want %v", tt.refusal, got, tt.want)
		}
	}
}

// A broker that sends what cannot be used does not fill the log.
func TestDroppedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &service{line: &line{log: slog.New(slog.NewTextHandler(&log, nil))}, prefix: "p", waiting: map[string]question{}}
		for range 120 {
			for range 1000 {
				s.receive("p/job-1/get/accepted", []byte("{"))
			}
			time.Sleep(time.Second)
		}
		if got := strings.Count(log.String(), "\n"); got != 2 {
			t.Errorf("%d lines for 120000 messages in two minutes, want 2", got)
		}
		if want := "count=60000"; !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %s:\n%s", want, log.String())
		}
	})
}
