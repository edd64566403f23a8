package bms_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

// TestPoller: the line takes 3 s for a reading. Questions are answered at once, with
// readings as old as they are; and when the line hangs, they get too old.
func TestPoller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hangs, fails atomic.Bool
		p := bms.NewPoller(func(ctx context.Context) (bms.Reading, error) {
			r := bms.Measured(60, 20, 25, 1, time.Now())
			wait := 3 * time.Second
			if hangs.Load() {
				wait = time.Hour
			}
			select {
			case <-ctx.Done():
				return bms.Reading{}, ctx.Err()
			case <-time.After(wait):
			}
			if fails.Load() {
				return bms.Reading{}, errors.New("exception 4")
			}
			return r, nil
		}, time.Second, 10*time.Second)
		guard, err := bms.New(p.Read, bms.Default())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.Run(ctx); close(done) }()
		ask := func(want string) {
			t.Helper()
			began := time.Now()
			err := guard.Gate(ctx, nil, ota.AtRestart)
			if took := time.Since(began); took != 0 {
				t.Errorf("the answer took %v", took)
			}
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		ask("the first reading is not there yet")
		time.Sleep(3100 * time.Millisecond)
		ask("")
		time.Sleep(1800 * time.Millisecond)
		ask("") // 4.9 s old: the next one takes its time
		fails.Store(true)
		time.Sleep(5 * time.Second)
		ask("exception 4")
		fails.Store(false)
		hangs.Store(true)
		time.Sleep(20 * time.Second)
		ask("no reading within 10s")
		stop()
		<-done
	})
}
