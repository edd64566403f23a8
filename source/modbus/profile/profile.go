// Package profile is the Modbus register map through which a master pushes a release
// into a device: addresses, codecs and texts, and nothing that acts. The device's side is
// package source/modbus; masters of any make can be written from the table that [Map]
// returns, which docs/fieldbus-modbus.csv holds for those who have no Go.
//
// Only standard functions are used: 3, 4 and 16, and where a master has them 20, 21 and
// 23. All addresses are offsets to a base, [Base] unless it is configured. Numbers of
// two registers have the high word first, and each register its high byte. The map:
//
//	+00  identity, read           [Identity]
//	+0A  what is there, read      [Offer]
//	+20  command, write           [Command], in one request of 30 registers
//	+40  status, read             [Status], in one request of 32 registers
//	+60  for screens, read        [Display]
//	+100 data, write              [Block], in one request of 7 to 118 registers
//
// A transfer goes like this: OPEN, read the status until it is RECEIVING, write blocks,
// read the status after every so many and never have more in flight than its window says,
// CLOSE, read until VERIFIED, INSTALL, read on. After any break (of the line, the master,
// the device) RESUME gives the session back, with every block that was acknowledged.
//
// In format 1 the blocks are those of a bundle file, and the head of that file, header
// and signed manifest, has to come first. Until it is verified the state stays OPENING
// and blocks that begin behind the head are answered with exception 6; the window says
// how many are taken now. A manifest that does not verify, or is not for this device,
// ends in FAILED with the result 6, 8 or 9.
//
// In format 2 the blocks are those of the images, one image after the other in the
// manifest's order. The signed manifest is written before OPEN, with function 21, into
// file [FileManifest]: its length in bytes in records 0 and 1, then the bytes, the last
// register padded with zero. It is verified when the last record comes: exception 3
// says that it is refused.
//
// The same bytes can be written with function 21, as records of files 1 to 0xEFFF, see
// [Place]; with VERIFY_FILE the master makes sure of each file of 20,000 bytes, since
// records have no CRC-32 of their own.
//
// Names, numbers and places never change within a version of the profile.
//
// Source of the limits: Modbus Application Protocol Specification V1.1b3, 6.12, 6.14,
// 6.15 and 6.17.
package profile

import (
	"errors"
	"fmt"
)

// Base is the address of the first register, unless it is configured. SunSpec maps
// begin at 0, 40000 or 50000.
const Base = 0xE000

// Version of the profile, 1.0, and the two registers by which a device is known.
const (
	Version = 0x0100
	Magic0  = 0x4245 // "BE"
	Magic1  = 0x4D46 // "MF"
)

// Offsets of the map's parts, and how many registers they have.
const (
	OffsetIdentity = 0x00
	OffsetOffer    = 0x0A
	OffsetCommand  = 0x20
	OffsetStatus   = 0x40
	OffsetDisplay  = 0x60
	OffsetData     = 0x100

	IdentitySize = 0x0A
	OfferSize    = 0x16
	CommandSize  = 0x1E
	StatusSize   = 0x20
	DisplaySize  = 0xA0
	DataSize     = dataHead + BlockSize/2 // of the largest block

	// Size is how many registers the map has; what is not in the table reads as 0.
	Size = OffsetData + DataSize
)

// BlockSize is how many bytes a block has, but for the last: 112 registers and the head
// of 6 are below the 123 of function 16 and the 121 of function 23.
const BlockSize = 224

// ErrFormat is wrapped by the errors of the Decode functions. A server answers
// exception 3.
var ErrFormat = errors.New("not what the profile says")

// Caps says what a device can.
type Caps uint16

// Bits of Caps.
const (
	CapBlocks     Caps = 1 << 0 // blocks are taken by function 16
	CapFiles      Caps = 1 << 1 // records are taken by function 21, and with them format 2
	CapReadBack   Caps = 1 << 2 // function 20
	CapExchange   Caps = 1 << 3 // function 23: a block is written and the status read at once
	CapResume     Caps = 1 << 4
	CapSecure     Caps = 1 << 5 // plain TCP may only read: writes need TLS and a role
	CapComponents Caps = 1 << 6 // components can be addressed one by one
	CapPipelining Caps = 1 << 7 // TCP requests may be sent without waiting for the answer
)

// A State is how far the transfer, and then the update, is.
type State uint16

// States.
const (
	Idle          State = 0  // nothing was begun
	Opening       State = 1  // the signed manifest is missing, or being verified
	Receiving     State = 2  // blocks are taken
	Received      State = 3  // all are there; CLOSE is next
	Verifying     State = 4  // all hashes are computed
	Verified      State = 5  // it is what was signed; INSTALL is next
	WaitSafe      State = 6  // INSTALL was asked for; the device waits until it may
	Installing    State = 7  // it is written into the slot that does not run
	RebootPending State = 8  // the restart comes next; with WentBack the one back
	Trial         State = 9  // the new firmware runs, and has to prove itself
	Confirmed     State = 10 // it has
	RolledBack    State = 11 // the old firmware runs again
	Failed        State = 12 // given up; Result says why
	Aborted       State = 13 // given up by ABORT, or by a person
)

