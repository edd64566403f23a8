package ota_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

// The rows of the document "AwsS3Ota - System Architecture & Flow".

func TestSpecAWSCallbackOrder(t *testing.T) {
	documented := func(c *ota.Config) {
		c.Suspend, c.CheckInterval = ota.SuspendBeforeCheck, 0
	}
	t.Run("Normal OTA Update", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, documented)
			d.AtStart = func(*ota.Manager) { d.Events = append(d.Events, "boot") }
			live(t, d)
			wantRunning(t, d, "1.0.1")
			wantOrder(t, d, "boot CheckStart Suspend Started Progress Finished boot CheckStart Suspend UpToDate Resume")
		})
	})
	t.Run("Failed OTA Update", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, documented)
			d.Source.Firmware.Image = append([]byte(nil), v101.Image...)
			d.Source.Firmware.Image[20500] ^= 1 // in the last chunk
			d.Source.Change = func(m *ota.Manifest) { *m = *v101.Manifest() }
			live(t, d)
			wantRunning(t, d, "1.0.0")
			wantOrder(t, d, "CheckStart Suspend Started Progress Failed Resume")
			wantReport(t, d, ota.Failed, ota.ErrValidation, "chunk at 20480")
		})
	})
	t.Run("Failed by the network", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { documented(c); c.Retries = -1; c.MaxBackoff = 24 * time.Hour })
			d.Source.CutAt = []int64{9000}
			if err := d.Live(t.Context(), 20*time.Second); err != nil {
				t.Fatal(err)
			}
			wantOrder(t, d, "CheckStart Suspend Started Progress Failed Resume")
		})
	})
	t.Run("Already Up-to-Date", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, documented)
			d.Source.Firmware = v100
			live(t, d)
			wantOrder(t, d, "CheckStart Suspend UpToDate Resume")
		})
	})
	t.Run("Denied at the start", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) {
				documented(c)
				c.Hooks.CheckStart = func() bool { d.Events = append(d.Events, "CheckStart"); return false }
			})
			live(t, d)
			wantOrder(t, d, "CheckStart")
			wantRunning(t, d, "1.0.0")
		})
	})
	t.Run("Suspend fails", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) {
				documented(c)
				c.Hooks.Suspend = func(context.Context) error {
					d.Events = append(d.Events, "Suspend")
					return errors.New("task 3 does not answer")
				}
			})
			live(t, d)
			wantOrder(t, d, "CheckStart Suspend Failed Resume")
			wantRunning(t, d, "1.0.0")
		})
	})
	t.Run("Suspend before the restart", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.CheckInterval = 0 })
			d.AtStart = func(*ota.Manager) { d.Events = append(d.Events, "boot") }
			live(t, d)
			wantOrder(t, d, "boot CheckStart Started Progress Suspend Finished boot Resume CheckStart UpToDate")
		})
	})
}

func wantOrder(t *testing.T, d *otatest.Device, want string) {
	t.Helper()
	if got := order(d); got != want {
		t.Errorf("callbacks:\n got %s\nwant %s", got, want)
	}
}

// Typical Timeline: the rows are what happens, and in which order. The times are
// those of the document's example, of which only the startup delay is ours.
func TestSpecAWSTypicalTimeline(t *testing.T) {
	rows := []string{"0 Device boots, WiFi connects", "10 OTA check begins (default startup delay)", "11 API request sent",
		"12 Manifest received, version compared", "13 Download starts (if update available)", "13-30 Firmware downloading",
		"30 Flash write complete", "31 Verification complete", "33 Device reboots", "35 New firmware running"}
	happened := map[string]time.Duration{} // since the boot
	var inOrder []string
	device(t, func(t *testing.T, d *otatest.Device) {
		start := time.Now()
		note := func(i int) {
			if _, again := happened[rows[i]]; !again {
				happened[rows[i]] = time.Since(start)
				inOrder = append(inOrder, rows[i])
			}
		}
		configure(d, func(c *ota.Config) {
			h := &c.Hooks
			h.CheckStart = func() bool { note(1); return true }
			c.Source = &countingSource{Source: &d.Source, asked: func() { note(2) }}
			gate := c.Gate
			c.Gate = func(ctx context.Context, m *ota.Manifest, when ota.Moment) error {
				if when == ota.BeforeWrite {
					note(3)
				}
				return gate(ctx, m, when)
			}
			h.Started = func(*ota.Manifest) { note(4) }
			h.Progress = func(done, total int64) {
				note(5)
				if done == total {
					note(6)
				}
			}
			h.Event = func(s ota.Status, _ ota.ErrorCode) {
				if s == ota.StatusReadyToApply || s == ota.StatusApplying {
					note(7)
				}
			}
			h.Finished = func(*ota.Manifest) { note(8) }
		})
		d.AtStart = func(*ota.Manager) {
			if d.Running.Version == "1.0.1" {
				note(9)
			} else {
				note(0)
			}
		}
		live(t, d)
	})
	for i, row := range rows {
		t.Run(row, func(t *testing.T) {
			if i >= len(inOrder) || inOrder[i] != row {
				t.Errorf("happened in the order %q", inOrder)
			}
			if i == 1 && happened[row] != 10*time.Second {
				t.Errorf("%v after the boot, want 10s", happened[row])
			}
		})
	}
}

