// Package profile is what a device with this agent says and understands on a CAN
// bus, above UDS (ISO 14229-1): which data it has, which routines, and how their bytes
// are read. It is for the device's side, package source/can, for testers that bring
// firmware, and for people who write a tester of their own. It is pure: bytes in,
// bytes out.
//
// Start with the tables: [Data] and [Routines]; docs/fieldbus-can.csv is the same as a
// file. All integers are big-endian, all texts UTF-8 without an end mark.
//
// # A transfer
//
//	22 FD00            identity of the profile: what is there, how long a block may be
//	10 03              extended session
//	31 01 0203         may an update be installed now? The gate is asked; nothing happens
//	10 02              programming session
//	27 01, 27 02       or 29 05, 29 06: see [SecurityMessage]
//	2E FD07 size sha   which bundle comes; the answer to 22 FD03 says where to begin
//	31 01 FF00         removes what is there; not wanted where a transfer goes on
//	34 00 44 addr size addr is the offset in the bundle file, size how much comes from there
//	36 n data ...      blocks, in order
//	37
//	31 01 0202 [sha]   everything is verified; answered when that is done
//	31 01 FF01         may it be installed on this unit?
//	31 01 F001         the installation is asked for; the gate decides when
//	22 FD01 ...        until it is proven, or not
//
// A tester that knows nothing of FD07 sends 34 with address 0 and the size of the file;
// then the file has no identity but its size, so only the same device's word (FD03) says
// where it goes on, and it is what is in the bundle that is verified.
//
// # What never changes
//
// Identifiers, the numbers of [State] and [Result], and the layout of each value: more
// may be appended, so a reader takes what it knows and ignores the rest.
package profile

import "fmt"

// Data identifiers of ISO 14229-1:2020, Annex C.1 (from memory of the standard, and as
// scapy 2.5.0 names them).
const (
	DIDBoot     = 0xF180 // 01 (one module), then the agent's version
	DIDSession  = 0xF186 // the diagnostic session, one byte
	DIDSoftware = 0xF189 // version of the firmware that runs
	DIDSupplier = 0xF18A // "Interlock"
	DIDSerial   = 0xF18C // the device's id
	DIDHardware = 0xF191
	DIDVersion  = 0xF195 // as DIDSoftware
	DIDProduct  = 0xF197
)

// Data identifiers of this profile, in the range of system suppliers (FD00 to FEFF).
const (
	DIDProfile  = 0xFD00 // [Identity]
	DIDState    = 0xFD01 // [State], one byte
	DIDResult   = 0xFD02 // [Result], one byte
	DIDProgress = 0xFD03 // [Progress]
	DIDReason   = 0xFD04 // text: why it waits, refuses or has failed
	DIDSafety   = 0xFD05 // [Safety], two bytes
	DIDSignals  = 0xFD06 // text: what the gate saw last, see [FormatSignals]
	DIDTransfer = 0xFD07 // [Transfer]; written, it announces one
	DIDOffered  = 0xFD08 // text: version of the release in the inbox, empty until its manifest is verified
	DIDDigest   = 0xFD09 // text: its digest
	DIDEvidence = 0xFD0A // text: head hash of the evidence of the last update
	DIDOutcome  = 0xFD0B // how the last update ended, see [EncodeOutcome]
	DIDStatus   = 0xFD0C // [Status]
	DIDBus      = 0xFD0D // [Bus]
	DIDCourse   = 0xFD0E // [Course]
)

// Routine identifiers. FF00 and FF01 are in ISO 14229-1, Annex F; 0202 and 0203 are the
// convention of vehicle makers (HIS); F001 on are in the range of system suppliers.
const (
	RIDCheckMemory   = 0x0202 // [option: SHA-256 of the file] verifies all that was received
	RIDPreconditions = 0x0203 // asks the gate
	RIDInstall       = 0xF001 // asks for the installation
	RIDAbort         = 0xF002 // takes back what was received, and what was asked for with it
	RIDErase         = 0xFF00 // [option: ignored] removes an old transfer
	RIDDependencies  = 0xFF01 // may what was verified be installed on this unit?
)

// Status byte of a routine's answer: its only one, unless the table says otherwise.
const (
	RoutineDone   = 0x00
	RoutineFailed = 0x01 // the reason is in DIDReason, the number in DIDResult
)

// FileName is what [0x38 RequestFileTransfer] calls the bundle.
const FileName = "update.bundle"

// Magic begins [Identity]: "BEMF", as in the register profile.
const Magic = 0x42454D46

// Version of this profile: high byte changes when something is no longer understood.
const Version = 0x0100

