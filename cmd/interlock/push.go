package main

import (
	"context"
	"time"

	"github.com/interlock-energy/ota/internal/push"
)

type pushCmd struct {
	Modbus pushModbusCmd `cmd:"" help:"Over Modbus: TCP, TLS or a serial line."`
	CAN    pushCANCmd    `cmd:"" name:"can" help:"Over CAN, with UDS."`
}

func (*pushCmd) Help() string {
	return `Brings a bundle into a device over its field bus, asks for the installation, and waits until the new firmware is proven.`
}

// pushFlags are those of all buses.
type pushFlags struct {
	To        string        `required:"" placeholder:"LINE" help:"Where the device is."`
	StageOnly bool          `help:"Bring the release into the device, and do not install it."`
	Precheck  bool          `help:"Only ask whether the device may be updated now."`
	Status    bool          `help:"Only show what the device says."`
	Trust     []string      `sep:"none" placeholder:"PUBLIC.pem" help:"Public key that the release must be signed with, checked before the transfer. Repeat for more."`
	Threshold int           `default:"1" help:"How many different keys must have signed."`
	Timeout   time.Duration `placeholder:"TIME" help:"Give up after so long, and leave the device to itself. Default: never."`
	Yes       bool          `help:"Occupy the bus for more than four hours if that is what it takes."`
	JSON      bool          `name:"json" help:"Print every event as one line of JSON."`
	File      string        `arg:"" optional:"" help:"Bundle to push. Not with --status and --precheck."`
}

// run does what the flags say, on the device that dial finds.
func (f *pushFlags) run(ctx context.Context, e *env, dial func(ctx context.Context) (push.Device, error)) error {
	d, err := dial(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	return push.Run(ctx, d, nil, push.Options{})
}
