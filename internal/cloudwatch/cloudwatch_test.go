package cloudwatch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/internal/cloudwatch"
	"github.com/interlock-energy/ota/otatest"
)

func spooled(disk *otatest.Disk) func(*cloudwatch.Config) {
	return func(c *cloudwatch.Config) { c.FS, c.Dir = disk, "/var/spool/log" }
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if reflect.DeepEqual(got, want) { // much faster
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: got + want -\n%s", what, d)
	}
}

// TestUpload logs for half an hour and finds every line once, in order.
func TestUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := open(t, config(f, spooled(otatest.NewDisk())))
		end := running(t, w)
		log := logger(w).With("device", 7)
		log.Debug("not wanted")
		for i := range 1800 {
			log.Info(fmt.Sprintf("line %d", i), "n", i)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := len(f.sizes); n < 5 || n > 7 {
			t.Errorf("got %d batches in half an hour, want about 6", n)
		}
		closed(t, end)
		same(t, "lines", f.messages(), numbered(0, 1800))
		want := cloudwatch.Status{Sent: 1800}
		same(t, "status", w.Status(), want)
		log.Info("late")
		if got := w.Status().Dropped; got != 1 {
			t.Errorf("after Close: got %d dropped, want 1", got)
		}
	})
}

// TestCreate is the first upload of a device, with and without the group.
func TestCreate(t *testing.T) {
	for _, tt := range []struct {
		create, group bool
		want          string
	}{
		{false, true, "PutLogEvents ResourceNotFoundException, CreateLogStream, PutLogEvents"},
		{true, false, "PutLogEvents ResourceNotFoundException, CreateLogStream ResourceNotFoundException, CreateLogGroup, CreateLogStream, PutLogEvents"},
		{false, false, "PutLogEvents ResourceNotFoundException, CreateLogStream ResourceNotFoundException"},
	} {
		f := newFake(t)
		f.groups["/bess/logs"] = tt.group
		cfg := config(f, func(c *cloudwatch.Config) { c.CreateGroup, c.Now = tt.create, time.Now })
		w := open(t, cfg)
		logger(w).Info("line 0")
		err := w.Close(t.Context())
		if got := f.took(); got != tt.want {
			t.Errorf("create %v, group %v: got %s, want %s", tt.create, tt.group, got, tt.want)
		}
		if made := tt.create || tt.group; made != (err == nil) {
			t.Errorf("create %v, group %v: got %v", tt.create, tt.group, err)
		} else if !made && !strings.Contains(err.Error(), "create the log group /bess/logs, or let the agent do it") {
			t.Errorf("got %v, want a hint", err)
		}
	}
}

// TestOffline is a device without a network for three days and two restarts.
func TestOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disk := newFake(t), otatest.NewDisk()
		f.fault = offline
		for life := range 3 {
			var states []error
			w := open(t, config(f, spooled(disk), func(c *cloudwatch.Config) { c.Changed = func(err error) { states = append(states, err) } }))
			end := running(t, w)
			for i := range 24 {
				logger(w).Info(fmt.Sprintf("line %d", life*24+i))
				time.Sleep(time.Hour)
			}
			closed(t, end) // nothing is lost: it is on disk
			if len(states) != 1 || !errors.Is(states[0], errCable) {
				t.Errorf("Changed: got %v, want one error", states)
			}
			if got, want := w.Status().Spooled, (life+1)*24; got != want {
				t.Errorf("spooled: got %d, want %d", got, want)
			}
		}
		f.set(func() { f.fault = nil })
		w := open(t, config(f, spooled(disk)))
		end := running(t, w)
		time.Sleep(5*time.Minute + time.Second)
		same(t, "lines", f.messages(), numbered(0, 72))
		closed(t, end)
		if got := files(t, disk); len(got) != 0 {
			t.Errorf("files: got %v, want none", got)
		}
		if len(f.sizes) > 6 {
			t.Errorf("batches: got %d for three days, want at most 6", len(f.sizes))
		}
	})
}

