package cloudwatch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/cloudwatch"
	"github.com/interlock-energy/ota/otatest"
)

// TestDiskFull: lines are sent all the same, and go to disk when there is room.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disk := newFake(t), otatest.NewDisk()
		var full atomic.Bool
		full.Store(true)
		disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if full.Load() && strings.HasPrefix(effect, "write") {
				return otatest.Fault{Err: syscall.ENOSPC, Short: 11}
			}
			return otatest.Fault{}
		}
		w := open(t, config(f, spooled(disk)))
		end := running(t, w)
		for i := range 100 {
			logger(w).Info(fmt.Sprintf("line %d", i))
			time.Sleep(10 * time.Second)
		}
		if s := w.Status(); !errors.Is(s.SpoolErr, syscall.ENOSPC) || s.Err != nil || s.Sent < 60 {
			t.Errorf("got %+v", s)
		}
		full.Store(false)
		f.set(func() { f.fault = offline })
		for i := 100; i < 200; i++ {
			logger(w).Info(fmt.Sprintf("line %d", i))
			time.Sleep(10 * time.Second)
		}
		if s := w.Status(); s.SpoolErr != nil || s.Spooled < 90 {
			t.Errorf("got %+v", s)
		}
		f.set(func() { f.fault = nil })
		closed(t, end)
		same(t, "lines", f.messages(), numbered(0, 200))
	})
}

// TestFaults are answers that are no success, each with what follows.
func TestFaults(t *testing.T) {
	type fault = func(n int, operation string, events []line) (*http.Response, bool, error)
	once := func(do bool, res *http.Response, err error) fault {
		return func(n int, _ string, _ []line) (*http.Response, bool, error) {
			if n > 0 {
				return nil, true, nil
			}
			return res, do, err
		}
	}
	zero := 0
	for _, tt := range []struct {
		name  string
		fault fault
		want  string // requests
		lines int    // of 10
	}{
		{"throttled", once(false, failure(400, "ThrottlingException", "Rate exceeded"), nil), "PutLogEvents ThrottlingException, PutLogEvents", 10},
		{"unavailable", once(false, failure(503, "ServiceUnavailableException", ""), nil), "PutLogEvents ServiceUnavailableException, PutLogEvents", 10},
		{"no answer", once(false, nil, errCable), "PutLogEvents connection, PutLogEvents", 10},
		{"accepted already", once(true, failure(400, "DataAlreadyAcceptedException", "given"), nil), "PutLogEvents DataAlreadyAcceptedException", 10},
		{"token", once(false, answer(400, map[string]string{"__type": "InvalidSequenceTokenException", "expectedSequenceToken": "7"}), nil), "PutLogEvents InvalidSequenceTokenException, PutLogEvents", 10},
		{"expired", once(false, failure(400, "ExpiredTokenException", "expired"), nil), "PutLogEvents ExpiredTokenException, PutLogEvents", 10},
		{"no gzip", once(false, failure(400, "SerializationException", ""), nil), "PutLogEvents SerializationException, PutLogEvents", 10},
		{"portal", once(false, answer(302, "see other"), nil), "PutLogEvents, PutLogEvents", 10},
		{"rejected", once(false, answer(200, map[string]any{"rejectedLogEventsInfo": map[string]*int{"tooNewLogEventStartIndex": &zero}}), nil), "PutLogEvents", 0},
		{"denied", once(false, failure(400, "AccessDeniedException", "not allowed"), nil), "PutLogEvents AccessDeniedException, PutLogEvents", 10},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			f.streams["/bess/logs:bess-7"] = []line{}
			f.fault = tt.fault
			renewed := &renewable{}
			w := open(t, config(f, spooled(otatest.NewDisk()), func(c *cloudwatch.Config) { c.Credentials = renewed }))
			end := running(t, w)
			for i := range 10 {
				logger(w).Info(fmt.Sprintf("line %d", i), "x", strings.Repeat("x", 200))
			}
			time.Sleep(7 * time.Minute)
			got := f.took()
			if tt.lines < 10 { // the second upload, with a notice, may have come
				got = strings.TrimSuffix(got, ", PutLogEvents")
			}
			if got != tt.want {
				t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
			}
			lines := slices.DeleteFunc(f.messages(), func(m string) bool { return !strings.HasPrefix(m, "line") })
			same(t, tt.name, append([]string(nil), lines...), numbered(0, tt.lines))
			if got := int(w.Status().Dropped); got != 10-tt.lines {
				t.Errorf("%s: got %d dropped, want %d", tt.name, got, 10-tt.lines)
			}
			if want := tt.name == "expired"; (renewed.times > 0) != want {
				t.Errorf("%s: credentials renewed %d times", tt.name, renewed.times)
			}
			f.set(func() { f.fault = nil })
			closed(t, end)
		})
	}
}

type renewable struct{ times int }

func (r *renewable) Retrieve(ctx context.Context) (aws.Credentials, error) {
	return credentials.Retrieve(ctx)
}
func (r *renewable) Invalidate() { r.times++ }

