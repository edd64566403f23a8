package broadcast

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/interlock-energy/ota/bus/can"
)

const second = time.Second

// Plausible voltages of batteries of 15 or 16 cells in series, in V.
var lowVoltage = [2]float64{40, 60}

// inverter305 keeps Pylontech, SMA and similar batteries talking (Pylontech
// CAN-Bus-protocol-PYLON-low-voltage-V1.2).
var inverter305 = []can.Frame{can.Standard(0x305, 0, 0, 0, 0, 0, 0, 0, 0)}

// Little-endian frames of 11 bits that most batteries of 48 V share (Pylontech V1.2;
// SMA FSS-ConnectingBat-TI-en-10; MG Master LV guide; Sol-Ark V1.3).
func m351() message {
	return message{id: 0x351, min: 6, len: 8, cycle: second, fields: []field{
		{q: ChargeVoltage, at: 0, kind: u16, per: 10},
		{q: ChargeLimit, at: 2, kind: i16, per: 10},
		{q: DischargeLimit, at: 4, kind: i16, per: 10, magnitude: true},
		{q: DischargeVoltage, at: 6, kind: u16, per: 10}, // not in Pylontech V1.2
	}}
}

func m355(length int) message {
	m := message{id: 0x355, min: 4, len: length, cycle: second, always: true, fields: []field{
		{q: SoC, at: 0, kind: u16, per: 1},
		{q: SoH, at: 2, kind: u16, per: 1},
	}}
	if length > 4 {
		m.fields = []field{m.fields[0], {q: SoC, at: 4, kind: u16, per: 100, fine: true}, m.fields[1]}
	}
	return m
}

// m356 takes the steps per volt: 100, or 10.
func m356(volt float64) message {
	return message{id: 0x356, min: 6, len: 6, cycle: second, always: true, fields: []field{
		{q: Voltage, at: 0, kind: i16, per: volt},
		{q: Current, at: 2, kind: i16, per: 10},
		{q: TemperatureMin, at: 4, kind: i16, per: 10, average: true},
	}}
}

// m359 has protections, which are alarms here, and alarms, which are warnings.
func m359() message {
	m := message{id: 0x359, min: 4, len: 7, cycle: second, always: true, alarms: true,
		fields: []field{{q: Modules, at: 4, kind: u8, per: 1}},
		write:  func(b *Battery, data []byte) bool { return copy(data[5:], "PN") > 0 },
	}
	for i, to := range []target{alarm, warning} {
		at := 2 * i
		m.flags = append(m.flags,
			flag{to: to, at: at, bit: 7, name: "high discharge current"},
			flag{to: to, at: at, bit: 4, name: "low temperature"},
			flag{to: to, at: at, bit: 3, name: "high temperature"},
			flag{to: to, at: at, bit: 2, name: "low voltage"},
			flag{to: to, at: at, bit: 1, name: "high voltage"},
			flag{to: to, at: at + 1, bit: 3, name: []string{"internal", "internal communication"}[i]},
			flag{to: to, at: at + 1, bit: 0, name: "high charge current"})
	}
	return m
}

// pairs35A are in their order from bit 0 of byte 0, and once more from byte 4.
var pairs35A = []string{
	"general", "high voltage", "low voltage", "high temperature",
	"low temperature", "high charge temperature", "low charge temperature", "high discharge current",
	"high charge current", "contactor", "short circuit", "internal",
	"imbalance",
}

func m35A() message {
	m := message{id: 0x35A, min: 4, len: 8, cycle: second, always: true, alarms: true}
	for i, name := range pairs35A {
		m.flags = append(m.flags,
			flag{to: alarm, at: i / 4, bit: i % 4 * 2, pair: true, name: name},
			flag{to: warning, at: 4 + i/4, bit: i % 4 * 2, pair: true, name: name})
	}
	return m
}

// m35B announces that the battery is about to switch itself off.
func m35B() message {
	return message{id: 0x35B, min: 1, len: 8, cycle: second, always: true,
		flags: []flag{{to: alarm, at: 0, bit: 4, name: "preventive shutdown"}}}
}

func allowed(at int) []flag {
	return []flag{
		{to: charge, at: at, bit: 7}, {to: discharge, at: at, bit: 6},
		{to: request, at: at, bit: 5, name: "force charge"},
		{to: request, at: at, bit: 4, name: "force charge 2"},
	}
}

func m35C() message {
	return message{id: 0x35C, min: 1, len: 2, cycle: second,
		flags: append(allowed(0), flag{to: request, at: 0, bit: 3, name: "full charge"})}
}