func files(t testing.TB, disk *otatest.Disk) (names []string) {
	t.Helper()
	entries, err := disk.ReadDir("/var/spool/log")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestSpoolFull: the disk is bounded, the oldest lines go, and the log says so.
func TestSpoolFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disk := newFake(t), otatest.NewDisk()
		f.fault = offline
		w := open(t, config(f, spooled(disk), func(c *cloudwatch.Config) { c.MaxSpool = 256 << 10 }))
		end := running(t, w)
		for i := range 1000 {
			logger(w).Info(fmt.Sprintf("line %d", i), "x", strings.Repeat("x", 1000))
			time.Sleep(time.Second)
			if s := w.Status(); s.SpooledSize > 256<<10 {
				t.Fatalf("spool: got %d bytes", s.SpooledSize)
			}
		}
		f.set(func() { f.fault = nil })
		time.Sleep(15 * time.Minute)
		closed(t, end)
		got := f.messages()
		var notices int
		lines := slices.DeleteFunc(slices.Clone(got), func(m string) bool {
			missing := m == "log lines are missing before this one"
			if missing {
				notices++
			}
			return missing
		})
		dropped := int(w.Status().Dropped)
		if dropped < 500 || dropped > 900 || notices == 0 {
			t.Errorf("got %d dropped and %d notices", dropped, notices)
		}
		// Notices may be dropped like all else, and are counted then.
		first := 1000 - len(lines)
		if first > dropped || first < dropped-20 {
			t.Errorf("got %d lines missing, and %d counted", first, dropped)
		}
		same(t, "lines", lines, numbered(first, 1000))
		last := ""
		for _, l := range f.streams["/bess/logs:bess-7"] {
			if strings.Contains(l.Message, "missing before") {
				last = l.Message
			}
		}
		if want := fmt.Sprintf(`"dropped_in_all":%d,"dropped":{"the spool on disk was full":`, dropped); !strings.Contains(last, want) {
			t.Errorf("notice: got %s, want %s", last, want)
		}
	})
}

// TestQueueFull: errors outlive what is no error, and nothing blocks.
func TestQueueFull(t *testing.T) {
	f := newFake(t)
	w := open(t, config(f)) // nobody runs it
	for i := range 6000 {
		level := slog.LevelInfo
		if i%100 == 0 {
			level = slog.LevelError
		}
		logger(w).Log(t.Context(), level, fmt.Sprintf("line %d", i))
	}
	if s := w.Status(); s.Queued != 4096 || s.Dropped != 6000-4096 {
		t.Errorf("got %d queued, %d dropped, want 4096 and 1904", s.Queued, s.Dropped)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	got := f.messages()
	for i := 0; i < 6000; i += 100 {
		if !slices.Contains(got, fmt.Sprintf("line %d", i)) {
			t.Errorf("error %d is missing", i)
		}
	}
	if !slices.Contains(got, "line 5999") || slices.Contains(got, "line 1") {
		t.Error("the newest line is missing, or the oldest is not")
	}
}

// TestQueueBytes: a few long lines are bounded, too.
func TestQueueBytes(t *testing.T) {
	w := open(t, config(newFake(t)))
	for range 20 {
		logger(w).Info(strings.Repeat("x", 60_000))
	}
	if s := w.Status(); s.Queued != 17 || s.Dropped != 3 || s.Held > 1<<20 {
		t.Errorf("got %+v, want 17 lines of 60 kB in 1 MiB", s)
	}
}

// TestOrder: errors and others come out in the order they went in.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := open(t, config(f))
		for i := range 100 { // all in the same millisecond
			logger(w).Log(t.Context(), slog.Level(8*(i/3%2)), fmt.Sprintf("line %d", i))
		}
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
		same(t, "lines", f.messages(), numbered(0, 100))
	})
}

// TestSoonOnDisk: what a power cut can take is what was said.
func TestSoonOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.fault = offline
		w := open(t, config(f, spooled(otatest.NewDisk())))
		end := running(t, w)
		for i := range 20 {
			time.Sleep(31 * time.Second)
			logger(w).Info("line")
			time.Sleep(30 * time.Second)
			synctest.Wait()
			if got := w.Status().Spooled; got != 2*i+1 {
				t.Errorf("after 30 s: got %d lines on disk, want %d", got, 2*i+1)
			}
			logger(w).Error("error")
			time.Sleep(time.Second)
			synctest.Wait()
			if got := w.Status().Spooled; got != 2*i+2 {
				t.Errorf("after 1 s: got %d lines on disk, want %d", got, 2*i+2)
			}
		}
		closed(t, end)
	})
}

