package main

import (
	"context"
	"errors"

	"github.com/interlock-energy/ota/internal/push"
)

type pushCANCmd struct {
	pushFlags
}

func (*pushCANCmd) Help() string {
	return `Examples:

    interlock push can --to can0 bess-1.2.0.bundle`
}

// Run pushes over CAN.
func (c *pushCANCmd) Run(ctx context.Context, e *env) error {
	return c.pushFlags.run(ctx, e, func(ctx context.Context) (push.Device, error) { return nil, errors.ErrUnsupported })
}