func maker(s *said) *string    { return &s.maker }
func named(s *said) *string    { return &s.name }
func serial(s *said) *string   { return &s.serial }
func cellKind(s *said) *string { return &s.kind }
func version(s *said) *string  { return &s.version }

func letters8(id uint32, what func(*said) *string) message {
	return message{id: id, min: 1, len: 8, labels: []label{{what, 0, 8, letters}}}
}

func m35F() message {
	return message{id: 0x35F, min: 4, len: 8,
		fields: []field{{q: Capacity, at: 4, kind: u16, per: 1}},
		labels: []label{{cellKind, 0, 2, product}, {version, 2, 2, numbers}}}
}

// unsent is m for batteries that send it in newer firmware only: understood, and not
// what a simulated battery sends.
func unsent(m message) message {
	m.heardOnly = true
	return m
}

// pylonLV is Pylontech's protocol of low voltage, V1.2 and later. The set of frames
// changed with a firmware generation: 359 and 35C vanished, 35A and 35F came.
func pylonLV() *Profile {
	return &Profile{Name: "pylon-lv", voltage: lowVoltage, keepalive: inverter305, messages: []message{
		m351(), m355(4), m356(100), m359(), unsent(m35A()), m35C(), letters8(0x35E, maker), m35F(),
	}}
}

// sma is the protocol of SMA Sunny Island (FSS-ConnectingBat-TI-en-10), also of
// GoodWe.
func sma() *Profile {
	return &Profile{Name: "sma", voltage: lowVoltage, keepalive: inverter305, messages: []message{
		m351(), m355(6), m356(100), m35A(), m35B(), unsent(m35C()), letters8(0x35E, maker), m35F(),
	}}
}

// victron is what GX devices of Victron understand: sma, and the cells' extremes.
func victron() *Profile {
	cells := message{id: 0x373, min: 8, len: 8, cycle: second, fields: []field{
		{q: CellMin, at: 0, kind: u16, per: 1000},
		{q: CellMax, at: 2, kind: u16, per: 1000},
		{q: TemperatureMin, at: 4, kind: u16, per: 1, zero: 273}, // kelvin
		{q: TemperatureMax, at: 6, kind: u16, per: 1, zero: 273},
	}}
	modules := message{id: 0x372, min: 8, len: 8, cycle: second, fields: []field{
		{q: Modules, at: 0, kind: u16, per: 1},
		{q: ModulesBlockingCharge, at: 2, kind: u16, per: 1},
		{q: ModulesBlockingDischarge, at: 4, kind: u16, per: 1},
		{q: ModulesOffline, at: 6, kind: u16, per: 1},
	}}
	p := sma()
	p.Name = "victron"
	p.messages = append(p.messages, modules, cells,
		message{id: 0x379, min: 2, len: 2, fields: []field{{q: Capacity, at: 0, kind: u16, per: 1}}},
		letters8(0x370, named), letters8(0x380, serial))
	for _, id := range []uint32{0x374, 0x375, 0x376, 0x377, 0x378} { // which cells they are; energies
		p.messages = append(p.messages, message{id: id, min: 1, len: 8, opaque: true, heardOnly: true})
	}
	return p
}

// solArk is pylonLV as Sol-Ark (V1.3) and Discover have it: volts in tenths. The sign of
// the current "varies by maker": see Options.ReverseCurrent.
func solArk() *Profile {
	return &Profile{Name: "sol-ark", voltage: lowVoltage, keepalive: inverter305, messages: []message{
		m351(), m355(4), m356(10), m359(), unsent(m35A()), m35C(), letters8(0x35E, maker), m35F(),
	}}
}

// bits are flags for every bit of some bytes, so that none goes unnoticed. Bits
// without a name are numbered.
func bits(to target, at, bytes int, what string, names ...string) []flag {
	var flags []flag
	for i := range 8 * bytes {
		name := fmt.Sprintf("%s bit %d", what, i)
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		flags = append(flags, flag{to: to, at: at + i/8, bit: i % 8, name: name})
	}
	return flags
}

