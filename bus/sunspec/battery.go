package sunspec

import (
	"context"
	"errors"
)

// Quantity is a number and where it came from.
type Quantity struct {
	Value float64 // NaN if there is none
	Model uint16  // the model that it came from; 0 if there is none
	From  string  // for people: "802 SoC", "803 sum of StrA"
	Why   string  // why there is no value
}

// Counter is a heartbeat. It is alive if it moves from one reading to the next;
// that needs two readings.
type Counter struct {
	Value uint32
	Known bool
	From  string
	Why   string
}

// Status is an enumeration.
type Status struct {
	Enum
	Known bool
	From  string
	Why   string
}

// Contactor is the connection of one string to the battery's DC bus.
type Contactor struct {
	String  int  // 1 for the first
	Known   bool // false: Closed and Enabled mean nothing
	Closed  bool
	Enabled bool
	From    string
	Why     string
}

// Battery is one reading of one battery. What has no value is NaN or not Known.
type Battery struct {
	SoC, SoH         Quantity // %
	V                Quantity // V, DC
	A, W             Quantity // A and W, DC; which sign charges is not standardized, so compare magnitudes
	TempMin, TempMax Quantity // °C; of modules (803, 804), else of the converter's DC port (714) or cabinet (701)
	CellMin, CellMax Quantity // V
	Capacity         Quantity // Ah, rated

	Heartbeat    Counter // 802 Hb, +1 a second
	DERHeartbeat Counter // 715 DERHb, +1 a second

	State        Status // 802 State
	ChaSt        Status // 802 ChaSt
	LocRemCtl    Status // 802 LocRemCtl
	DERLocRemCtl Status // 715 LocRemCtl
	OpCtl        Status // 715 OpCtl
	InvSt        Status // 701 InvSt

	AlarmsKnown     bool     // false: no alarms in the lists does not mean that there are none
	Alarms          []string // that speak against an update: "802 OVER_TEMP_ALARM"
	Warnings        []string // that do not
	Vendor          []string // bits whose meaning only the vendor knows: "802 EvtVnd1 bit 3"
	ConverterAlarms []string // of 701 and 714

	Contactors []Contactor // of the strings, from 803, else 804

	OtherA   []Quantity // the current, as measured by others than A; magnitudes
	OtherSoC []Quantity // the state of charge, as told by others than SoC
}

// ReadBattery reads the battery of a device.
func ReadBattery(ctx context.Context, regs Registers, device *Device) (Battery, error) {
	return Battery{}, errors.New("not yet")
}
