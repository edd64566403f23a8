package sunspec

import (
	"context"
	"errors"
)

// ReadModel reads a whole model. One that needs several reads is read until two
// passes are equal; use [Device.Read] where a heartbeat can tell sooner.
func ReadModel(ctx context.Context, regs Registers, m Model) (Block, error) {
	return Block{}, errors.New("not yet")
}

// Read reads a whole model. One that needs several reads counts as one moment if
// the battery's heartbeat (802 Hb, else 715 DERHb) did not move meanwhile, or if
// two passes are equal.
func (d *Device) Read(ctx context.Context, regs Registers, m Model) (Block, error) {
	return Block{}, errors.New("not yet")
}