// pylonHV is Pylontech's protocol of high voltage: 29 bits, little-endian, sent when
// 0x4200 asks. The address is the last digit.
func pylonHV() *Profile {
	one := func(m message) message {
		m.extended, m.min, m.len, m.cycle = true, 8, 8, second
		return m
	}
	status := one(message{id: 0x4250, always: true, alarms: true, read: func(s *said, data []byte) {
		s.mode = []Mode{ModeSleep, ModeCharging, ModeDischarging, ModeIdle, "", "", "", ""}[data[0]&7]
	}, write: func(b *Battery, data []byte) bool {
		for i, mode := range []Mode{ModeSleep, ModeCharging, ModeDischarging, ModeIdle} {
			if b.Mode == mode {
				data[0] |= byte(i)
			}
		}
		return true
	}})
	status.flags = append(status.flags, flag{to: request, at: 0, bit: 3, name: "force charge"}, flag{to: request, at: 0, bit: 4, name: "full charge"})
	status.flags = append(status.flags, bits(alarm, 3, 1, "4250 error",
		"voltage sensor", "temperature sensor", "internal communication", "input voltage", "reversed", "contactor", "damaged", "internal")...)
	status.flags = append(status.flags, bits(warning, 4, 2, "4250 alarm")...)
	status.flags = append(status.flags, bits(alarm, 6, 2, "4250 protection")...)

	forbidden := one(message{id: 0x4280, read: func(s *said, data []byte) {
		for i, to := range []*Switch{&s.charge, &s.discharge} {
			switch data[i] {
			case 0xAA:
				*to = Off
			case 0:
				*to = On
			}
		}
	}, write: func(b *Battery, data []byte) bool {
		for i, from := range []Switch{b.Charge, b.Discharge} {
			switch from {
			case Off:
				data[i] = 0xAA
			case "":
				data[i] = 0xFF
			}
		}
		return b.Charge != "" || b.Discharge != ""
	}})
	forbidden.min = 2
	versions := one(message{id: 0x7310, labels: []label{{version, 4, 2, numbers}}, read: func(s *said, data []byte) {
		s.hardware = fmt.Sprintf("%d V%d R%d", data[0], data[2], data[3])
	}})
	versions.cycle = 0
	return &Profile{
		Name: "pylon-hv", addressed: true,
		voltage: [2]float64{80, 1000}, // 2 to 20 modules of 48 V
		// The first byte asks for values with 0 and for versions with 2.
		keepalive: []can.Frame{can.Extended(0x4200, 0, 0, 0, 0, 0, 0, 0, 0), can.Extended(0x4200, 2, 0, 0, 0, 0, 0, 0, 0)},
		messages: []message{
			one(message{id: 0x4210, always: true, fields: []field{
				{q: Voltage, at: 0, kind: u16, per: 10},
				{q: Current, at: 2, kind: u16, per: 10, zero: 30000},
				{q: BoardTemperature, at: 4, kind: u16, per: 10, zero: 1000},
				{q: SoC, at: 6, kind: u8, per: 1},
				{q: SoH, at: 7, kind: u8, per: 1},
			}}),
			one(message{id: 0x4220, fields: []field{
				{q: ChargeVoltage, at: 0, kind: u16, per: 10},
				{q: DischargeVoltage, at: 2, kind: u16, per: 10},
				{q: ChargeLimit, at: 4, kind: u16, per: 10, zero: 30000},
				{q: DischargeLimit, at: 6, kind: u16, per: -10, zero: 30000, magnitude: true},
			}}),
			one(message{id: 0x4230, fields: []field{
				{q: CellMax, at: 0, kind: u16, per: 1000}, {q: CellMin, at: 2, kind: u16, per: 1000},
			}}),
			one(message{id: 0x4240, always: true, fields: []field{
				{q: TemperatureMax, at: 0, kind: u16, per: 10, zero: 1000}, {q: TemperatureMin, at: 2, kind: u16, per: 10, zero: 1000},
			}}),
			status, forbidden, versions,
		},
	}
}

