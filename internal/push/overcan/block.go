package overcan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
)

// How blocks adapt to a line that loses frames. A message is lost with one of its frames,
// and costs a timeout of a second then: where one frame in ten is lost, only those of a
// single frame (7 bytes, of which service and counter are 2) get through in good time.
const (
	smallest   = 5  // bytes of the file in a block
	shrink     = 4  // a block that does not get through becomes so many times smaller
	growAfter  = 48 // blocks in a row without trouble
	stumblesAt = 200 * time.Millisecond
)

// sized is how many bytes of the file are in the next block.
func (d *Device) sized(most int) int {
	most = min(most, d.payload())
	if d.block == 0 || d.block > most {
		return most
	}
	return d.block
}

// one sends a block, which the client repeats with the same counter if no answer comes.
func (d *Device) one(ctx context.Context, counter byte, block []byte, offset int64) error {
	began := time.Now()
	err := d.ask(ctx, fmt.Sprintf("send %d bytes from %d on", len(block), offset), func(c *uds.Client) error {
		_, err := c.TransferData(ctx, counter, block)
		return err
	})
	switch nominal := time.Duration(float64(len(block)) / d.cfg.Line.rate(d.bus, len(block)) * float64(time.Second)); {
	case errors.Is(err, push.ErrLine):
		d.block, d.streak = max(smallest, len(block)/shrink), 0
	case err != nil:
	case time.Since(began) > 2*nominal+stumblesAt:
		d.streak = 0
	default:
		if d.streak++; d.streak >= growAfter && d.block != 0 {
			d.block, d.streak = 2*d.block, 0
			if d.block >= d.payload() {
				d.block = 0
			}
		}
	}
	return err
}
