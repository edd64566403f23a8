package ota_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file"
)

// TestCourseOfATrial: on trial, the time until it is proven counts down while all is well,
// and the time until the device goes back while it is not. Before anybody was asked, nobody
// knows.
func TestCourseOfATrial(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sick   func(up time.Duration) bool
		back   bool // by itself
		person bool // nobody is asked: a person has to confirm
		want   []int64
	}{
		{"well", func(time.Duration) bool { return false }, true, false, []int64{0, 4, 3, 2, 1}},
		{"well at last", func(up time.Duration) bool { return up < 2*time.Second }, true, false, []int64{0, 9, 8, 4, 3, 2, 1}},
		{"never", func(time.Duration) bool { return true }, true, false, []int64{0, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
		{"never, and it stays", func(up time.Duration) bool { return up < 5*time.Second }, false, false, []int64{0, 0, 0, 0, 0, 0, 4, 3, 2, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				var m *ota.Manager
				var up time.Time
				var got []int64
				d.AtStart = func(now *ota.Manager) { m, up = now, time.Now() }
				configure(d, func(c *ota.Config) {
					c.ValidationTime, c.RollbackTimeout, c.NoRollback = 5*time.Second, 10*time.Second, !tt.back
					c.Healthy = func(context.Context) error {
						s := m.Snapshot()
						if s.State != ota.Trial {
							return nil
						}
						got = append(got, s.Course.SecondsLeft)
						if s.Course.Try != 1 || s.Course.ImagesDone != 1 || s.Course.FailedImage != 0 {
							t.Errorf("on trial: got %+v, want the first try, one image and no failure", s.Course)
						}
						if tt.sick(time.Since(up)) {
							return errors.New("no battery")
						}
						return nil
					}
				})
				s := live(t, d)
				if len(got) > len(tt.want) {
					got = got[:len(tt.want)] // the last question comes when the time is over
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("got %v s left at the questions, want %v", got, tt.want)
				}
				if s.Course != (ota.Course{}) {
					t.Errorf("after the end: got %+v, want nothing", s.Course)
				}
			})
		})
	}
}

// TestCourseOfASoak: the same for what follows the trial.
func TestCourseOfASoak(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var m *ota.Manager
		var got []int64
		d.AtStart = func(now *ota.Manager) { m = now }
		configure(d, func(c *ota.Config) {
			c.SoakTime, c.SymptomTime = 5*time.Second, 3*time.Second
			c.Symptom = func(context.Context) error {
				got = append(got, m.Snapshot().Course.SecondsLeft)
				if len(got) > 3 {
					return errors.New("heap grows")
				}
				return nil
			}
		})
		live(t, d)
		if want := []int64{0, 4, 3, 2, 2, 1}; len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("got %v s left at the questions, want %v: until it is over, and from the fifth on until it goes back", got, want)
		}
	})
}

// TestCourseOfARefusal: what a gate knows about its end is told, and nothing is made up.
func TestCourseOfARefusal(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var m *ota.Manager
		var got []int64
		begun := time.Time{}
		d.AtStart = func(now *ota.Manager) { m = now }
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at != ota.BeforeWrite {
					return nil
				}
				if begun.IsZero() {
					begun = time.Now()
				}
				got = append(got, m.Snapshot().Course.SecondsLeft)
				switch up := time.Since(begun); {
				case up < 2*time.Second:
					return &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "hot"}
				case up < 5*time.Second:
					return &ota.Refusal{Reason: "not for long enough", Ready: begun.Add(5*time.Second + time.Millisecond)}
				}
				return nil
			}
		})
		live(t, d)
		if want := []int64{0, 0, 0, 3, 2, 1}; len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("got %v s left at the questions, want %v", got, want)
		}
	})
}

// TestCourseCountsTries: firmware that does not start is tried again, and that is told
// before and after each restart.
func TestCourseCountsTries(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		var m *ota.Manager
		var got []string
		d.AtStart = func(now *ota.Manager) { m = now }
		configure(d, func(c *ota.Config) {
			c.Gate = func(_ context.Context, _ *ota.Manifest, at ota.Moment) error {
				if at != ota.BeforeWrite {
					s := m.Snapshot()
					if text := fmt.Sprint(s.State, s.Course.Try); !slices.Contains(got, text) {
						got = append(got, text)
					}
				}
				return nil
			}
		})
		live(t, d)
		if want := []string{"staged1", "activating1", "staged2", "activating2", "staged3", "activating3"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}, otatest.NewFirmware("1.0.1", 21000, false, false))
}

// twoSlow is a source of two images that needs a second for each chunk, and of which one
// goes wrong.
type twoSlow struct {
	twoImages
	broken string // component
	err    error  // of opening it; nil: other bytes come
	once   bool   // only the first time
}