// TestNoZip: a server that does not take compressed bodies gets others.
func TestNoZip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.noZip, f.streams["/bess/logs:bess-7"] = true, []line{}
		w := open(t, config(f))
		for i := range 100 {
			logger(w).Info(fmt.Sprintf("line %d", i))
		}
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got, want := f.took(), "PutLogEvents SerializationException, PutLogEvents"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// TestHangEnds: a server that has hung is asked again.
func TestHangEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.hang = true
		w := open(t, config(f, spooled(otatest.NewDisk())))
		end := running(t, w)
		logger(w).Info("line 0")
		time.Sleep(time.Hour)
		f.set(func() { f.hang = false })
		time.Sleep(12 * time.Minute)
		same(t, "lines", f.messages(), numbered(0, 1))
		closed(t, end)
	})
}

// TestStorm: when much waits, the next upload is not waited for.
func TestStorm(t *testing.T) {
	for _, disk := range []*otatest.Disk{otatest.NewDisk(), nil} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			w := open(t, config(f, func(c *cloudwatch.Config) {
				c.Every = 10_000 * time.Hour
				if disk != nil {
					spooled(disk)(c)
				}
			}))
			end := running(t, w)
			for range 700 {
				logger(w).Info(strings.Repeat("x", 1000))
			}
			time.Sleep(31 * time.Second)
			if got := w.Status().Sent; got < 400 {
				t.Errorf("disk %v: got %d lines sent, want most of 700", disk != nil, got)
			}
			closed(t, end)
		})
	}
}

// TestUnreadable: a segment that cannot be read is given up in the end, and counted.
func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disk := newFake(t), otatest.NewDisk()
		f.fault = offline
		var broken atomic.Bool
		disk.OnRead = func(name string, _ int64, _ []byte) error {
			if broken.Load() && strings.HasSuffix(name, "0000.log") {
				return syscall.EIO
			}
			return nil
		}
		w := open(t, config(f, spooled(disk)))
		end := running(t, w)
		logger(w).Info("line 0")
		time.Sleep(6 * time.Minute) // its segment is complete, because sending it was tried
		logger(w).Info("line 1")
		time.Sleep(time.Minute)
		broken.Store(true)
		f.set(func() { f.fault = nil })
		time.Sleep(time.Hour)
		closed(t, end)
		got := f.messages()
		if len(got) != 2 || got[0] != "line 1" || !strings.Contains(fmt.Sprint(f.streams), `"dropped":{"the spool on disk could not be read":1}`) {
			t.Errorf("got %q", got)
		}
	})
}

// TestDiskComesBack while lines are being sent from memory: they are sent once.
func TestDiskComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disk := newFake(t), otatest.NewDisk()
		var broken atomic.Bool
		broken.Store(true)
		disk.OnEffect = func(int, string) otatest.Fault {
			if broken.Load() {
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		w := open(t, config(f, spooled(disk), func(c *cloudwatch.Config) {
			c.Client, c.Every = &http.Client{Transport: &slowTransport{f, 50 * time.Second}}, 10*time.Second
		}))
		end := running(t, w)
		for i := range 60 {
			logger(w).Error(fmt.Sprintf("line %d", i))
			time.Sleep(5 * time.Second)
			broken.Store(i/8%2 == 0)
		}
		if err := end(10 * time.Minute); err != nil {
			t.Error(err)
		}
		same(t, "lines", f.messages(), numbered(0, 60))
	})
}

// TestBackOff: a server that is down for a day is not stormed, and found soon.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.fault = func(int, string, []line) (*http.Response, bool, error) {
			return failure(503, "ServiceUnavailableException", ""), false, nil
		}
		w := open(t, config(f, spooled(otatest.NewDisk())))
		end := running(t, w)
		for range 24 * 60 {
			logger(w).Error("it is down")
			time.Sleep(time.Minute)
		}
		if n := len(f.requests); n < 24*6 || n > 24*13 {
			t.Errorf("got %d requests in a day, want 6 to 12 an hour", n)
		}
		f.set(func() { f.fault = nil })
		time.Sleep(10 * time.Minute)
		if s := w.Status(); s.Sent < 24*60 || s.Err != nil {
			t.Errorf("got %+v", s)
		}
		closed(t, end)
	})
}

// TestPoison: one line that CloudWatch refuses does not hold up the others.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.fault = func(_ int, _ string, events []line) (*http.Response, bool, error) {
			if slices.ContainsFunc(events, func(l line) bool { return strings.Contains(l.Message, `"line 37"`) }) {
				return failure(400, "InvalidParameterException", "I do not like it"), false, nil
			}
			return nil, true, nil
		}
		w := open(t, config(f, spooled(otatest.NewDisk())))
		end := running(t, w)
		for i := range 100 {
			logger(w).Info(fmt.Sprintf("line %d", i))
		}
		time.Sleep(6 * time.Minute)
		lines := slices.DeleteFunc(f.messages(), func(m string) bool { return !strings.HasPrefix(m, "line ") })
		same(t, "lines", lines, append(numbered(0, 37), numbered(38, 100)...))
		time.Sleep(6 * time.Minute) // with the next upload the log says that one is missing
		if got := f.messages(); got[len(got)-1] != "log lines are missing before this one" {
			t.Errorf("got %q, want a notice", got[len(got)-1])
		}
		closed(t, end)
	})
}
