package can_test

import (
	"context"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/can"
)

// A device that takes bundles from technicians with one of the keys, over an adapter on
// USB, at half of the bus. The Source is what the manager is configured with.
func Example() {
	run := func(ctx context.Context, verify ota.Verify, guard *bms.Guard, head func() api.CheckinRequest) error {
		box, err := inbox.Open(inbox.Config{Dir: "/var/lib/interlock/can", Verify: verify})
		if err != nil {
			return err
		}
		defer box.Close()
		testers, err := can.LoadTesters("/etc/interlock/testers/anna.pem")
		if err != nil {
			return err
		}
		source, err := can.New(can.Config{
			Link:     can.Link{SLCAN: "/dev/ttyACM0"},
			Testers:  testers,
			Inbox:    box,
			State:    head,
			Precheck: func(ctx context.Context) error { return guard.Would(ctx, nil) },
			StateDir: "/var/lib/interlock/can-keys",
		})
		if err != nil {
			return err
		}
		return source.Run(ctx)
	}
	_ = run
}
