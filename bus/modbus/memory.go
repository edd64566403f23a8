package modbus

import "context"

// Memory is a handler that keeps everything in memory, for simulators and tests. What
// was never set does not exist: exception 2.
type Memory struct {
	// OnRead, if set, runs before a read and may set what will be read; OnWrite before a
	// write. An error goes to the client, and nothing is written.
	OnRead  func(ctx context.Context, call Call, address uint16, count int) error
	OnWrite func(ctx context.Context, call Call, address uint16, values []uint16) error
}

// SetHolding makes holding registers of a unit.
func (m *Memory) SetHolding(unit byte, address uint16, values ...uint16) {}

// Holding returns holding registers; those that were never set are 0.
func (m *Memory) Holding(unit byte, address uint16, count int) []uint16 { return nil }

// SetInput makes input registers of a unit.
func (m *Memory) SetInput(unit byte, address uint16, values ...uint16) {}
