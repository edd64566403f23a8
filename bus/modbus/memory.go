package modbus

import (
	"context"
	"sync"
)

// Memory is a handler that keeps everything in memory, for simulators and tests. What
// was never set does not exist, and is exception 2, except that any file can be written,
// which sets it. The zero value is empty and works.
type Memory struct {
	// OnRead, if set, runs before holding or input registers are read, and may set them;
	// OnWrite before holding registers are written. An error goes to the client, and
	// nothing is written. FC 22 is a write of the value that results.
	OnRead  func(ctx context.Context, call Call, address uint16, count int) error
	OnWrite func(ctx context.Context, call Call, address uint16, values []uint16) error

	mu     sync.Mutex
	values map[place]uint16
	queues map[place][]uint16
}

// place is where a value is.
type place struct {
	unit          byte
	table         Function // by which it is read
	file, address uint16
}

// SetHolding makes holding registers of a unit.
func (m *Memory) SetHolding(unit byte, address uint16, values ...uint16) {
	m.set(place{unit, ReadHolding, 0, address}, values)
}

// SetInput makes input registers of a unit.
func (m *Memory) SetInput(unit byte, address uint16, values ...uint16) {
	m.set(place{unit, ReadInput, 0, address}, values)
}

// SetCoils makes coils of a unit.
func (m *Memory) SetCoils(unit byte, address uint16, values ...bool) {
	m.set(place{unit, ReadCoils, 0, address}, numbers(values))
}

// SetDiscreteInputs makes discrete inputs of a unit.
func (m *Memory) SetDiscreteInputs(unit byte, address uint16, values ...bool) {
	m.set(place{unit, ReadDiscreteInputs, 0, address}, numbers(values))
}

// SetFile makes records of a file of a unit.
func (m *Memory) SetFile(unit byte, file, record uint16, values ...uint16) {
	m.set(place{unit, ReadFile, file, record}, values)
}

// SetFIFO makes a queue of a unit.
func (m *Memory) SetFIFO(unit byte, address uint16, values ...uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.queues == nil {
		m.queues = map[place][]uint16{}
	}
	m.queues[place{unit, ReadFIFO, 0, address}] = append([]uint16(nil), values...)
}

// Holding returns holding registers of a unit; those that were never set are 0.
func (m *Memory) Holding(unit byte, address uint16, count int) []uint16 {
	return m.all(place{unit, ReadHolding, 0, address}, count)
}

// Coils returns coils of a unit; those that were never set are off.
func (m *Memory) Coils(unit byte, address uint16, count int) []bool {
	bits := make([]bool, count)
	for i, v := range m.all(place{unit, ReadCoils, 0, address}, count) {
		bits[i] = v != 0
	}
	return bits
}

// File returns records of a file of a unit; those that were never set are 0.
func (m *Memory) File(unit byte, file, record uint16, count int) []uint16 {
	return m.all(place{unit, ReadFile, file, record}, count)
}

func numbers(bits []bool) []uint16 {
	values := make([]uint16, len(bits))
	for i, on := range bits {
		if on {
			values[i] = 1
		}
	}
	return values
}

func (m *Memory) set(at place, values []uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(at, values)
}

func (m *Memory) put(at place, values []uint16) {
	if m.values == nil {
		m.values = map[place]uint16{}
	}
	for i, v := range values {
		m.values[at.plus(i)] = v
	}
}

func (p place) plus(i int) place {
	p.address += uint16(i)
	return p
}

func (m *Memory) all(at place, count int) []uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	values := make([]uint16, count)
	for i := range values {
		values[i] = m.values[at.plus(i)]
	}
	return values
}

// read fills dst, if all of it exists.
func (m *Memory) read(at place, dst []uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range dst {
		v, ok := m.values[at.plus(i)]
		if !ok {
			return IllegalAddress
		}
		dst[i] = v
	}
	return nil
}

// write writes, if all of it exists.
func (m *Memory) write(at place, values []uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range values {
		if _, ok := m.values[at.plus(i)]; !ok {
			return IllegalAddress
		}
	}
	m.put(at, values)
	return nil
}

func (m *Memory) readBits(at place, dst []bool) error {
	values := make([]uint16, len(dst))
	if err := m.read(at, values); err != nil {
		return err
	}
	for i, v := range values {
		dst[i] = v != 0
	}
	return nil
}

// ReadHolding is HoldingReader.
func (m *Memory) ReadHolding(ctx context.Context, call Call, address uint16, dst []uint16) error {
	if m.OnRead != nil {
		if err := m.OnRead(ctx, call, address, len(dst)); err != nil {
			return err
		}
	}
	return m.read(place{call.Unit, ReadHolding, 0, address}, dst)
}

// ReadInput is InputReader.
func (m *Memory) ReadInput(ctx context.Context, call Call, address uint16, dst []uint16) error {
	if m.OnRead != nil {
		if err := m.OnRead(ctx, call, address, len(dst)); err != nil {
			return err
		}
	}
	return m.read(place{call.Unit, ReadInput, 0, address}, dst)
}

// WriteHolding is HoldingWriter.
func (m *Memory) WriteHolding(ctx context.Context, call Call, address uint16, values []uint16) error {
	at := place{call.Unit, ReadHolding, 0, address}
	if m.OnWrite != nil {
		if err := m.OnWrite(ctx, call, address, values); err != nil {
			return err
		}
	}
	return m.write(at, values)
}

// MaskHolding is HoldingMasker.
func (m *Memory) MaskHolding(ctx context.Context, call Call, address, and, or uint16) error {
	at := place{call.Unit, ReadHolding, 0, address}
	for {
		var old [1]uint16
		if err := m.read(at, old[:]); err != nil {
			return err
		}
		value := []uint16{old[0]&and | or&^and}
		if m.OnWrite != nil {
			if err := m.OnWrite(ctx, call, address, value); err != nil {
				return err
			}
		}
		if m.swap(at, old[0], value[0]) {
			return nil
		}
	}
}

// swap sets a value if it still is what it was.
func (m *Memory) swap(at place, old, value uint16) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values[at] != old {
		return false
	}
	m.values[at] = value
	return true
}

// ReadCoils is CoilReader.
func (m *Memory) ReadCoils(_ context.Context, call Call, address uint16, dst []bool) error {
	return m.readBits(place{call.Unit, ReadCoils, 0, address}, dst)
}

// ReadDiscreteInputs is DiscreteReader.
func (m *Memory) ReadDiscreteInputs(_ context.Context, call Call, address uint16, dst []bool) error {
	return m.readBits(place{call.Unit, ReadDiscreteInputs, 0, address}, dst)
}

// WriteCoils is CoilWriter.
func (m *Memory) WriteCoils(_ context.Context, call Call, address uint16, values []bool) error {
	return m.write(place{call.Unit, ReadCoils, 0, address}, numbers(values))
}

// ReadFile is FileReader.
func (m *Memory) ReadFile(_ context.Context, call Call, file, record uint16, dst []uint16) error {
	return m.read(place{call.Unit, ReadFile, file, record}, dst)
}

// WriteFile is FileWriter.
func (m *Memory) WriteFile(_ context.Context, call Call, file, record uint16, values []uint16) error {
	m.set(place{call.Unit, ReadFile, file, record}, values)
	return nil
}

// ReadFIFO is FIFOReader.
func (m *Memory) ReadFIFO(_ context.Context, call Call, address uint16, dst []uint16) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue, ok := m.queues[place{call.Unit, ReadFIFO, 0, address}]
	if !ok {
		return 0, IllegalAddress
	}
	copy(dst, queue)
	return len(queue), nil
}
