package modbus

import (
	"testing"
	"time"
)

// TestBucket: five at once, and then one every two seconds.
func TestBucket(t *testing.T) {
	b := bucket{every: 2 * time.Second, burst: 5}
	now := time.Unix(1000, 0)
	take := func(want time.Duration) {
		t.Helper()
		if got := b.take(now); got != want {
			t.Fatalf("at %v: got %v, want %v", now.Unix(), got, want)
		}
	}
	for range 5 {
		take(0)
	}
	take(2 * time.Second)
	now = now.Add(2*time.Second - time.Millisecond)
	take(time.Millisecond)
	now = now.Add(time.Millisecond)
	take(0)
	take(2 * time.Second)
	now = now.Add(7 * time.Second) // three and a half more
	for range 3 {
		take(0)
	}
	take(time.Second)
	now = now.Add(time.Hour)
	for range 5 {
		take(0)
	}
	take(2 * time.Second)
	now = now.Add(-2 * time.Hour) // a clock that is set back refuses nobody for hours
	take(0)
}