// TestFleet: devices that get their power back together do not come together.
func TestFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var early atomic.Int64
		begin := time.Now()
		var ends []func(time.Duration) error
		for range 100 {
			f := newFake(t)
			f.fault = func(n int, _ string, _ []line) (*http.Response, bool, error) {
				if n == 0 && time.Since(begin) < 30*time.Second {
					early.Add(1)
				}
				return nil, true, nil
			}
			w := open(t, config(f))
			logger(w).Info("booted")
			ends = append(ends, running(t, w))
		}
		time.Sleep(5 * time.Minute)
		if n := early.Load(); n > 30 { // 10 are to be expected
			t.Errorf("got %d of 100 devices in the first tenth of the time", n)
		}
		for _, end := range ends {
			closed(t, end)
		}
	})
}

// TestNobodyWaits has everything hang for ever: server, disk and credentials.
func TestNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		for what, change := range map[string]func(*cloudwatch.Config, *fakeLogs, *otatest.Disk){
			"server": func(_ *cloudwatch.Config, f *fakeLogs, _ *otatest.Disk) { f.hang = true },
			"disk": func(_ *cloudwatch.Config, _ *fakeLogs, d *otatest.Disk) {
				d.OnEffect = func(int, string) otatest.Fault { <-forever; return otatest.Fault{} }
			},
			"credentials": func(c *cloudwatch.Config, _ *fakeLogs, _ *otatest.Disk) {
				c.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
					<-forever
					return aws.Credentials{}, errors.New("no")
				})
			},
		} {
			f, disk := newFake(t), otatest.NewDisk()
			w := open(t, config(f, spooled(disk), func(c *cloudwatch.Config) { change(c, f, disk) }))
			go w.Run(context.Background())
			time.Sleep(20 * time.Minute) // it hangs
			begin := time.Now()
			for i := range 10_000 {
				logger(w).Error(fmt.Sprintf("line %d", i))
			}
			if took := time.Since(begin); took != 0 { // in a bubble time only goes on when everybody waits
				t.Errorf("%s: logging took %v", what, took)
			}
			begin = time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			err := w.Close(ctx)
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("%s: Close took %v, want 3 s at most", what, took)
			}
			if what == "disk" && err == nil {
				t.Errorf("%s: Close: got no error, and lines are lost", what)
			}
			if s := w.Status(); s.Dropped < 10_000-2*4096 || s.Queued > 4096 {
				t.Errorf("%s: got %+v", what, s)
			}
			cancel()
		}
		close(forever)
	})
}

// TestClock wakes up in 1970, and is set after an hour, once in this life and once
// in the next.
func TestClock(t *testing.T) {
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, disk := newFake(t), otatest.NewDisk()
			booted := time.Now()
			var set atomic.Bool
			cfg := config(f, spooled(disk), func(c *cloudwatch.Config) {
				c.Now = func() time.Time {
					if set.Load() {
						return time.Now()
					}
					return time.Unix(100, 0).Add(time.Since(booted))
				}
			})
			w := open(t, cfg)
			end := running(t, w)
			for i := range 60 {
				logger(w).Info(fmt.Sprintf("line %d", i))
				if i == 30 {
					w.PutMetrics(cloudwatch.Metrics{Namespace: "N", Values: []cloudwatch.Metric{{Name: "soc", Value: 50}}})
				}
				time.Sleep(time.Minute)
			}
			if got := f.took(); got != "" {
				t.Errorf("got %s before the clock is right", got)
			}
			if restart {
				if err := end(time.Minute); err != nil {
					t.Error(err)
				}
				w = open(t, cfg)
				end = running(t, w)
			}
			began := time.Now()
			set.Store(true)
			logger(w).Info("line 60")
			time.Sleep(6 * time.Minute)
			closed(t, end)
			lines := f.streams["/bess/logs:bess-7"]
			if len(lines) != 62 {
				t.Fatalf("got %d lines, want 62", len(lines))
			}
			if !strings.Contains(lines[0].Message, `"clock_was":"1970-01-01T00:01:40Z"`) || strings.Contains(lines[61].Message, "clock_was") {
				t.Errorf("got %s and %s", lines[0].Message, lines[61].Message)
			}
			got, want := time.UnixMilli(lines[0].Timestamp), booted
			if restart { // the last one not later than the new life
				want = began.Add(-59 * time.Minute)
			}
			if d := got.Sub(want).Abs(); d > time.Second {
				t.Errorf("restart %v: line 0 is of %v, want %v", restart, got, want)
			}
			emf := lines[31].Message
			if !strings.HasPrefix(emf, `{"_aws":{"Timestamp":`) || !strings.Contains(emf, "clock_was") {
				t.Errorf("figures: got %s", emf)
			}
			if stamp := fmt.Sprintf(`"Timestamp":%d,`, lines[31].Timestamp); !restart && !strings.Contains(emf, stamp) {
				t.Errorf("figures: got %s, want %s", emf, stamp)
			}
		})
	}
}

