package profile

import (
	"fmt"
	"math"
	"strings"
)

// Identity says what a device can. It does not change while the device runs.
type Identity struct {
	Version     uint16 // of the profile: Version
	Caps        Caps
	BlockSize   uint16 // bytes
	Window      uint16 // blocks that may be in flight at most
	IdleTimeout uint16 // seconds without a write until the session is dropped; what was received stays
	Components  uint16
	MaxSize     uint32 // bytes of a transfer
}

// Encode fills dst, which has IdentitySize registers.
func (i *Identity) Encode(dst []uint16) {
	dst = dst[:IdentitySize]
	dst[0], dst[1], dst[2], dst[3] = Magic0, Magic1, i.Version, uint16(i.Caps)
	dst[4], dst[5], dst[6], dst[7] = i.BlockSize, i.Window, i.IdleTimeout, i.Components
	put32(dst[8:], i.MaxSize)
}

// DecodeIdentity reads what a device says of itself. Errors wrap ErrFormat: another
// profile is spoken there, or none.
func DecodeIdentity(src []uint16) (Identity, error) {
	if len(src) < IdentitySize {
		return Identity{}, fmt.Errorf("%w: the identity has %d registers, want %d", ErrFormat, len(src), IdentitySize)
	}
	i := Identity{Version: src[2], Caps: Caps(src[3]), BlockSize: src[4], Window: src[5], IdleTimeout: src[6], Components: src[7], MaxSize: get32(src[8:])}
	switch {
	case src[0] != Magic0 || src[1] != Magic1:
		return i, fmt.Errorf("%w: the identity begins with %04x %04x, want %04x %04x; is the base address right?", ErrFormat, src[0], src[1], Magic0, Magic1)
	case i.Version>>8 != Version>>8:
		return i, fmt.Errorf("%w: version %d.%d of the profile is spoken there, want %d.x", ErrFormat, i.Version>>8, i.Version&0xFF, Version>>8)
	case i.BlockSize != BlockSize:
		return i, fmt.Errorf("%w: blocks have %d bytes there, want %d", ErrFormat, i.BlockSize, BlockSize)
	case i.Window == 0:
		return i, fmt.Errorf("%w: the greatest window is 0 blocks, want at least 1", ErrFormat)
	}
	return i, nil
}

// Status is how it stands, all of it of one moment.
type Status struct {
	State    State
	Result   Result
	Seq      uint16 // of the last command that was answered; 0: none
	Session  uint16 // shown to the master that has it; 0: none
	Blocks   uint32 // of the transfer
	Received uint32 // bytes that are there, in whole blocks; Blocks if all are
	Missing  uint32 // the first block that is not all there; Blocks if none is missing
	Window   uint16 // blocks that are taken now

	RetryAfter    uint16 // ms, after exception 6
	Progress      uint16 // per mille of what State says
	Safety        Safety
	Reasons       uint16 // how many reasons the gate gave
	IdleLeft      uint16 // seconds until the session is dropped; 0: there is none
	Written       uint32 // bytes that were written into the slot
	ModulesDone   uint32 // a bit for each image, in the manifest's order: written and read back
	ModulesFailed uint32 // the bit of the image at which the installation has failed
	SecondsLeft   uint32 // until State is over if nothing changes; 0: not known
	Attempt       uint16 // which try it is, from 1; 0: nothing is being installed
}

// Encode fills dst, which has StatusSize registers.
func (s *Status) Encode(dst []uint16) {
	dst = dst[:StatusSize]
	clear(dst)
	dst[0], dst[1], dst[2], dst[3] = uint16(s.State), uint16(s.Result), s.Seq, s.Session
	put32(dst[4:], s.Blocks)
	put32(dst[6:], s.Received)
	put32(dst[8:], s.Missing)
	dst[10], dst[11], dst[12], dst[13], dst[14], dst[15] = s.Window, s.RetryAfter, s.Progress, uint16(s.Safety), s.Reasons, s.IdleLeft
	put32(dst[16:], s.Written)
	put32(dst[18:], s.ModulesDone)
	put32(dst[20:], s.ModulesFailed)
	put32(dst[22:], s.SecondsLeft)
	dst[24] = s.Attempt
}