// Error Handling Flow: a network error is tried again three times.
func TestSpecAWSNetworkErrorRetry3x(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		configure(d, func(c *ota.Config) { c.CheckInterval = 0 })
		counting := &countingSource{Source: &d.Source, err: errors.New("connection refused")}
		config := d.Config
		d.Config = func(c *ota.Config) { config(c); c.Source = counting }
		live(t, d)
		if len(counting.at) != 4 {
			t.Fatalf("asked %d times, want 1 and 3 more", len(counting.at))
		}
		for i, at := range counting.at[1:] {
			if pause := at.Sub(counting.at[i]); pause < 1500*time.Millisecond || pause > 2500*time.Millisecond {
				t.Errorf("pause %d was %v, want 2s give or take a quarter", i+1, pause)
			}
		}
		wantOrder(t, d, "CheckStart Failed")
		if got := d.Manager().Snapshot(); got.Status != ota.StatusFailed || got.Code != ota.ErrConnectivity {
			t.Errorf("got status %s code %s, want FAILED CONNECTIVITY", got.Status, got.Code.Name())
		}
	})
}

type countingSource struct {
	ota.Source
	asked func() // may be nil
	err   error  // nil: as Source answers
	at    []time.Time
}

func (s *countingSource) Latest(ctx context.Context) ([]byte, error) {
	s.at = append(s.at, time.Now())
	if s.asked != nil {
		s.asked()
	}
	if s.err == nil {
		return s.Source.Latest(ctx)
	}
	return nil, s.err
}

// Error Handling Flow: a flash error is not tried for ever; the device goes on running.
func TestSpecAWSFlashErrorAborts(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/b/") {
				return otatest.Fault{Err: errors.New("program error at 0x1000")}
			}
			return otatest.Fault{}
		}
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Failed, ota.ErrFlashWrite, "program error")
	})
}

// setHttpTimeout(120): a timeout that starts anew with every byte.
func TestSpecAWSStallTimeout(t *testing.T) {
	for _, c := range []struct {
		name  string
		pause time.Duration
		want  string
	}{
		{"a byte every 119 s is progress", 119 * time.Second, "1.0.1"},
		{"no byte for 121 s is a stall", 121 * time.Second, "1.0.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			small := otatest.NewFirmware("1.0.1", 300, true, true)
			device(t, func(t *testing.T, d *otatest.Device) {
				configure(d, func(c2 *ota.Config) { c2.Source = &slowSource{&d.Source, c.pause} })
				if err := d.Live(t.Context(), 24*time.Hour); err != nil {
					t.Fatal(err)
				}
				wantRunning(t, d, c.want)
				if s := d.Manager().Snapshot(); c.want == "1.0.0" && s.State != ota.Fetching {
					t.Errorf("gave up in state %s: a stalled network is no fault of the release", s.State)
				}
			}, small)
		})
	}
}

// slowSource gives a byte after each pause.
type slowSource struct {
	*otatest.Source
	pause time.Duration
}

func (s *slowSource) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	r, err := s.Source.Open(ctx, m, im, offset)
	return &slowReader{r, ctx, s.pause}, err
}

type slowReader struct {
	io.ReadCloser
	ctx   context.Context
	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	select {
	case <-time.After(r.pause):
		return r.ReadCloser.Read(p[:1])
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

// Security layers 2 to 6 are those of source/https, bundle and internal/web. Here:
// the download is bound to what was signed.
func TestSpecAWSUnsignedBytesAreRefused(t *testing.T) {
	device(t, func(t *testing.T, d *otatest.Device) {
		d.Source.Firmware = otatest.NewFirmware("6.6.6", 21000, true, true)
		d.Source.Change = func(m *ota.Manifest) { *m = *v101.Manifest() }
		live(t, d)
		wantRunning(t, d, "1.0.0")
		wantReport(t, d, ota.Failed, ota.ErrValidation, "chunk at 0")
		if got := d.Backend.Image(d.Disk, "B"); len(got) > 0 {
			t.Errorf("%d bytes reached the slot, want none", len(got))
		}
	})
}
