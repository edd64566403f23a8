package sunspec_test

import (
	"context"
	"fmt"

	"github.com/interlock-energy/ota/bus/sunspec"
)

// The device here is an image; it would be a unit of a Modbus client.
func Example() {
	ctx := context.Background()
	device := sunspec.NewImage(40000)
	m, err := device.Add(802, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = device.Set(m, sunspec.Number("SoC", 57.5), sunspec.Number("A", -2.5), sunspec.Symbolic("State", "CONNECTED"), sunspec.Bits("Evt1", "FAN_ERROR"))
	if err != nil {
		fmt.Println(err)
		return
	}

	found, err := sunspec.Discover(ctx, device, sunspec.Search{})
	if err != nil {
		fmt.Println(err)
		return
	}
	battery, err := sunspec.ReadBattery(ctx, device, found)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(battery.SoC.Value, "% from", battery.SoC.From)
	fmt.Println(battery.State.Name, battery.Alarms, battery.Warnings)
	fmt.Println(battery.TempMax.Value, battery.TempMax.Why)
	// Output:
	// 57.5 % from 802 SoC
	// CONNECTED [] [802 FAN_ERROR]
	// NaN read 803 ModTmpMax: the device has no such model
}

// A ramp to zero that reverts by itself if nobody renews it.
func ExampleWritePoints() {
	ctx := context.Background()
	device := sunspec.NewImage(40000)
	m, err := device.Add(704, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = device.Set(m, sunspec.Symbolic("WSetEna", "DISABLED"), sunspec.Symbolic("WSetMod", "W_MAX_PCT"), sunspec.Number("WSet", 5000),
		sunspec.Number("WSetRvrt", 0), sunspec.Symbolic("WSetEnaRvrt", "DISABLED"), sunspec.Number("WSetRvrtTms", 0))
	if err != nil {
		fmt.Println(err)
		return
	}

	err = sunspec.WritePoints(ctx, device, m,
		sunspec.Symbolic("WSetEnaRvrt", "ENABLED"), sunspec.Number("WSetRvrtTms", 60),
		sunspec.Symbolic("WSetEna", "ENABLED"), sunspec.Symbolic("WSetMod", "WATTS"), sunspec.Number("WSet", 0))
	block, _ := sunspec.ReadModel(ctx, device, m)
	fmt.Println(err, block.Float("WSet"), block.Float("WSetRvrtTms"))
	// Output: <nil> 0 60
}