// DecodeStatus reads a status block, which must be whole. Errors wrap ErrFormat.
func DecodeStatus(src []uint16) (Status, error) {
	if len(src) < StatusSize {
		return Status{}, fmt.Errorf("%w: the status has %d registers, want %d", ErrFormat, len(src), StatusSize)
	}
	return Status{State: State(src[0]), Result: Result(src[1]), Seq: src[2], Session: src[3], Blocks: get32(src[4:]),
		Received: get32(src[6:]), Missing: get32(src[8:]), Window: src[10], RetryAfter: src[11], Progress: src[12],
		Safety: Safety(src[13]), Reasons: src[14], IdleLeft: src[15], Written: get32(src[16:]), ModulesDone: get32(src[18:]),
		ModulesFailed: get32(src[20:]), SecondsLeft: get32(src[22:]), Attempt: src[24]}, nil
}

// NotAvailable is what a measured value is without one, and one that does not fit 16 bits.
const NotAvailable = -0x8000

// Display is what plant screens show. Texts are ASCII, two characters in a register,
// NUL after the last; what is too long ends with dots.
type Display struct {
	Running string // version, 32 characters at most
	Update  string // version in hand, 32
	Device  string // 32
	Product string // 32
	Reason  string // why it waits or failed, 160

	Status int16 // number of the update manager's status: 0 IDLE to 12 ROLLING_BACK
	Code   int16 // its error code, 0 or negative

	Charge, Health                 int16  // 0.1 %
	TemperatureMin, TemperatureMax int16  // 0.1 °C
	Current                        int16  // 0.1 A, with the sign of the battery system
	Voltage                        int16  // 0.1 V
	CellMin, CellMax               int16  // mV
	Age                            uint16 // s of the oldest of these; 65535: none is available
}

// places of the display, from OffsetDisplay on.
const (
	displayUpdate  = 0x10
	displayDevice  = 0x20
	displayProduct = 0x30
	displayReason  = 0x40
	displayNumbers = 0x90
)

// Encode fills dst, which has DisplaySize registers.
func (d *Display) Encode(dst []uint16) {
	dst = dst[:DisplaySize]
	clear(dst)
	packText(dst[:displayUpdate], d.Running)
	packText(dst[displayUpdate:displayDevice], d.Update)
	packText(dst[displayDevice:displayProduct], d.Device)
	packText(dst[displayProduct:displayReason], d.Product)
	packText(dst[displayReason:displayNumbers], d.Reason)
	for i, v := range []int16{d.Status, d.Code, d.Charge, d.TemperatureMin, d.TemperatureMax, d.Current, d.Voltage, d.CellMin, d.CellMax, d.Health} {
		dst[displayNumbers+i] = uint16(v)
	}
	dst[displayNumbers+10] = d.Age
}

// DecodeDisplay reads the whole display. Errors wrap ErrFormat.
func DecodeDisplay(src []uint16) (Display, error) {
	if len(src) < DisplaySize {
		return Display{}, fmt.Errorf("%w: the display has %d registers, want %d", ErrFormat, len(src), DisplaySize)
	}
	number := func(i int) int16 { return int16(src[displayNumbers+i]) }
	return Display{Running: Text(src[:displayUpdate]), Update: Text(src[displayUpdate:displayDevice]),
		Device: Text(src[displayDevice:displayProduct]), Product: Text(src[displayProduct:displayReason]), Reason: Text(src[displayReason:displayNumbers]),
		Status: number(0), Code: number(1), Charge: number(2), TemperatureMin: number(3), TemperatureMax: number(4),
		Current: number(5), Voltage: number(6), CellMin: number(7), CellMax: number(8), Health: number(9), Age: src[displayNumbers+10]}, nil
}

// Scaled returns v in steps of 1/perUnit as a register, or NotAvailable.
func Scaled(v, perUnit float64) int16 {
	n := math.Round(v * perUnit)
	if !(n > NotAvailable && n <= math.MaxInt16) {
		return NotAvailable
	}
	return int16(n)
}

// Text reads ASCII to the first NUL. What is no printable ASCII becomes a question mark.
func Text(src []uint16) string {
	var b strings.Builder
	for _, c := range Bytes(nil, src) {
		if c == 0 {
			break
		}
		if c < ' ' || c > '~' {
			c = '?'
		}
		b.WriteByte(c)
	}
	return b.String()
}

var ascii = strings.NewReplacer("°C", "degC", "°", " deg", "–", "-", "—", "-", "“", `"`, "”", `"`, "’", "'", "…", "...", "\n", " ", "\t", " ")

// packText fills registers with a text.
func packText(dst []uint16, text string) {
	b := []byte(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, ascii.Replace(text)))
	if most := 2 * len(dst); len(b) > most {
		b = append(b[:most-3], "..."...)
	}
	pack(dst, b)
}
