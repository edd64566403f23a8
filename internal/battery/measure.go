package battery

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Alarm is what a management system raises by itself. Names never change.
type Alarm string

// Alarms, and the warnings that come before them.
const (
	OverTemperature      Alarm = "over-temperature"            // a module at 55 °C or more
	UnderTemperature     Alarm = "under-temperature"           // a module at -10 °C or less
	OverVoltage          Alarm = "over-voltage"                // a cell at 3.65 V or more
	UnderVoltage         Alarm = "under-voltage"               // a cell at 2.8 V or less
	OverCharge           Alarm = "over-charge-current"         // 200 A or more
	OverDischarge        Alarm = "over-discharge-current"      // 200 A or more
	UnderSoC             Alarm = "under-soc"                   // 3 % or less
	ContactorError       Alarm = "contactor-error"             // open without an order
	Other                Alarm = "other"                       // as set
	NearOverTemperature  Alarm = "near-over-temperature"       // 50 °C
	NearUnderTemperature Alarm = "near-under-temperature"      // 0 °C
	NearOverVoltage      Alarm = "near-over-voltage"           // 3.55 V
	NearUnderVoltage     Alarm = "near-under-voltage"          // 2.9 V
	NearOverCharge       Alarm = "near-over-charge-current"    // 180 A
	NearOverDischarge    Alarm = "near-over-discharge-current" // 180 A
	NearUnderSoC         Alarm = "near-under-soc"              // 8 %
	VoltageImbalance     Alarm = "voltage-imbalance"           // 60 mV between cells
	TemperatureImbalance Alarm = "temperature-imbalance"       // 15 K between modules
)

// Cell is one of the cells in series.
type Cell struct {
	Voltage     float64 // V
	Temperature float64 // °C
}

// Module is one of the modules in series.
type Module struct {
	Voltage float64 // V
	Cells   [CellsPerModule]Cell
}

// Connection is what the management system does (SunSpec 802 State).
type Connection string

// Connections.
const (
	Disconnected Connection = "disconnected"
	Precharging  Connection = "precharging"
	Connected    Connection = "connected"
	Waiting      Connection = "standby" // connected, and the converter moves no power by order
)

// Measurement is everything that is measured at one moment. Currents and powers
// above 0 discharge.
type Measurement struct {
	At   time.Time
	Beat uint32 // the management system's and the converter's: +1 every second, 1 in the first

	SoC, SoH       float64 // %
	Voltage        float64 // V, of the cells in series; also with the contactors open
	Current        float64 // A
	Modules        [Modules]Module
	Connection     Connection
	ContactorFault bool
	Alarms         []Alarm // in the order of the constants
	Warnings       []Alarm

	Controls Controls
	Reverts  time.Duration // until the dead-man acts; 0: it does not run
	Mode     Mode
	ACPower  float64 // W
}

// Measure returns what is measured now. With noise, it changes once a second.
func (b *Battery) Measure() Measurement {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(time.Now())
	s := &b.state
	m := Measurement{At: s.at, Beat: 1 + uint32(s.at.Sub(b.start)/time.Second),
		SoC: s.soc, SoH: s.soh, Current: s.current, ContactorFault: s.failed,
		Controls: s.converter.controls, Mode: s.converter.mode(s), ACPower: s.converter.power}
	if !s.converter.reverts.IsZero() {
		m.Reverts = s.converter.reverts.Sub(s.at)
	}
	noise := 0.0
	if b.noise {
		rng := rand.New(rand.NewPCG(b.seed, uint64(m.Beat)<<8|2))
		noise = tempNoise * (2*rng.Float64() - 1)
		if s.connected() {
			m.Current += ampNoise * (2*rng.Float64() - 1)
		}
	}
	m.Modules = b.modules(noise, m.Current)
	for i := range m.Modules {
		m.Voltage += m.Modules[i].Voltage
	}
	switch {
	case s.open || s.failed:
		m.Connection = Disconnected
	case !s.connected():
		m.Connection = Precharging
	case m.Mode == ModeStandby || m.Mode == ModeOff:
		m.Connection = Waiting
	default:
		m.Connection = Connected
	}
	m.raise(s.otherAlarm)
	return m
}