// Capabilities.
const (
	CapAnnounce       = 1 << iota // DIDTransfer may be written
	CapFile                       // 38 add, replace, resume
	CapSecurityAccess             // 27 01, 27 02
	CapAuthentication             // 29 05, 29 06
	CapOpen                       // programming needs no key
	CapPrecheck                   // 31 0203 asks a gate
)

// Addresses on the bus by default, in the 29-bit form of ISO 15765-2 (normal fixed) and
// the 11-bit form of ISO 15765-4.
const (
	DeviceAddress = 0x10
	TesterAddress = 0xF1
	Request11     = 0x7E0
	Response11    = 0x7E8
	Functional11  = 0x7DF
)

// MaxBlock is the greatest maxNumberOfBlockLength: what a classic first frame can say
// (ISO 15765-2, 9.6.3.1). It includes the service and the counter of a block, so 4093
// bytes of a bundle are in it.
const MaxBlock = 4095

// MaxText is how many bytes a text has at most. Longer ones are cut, at a character.
const MaxText = 1024

// A State is how far an update is. The numbers are those of the register profile.
type State byte

// States.
const (
	Idle          State = iota
	Opening             // the manifest comes, or space is made
	Receiving           // the manifest holds; images come
	Received            // all is there
	Verifying           //
	Verified            // waits for RIDInstall
	WaitSafe            // asked for; the gate says not now
	Installing          //
	RebootPending       // written; the restart is next
	Trial               // the new firmware runs, and is not proven
	Confirmed           // proven and kept
	RolledBack          // the old firmware runs again
	Failed              //
	Aborted             //
)

var stateNames = [...]string{"IDLE", "OPENING", "RECEIVING", "RECEIVED", "VERIFYING", "VERIFIED", "WAIT_SAFE", "INSTALLING",
	"REBOOT_PENDING", "TRIAL", "CONFIRMED", "ROLLED_BACK", "FAILED", "ABORTED"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", byte(s))
}

// A Result is why, as a number. The numbers are those of the register profile.
type Result byte

// Results.
const (
	OK              Result = 0
	NoTransfer      Result = 1
	Busy            Result = 2
	BadParameter    Result = 3
	NotAllowed      Result = 4
	NoSpace         Result = 5
	BadSignature    Result = 6
	BadHash         Result = 7
	Incompatible    Result = 8
	Rollback        Result = 9 // an older security version
	SoC             Result = 10
	Temperature     Result = 11
	Current         Result = 12
	Mode            Result = 13 // contactors, or what the plant does
	Stale           Result = 14 // battery data missing or too old
	Alarm           Result = 15
	NotNow          Result = 16 // window, dispatch, consent
	Storage         Result = 17
	Timeout         Result = 18
	Power           Result = 19
	Unhealthy       Result = 20
	WasRolledBack   Result = 21
	InternalTrouble Result = 99
)

var resultNames = map[Result]string{OK: "ok", NoTransfer: "no transfer", Busy: "busy", BadParameter: "bad parameter", NotAllowed: "not allowed",
	NoSpace: "no space", BadSignature: "bad signature", BadHash: "bad hash", Incompatible: "incompatible", Rollback: "older security version",
	SoC: "state of charge", Temperature: "temperature", Current: "current", Mode: "contactors or mode", Stale: "battery data missing or old",
	Alarm: "alarm", NotNow: "not now", Storage: "storage", Timeout: "timeout", Power: "power supply", Unhealthy: "health check",
	WasRolledBack: "rolled back", InternalTrouble: "internal"}

func (r Result) String() string {
	if n, ok := resultNames[r]; ok {
		return n
	}
	return fmt.Sprintf("Result(%d)", byte(r))
}

// Safety has a bit for each kind of reason that the gate gives. The bits are those of
// the register profile. No bit: it does not refuse, or was not asked.
type Safety uint16

// Bits of [Safety].
const (
	SoCLow Safety = 1 << iota
	SoCHigh
	TemperatureLow
	TemperatureHigh
	CurrentHigh
	StaleData
	Disagreement
	Alarms
	NotStandby
	Contactors
	Dispatch
	CellDelta
	Consent
	Custom
	UPS
	Other
)

var safetyNames = [...]string{"SoC low", "SoC high", "temperature low", "temperature high", "current", "data missing or old",
	"instruments disagree", "alarm", "not in standby", "contactors", "dispatch or window", "cells apart", "consent", "own check", "UPS", "other"}

// Names lists what the bits say.
func (s Safety) Names() []string {
	var names []string
	for i, n := range safetyNames {
		if s&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}