var stateNames = [...]string{"IDLE", "OPENING", "RECEIVING", "RECEIVED", "VERIFYING", "VERIFIED", "WAIT_SAFE",
	"INSTALLING", "REBOOT_PENDING", "TRIAL", "CONFIRMED", "ROLLED_BACK", "FAILED", "ABORTED"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("STATE_%d", uint16(s))
}

// Over says that nothing more happens without a command.
func (s State) Over() bool { return s == Idle || s >= Confirmed }

// A Result is why the last command was refused, or else why the state is what it is.
type Result uint16

// Results.
const (
	OK           Result = 0
	NoSession    Result = 1  // OPEN or RESUME first
	Busy         Result = 2  // another master writes, an update is under way, or a check is not finished
	BadParameter Result = 3  // the command does not fit, or not now
	NotAllowed   Result = 4  // role, address or function
	NoSpace      Result = 5  //
	BadSignature Result = 6  // of the manifest
	BadHash      Result = 7  // of the bytes
	Incompatible Result = 8  // another product, hardware or version, or it failed here before
	TooOld       Result = 9  // the security version, or the version, would go back
	LowCharge    Result = 10 // state of charge, too low or too high
	Temperature  Result = 11 //
	Current      Result = 12 //
	Mode         Result = 13 // contactors, or what the battery system does
	StaleData    Result = 14 // the battery's data are missing, old, or contradict each other
	Alarm        Result = 15 //
	NoWindow     Result = 16 // outside the update window, or consent is missing
	Storage      Result = 17 // a write went wrong
	Timeout      Result = 18 //
	Power        Result = 19 //
	Unhealthy    Result = 20 // the new firmware did not prove itself
	WentBack     Result = 21 // the device went back, or is on its way
	Internal     Result = 99 // everything else; the text of the display says what
)

var resultTexts = map[Result]string{
	OK: "ok", NoSession: "no session; send OPEN or RESUME", Busy: "busy; ask again later",
	BadParameter: "bad parameter, or not at this moment", NotAllowed: "not allowed for this role, address or function",
	NoSpace: "not enough space", BadSignature: "bad signature", BadHash: "bad hash",
	Incompatible: "not for this product, hardware or version", TooOld: "older than what this device had; it never goes back",
	LowCharge: "state of charge", Temperature: "temperature", Current: "current", Mode: "contactors or operating mode",
	StaleData: "battery data missing or stale", Alarm: "battery alarm", NoWindow: "outside the update window, or consent is missing",
	Storage: "the storage refused a write", Timeout: "timeout", Power: "power supply", Unhealthy: "the new firmware was not healthy",
	WentBack: "rolled back", Internal: "internal error",
}

func (r Result) String() string {
	if text, ok := resultTexts[r]; ok {
		return text
	}
	return fmt.Sprintf("result %d", uint16(r))
}

// Safety says why the gate refuses.
type Safety uint16

// Bits of Safety.
const (
	ChargeLow       Safety = 1 << 0
	ChargeHigh      Safety = 1 << 1
	TemperatureLow  Safety = 1 << 2
	TemperatureHigh Safety = 1 << 3
	CurrentHigh     Safety = 1 << 4
	Stale           Safety = 1 << 5
	Disagreement    Safety = 1 << 6 // two instruments say different things
	Alarms          Safety = 1 << 7
	NotStandby      Safety = 1 << 8
	Contactor       Safety = 1 << 9
	Dispatch        Safety = 1 << 10 // the update window
	CellDelta       Safety = 1 << 11
	Consent         Safety = 1 << 12
	Custom          Safety = 1 << 13
	Supply          Safety = 1 << 14
	Other           Safety = 1 << 15 // see the text of the display
)

var safetyNames = [16]string{"SoC low", "SoC high", "temperature low", "temperature high", "current", "stale data",
	"instruments disagree", "alarm", "not in standby", "contactors", "update window", "cells apart", "consent", "custom", "power supply", "other"}

// Names returns the names of the bits that are set, lowest first.
func (s Safety) Names() []string {
	var names []string
	for i, name := range safetyNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// ExceptionText says what an exception means here, for people; "" if nothing special.
func ExceptionText(exception byte) string {
	switch exception {
	case 1:
		return "this role, address or function may not do that here"
	case 2:
		return "no such register, file or record, or beyond the end of what comes"
	case 3:
		return "length, CRC-32, block number, session or command is wrong; the result in the status says more"
	case 4:
		return "the storage refused it"
	case 5:
		return "accepted; read the status until it is done"
	case 6:
		return "not now: another master writes, or the window is full; the status says after how many ms to try again"
	}
	return ""
}
