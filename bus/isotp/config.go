package isotp

import (
	"fmt"
	"time"

	"github.com/interlock-energy/ota/bus/internal/patience"
)

// settings are a Config with its defaults filled in.
type settings struct {
	Config
	stmin byte          // as it is sent
	pad   byte          // of Padding
	gap   time.Duration // of FramesPerSecond
}

// Defaults: ISO 15765-2, 9.7 (timers) and 9.8 (MaxPDU: the longest that a first frame of
// 12 bits announces). ISO 15765-2 leaves WFTmax to the user, and wants N_Br + N_Ar and
// N_Cs + N_As below nine tenths of the peer's timers.
const (
	defaultMaxPDU = 4095
	defaultTimer  = time.Second
	defaultWait   = 500 * time.Millisecond
	defaultNCs    = 900 * time.Millisecond
	defaultFrame  = 270 * time.Microsecond // 135 bits with all stuff bits (ISO 11898-1, 10.5), at 500 kbit/s
	defaultWFTmax = 16
	defaultPad    = 0xCC
)

// mostPDU is what the 32 bits of a first frame can announce, and an int hold.
const mostPDU = 1<<31 - 1

// leastTimer is for peers that are quick as a rule and slow once in a while, as programs are.
const leastTimer = 100 * time.Millisecond

// timer waits so long for a frame of the peer, or adapts.
func (s settings) timer(most time.Duration) patience.Timer {
	t := patience.Timer{Most: most}
	if s.Adapt {
		t.Least = min(leastTimer, most)
	}
	return t
}

func (c Config) settings() (settings, error) {
	refuse := func(format string, args ...any) (settings, error) {
		return settings{}, fmt.Errorf("check the configuration: "+format, args...)
	}
	fill := func(d *time.Duration, otherwise time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
	}
	fill(&c.NAs, defaultTimer)
	fill(&c.NAr, defaultTimer)
	fill(&c.NBs, defaultTimer)
	fill(&c.NCr, defaultTimer)
	fill(&c.NCs, defaultNCs)
	fill(&c.Wait, defaultWait)
	fill(&c.FrameTime, defaultFrame)
	if c.MaxPDU == 0 {
		c.MaxPDU = defaultMaxPDU
	}
	if c.WFTmax == 0 {
		c.WFTmax = defaultWFTmax
	}
	c.WFTmax = max(c.WFTmax, 0)
	s := settings{Config: c, pad: defaultPad}
	if c.Padding != nil {
		s.pad = *c.Padding
	}
	if c.BlockSize < 0 || c.BlockSize > 255 {
		return refuse("BlockSize is %d, want 0 to 255", c.BlockSize)
	}
	if c.STmin < 0 || c.STmin > mostSTmin {
		return refuse("STmin is %v, want 0 to %v", c.STmin, mostSTmin)
	}
	s.stmin = encodeSTmin(c.STmin)
	if c.MaxPDU < 7 || c.MaxPDU > mostPDU {
		return refuse("MaxPDU is %d bytes, want 7 to %d", c.MaxPDU, mostPDU)
	}
	for _, timer := range []struct {
		name string
		d    time.Duration
	}{{"NAs", c.NAs}, {"NAr", c.NAr}, {"NBs", c.NBs}, {"NCr", c.NCr}, {"NCs", c.NCs}, {"Wait", c.Wait}, {"FrameTime", c.FrameTime}} {
		if timer.d < 0 {
			return refuse("%s is %v, want more than 0", timer.name, timer.d)
		}
	}
	if c.FramesPerSecond < 0 {
		return refuse("FramesPerSecond is %d, want 0 or more", c.FramesPerSecond)
	}
	if c.FramesPerSecond > 0 {
		s.gap = time.Second / time.Duration(c.FramesPerSecond)
		if s.gap > c.NCs {
			return refuse("FramesPerSecond %d makes the peer wait %v for each frame, and NCs is %v", c.FramesPerSecond, s.gap, c.NCs)
		}
	}
	return s, nil
}

// mostSTmin is the longest pause that a flow control frame can ask for.
const mostSTmin = 127 * time.Millisecond

// encodeSTmin writes a pause of 0 to mostSTmin as ISO 15765-2, 9.6.5.4 does, rounded up.
func encodeSTmin(d time.Duration) byte {
	switch {
	case d <= 0:
		return 0
	case d <= 900*time.Microsecond:
		return byte(0xF0 + (d+99_999)/(100*time.Microsecond))
	default:
		return byte((d + 999_999) / time.Millisecond)
	}
}

// decodeSTmin reads it. Reserved values are the longest pause (ISO 15765-2, 9.6.5.5).
func decodeSTmin(b byte) time.Duration {
	switch {
	case b <= 0x7F:
		return time.Duration(b) * time.Millisecond
	case b >= 0xF1 && b <= 0xF9:
		return time.Duration(b-0xF0) * 100 * time.Microsecond
	default:
		return mostSTmin
	}
}
