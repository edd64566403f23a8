package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/source/awsiot/stream"
)

// simulated runs f in simulated time and ends what is under way with it.
func simulated(t *testing.T, f func(t *testing.T, ctx context.Context)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		f(t, ctx)
	})
}

// fetch reads all and returns it with the time that it took.
func fetch(ctx context.Context, n *network, o stream.Options) ([]byte, time.Duration, error) {
	start := time.Now()
	r, err := stream.Open(ctx, n, o)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return b, time.Since(start), err
}

func TestWhole(t *testing.T) {
	for _, c := range []struct {
		size, block, window int
		format              stream.Format
	}{
		{1, 0, 0, ""}, {4096, 4096, 4096, ""}, {4097, 4096, 4096, stream.JSON}, {300_000, 256, 256, ""},
		{300_001, 1000, 77_000, stream.JSON}, {131072, 131072, 131072, ""}, {1_000_000, 131072, 500_000, stream.JSON},
		{1_000_000, 0, 0, ""}, {1 << 20, 4096, 1 << 20, ""},
	} {
		t.Run(fmt.Sprintf("%d by %d in %d %s", c.size, c.block, c.window, c.format), func(t *testing.T) {
			simulated(t, func(t *testing.T, ctx context.Context) {
				n := newNetwork(t, c.size, 1)
				n.ctx, n.id = ctx, 7
				o := n.options()
				o.BlockSize, o.Window, o.Format = c.block, c.window, c.format
				got, _, err := fetch(ctx, n, o)
				if err != nil || !bytes.Equal(got, n.file) {
					t.Fatalf("got %d bytes, %v, want the %d of the file", len(got), err, c.size)
				}
				if err := n.tooOften(); err != nil {
					t.Error(err)
				}
				if n.sent != int64(c.size) {
					t.Errorf("the service sent %d bytes, want %d", n.sent, c.size)
				}
			})
		})
	}
}

// TestResume: from any byte on, and no block before it is asked for.
func TestResume(t *testing.T) {
	simulated(t, func(t *testing.T, ctx context.Context) {
		const block = 1000
		for _, offset := range []int{0, 1, 999, 1000, 1001, 54_321, 99_999, 100_000, 100_122, 100_123} {
			n := newNetwork(t, 100_123, 1)
			n.ctx = ctx
			o := n.options()
			o.BlockSize, o.Window, o.Offset = block, 10*block, int64(offset)
			got, _, err := fetch(ctx, n, o)
			if err != nil || !bytes.Equal(got, n.file[offset:]) {
				t.Fatalf("from %d: got %d bytes, %v, want %d", offset, len(got), err, len(n.file)-offset)
			}
			for _, first := range n.offsets {
				if first < offset/block {
					t.Errorf("from %d: asked for block %d", offset, first)
				}
			}
			if offset == len(n.file) && n.requests > 0 {
				t.Errorf("from the end: %d requests, want 0", n.requests)
			}
		}
	})
}

// TestLossAndDoubles is the promise: the file is right, and no block is asked for more
// often than it was lost, and once.
func TestLossAndDoubles(t *testing.T) {
	for _, c := range []struct {
		name            string
		size            int
		lose, dupe      float64
		delay, jitter   time.Duration
		bandwidth       int64
		slowTo          int64
		window, blockSz int
	}{
		{name: "24 MiB, 30 % lost, 30 % doubled", size: 24 << 20, lose: .3, dupe: .3, delay: 40 * time.Millisecond, jitter: 80 * time.Millisecond},
		{name: "70 % lost", size: 2_000_000, lose: .7, delay: 40 * time.Millisecond, jitter: 20 * time.Millisecond},
		{name: "satellite", size: 4 << 20, lose: .05, dupe: .05, delay: 300 * time.Millisecond, jitter: 200 * time.Millisecond, bandwidth: 30_000},
		{name: "2 kB/s", size: 200_000, lose: .1, delay: 500 * time.Millisecond, jitter: 300 * time.Millisecond, bandwidth: 2000, window: 32 << 10, blockSz: 2048},
		{name: "answers after 8 s", size: 1 << 20, lose: .1, delay: 4 * time.Second, jitter: time.Second},
		{name: "the line slows down", size: 2 << 20, delay: 30 * time.Millisecond, bandwidth: 5_000_000, slowTo: 18_000},
		{name: "small blocks", size: 1 << 20, lose: .3, dupe: .1, delay: 10 * time.Millisecond, blockSz: 256, window: 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulated(t, func(t *testing.T, ctx context.Context) {
				n := newNetwork(t, c.size, 42)
				n.ctx, n.lose, n.dupe, n.delay, n.jitter, n.bandwidth, n.slowTo = ctx, c.lose, c.dupe, c.delay, c.jitter, c.bandwidth, c.slowTo
				o := n.options()
				o.Window, o.BlockSize, o.Patience = c.window, c.blockSz, time.Hour
				got, took, err := fetch(ctx, n, o)
				if err != nil || !bytes.Equal(got, n.file) {
					t.Fatalf("got %d bytes, %v, want the %d of the file", len(got), err, c.size)
				}
				if err := n.tooOften(); err != nil {
					t.Error(err)
				}
				t.Logf("%v; %d blocks, asked for %d times, %d lost, %d requests, %d with a bitmap",
					took.Round(time.Second), len(n.asked), sum(n.asked), sum(n.lost()), n.requests, n.bitmaps)
				if c.lose > 0 && n.bitmaps == 0 {
					t.Error("no request had a bitmap")
				}
			})
		})
	}
}