// growattLV is Growatt's protocol of low voltage, V1.04: big-endian, sent when 0x301
// comes. It has the highest temperature of the cells only: the lowest is not known.
func growattLV() *Profile {
	one := func(m message) message {
		m.big, m.min, m.len, m.cycle = true, 8, 8, second
		return m
	}
	limits := one(message{id: 0x311, fields: []field{
		{q: ChargeVoltage, at: 0, kind: u16, per: 10},
		{q: ChargeLimit, at: 2, kind: u16, per: 10},
		{q: DischargeLimit, at: 4, kind: u16, per: 10},
	}, read: func(s *said, data []byte) {
		s.mode = []Mode{"", ModeIdle, ModeCharging, ModeDischarging}[data[7]&3]
	}, write: func(b *Battery, data []byte) bool {
		for i, mode := range []Mode{ModeIdle, ModeCharging, ModeDischarging} {
			if b.Mode == mode {
				data[7] |= byte(i + 1)
			}
		}
		return data[7] != 0
	}})
	protections := one(message{id: 0x312, always: true, alarms: true, fields: []field{{q: Modules, at: 4, kind: u8, per: 1}}})
	protections.flags = bits(alarm, 0, 4, "312")

	values := one(message{id: 0x313, always: true, fields: []field{
		{q: Voltage, at: 0, kind: u16, per: 100},
		{q: Current, at: 2, kind: i16, per: 10},
		{q: TemperatureMax, at: 4, kind: i16, per: 10},
		{q: SoC, at: 6, kind: u8, per: 1},
		{q: SoH, at: 7, kind: u8, per: 1, mask: 0x7F},
	}, flags: []flag{{to: alarm, at: 7, bit: 7, name: "unsafe"}}})

	cells := one(message{id: 0x319, flags: allowed(0), fields: []field{
		{q: CellMax, at: 1, kind: u16, per: 1000}, {q: CellMin, at: 3, kind: u16, per: 1000},
	}})
	messages := []message{limits, protections, values, cells,
		one(message{id: 0x314, fields: []field{{q: Capacity, at: 2, kind: u16, per: 100}}}),
		one(message{id: 0x320, labels: []label{{maker, 0, 2, letters}, {version, 3, 1, numbers}}}),
		one(message{id: 0x321, always: true, read: updating, write: func(b *Battery, data []byte) bool {
			if b.Mode == ModeUpdating {
				data[0] = 1 | 1<<1
			}
			return b.Mode == ModeUpdating
		}}),
	}
	for _, id := range []uint32{0x315, 0x316, 0x317, 0x318} { // cells 1 to 16
		messages = append(messages, one(message{id: id, opaque: true, heardOnly: true}))
	}
	return &Profile{Name: "growatt-lv", voltage: lowVoltage, messages: messages,
		keepalive: []can.Frame{can.Standard(0x301, 0, 0, 0, 0, 0, 0, 0, 0)}}
}

// updating reads frame 321 of growattLV: bit 0 programming; bits 1 and 2 the master's
// and 3 and 4 the slaves' state, 0 normal, 1 programming, 2 done, 3 failed.
func updating(s *said, data []byte) {
	for _, state := range []byte{data[0] >> 1 & 3, data[0] >> 3 & 3} {
		switch state {
		case 1:
			s.mode = ModeUpdating
		case 3:
			s.warnings = append(s.warnings, "firmware update failed")
		}
	}
	if data[0]&1 == 1 {
		s.mode = ModeUpdating
	}
}

// modulesMost is how many the bitmap of the profile original has room for.
const modulesMost = 16

// moduleSoC is checked and not shown: the battery's own counts.
const moduleSoC Quantity = "module_soc"

// original is what the battery firmware sends that came before this project:
// big-endian, 0x100 for the battery and 0x500 + number for each module. The modules are
// in series. Each has one temperature, so the lowest and highest are those of modules.
func original() *Profile {
	system := message{id: 0x100, big: true, min: 8, len: 8, cycle: second, always: true, alarms: true, fields: []field{
		{q: SoC, at: 1, kind: u16, per: 10},
		{q: SoH, at: 3, kind: u8, per: 1},
	}, read: func(s *said, data []byte) {
		s.active = binary.LittleEndian.Uint16(data[6:]) // low byte first, unlike the rest
		s.mode = Mode(fmt.Sprintf("state %d", data[0]))
	}, write: func(b *Battery, data []byte) bool {
		fmt.Sscanf(string(b.Mode), "state %d", &data[0])
		binary.LittleEndian.PutUint16(data[6:], 1<<b.modules()-1)
		return true
	}}
	system.flags = append(bits(alarm, 4, 1, "error"), bits(warning, 5, 1, "warning")...)
	p := &Profile{Name: "original", modular: true, voltage: lowVoltage, messages: []message{system}}
	for n := range modulesMost {
		p.messages = append(p.messages, message{
			id: 0x500 + uint32(n), big: true, min: 8, len: 8, cycle: second, module: n + 1,
			fields: []field{
				{q: Voltage, at: 0, kind: u16, per: 100},
				{q: Current, at: 2, kind: i16, per: 10},
				{q: TemperatureMin, at: 4, kind: u8, per: 1, zero: 40},
				{q: moduleSoC, at: 5, kind: u8, per: 1},
			},
			flags: bits(alarm, 7, 1, fmt.Sprintf("module %d error", n)),
		})
	}
	return p
}