// TestTooOldTooNew: what CloudWatch would not take is counted, and not sent.
func TestTooOldTooNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disk := newFake(t), otatest.NewDisk()
		f.fault = offline
		var ahead atomic.Int64
		w := open(t, config(f, spooled(disk), func(c *cloudwatch.Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		}))
		end := running(t, w)
		logger(w).Info("line 0")
		time.Sleep(15 * 24 * time.Hour)
		logger(w).Info("line 1")
		ahead.Store(int64(30 * 24 * time.Hour))
		logger(w).Info("line 2")
		ahead.Store(0)
		f.set(func() { f.fault = nil })
		time.Sleep(16 * time.Minute)
		got := slices.DeleteFunc(f.messages(), func(m string) bool { return strings.HasPrefix(m, "log lines are missing") })
		same(t, "lines", got, []string{"line 1"})
		if d := w.Status().Dropped; d != 2 {
			t.Errorf("dropped: got %d, want 2", d)
		}
		closed(t, end)
		all := fmt.Sprint(f.streams["/bess/logs:bess-7"])
		for _, want := range []string{`"older than CloudWatch takes":1`, `"further in the future than CloudWatch takes":1`} {
			if !strings.Contains(all, want) {
				t.Errorf("got %s, want %s", all, want)
			}
		}
	})
}

// TestLimits logs at random lengths and times, and lets the fake check all limits.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(1) {
			f := newFake(t)
			r := rand.New(rand.NewPCG(seed, 1))
			w := open(t, config(f, spooled(otatest.NewDisk()), func(c *cloudwatch.Config) { c.MaxSpool = 64 << 20 }))
			end := running(t, w)
			n := 0
			for range 250 {
				switch r.IntN(20) {
				case 0: // a storm, as much as the queue takes
					for range 4000 {
						logger(w).Warn(fmt.Sprintf("line %d", n))
						n++
					}
				case 1:
					logger(w).Info(fmt.Sprintf("line %d", n), "x", strings.Repeat("ö", r.IntN(40_000)))
					n++
				case 2:
					f.set(func() { f.fault = offline })
				case 3:
					f.set(func() { f.fault = nil })
				case 4:
					time.Sleep(time.Duration(r.Int64N(int64(30 * time.Hour))))
				}
				logger(w).Info(fmt.Sprintf("line %d", n))
				n++
				time.Sleep(time.Duration(r.Int64N(int64(time.Minute))))
				if w.Status().Dropped > 0 {
					t.Fatalf("seed %d: got %+v", seed, w.Status())
				}
				if r.IntN(10) == 0 {
					time.Sleep(time.Minute) // or the queue could be full
				}
			}
			f.set(func() { f.fault = nil })
			time.Sleep(time.Hour)
			closed(t, end)
			same(t, "lines", f.messages(), numbered(0, n))
		}
	})
}

// TestCut: a line that is too long is cut at a rune; bytes that are no text are
// replaced.
func TestCut(t *testing.T) {
	f := newFake(t)
	w := open(t, config(f, func(c *cloudwatch.Config) { c.Now = time.Now }))
	logger(w).Info(strings.Repeat("ö", 200_000))
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	got := f.streams["/bess/logs:bess-7"][0].Message
	if len(got) > 256<<10-26 || len(got) < 256<<10-30 || !utf8.ValidString(got) || !strings.HasSuffix(got, "ö... (cut, it has 400") && !strings.Contains(got[len(got)-40:], "ö... (cut, it has 400") {
		t.Errorf("got %d bytes, end %q", len(got), got[len(got)-40:])
	}
}

// TestSecrets: AWS explains a wrong signature by what was signed.
func TestSecrets(t *testing.T) {
	for _, res := range []*http.Response{
		failure(403, "InvalidSignatureException", "The Canonical String should have been\nx-amz-security-token:long+token"),
		failure(400, "AccessDeniedException", "token long+token, key very/secret\nsecond line"),
	} {
		f := newFake(t)
		f.fault = func(int, string, []line) (*http.Response, bool, error) { return res, false, nil }
		w := open(t, config(f, func(c *cloudwatch.Config) { c.Now = time.Now }))
		logger(w).Info("line 0")
		err := w.Close(t.Context())
		if err == nil || strings.Contains(err.Error(), "long+token") || strings.Contains(err.Error(), "very/secret") {
			t.Errorf("got %v, want an error without secrets", err)
		}
	}
}

