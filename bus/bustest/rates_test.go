package bustest_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/modbus"
)

// slow is a device that thinks about a write for a while. It is a fake.
type slow struct {
	think time.Duration
	bytes int // written
}

func (s *slow) wait(ctx context.Context, n int) error {
	s.bytes += 2 * n
	select {
	case <-time.After(s.think):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slow) WriteHolding(ctx context.Context, _ modbus.Call, _ uint16, v []uint16) error {
	return s.wait(ctx, len(v))
}

func (s *slow) WriteFile(ctx context.Context, _ modbus.Call, _, _ uint16, v []uint16) error {
	return s.wait(ctx, len(v))
}

// ceiling is the most bytes per second that requests and answers of that length carry,
// each after a silence of 3.5 characters, or 1.75 ms above 19200 baud (serial guide
// 2.5.1.1): what a master may plan with if the device thinks before its silence begins,
// and what is possible if it thinks meanwhile.
func ceiling(baud, request, answer, payload int, think time.Duration) (plan, possible float64) {
	char := 11 / float64(baud)
	silence := 3.5 * char
	if baud > 19200 {
		silence = 0.00175
	}
	wire := float64(request+answer)*char + silence
	return float64(payload) / (wire + silence + think.Seconds()), float64(payload) / (wire + max(silence, think.Seconds()))
}

// TestRatesOnALine: blocks of 240 bytes by FC 16, and of 244 by FC 21, go as fast as the
// line lets them, for a device that needs 5 ms for each; with the ports that there are.
func TestRatesOnALine(t *testing.T) {
	const think, n = 5 * time.Millisecond, 40
	ports := []struct {
		name   string
		config bustest.WireConfig
		late   time.Duration // what the port's own buffer costs for a request and its answer
	}{
		{"ideal", bustest.WireConfig{}, 0},
		{"16550", bustest.WireConfig{Burst: 8}, 0},
		{"FTDI, 1 ms", bustest.WireConfig{Burst: 62, Latency: time.Millisecond}, 2 * time.Millisecond},
		{"FTDI, 16 ms", bustest.WireConfig{Burst: 62, Latency: 16 * time.Millisecond}, 32 * time.Millisecond},
		{"transceiver of 2 ms", bustest.WireConfig{Turnaround: 2 * time.Millisecond}, 4 * time.Millisecond},
	}
	for _, baud := range []int{9600, 19200, 38400, 57600, 115200} {
		for _, port := range ports {
			port.config.Baud = baud
			for _, f := range []struct {
				name                     string
				request, answer, payload int
				write                    func(ctx context.Context, c *modbus.Client) error
			}{
				{"FC16", 1 + 6 + 240 + 2, 8, 240, func(ctx context.Context, c *modbus.Client) error {
					return c.WriteRegisters(ctx, 1, 0xE100, make([]uint16, 120))
				}},
				{"FC21", 1 + 2 + 7 + 244 + 2, 1 + 2 + 7 + 244 + 2, 244, func(ctx context.Context, c *modbus.Client) error {
					return c.WriteFile(ctx, 1, 1, 0, make([]uint16, 122))
				}},
			} {
				synctest.Test(t, func(t *testing.T) {
					a, b := bustest.Pair(port.config)
					device := &slow{think: think}
					ctx, cancel := context.WithCancel(t.Context())
					served := make(chan error)
					go func() { served <- (&modbus.Server{Handler: device, Baud: baud}).ServeRTU(ctx, b, 1) }()
					c := modbus.NewRTU(a, modbus.Config{Baud: baud})
					begin := time.Now()
					for range n {
						if err := f.write(t.Context(), c); err != nil {
							t.Fatal(err)
						}
					}
					got := float64(n*f.payload) / time.Since(begin).Seconds()
					limit, most := ceiling(baud, f.request, f.answer, f.payload, think)
					reachable, _ := ceiling(baud, f.request, f.answer, f.payload, think+port.late)
					if got < 0.9*reachable || got > 1.001*most {
						t.Errorf("%d baud, %s, %s: %.0f B/s, want at least 90 %% of %.0f, and no more than the line can carry, which is %.0f", baud, port.name, f.name, got, reachable, most)
					}
					t.Logf("%6d baud, %-20s %s: %5.0f B/s, %3.0f %% of %5.0f", baud, port.name+",", f.name, got, 100*got/limit, limit)
					if device.bytes != n*f.payload || a.Use().Garbled+b.Use().Garbled > 0 {
						t.Errorf("%d bytes arrived, want %d; garbled: %d and %d", device.bytes, n*f.payload, a.Use().Garbled, b.Use().Garbled)
					}
					c.Close()
					cancel()
					if err := <-served; err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// TestPipelining: with 20 ms there and back, the rate grows with the requests in flight.
func TestPipelining(t *testing.T) {
	const n, rtt = 400, 20 * time.Millisecond
	one := 0.0
	for _, window := range []int{1, 2, 4, 8, 16} {
		synctest.Test(t, func(t *testing.T) {
			net := bustest.NewNetwork(rtt / 2)
			device := new(slow)
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error)
			go func() { served <- (&modbus.Server{Handler: device}).Serve(ctx, net) }()
			c := modbus.NewTCP(nil, modbus.Config{Window: window, Redial: func(ctx context.Context) (io.ReadWriteCloser, error) { return net.Dial(ctx) }})
			begin := time.Now()
			var all sync.WaitGroup
			for range window {
				all.Go(func() {
					for range n / window {
						if err := c.WriteRegisters(t.Context(), 1, 0xE100, make([]uint16, 120)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			got := float64(device.bytes) / time.Since(begin).Seconds()
			if window == 1 {
				one = got
			}
			limit := 240 / rtt.Seconds() * float64(window)
			if got < 0.9*limit || got > 1.01*limit || device.bytes != n*240 {
				t.Errorf("%d in flight: %.0f B/s, want %.0f; %d bytes", window, got, limit, device.bytes)
			}
			t.Logf("%2d in flight: %6.0f B/s, %.1f times one", window, got, got/one)
			c.Close()
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}
