package overmodbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// refusal makes a *Refused of a device's exception, and an error of the line of all else.
func refusal(ctx context.Context, err error) error {
	exception, ok := errors.AsType[modbus.Exception](err)
	switch {
	case err == nil:
		return nil
	case ok && exception != modbus.GatewayPath && exception != modbus.GatewayTarget: // those are about the line behind a gateway
		return &Refused{Exception: exception}
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, modbus.ErrRequest):
		return err
	}
	return fmt.Errorf("%w: %w", push.ErrLine, err)
}

func (d *Device) read(ctx context.Context, offset, count uint16) ([]uint16, error) {
	registers, err := d.Client.ReadHolding(ctx, d.Unit, d.Base+offset, count)
	return registers, refusal(ctx, err)
}

// status reads the status block.
func (d *Device) status(ctx context.Context) (profile.Status, error) {
	registers, err := d.read(ctx, profile.OffsetStatus, profile.StatusSize)
	if err != nil {
		return profile.Status{}, fmt.Errorf("read the status: %w", err)
	}
	return profile.DecodeStatus(registers)
}

// displayParts are the registers of the display that are read with one request each, for it is longer
// than one can be. They meet where a text begins: one that changes meanwhile would come torn.
var displayParts = [...]uint16{0x40, profile.DisplaySize - 0x40} // the second one begins with the reason, +0A0

// display reads the texts for people. A device that has none is as good as any other.
func (d *Device) display(ctx context.Context) (profile.Display, error) {
	registers := make([]uint16, 0, profile.DisplaySize)
	for _, part := range displayParts {
		some, err := d.read(ctx, profile.OffsetDisplay+uint16(len(registers)), part)
		if r, ok := errors.AsType[*Refused](err); ok && r.Exception == modbus.IllegalAddress {
			return profile.Display{}, nil
		}
		if err != nil {
			return profile.Display{}, fmt.Errorf("read the display: %w", err)
		}
		registers = append(registers, some...)
	}
	return profile.DecodeDisplay(registers)
}

// How often, and for how long, the device is asked.
const (
	answerPatience = 3                      // answers of one command may get lost, before it is for the caller to wait
	pollFast       = 100 * time.Millisecond // for what takes a moment
	pollSlow       = time.Second            // for what takes long
)

// command gives a command. It is given again with the same number if no answer comes. The
// error is a *Refused with the result, or wraps push.ErrLine.
func (d *Device) command(ctx context.Context, c *profile.Command) error {
	if d.seq++; d.seq == 0 {
		d.seq = 1
	}
	c.Seq, c.Component = d.seq, profile.TypeBundle
	var registers [profile.CommandSize]uint16
	c.Encode(registers[:])
	for try := 1; ; try++ {
		err := refusal(ctx, d.Client.WriteRegisters(ctx, d.Unit, d.Base+profile.OffsetCommand, registers[:]))
		r, refused := errors.AsType[*Refused](err)
		switch {
		case err == nil:
			return nil
		case refused && r.Exception == modbus.Acknowledge:
			return nil // done in the background: the status says how it goes
		case refused:
			return fmt.Errorf("%v: %w", c.Code, d.explain(ctx, r))
		case !errors.Is(err, push.ErrLine) || try == answerPatience:
			return fmt.Errorf("%v: %w", c.Code, err)
		}
	}
}

// explain asks the device why, and after which time another try makes sense.
func (d *Device) explain(ctx context.Context, r *Refused) error {
	s, err := d.status(ctx)
	if err != nil {
		return r
	}
	r.Result, r.RetryAfter = s.Result, time.Duration(s.RetryAfter)*time.Millisecond
	if display, err := d.display(ctx); err == nil && r.Exception != modbus.DeviceBusy {
		r.Reason = display.Reason
	}
	return r
}

// bitmap reads which of the blocks from the first on, and below end, are there, and hands
// each to set, until that has had enough.
func (d *Device) bitmap(ctx context.Context, first, end uint32, set func(block uint32, there bool) (more bool)) error {
	for block := first &^ 15; block < end; {
		file, record := profile.SpecialPlace(profile.FileBitmap, int(block/16*2))
		count := min((end-block+15)/16, modbus.MaxFileRead, uint32(profile.FileRecords-int(record)))
		registers, err := d.Client.ReadFile(ctx, d.Unit, file, record, uint16(count))
		if err := refusal(ctx, err); err != nil {
			return fmt.Errorf("read which blocks are there: %w", err)
		}
		for _, v := range registers {
			for i := range uint32(16) {
				if n := block + i; n >= first && n < end && !set(n, v>>i&1 != 0) {
					return nil
				}
			}
			block += 16
		}
	}
	return nil
}