// TestNoLoop: what is told about failures may be logged through the writer itself.
func TestNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.fault = offline
		var log *slog.Logger
		w := open(t, config(f, spooled(otatest.NewDisk()), func(c *cloudwatch.Config) {
			c.Changed = func(err error) { log.Error("CloudWatch", "err", err) }
		}))
		log = logger(w)
		end := running(t, w)
		log.Info("line 0")
		time.Sleep(24 * time.Hour)
		if s := w.Status(); s.Spooled+s.Queued != 2 {
			t.Errorf("got %+v, want 2 lines: ours, and one that it does not work", s)
		}
		closed(t, end)
	})
}

// TestCloseInFlight closes during an upload that takes its time: its lines are sent
// once, not twice and not never. If there is not the time, they are sent later.
func TestCloseInFlight(t *testing.T) {
	for _, tt := range []struct {
		what  string
		disk  bool          // or is it broken
		limit time.Duration // of Close; the answer takes 20 s
		sent  int
	}{
		{"disk", true, 2 * time.Minute, 10},
		{"no disk", false, 2 * time.Minute, 10},
		{"disk, no time", true, time.Second, 0},
		{"no disk, no time", false, time.Second, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			f, disk := newFake(t), otatest.NewDisk()
			slow := &slowTransport{f, 20 * time.Second}
			if !tt.disk {
				disk.OnEffect = func(int, string) otatest.Fault { return otatest.Fault{Err: syscall.EROFS} }
			}
			cfg := config(f, spooled(disk), func(c *cloudwatch.Config) {
				c.Client, c.Every = &http.Client{Transport: slow}, 10*time.Second
			})
			w := open(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- w.Run(ctx) }()
			for i := range 10 {
				logger(w).Info(fmt.Sprintf("line %d", i))
			}
			time.Sleep(15 * time.Second) // it is under way
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			ctx, cancel = context.WithTimeout(t.Context(), tt.limit)
			defer cancel()
			err := w.Close(ctx)
			if lost := !tt.disk && tt.sent == 0; lost != (err != nil) {
				t.Errorf("%s: got %v", tt.what, err)
			}
			synctest.Wait()
			same(t, tt.what, f.messages(), numbered(0, tt.sent))
			if tt.disk {
				if got := files(t, disk); (len(got) == 0) != (tt.sent == 10) {
					t.Errorf("%s: got files %v", tt.what, got)
				}
				w = open(t, cfg)
				if err := w.Close(t.Context()); err != nil {
					t.Error(err)
				}
				same(t, tt.what, f.messages(), numbered(0, 10))
			}
		})
	}
}

// slowTransport is a fake that is slow before and fast after.
type slowTransport struct {
	next  http.RoundTripper
	delay time.Duration
}

func (s *slowTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-time.After(s.delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return s.next.RoundTrip(r)
}

func TestOpenRefuses(t *testing.T) {
	for want, change := range map[string]func(*cloudwatch.Config){
		"log group":   func(c *cloudwatch.Config) { c.Group = "a b" },
		"log stream":  func(c *cloudwatch.Config) { c.Stream = "a:b" },
		"region":      func(c *cloudwatch.Config) { c.Region = "" },
		"credentials": func(c *cloudwatch.Config) { c.Credentials = nil },
		"endpoint":    func(c *cloudwatch.Config) { c.Endpoint = "logs.eu-central-1.amazonaws.com" },
		"retention":   func(c *cloudwatch.Config) { c.Retention = 2 },
		"spool":       func(c *cloudwatch.Config) { c.MaxSpool = 1000 },
	} {
		if _, err := cloudwatch.Open(config(newFake(t), change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want one about %s", err, want)
		}
	}
}

// TestHandlerGroups finds attributes and groups where package slog puts them.
func TestHandlerGroups(t *testing.T) {
	f := newFake(t)
	w := open(t, config(f, func(c *cloudwatch.Config) { c.Now, c.Level = time.Now, slog.LevelDebug }))
	log := slog.New(w.Handler()).With("a", 1).WithGroup("g").With("b", 2)
	log.Debug("line 0", "c", 3)
	log.Error("line 1", "c", 3)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range f.streams["/bess/logs:bess-7"] {
		if want := `"a":1,"g":{"b":2,"c":3}}`; !bytes.HasSuffix([]byte(l.Message), []byte(want)) {
			t.Errorf("got %s, want %s", l.Message, want)
		}
	}
}