// TestThroughput gives the figures of the documentation, in simulated time.
func TestThroughput(t *testing.T) {
	t.Log("bytes per second in simulated time, no losses, line without limit")
	for _, window := range []int{32 << 10, 128 << 10, 256 << 10, 1 << 20} {
		for _, rtt := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 600 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				n := newNetwork(t, 8<<20, 1)
				n.ctx, n.delay = ctx, rtt/2
				o := n.options()
				o.Window = window
				got, took, err := fetch(ctx, n, o)
				if err != nil || !bytes.Equal(got, n.file) {
					t.Fatal(len(got), err)
				}
				speed, bound := float64(len(got))/took.Seconds(), float64(window)/rtt.Seconds()
				t.Logf("window %4d KiB, round trip %v: %7.0f kB/s, %.0f %% of a window per round trip", window>>10, rtt, speed/1000, 100*speed/bound)
				if most := 5 + len(got)/min(window/2, 128<<10)*3/2; n.requests > most {
					t.Errorf("%d requests, want at most %d", n.requests, most)
				}
				if speed < .75*bound {
					t.Errorf("%.0f bytes/s, want at least 75 %% of %.0f", speed, bound)
				}
			})
		}
	}
}

// TestSlowReader: nothing is asked for ahead of the window, and nothing twice.
func TestSlowReader(t *testing.T) {
	simulated(t, func(t *testing.T, ctx context.Context) {
		n := newNetwork(t, 1<<20, 1)
		n.ctx = ctx
		o := n.options()
		o.Window, o.BlockSize = 64<<10, 4096
		r, err := stream.Open(ctx, n, o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var got []byte
		for p := make([]byte, 30_000); ; {
			time.Sleep(3 * time.Minute) // in simulated time; longer than Patience
			n.mu.Lock()
			sent := n.sent
			n.mu.Unlock()
			if most := int64(len(got) + 64<<10 + 4096); sent > most {
				t.Fatalf("the service has sent %d bytes, want at most %d after %d were read", sent, most, len(got))
			}
			k, err := r.Read(p)
			got = append(got, p[:k]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := n.tooOften(); err != nil || !bytes.Equal(got, n.file) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
}

// TestConnectionLost: it goes on where it was.
func TestConnectionLost(t *testing.T) {
	for _, down := range []time.Duration{time.Second, 20 * time.Second, 110 * time.Second} {
		simulated(t, func(t *testing.T, ctx context.Context) {
			n := newNetwork(t, 2<<20, 1)
			n.ctx = ctx
			for _, at := range []time.Duration{0, 200 * time.Millisecond, 3 * time.Minute} {
				n.after(at+60*time.Millisecond, func() { n.mu.Lock(); n.down = true; n.mu.Unlock() })
				n.after(at+60*time.Millisecond+down, func() { n.mu.Lock(); n.down = false; n.mu.Unlock() })
			}
			n.bandwidth = 10_000
			got, took, err := fetch(ctx, n, n.options())
			if err != nil || !bytes.Equal(got, n.file) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if want := 2<<20/10_000*time.Second + 3*down + 2*time.Minute; took > want {
				t.Errorf("away for %v: took %v, want at most %v", down, took, want)
			}
			if err := n.tooOften(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNothingComes(t *testing.T) {
	simulated(t, func(t *testing.T, ctx context.Context) {
		n := newNetwork(t, 1<<20, 1)
		n.ctx, n.silent = ctx, true
		got, took, err := fetch(ctx, n, n.options())
		if !errors.Is(err, ota.ErrConnectivity) || len(got) != 0 || took != 2*time.Minute {
			t.Errorf("got %d bytes, %v after %v, want ErrConnectivity after 2 min", len(got), err, took)
		}
		if n.requests > 12 {
			t.Errorf("%d requests in 2 min to a service that is silent, want at most 12", n.requests)
		}
		n.down = true
		if _, _, err := fetch(ctx, n, n.options()); !errors.Is(err, ota.ErrConnectivity) {
			t.Errorf("without a connection: got %v, want ErrConnectivity", err)
		}
	})
}

func TestRejected(t *testing.T) {
	for _, c := range []struct {
		answer map[string]any
		want   []error
		stale  bool
	}{
		{map[string]any{"o": "ResourceNotFound", "m": "no such file", "c": "same"}, []error{ota.ErrServer}, true},
		{map[string]any{"o": "VersionMismatch", "m": "2", "c": "same"}, []error{ota.ErrServer}, true},
		{map[string]any{"code": "ETagMismatch", "message": "other", "clientToken": ""}, []error{ota.ErrServer}, true},
		{map[string]any{"o": "Unauthorized", "m": "role", "c": "same"}, []error{ota.ErrAuthentication}, false},
		{map[string]any{"o": "BlockSizeOutOfBounds", "m": "x"}, []error{ota.ErrServer}, false},
		{map[string]any{"o": "SomethingNew", "m": "x", "c": "same"}, []error{ota.ErrServer}, false},
	} {
		simulated(t, func(t *testing.T, ctx context.Context) {
			n := newNetwork(t, 1<<20, 1)
			n.ctx, n.refuse = ctx, func(k int) map[string]any {
				if k < 3 {
					return nil
				}
				return c.answer
			}
			got, _, err := fetch(ctx, n, n.options())
			var rej *stream.Rejected
			if !errors.As(err, &rej) || errors.Is(err, stream.ErrStale) != c.stale || !bytes.Equal(got, n.file[:len(got)]) {
				t.Errorf("%v: got %d bytes, %v; stale: want %v", c.answer, len(got), err, c.stale)
			}
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("%v: got %v, want %v", c.answer, err, want)
				}
			}
		})
	}
}

// TestPassing: refusals that say nothing about the next time, and those to others.
func TestPassing(t *testing.T) {
	simulated(t, func(t *testing.T, ctx context.Context) {
		n := newNetwork(t, 1<<20, 1)
		n.ctx, n.refuse = ctx, func(k int) map[string]any {
			switch {
			case k%3 == 0:
				return map[string]any{"o": "InternalError", "m": "try again", "c": "same"}
			case k%7 == 0:
				return map[string]any{"o": "ResourceNotFound", "m": "for somebody else", "c": "theirs"}
			}
			return nil
		}
		got, _, err := fetch(ctx, n, n.options())
		if err != nil || !bytes.Equal(got, n.file) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := n.tooOften(); err != nil {
			t.Error(err)
		}
	})
}

// TestWrongAnswers: what was not asked for is not taken, and a service that answers
// nothing else is given up with what is wrong.
func TestWrongAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(block int, m map[string]any)
		says   string // "": the reader goes on with the next answer
	}{
		{"another file", func(b int, m map[string]any) { m["f"] = 3 }, "nothing has come"},
		{"another's token", func(b int, m map[string]any) { m["c"] = "ab-1-1" }, "nothing has come"},
		{"no token", func(b int, m map[string]any) { delete(m, "c") }, ""},
		{"short", func(b int, m map[string]any) { m["p"], m["l"] = m["p"].([]byte)[1:], len(m["p"].([]byte))-1 }, "bytes, want 16384"},
		{"l lies", func(b int, m map[string]any) { m["l"] = 5 }, "it says that it has 5 bytes"},
		{"behind the end", func(b int, m map[string]any) { m["i"] = b + 1000 }, "ends with block 63"},
		{"before the beginning", func(b int, m map[string]any) { m["i"] = b - 1000 }, "block -"},
		{"no block number", func(b int, m map[string]any) { delete(m, "i") }, "missing"},
		{"no JSON", func(b int, m map[string]any) { m["p"] = "!" }, "base64"},
	} {
		for _, always := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %v", c.name, always), func(t *testing.T) {
				simulated(t, func(t *testing.T, ctx context.Context) {
					n := newNetwork(t, 1<<20, 1)
					n.ctx = ctx
					changed := 0
					n.change = func(b int, m map[string]any) {
						if changed++; always || changed == 5 || changed == 20 {
							c.change(b, m)
						}
					}
					o := n.options()
					o.Format = stream.JSON
					got, _, err := fetch(ctx, n, o)
					switch {
					case !always || c.says == "":
						if err != nil || !bytes.Equal(got, n.file) {
							t.Errorf("got %d bytes, %v", len(got), err)
						}
					case err == nil || !strings.Contains(err.Error(), c.says):
						t.Errorf("got %v, want an error that says %q", err, c.says)
					case ota.CodeOf(err) != ota.ErrServer && ota.CodeOf(err) != ota.ErrConnectivity:
						t.Errorf("got code %v", ota.CodeOf(err))
					}
				})
			})
		}
	}
}

func TestCancel(t *testing.T) {
	simulated(t, func(t *testing.T, outer context.Context) {
		n := newNetwork(t, 1<<20, 1)
		n.ctx, n.silent = outer, true
		ctx, cancel := context.WithCancel(outer)
		n.after(3*time.Second, cancel)
		_, took, err := fetch(ctx, n, n.options())
		if !errors.Is(err, context.Canceled) || took != 3*time.Second {
			t.Errorf("got %v after %v, want context.Canceled after 3 s", err, took)
		}
		synctest.Wait()
		for filter, handlers := range n.subs {
			if len(handlers) > 0 {
				t.Errorf("still subscribed to %s", filter)
			}
		}
	})
}

// TestReopened: answers to a reader that is gone do not reach the next one, and closing
// the first does not end the second.
func TestReopened(t *testing.T) {
	simulated(t, func(t *testing.T, ctx context.Context) {
		n := newNetwork(t, 1<<20, 1)
		n.ctx = ctx
		o := n.options()
		first, err := stream.Open(ctx, n, o)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond)
		o.BlockSize, o.Offset = 4096, 5000
		second, err := stream.Open(ctx, n, o)
		if err != nil {
			t.Fatal(err)
		}
		first.Close()
		first.Close()
		got, err := io.ReadAll(second)
		if err != nil || !bytes.Equal(got, n.file[5000:]) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		second.Close()
	})
}

func TestOptions(t *testing.T) {
	good := stream.Options{Thing: thing, Stream: streamID, Size: 100}
	for name, wrong := range map[string]func(*stream.Options){
		"thing":      func(o *stream.Options) { o.Thing = "a/b" },
		"no thing":   func(o *stream.Options) { o.Thing = "" },
		"stream":     func(o *stream.Options) { o.Stream = "+" },
		"file":       func(o *stream.Options) { o.FileID = 256 },
		"size":       func(o *stream.Options) { o.Size = 24<<20 + 1 },
		"empty":      func(o *stream.Options) { o.Size = 0 },
		"offset":     func(o *stream.Options) { o.Offset = 101 },
		"block size": func(o *stream.Options) { o.BlockSize = 255 },
		"big block":  func(o *stream.Options) { o.BlockSize = 131073 },
		"window":     func(o *stream.Options) { o.BlockSize, o.Window = 4096, 4095 },
		"format":     func(o *stream.Options) { o.Format = "xml" },
		"version":    func(o *stream.Options) { o.Version = -1 },
	} {
		o := good
		wrong(&o)
		if r, err := stream.Open(t.Context(), newNetwork(t, 100, 1), o); !errors.Is(err, ota.ErrInternal) {
			t.Errorf("%s: got %v, %v, want ErrInternal", name, r, err)
		}
	}
}

func TestDescribe(t *testing.T) {
	for _, format := range []stream.Format{stream.CBOR, stream.JSON} {
		simulated(t, func(t *testing.T, ctx context.Context) {
			n := newNetwork(t, 12345, 1)
			n.ctx, n.id = ctx, 9
			o := n.options()
			o.Format = format
			d, err := stream.Describe(ctx, n, o)
			if err != nil || d.Version != 3 || d.Text != "a file" || len(d.Files) != 1 || d.Files[9] != 12345 {
				t.Errorf("got %+v, %v", d, err)
			}
			n.refuse = func(int) map[string]any { return map[string]any{"o": "ResourceNotFound"} }
			if _, err := stream.Describe(ctx, n, o); !errors.Is(err, stream.ErrStale) {
				t.Errorf("got %v, want ErrStale", err)
			}
			n.silent = true
			if _, err := stream.Describe(ctx, n, o); !errors.Is(err, ota.ErrConnectivity) {
				t.Errorf("got %v, want ErrConnectivity", err)
			}
		})
	}
}
