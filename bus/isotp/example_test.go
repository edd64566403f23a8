package isotp_test

import (
	"context"
	"fmt"
	"log"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
)

// A tester asks one module, over a CAN interface of Linux, and tells all of them that it
// is there.
func ExampleMux() {
	bus, err := can.DialSocketCAN("can0", can.Filters{{ID: 0x7E8, Mask: can.MaxStandard}})
	if err != nil {
		log.Fatal(err)
	}
	mux := isotp.NewMux(bus)
	defer mux.Close()
	module, err := mux.Open(isotp.Normal(0x7E0, 0x7E8), isotp.Config{FramesPerSecond: 1000})
	if err != nil {
		log.Fatal(err)
	}
	all, err := mux.Open(isotp.Functional(0x7DF), isotp.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	if err := all.Send(ctx, []byte{0x3E, 0x80}); err != nil {
		log.Fatal(err)
	}
	if err := module.Send(ctx, []byte{0x22, 0xF1, 0x95}); err != nil {
		log.Fatal(err)
	}
	answer, err := module.Receive(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("% X\n", answer)
}

func ExampleAddress_Peer() {
	tester := isotp.Fixed29(0x10, 0xF1)
	fmt.Println(tester)
	fmt.Println(tester.Peer())
	// Output:
	// 18DA10F1/18DAF110
	// 18DAF110/18DA10F1
}
