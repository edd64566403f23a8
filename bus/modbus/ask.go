package modbus

import (
	"context"
	"errors"
	"fmt"
)

// begin takes a call with an empty request.
func (c *Client) begin(unit byte) *call {
	call := c.calls.Get().(*call)
	call.unit, call.request = unit, call.buffer[:0]
	return call
}

// do asks, again if that does no harm, and returns the answer's data, a view of the call.
func (c *Client) do(ctx context.Context, call *call) ([]byte, error) {
	f := Function(call.request[0])
	everybody := call.unit == 0 && c.link.broadcasts()
	if everybody && (!f.Writes() || f == ReadWrite) {
		return nil, fmt.Errorf("%w: %v cannot be a broadcast, which nobody answers; name a unit from 1 to 247", ErrRequest, f)
	}
	before := c.link.heard()
	for try := 0; ; try++ {
		call.sent = false
		err := c.link.exchange(ctx, call)
		if err == nil && everybody {
			return nil, nil
		}
		if err == nil {
			var data []byte
			if data, err = ParseAnswer(call.request, call.answer[:call.size]); err == nil {
				return data, nil
			}
		}
		var exception Exception
		if errors.As(err, &exception) || errors.Is(err, ErrClosed) || errors.Is(err, errNoWay) {
			return nil, err
		}
		if ctx.Err() != nil {
			if try > 0 { // callers with little patience must not keep a dead connection
				c.link.silent(before)
			}
			return nil, ctx.Err()
		}
		if harmless := !f.Writes() || c.config.RepeatWrites || !call.sent; !harmless || try >= c.config.Retries {
			if errors.Is(err, ErrNoAnswer) {
				c.link.silent(before)
			}
			return nil, err
		}
	}
}

// errNoWay is wrapped if the connection could not be made, which trying again at once
// does not change.
var errNoWay = errors.New("no connection")

// failed says which request an error is about.
func (call *call) failed(what Function, address uint16, count int, err error) error {
	return fmt.Errorf("%v: %d at %d of unit %d: %w", what, count, address, call.unit, err)
}

// ReadCoils asks FC 1, for 1 to MaxReadBits coils.
func (c *Client) ReadCoils(ctx context.Context, unit byte, address, count uint16) ([]bool, error) {
	return c.readBits(ctx, ReadCoils, unit, address, count)
}

// ReadDiscreteInputs asks FC 2, for 1 to MaxReadBits inputs.
func (c *Client) ReadDiscreteInputs(ctx context.Context, unit byte, address, count uint16) ([]bool, error) {
	return c.readBits(ctx, ReadDiscreteInputs, unit, address, count)
}

func (c *Client) readBits(ctx context.Context, f Function, unit byte, address, count uint16) ([]bool, error) {
	call := c.begin(unit)
	defer c.calls.Put(call)
	var err error
	if call.request, err = AppendRead(call.request, f, address, count); err == nil {
		var data []byte
		if data, err = c.do(ctx, call); err == nil {
			bits := make([]bool, count)
			Bits(bits, data)
			return bits, nil
		}
	}
	return nil, call.failed(f, address, int(count), err)
}

// ReadHolding asks FC 3, for 1 to MaxReadRegisters registers.
func (c *Client) ReadHolding(ctx context.Context, unit byte, address, count uint16) ([]uint16, error) {
	values := make([]uint16, count)
	if err := c.readRegisters(ctx, ReadHolding, unit, address, values); err != nil {
		return nil, err
	}
	return values, nil
}

// ReadInput asks FC 4, for 1 to MaxReadRegisters registers.
func (c *Client) ReadInput(ctx context.Context, unit byte, address, count uint16) ([]uint16, error) {
	values := make([]uint16, count)
	if err := c.readRegisters(ctx, ReadInput, unit, address, values); err != nil {
		return nil, err
	}
	return values, nil
}

// ReadHoldingInto is ReadHolding without allocating: it fills dst.
func (c *Client) ReadHoldingInto(ctx context.Context, unit byte, address uint16, dst []uint16) error {
	return c.readRegisters(ctx, ReadHolding, unit, address, dst)
}

// ReadInputInto is ReadInput without allocating: it fills dst.
func (c *Client) ReadInputInto(ctx context.Context, unit byte, address uint16, dst []uint16) error {
	return c.readRegisters(ctx, ReadInput, unit, address, dst)
}

func (c *Client) readRegisters(ctx context.Context, f Function, unit byte, address uint16, dst []uint16) error {
	call := c.begin(unit)
	defer c.calls.Put(call)
	var err error
	if len(dst) > MaxReadRegisters {
		err = checkCount("registers", len(dst), MaxReadRegisters)
	} else if call.request, err = AppendRead(call.request, f, address, uint16(len(dst))); err == nil {
		var data []byte
		if data, err = c.do(ctx, call); err == nil {
			Registers(dst, data)
			return nil
		}
	}
	return call.failed(f, address, len(dst), err)
}

// WriteCoil asks FC 5.
func (c *Client) WriteCoil(ctx context.Context, unit byte, address uint16, on bool) error {
	call := c.begin(unit)
	defer c.calls.Put(call)
	call.request = AppendWriteCoil(call.request, address, on)
	return c.write(ctx, call, address, 1, nil)
}

