package simulate

import (
	"context"
	"fmt"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
)

// device answers Modbus requests for a system. It implements
// [modbus.HoldingReader] and [modbus.HoldingWriter].
type device struct{ *System }

func (d device) ReadHolding(ctx context.Context, call modbus.Call, address uint16, dst []uint16) error {
	if err := d.ready(ctx, call); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.half(address, len(dst)); err != nil {
		return err
	}
	if err := d.update(); err != nil {
		return err
	}
	values, err := d.registers.image.ReadHolding(ctx, address, uint16(len(dst)))
	if err != nil {
		return fmt.Errorf("%w: %w", modbus.IllegalAddress, err)
	}
	copy(dst, values)
	return nil
}

func (d device) WriteHolding(ctx context.Context, call modbus.Call, address uint16, values []uint16) error {
	if err := d.ready(ctx, call); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.half(address, len(values)); err != nil {
		return err
	}
	all, err := d.registers.assignments(address, values)
	if err != nil {
		return err
	}
	return d.control(all)
}

// ready applies the faults that concern every request.
func (d device) ready(ctx context.Context, call modbus.Call) error {
	if call.Unit != d.unit {
		return fmt.Errorf("ask unit %d: there is only %d: %w", call.Unit, d.unit, modbus.GatewayTarget)
	}
	if d.has(slow) {
		timer := time.NewTimer(slowness)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.has(exception) {
		return modbus.DeviceFailure
	}
	return nil
}

// half refuses the second half of model 802 and what is behind it, if that is a
// fault now. A scan begins where the marker is. The caller holds the lock.
func (d device) half(address uint16, count int) error {
	base := d.registers.base
	if address <= d.base && int(address)+count > int(d.base) {
		d.scans++
	}
	if !d.faults[halfMap] && !(d.faults[halfMapFirst] && d.scans < 2) {
		return nil
	}
	if int(address)+count > int(base.Address)+int(base.Length+2)/2 {
		return fmt.Errorf("use %d registers at %d: %w", count, address, modbus.IllegalAddress)
	}
	return nil
}

// update brings the registers up to date. The caller holds the lock.
func (s *System) update() error {
	v, m := s.look()
	soc := m.SoC
	if s.faults[socMissing] {
		soc = v.soc
	}
	if err := s.registers.setConverter(m, soc, s.written); err != nil {
		return fmt.Errorf("update the converter's registers: %w", err)
	}
	if !s.fresh {
		return nil
	}
	if err := s.registers.setBattery(v, s.written); err != nil {
		return fmt.Errorf("update the battery's registers: %w", err)
	}
	s.fresh = false
	return nil
}
