package modbus_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
)

// TestImpatient: a connection on which nobody answers is given up also by callers who
// never wait for all tries, but not by those who do not even wait for one.
func TestImpatient(t *testing.T) {
	for patience, want := range map[time.Duration]int{800 * time.Millisecond: 3, 400 * time.Millisecond: 1} {
		synctest.Test(t, func(t *testing.T) {
			dials := 0
			c := modbus.NewTCP(nil, modbus.Config{Timeout: 500 * time.Millisecond, Retries: 1, Redial: func(context.Context) (io.ReadWriteCloser, error) {
				dials++
				here, there := net.Pipe()
				go io.Copy(io.Discard, there) // takes requests, and never answers
				return here, nil
			}})
			defer c.Close()
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if _, err := c.ReadHolding(ctx, 1, 0, 1); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("patience %v: got %v, want that it is over", patience, err)
				}
				cancel()
			}
			if dials != want {
				t.Errorf("patience %v: %d connections, want %d", patience, dials, want)
			}
		})
	}
}