func (s *twoSlow) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	r, err := s.twoImages.Open(ctx, m, im, offset)
	if im.Component != s.broken {
		return struct {
			io.Reader
			io.Closer
		}{&secondReader{r, int(im.ChunkSize)}, r}, err
	}
	if s.err != nil {
		err = s.err
		if s.once {
			s.broken = ""
		}
		return nil, err
	}
	return io.NopCloser(strings.NewReader(strings.Repeat("x", int(im.Size)))), nil
}

type secondReader struct {
	r     io.Reader
	chunk int
}

func (r *secondReader) Read(p []byte) (int, error) {
	n, err := io.ReadFull(r.r, p[:min(len(p), r.chunk)])
	if n > 0 {
		time.Sleep(time.Second)
		err = nil
	}
	return n, err
}

// TestCourseOfATransfer: which images are there, at which it failed, and how long the rest
// takes at the pace so far.
func TestCourseOfATransfer(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.0.1", 5*otatest.ChunkSize, 3*otatest.ChunkSize)
	for _, tt := range []struct {
		name    string
		source  twoSlow
		left    string // seconds left after each chunk
		done    []int  // images, in the order in which that changed
		attempt int    // image that is told while it is tried again
		end     int    // image in the report
	}{
		{name: "whole", left: "0 6 5 4 3 2 1 0", done: []int{0, 1, 2}},
		{name: "the second is damaged", source: twoSlow{broken: "module1"}, left: "0 6 5 4 3", done: []int{0, 1, 0}, end: 2},
		{name: "the first is damaged", source: twoSlow{broken: "controller"}, done: []int{0}, end: 1},
		{name: "the second cannot be had", source: twoSlow{broken: "module1", err: ota.ErrServer}, left: "0 6 5 4 3", done: []int{0, 1, 0, 1}, attempt: 2},
		{name: "the second cannot be had at first", source: twoSlow{broken: "module1", err: ota.ErrAuthentication, once: true}, left: "0 6 5 4 3 0 1 0",
			done: []int{0, 1, 0, 1, 2}, attempt: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := file.Config{Dir: dir, Capacity: 100_000, BootFile: filepath.Join(dir, "boot"), Components: map[string][2]string{
				"controller": {filepath.Join(dir, "a.controller"), filepath.Join(dir, "b.controller")},
				"module1":    {filepath.Join(dir, "a.module1"), filepath.Join(dir, "b.module1")},
			}, Restart: func(context.Context) error { return nil }}
			if err := file.Format(cfg, map[string]io.Reader{"controller": strings.NewReader("factory"), "module1": strings.NewReader("factory too")}); err != nil {
				t.Fatal(err)
			}
			slots, record := powered(t, cfg, dir)
			defer record.Close()
			synctest.Test(t, func(t *testing.T) {
				var left []string
				var done []int
				attempt, had := 0, int64(0)
				var m *ota.Manager
				look := func() ota.Course {
					c := m.Snapshot().Course
					if len(done) == 0 || done[len(done)-1] != c.ImagesDone {
						done = append(done, c.ImagesDone)
					}
					return c
				}
				source := tt.source
				source.release = release
				m, err := ota.New(ota.Config{Product: "bess", Version: "1.0.0", Source: &source, Verify: release.Verify,
					Slots: slots, Store: record, Automatic: true, Log: slog.New(slog.DiscardHandler), RetryDelay: time.Nanosecond,
					Gate: func(context.Context, *ota.Manifest, ota.Moment) error { look(); return nil },
					Hooks: ota.Hooks{Progress: func(n, _ int64) {
						if c := look(); n > had {
							left, had = append(left, fmt.Sprint(c.SecondsLeft)), n
						}
					}, Failed: func(error) {
						if s := m.Snapshot(); s.State == ota.Fetching && s.Last == nil {
							attempt = max(attempt, look().FailedImage)
						}
					}}})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				if err := m.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if got := strings.Join(left, " "); got != tt.left {
					t.Errorf("got %q s left, want %q", got, tt.left)
				}
				s := m.Snapshot()
				look()
				if s.State == ota.Fetching { // for ever
					done = done[:min(len(done), len(tt.done))]
				}
				if !slices.Equal(done, tt.done) {
					t.Errorf("got %v images done, want %v", done, tt.done)
				}
				end := 0
				if s.Last != nil {
					end, attempt = s.Last.FailedImage, 0
				}
				if end != tt.end || attempt != tt.attempt {
					t.Errorf("failed at image %d, and in an attempt at %d, want %d and %d; %+v", end, attempt, tt.end, tt.attempt, s.Last)
				}
			})
		})
	}
}
