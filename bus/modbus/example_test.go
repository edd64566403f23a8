package modbus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
)

// thermometer is a device with one input register and no more.
type thermometer struct{}

func (thermometer) ReadInput(_ context.Context, _ modbus.Call, address uint16, dst []uint16) error {
	if address != 30 || len(dst) != 1 {
		return modbus.IllegalAddress
	}
	dst[0] = 215 // tenths of a degree
	return nil
}

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go (&modbus.Server{Handler: thermometer{}}).Serve(ctx, l)

	client, err := modbus.Dial(ctx, l.Addr().String(), modbus.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	unit := client.Unit(1)
	registers, err := unit.ReadInput(ctx, 30, 1)
	fmt.Println(registers, err)
	_, err = unit.ReadInput(ctx, 31, 1)
	fmt.Println(errors.Is(err, modbus.IllegalAddress), err)
	_, err = unit.ReadHolding(ctx, 30, 1)
	fmt.Println(errors.Is(err, modbus.IllegalFunction))
	// Output:
	// [215] <nil>
	// true read input registers: 1 at 31 of unit 1: modbus exception 2 (illegal data address)
	// true
}