// WriteRegister asks FC 6.
func (c *Client) WriteRegister(ctx context.Context, unit byte, address, value uint16) error {
	call := c.begin(unit)
	defer c.calls.Put(call)
	call.request = AppendWriteRegister(call.request, address, value)
	return c.write(ctx, call, address, 1, nil)
}

// WriteCoils asks FC 15, with 1 to MaxWriteBits values.
func (c *Client) WriteCoils(ctx context.Context, unit byte, address uint16, values []bool) (err error) {
	call := c.begin(unit)
	defer c.calls.Put(call)
	call.request, err = AppendWriteCoils(call.request, address, values)
	return c.write(ctx, call, address, len(values), err)
}

// WriteRegisters asks FC 16, with 1 to MaxWriteRegisters values.
func (c *Client) WriteRegisters(ctx context.Context, unit byte, address uint16, values []uint16) (err error) {
	call := c.begin(unit)
	defer c.calls.Put(call)
	call.request, err = AppendWriteRegisters(call.request, address, values)
	return c.write(ctx, call, address, len(values), err)
}

// MaskWrite asks FC 22: the register becomes (it AND and) OR (or AND NOT and).
func (c *Client) MaskWrite(ctx context.Context, unit byte, address, and, or uint16) error {
	call := c.begin(unit)
	defer c.calls.Put(call)
	call.request = AppendMaskWrite(call.request, address, and, or)
	return c.write(ctx, call, address, 1, nil)
}

// write ends the writes: err is what is wrong with the request already.
func (c *Client) write(ctx context.Context, call *call, address uint16, count int, err error) error {
	if err == nil {
		_, err = c.do(ctx, call)
	}
	if err == nil {
		return nil
	}
	f := WriteRegisters
	if len(call.request) > 0 {
		f = Function(call.request[0])
	}
	return call.failed(f, address, count, err)
}

// ReadWrite asks FC 23: it writes up to MaxExchange values from the address write on,
// then reads, in one transaction.
func (c *Client) ReadWrite(ctx context.Context, unit byte, read, count, write uint16, values []uint16) ([]uint16, error) {
	call := c.begin(unit)
	defer c.calls.Put(call)
	var err error
	if call.request, err = AppendReadWrite(call.request, read, count, write, values); err == nil {
		var data []byte
		if data, err = c.do(ctx, call); err == nil {
			registers := make([]uint16, count)
			Registers(registers, data)
			return registers, nil
		}
	}
	return nil, call.failed(ReadWrite, read, int(count), err)
}

// ReadFIFO asks FC 24, which leaves the queue as it is. At most MaxFIFO registers come.
func (c *Client) ReadFIFO(ctx context.Context, unit byte, address uint16) ([]uint16, error) {
	call := c.begin(unit)
	defer c.calls.Put(call)
	call.request = AppendReadFIFO(call.request, address)
	data, err := c.do(ctx, call)
	if err != nil {
		return nil, call.failed(ReadFIFO, address, 1, err)
	}
	registers := make([]uint16, len(data)/2)
	Registers(registers, data)
	return registers, nil
}

// ReadFile asks FC 20 for 1 to MaxFileRead records, which are registers, of one file.
func (c *Client) ReadFile(ctx context.Context, unit byte, file, record, count uint16) ([]uint16, error) {
	call := c.begin(unit)
	defer c.calls.Put(call)
	var err error
	if call.request, err = AppendReadFile(call.request, FileRange{file, record, count}); err == nil {
		var data []byte
		if data, err = c.do(ctx, call); err == nil {
			data, _ = FileData(data)
			registers := make([]uint16, count)
			Registers(registers, data)
			return registers, nil
		}
	}
	return nil, fmt.Errorf("%v: %d at %d of file %d of unit %d: %w", ReadFile, count, record, file, unit, err)
}

// WriteFile asks FC 21, with 1 to MaxFileWrite records of one file.
func (c *Client) WriteFile(ctx context.Context, unit byte, file, record uint16, values []uint16) error {
	call := c.begin(unit)
	defer c.calls.Put(call)
	var err error
	if call.request, err = AppendWriteFile(call.request, FileRecords{file, record, values}); err == nil {
		if _, err = c.do(ctx, call); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%v: %d at %d of file %d of unit %d: %w", WriteFile, len(values), record, file, unit, err)
}

// Unit is a client's view of one device.
type Unit struct {
	Client *Client
	ID     byte
}

// Unit returns the view of one device: on TCP mostly 1 or 255, on RTU 1 to 247.
func (c *Client) Unit(id byte) Unit { return Unit{c, id} }

// ReadHolding is Client.ReadHolding of this device.
func (u Unit) ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error) {
	return u.Client.ReadHolding(ctx, u.ID, address, count)
}

// ReadInput is Client.ReadInput of this device.
func (u Unit) ReadInput(ctx context.Context, address, count uint16) ([]uint16, error) {
	return u.Client.ReadInput(ctx, u.ID, address, count)
}

// WriteRegister is Client.WriteRegister of this device.
func (u Unit) WriteRegister(ctx context.Context, address, value uint16) error {
	return u.Client.WriteRegister(ctx, u.ID, address, value)
}

// WriteRegisters is Client.WriteRegisters of this device.
func (u Unit) WriteRegisters(ctx context.Context, address uint16, values []uint16) error {
	return u.Client.WriteRegisters(ctx, u.ID, address, values)
}