// modules works out every cell.
func (b *Battery) modules(noise, current float64) (out [Modules]Module) {
	s := &b.state
	mean := cellVoltage(s.soc, current)
	for i := range out {
		// The coldest cell is in the coldest module and the hottest in the hottest; a
		// module has a fifth of the whole spread in it.
		spread := s.hot - s.cold
		low := s.cold + noise + 0.8*spread*float64(b.cells.rank[i])/(Modules-1)
		if i+1 == hotModule {
			low += s.extra
		}
		for j := range out[i].Cells {
			c := &out[i].Cells[j]
			c.Temperature = low + 0.2*spread*float64(j)/(CellsPerModule-1)
			c.Voltage = mean + b.cells.offset[i][j]
			if i+1 == weakModule && j+1 == weakCell {
				c.Voltage -= s.imbalance
			}
			out[i].Voltage += c.Voltage
		}
	}
	return out
}

// Place is where a cell is, counted from 1.
type Place struct{ Module, Cell int }

// Range is the lowest and the highest of a quantity of the cells, their mean, and
// where they are.
type Range struct {
	Min, Max, Mean float64
	AtMin, AtMax   Place
}

// Voltages is the range of the cells' voltages in V.
func (m *Measurement) Voltages() Range {
	return m.over(func(c Cell) float64 { return c.Voltage })
}

// Temperatures is the range of the cells' temperatures in °C.
func (m *Measurement) Temperatures() Range {
	return m.over(func(c Cell) float64 { return c.Temperature })
}

func (m *Measurement) over(of func(Cell) float64) (r Range) {
	for i := range m.Modules {
		q := m.Modules[i].over(of)
		if i == 0 || q.Min < r.Min {
			r.Min, r.AtMin = q.Min, Place{i + 1, q.AtMin.Cell}
		}
		if i == 0 || q.Max > r.Max {
			r.Max, r.AtMax = q.Max, Place{i + 1, q.AtMax.Cell}
		}
		r.Mean += q.Mean / Modules
	}
	return r
}

// Voltages is the range of the module's cells in V.
func (m *Module) Voltages() Range { return m.over(func(c Cell) float64 { return c.Voltage }) }

// Temperatures is the range of the module's cells in °C.
func (m *Module) Temperatures() Range {
	return m.over(func(c Cell) float64 { return c.Temperature })
}

func (m *Module) over(of func(Cell) float64) (r Range) {
	for j, c := range m.Cells {
		v := of(c)
		if j == 0 || v < r.Min {
			r.Min, r.AtMin.Cell = v, j+1
		}
		if j == 0 || v > r.Max {
			r.Max, r.AtMax.Cell = v, j+1
		}
		r.Mean += v / CellsPerModule
	}
	return r
}

// raise fills in the alarms and warnings that follow from the values.
func (m *Measurement) raise(other bool) {
	v, t := m.Voltages(), m.Temperatures()
	for _, a := range []struct {
		alarm, near   Alarm
		raised, nears bool
	}{
		{OverTemperature, NearOverTemperature, t.Max >= 55, t.Max >= 50},
		{UnderTemperature, NearUnderTemperature, t.Min <= -10, t.Min <= 0},
		{OverVoltage, NearOverVoltage, v.Max >= 3.65, v.Max >= 3.55},
		{UnderVoltage, NearUnderVoltage, v.Min <= 2.8, v.Min <= 2.9},
		{OverCharge, NearOverCharge, m.Current <= -200, m.Current <= -180},
		{OverDischarge, NearOverDischarge, m.Current >= 200, m.Current >= 180},
		{UnderSoC, NearUnderSoC, m.SoC <= 3, m.SoC <= 8},
		{ContactorError, "", m.ContactorFault, false},
		{Other, "", other, false},
		{"", VoltageImbalance, false, v.Max-v.Min >= 0.060},
		{"", TemperatureImbalance, false, t.Max-t.Min >= 15},
	} {
		switch {
		case a.raised:
			m.Alarms = append(m.Alarms, a.alarm)
		case a.nears:
			m.Warnings = append(m.Warnings, a.near)
		}
	}
}

// Raised reports whether an alarm or a warning is up.
func (m *Measurement) Raised(a Alarm) bool {
	return slices.Contains(m.Alarms, a) || slices.Contains(m.Warnings, a)
}
