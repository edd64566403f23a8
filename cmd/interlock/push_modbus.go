package main

import (
	"context"

	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overmodbus"
)

type pushModbusCmd struct {
	pushFlags
}

func (*pushModbusCmd) Help() string {
	return `Examples:

    interlock push modbus --to tcp://192.168.1.5 bess-1.2.0.bundle`
}

// Run pushes over Modbus.
func (c *pushModbusCmd) Run(ctx context.Context, e *env) error {
	return c.pushFlags.run(ctx, e, func(ctx context.Context) (push.Device, error) { return overmodbus.New(overmodbus.Config{}) })
}
