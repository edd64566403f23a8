package can

import (
	"fmt"
	"testing"
	"time"
)

// The pause keeps the share for every setting, worst-case frames assumed.
func TestPause(t *testing.T) {
	for _, bitrate := range []int{125_000, 250_000, 500_000, 1_000_000} {
		for _, share := range []int{5, 25, 50, 75, 100} {
			for _, block := range []int{2, 8, 16, 255} {
				for _, id := range []uint32{0, 0x7E0} {
					cfg := Config{Bitrate: bitrate, Share: share, BlockSize: block, STmin: -1, ID: id}
					if id == 0 {
						cfg.ID = 0x18DA10F1
					}
					busy := float64(block+1) * cfg.frame().Seconds()
					got := busy / (busy + float64(block-1)*cfg.pause().Seconds())
					if got > float64(share)/100+1e-9 && cfg.pause() < longestSTmin {
						t.Errorf("%d bit/s, blocks of %d, pause %v: %.3f of the bus, want %d %%", bitrate, block, cfg.pause(), got, share)
					}
				}
			}
		}
	}
	for p, want := range map[int]byte{0: 0, 100: 0xF1, 900: 0xF9, 1000: 1, 127_000: 127} {
		if got := stmin(time.Duration(p) * time.Microsecond); got != want {
			t.Errorf("%d µs: %s, want %s", p, fmt.Sprintf("%02X", got), fmt.Sprintf("%02X", want))
		}
	}
}
