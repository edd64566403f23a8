package uboot_test

import (
	"context"
	"fmt"
	"io"

	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
	"github.com/interlock-energy/ota/slot/uboot/uboottest"
)

// A controller with RAUC's convention and its environment on a partition of its own.
// Here a fake disk and a model of U-Boot stand in for it.
func Example() {
	if err := example(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// slot A runs
	// slot B runs, on trial: true
	// slot B runs, on trial: false
}

func example() error {
	ctx := context.Background()
	board, disk := uboottest.Backend{}, otatest.NewDisk()
	if err := board.Format(disk, []byte("firmware 1.0.0")); err != nil {
		return err
	}
	start := func() (*uboot.Slots, error) {
		slot, err := board.PowerOn(disk)
		if err != nil {
			return nil, err
		}
		return uboot.OpenOn(disk, uboot.Config{ // on a device: uboot.Open
			Scheme:     uboot.RAUC,
			Components: map[string][2]string{"controller": {"/device/a/controller", "/device/b/controller"}},
			Env: []uboot.Place{ // as in fw_env.config
				{Path: "/device/boot", Offset: 0, Size: 0x400},
				{Path: "/device/boot", Offset: 0x2000, Size: 0x400},
			},
			Booted: func(context.Context) (string, string, error) { return slot, "boot_id of the kernel", nil },
		})
	}
	slots, err := start()
	if err != nil {
		return err
	}
	b, err := slots.Booted(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("slot %s runs\n", b.Slot)
	other, err := slots.Open(ctx, "controller", b.Other)
	if err != nil {
		return err
	}
	defer other.Close()
	n, err := io.WriteString(io.NewOffsetWriter(other, 0), "firmware 1.0.1")
	if err != nil {
		return err
	}
	if err := other.Sync(int64(n)); err != nil {
		return err
	}
	if err := slots.Try(ctx, b.Other); err != nil {
		return err
	}
	if slots, err = start(); err != nil {
		return err
	}
	if b, err = slots.Booted(ctx); err != nil {
		return err
	}
	fmt.Printf("slot %s runs, on trial: %v\n", b.Slot, b.Trial)
	if err := slots.MarkGood(ctx); err != nil {
		return err
	}
	if b, err = slots.Booted(ctx); err != nil {
		return err
	}
	fmt.Printf("slot %s runs, on trial: %v\n", b.Slot, b.Trial)
	return nil
}
