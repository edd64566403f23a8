//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
)

// ownModbus is our side of the benchmark, as a process of its own: "serve", or "ask"
// with port, registers, seconds, and how many requests are in flight.
func ownModbus(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "serve" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Printf("ready %d\n", l.Addr().(*net.TCPAddr).Port)
		return (&modbus.Server{Handler: newHeld()}).Serve(ctx, l)
	}
	if len(args) < 4 || args[0] != "ask" {
		return fmt.Errorf("got %q, want serve, or ask with port, registers and seconds", args)
	}
	registers, err1 := strconv.Atoi(args[2])
	seconds, err2 := strconv.ParseFloat(args[3], 64)
	inFlight := 1
	var err3 error
	if len(args) == 5 {
		inFlight, err3 = strconv.Atoi(args[4])
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	c, err := modbus.Dial(ctx, "127.0.0.1:"+args[1], modbus.Config{Window: inFlight})
	if err != nil {
		return err
	}
	defer c.Close()
	return askModbus(ctx, c, registers, inFlight, time.Duration(seconds*float64(time.Second)))
}

// held are registers that hold their addresses.
type held [modbus.MaxReadRegisters]uint16

func newHeld() *held {
	h := new(held)
	for i := range h {
		h[i] = uint16(i)
	}
	return h
}

// ReadHolding is modbus.HoldingReader.
func (h *held) ReadHolding(_ context.Context, _ modbus.Call, address uint16, dst []uint16) error {
	if int(address)+len(dst) > len(h) {
		return modbus.IllegalAddress
	}
	copy(dst, h[address:])
	return nil
}

// check makes sure that values came, so that nobody is fast by answering nothing.
func check(values []uint16) error {
	for i, v := range values {
		if int(v) != i {
			return fmt.Errorf("register %d: got %d, want %d", i, v, i)
		}
	}
	return nil
}

func askModbus(ctx context.Context, c *modbus.Client, registers, inFlight int, d time.Duration) error {
	for range 500 {
		values := make([]uint16, registers)
		if err := c.ReadHoldingInto(ctx, 1, 0, values); err != nil {
			return err
		}
		if err := check(values); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	var requests atomic.Int64
	errs := make([]error, inFlight)
	begin := time.Now()
	var group sync.WaitGroup
	for i := range inFlight {
		group.Go(func() {
			values := make([]uint16, registers)
			var n int64
			for time.Since(begin) < d && errs[i] == nil {
				errs[i] = c.ReadHoldingInto(ctx, 1, 0, values)
				n++
			}
			requests.Add(n)
		})
	}
	group.Wait()
	took := time.Since(begin)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println(requests.Load(), took.Nanoseconds())
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// modbusAllocation is how often one side allocates, once it is warm.
type modbusAllocation struct {
	What       string  `json:"what"`
	PerRequest float64 `json:"allocations_per_request"`
}

// modbusAllocations counts in this process, with a plain loop that allocates nothing
// at the other end of the connection.
func modbusAllocations(ctx context.Context) ([]modbusAllocation, error) {
	var all []modbusAllocation
	for _, registers := range []uint16{125, 1} {
		server, err := serverAllocations(ctx, registers)
		if err != nil {
			return nil, fmt.Errorf("count the allocations of the server: %w", err)
		}
		into, fresh, err := clientAllocations(ctx, registers)
		if err != nil {
			return nil, fmt.Errorf("count the allocations of the client: %w", err)
		}
		all = append(all,
			modbusAllocation{fmt.Sprintf("server, FC 3 of %d", registers), server},
			modbusAllocation{fmt.Sprintf("client, FC 3 of %d, ReadHoldingInto", registers), into},
			modbusAllocation{fmt.Sprintf("client, FC 3 of %d, ReadHolding", registers), fresh})
	}
	return all, nil
}

const allocationRuns = 20_000

// frames are a request for registers, and its answer.
func frames(registers uint16) (request, answer []byte, err error) {
	pdu, err := modbus.AppendRead(nil, modbus.ReadHolding, 0, registers)
	if err != nil {
		return nil, nil, err
	}
	return modbus.AppendTCP(nil, 1, 1, pdu), modbus.AppendTCP(nil, 1, 1, modbus.AppendRegisters(nil, modbus.ReadHolding, newHeld()[:registers])), nil
}

func serverAllocations(ctx context.Context, registers uint16) (float64, error) {
	request, answer, err := frames(registers)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return 0, err
	}
	var group sync.WaitGroup
	group.Go(func() { (&modbus.Server{Handler: newHeld()}).Serve(ctx, l) })
	defer group.Wait()
	defer cancel()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	got := make([]byte, len(answer))
	n := testing.AllocsPerRun(allocationRuns, func() {
		if err != nil {
			return
		}
		if _, err = conn.Write(request); err == nil {
			_, err = io.ReadFull(conn, got)
		}
	})
	if err == nil && string(got) != string(answer) {
		err = fmt.Errorf("got answer %x, want %x", got, answer)
	}
	return n, err
}

func clientAllocations(ctx context.Context, registers uint16) (into, fresh float64, err error) {
	request, answer, err := frames(registers)
	if err != nil {
		return 0, 0, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer l.Close()
	go func() { // ends with the connection
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			if _, err := io.ReadFull(conn, request); err != nil {
				return
			}
			copy(answer, request[:2]) // the transaction
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}()
	c, err := modbus.Dial(ctx, l.Addr().String(), modbus.Config{})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	values := make([]uint16, registers)
	into = testing.AllocsPerRun(allocationRuns, func() {
		if err == nil {
			err = c.ReadHoldingInto(ctx, 1, 0, values)
		}
	})
	fresh = testing.AllocsPerRun(allocationRuns, func() {
		if err == nil {
			values, err = c.ReadHolding(ctx, 1, 0, registers)
		}
	})
	return into, fresh, errors.Join(err, check(values))
}
