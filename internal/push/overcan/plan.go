package overcan

import (
	"fmt"
	"time"

	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// frameBits is how many bits a frame with eight bytes takes at most, with all stuff bits
// and the pause behind it (ISO 11898-1, 10.4 and 10.5): of a standard frame 98 bits can be
// stuffed and 13 cannot, of an extended one 118 and 13.
func frameBits(extended bool) int {
	stuffed := 98
	if extended {
		stuffed = 118
	}
	return stuffed + (stuffed-1)/4 + 13
}

// What a device asks for that does not say it (source/can's defaults).
const (
	usualBlockSize = 8
	usualSTmin     = 1 // ms
)

// turn is what the device and the adapter are taken to think about a block.
const turn = 5 * time.Millisecond

// Plan implements [push.Device]. It is what the bus allows if all frames get through and
// nobody else is in the way.
func (d *Device) Plan(bytes int64) push.Plan {
	line := d.cfg.Line
	return push.Plan{
		Bytes: bytes,
		Line:  fmt.Sprintf("CAN at %d kbit/s, %d %% of it at most", line.Bitrate/1000, line.Share),
		Rate:  line.rate(d.bus, d.payload()),
	}
}

// payload is how many bytes of the file fit a block.
func (d *Device) payload() int {
	most := profile.MaxBlock
	if d.identity != nil && d.identity.MaxBlock >= 3 {
		most = min(most, int(d.identity.MaxBlock))
	}
	return most - 2
}

// rate is how many bytes a second get over the line in blocks of so many bytes.
func (l Line) rate(bus profile.Bus, payload int) float64 {
	blockSize, stmin := int(bus.BlockSize), bus.STmin
	if bus == (profile.Bus{}) {
		blockSize, stmin = usualBlockSize, usualSTmin
	}
	frame := time.Duration(frameBits(l.Address.Extended)) * time.Second / time.Duration(l.Bitrate)
	pace := time.Duration(0)
	if n := l.pace(); n > 0 {
		pace = time.Second / time.Duration(n)
	}
	consecutive := max(0, payload+2-6+6) / 7 // of ISO-TP, behind a first frame of six bytes
	controls := 1
	if blockSize > 0 {
		controls += (consecutive - 1) / blockSize
	}
	// The first of a block need not wait for STmin. Then the first frame, flow control,
	// and the answer.
	took := time.Duration(min(consecutive, controls))*max(frame, pace) +
		time.Duration(max(0, consecutive-controls))*max(frame+decodeSTmin(stmin), pace) +
		frame + time.Duration(controls)*frame + frame + turn
	return float64(payload) / took.Seconds()
}

// decodeSTmin reads ISO 15765-2, 9.6.5.4; what is reserved there is the longest.
func decodeSTmin(b byte) time.Duration {
	switch {
	case b <= 0x7F:
		return time.Duration(b) * time.Millisecond
	case b >= 0xF1 && b <= 0xF9:
		return time.Duration(b-0xF0) * 100 * time.Microsecond
	}
	return 127 * time.Millisecond
}
