package overcan

import (
	"testing"
	"time"
)

// lossy makes a device that has learnt from messages of so many bytes in blocks, of which
// every so many-th did not get through.
func lossy(t *testing.T, blocks, size, every int) *Device {
	t.Helper()
	d, err := New(Config{Line: Line{To: "can0"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks {
		if every > 0 && i%every == every-1 {
			d.line.stuck(d.frames(size), 100*time.Millisecond)
		} else {
			d.line.through(d.frames(size))
		}
	}
	return d
}

// The length of blocks follows what got through.
func TestBest(t *testing.T) {
	for name, tt := range map[string]struct {
		blocks, size, every int
		from, to            int // of the next block
	}{
		"nothing is known":                        {0, 0, 0, 4093, 4093},
		"all got through":                         {100, 4093, 0, 4093, 4093},
		"one was lost":                            {100, 4093, 100, 4093, 4093},
		"the first was lost":                      {1, 4093, 1, 500, 4093},
		"no long one gets through":                {4, 4093, 1, 60, 1500},
		"half of those of 60 bytes":               {40, 60, 2, 18, 60},
		"one in five of those of a frame":         {100, 5, 5, 5, 60},
		"four in five of those of a frame":        {100, 5, 1, 5, 5},
		"one in a hundred of those of 1000 bytes": {200, 1000, 100, 900, 4093},
	} {
		t.Run(name, func(t *testing.T) {
			d := lossy(t, tt.blocks, tt.size, tt.every)
			if got := d.sized(4093); got < tt.from || got > tt.to {
				t.Errorf("got blocks of %d bytes, want %d to %d", got, tt.from, tt.to)
			}
		})
	}
}

// A line that was very bad and is good again is used well soon.
func TestBestRecovers(t *testing.T) {
	d := lossy(t, 30, 60, 1)
	bad := d.sized(4093)
	if bad != smallest {
		t.Errorf("got blocks of %d bytes when none got through, want %d", bad, smallest)
	}
	n := 0
	for d.sized(4093) < 4093 && n < 1000 {
		d.line.through(d.frames(d.sized(4093)))
		n++
	}
	t.Logf("all of a message again after %d blocks", n)
	if n > 100 {
		t.Errorf("blocks are whole again after %d of them, want at most 100", n)
	}
}

// It is never more than fits.
func TestBestFits(t *testing.T) {
	d := lossy(t, 0, 0, 0)
	for _, most := range []int{1, 4, 5, 11, 60, 128, 4093} {
		if got := d.sized(most); got != most {
			t.Errorf("got %d bytes where %d fit and nothing was lost", got, most)
		}
		if got := lossy(t, 30, 60, 1).sized(most); got < 1 || got > most {
			t.Errorf("got %d bytes where %d fit", got, most)
		}
	}
}

func TestFrames(t *testing.T) {
	d := lossy(t, 0, 0, 0)
	for block, want := range map[int]int{1: 2, 5: 2, 6: 1 + 1 + 1 + 1, 11: 1 + 1 + 1 + 1, 12: 1 + 1 + 2 + 1, 60: 1 + 1 + 8 + 1, 61: 1 + 2 + 9 + 1} {
		if got := d.frames(block); got != want {
			t.Errorf("%d bytes: got %d frames, want %d", block, got, want)
		}
	}
}
