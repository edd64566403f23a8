package profile

import (
	"encoding/csv"
	"fmt"
	"io"
)

// A Session is where something may be asked: a set of diagnostic sessions.
type Session byte

// Sessions (ISO 14229-1, table 25).
const (
	InDefault Session = 1 << iota
	InProgramming
	InExtended
	Anywhere = InDefault | InProgramming | InExtended
)

func (s Session) String() string {
	switch s {
	case Anywhere:
		return "any"
	case InProgramming:
		return "programming"
	case InExtended | InProgramming:
		return "extended, programming"
	}
	return fmt.Sprintf("Session(%d)", byte(s))
}

// A Row says what an identifier is, for tools and for people.
type Row struct {
	Kind        string // DID or RID
	ID          uint16
	Name        string
	Size        string // bytes of the value, or of a routine's option
	Access      string // R, RW, or start
	Sessions    Session
	Key         bool // needs a tester that has shown who it is
	Description string
}

// Data lists the data identifiers.
var Data = []Row{
	{"DID", DIDBoot, "boot_software", "1+text", "R", Anywhere, false, "01, then the version of the agent"},
	{"DID", DIDSession, "session", "1", "R", Anywhere, false, "diagnostic session: 1 default, 2 programming, 3 extended"},
	{"DID", DIDSoftware, "running_version", "text", "R", Anywhere, false, "version of the firmware that runs"},
	{"DID", DIDSupplier, "supplier", "text", "R", Anywhere, false, "Interlock"},
	{"DID", DIDSerial, "device", "text", "R", Anywhere, false, "id of the device, which a tester signs with the seed"},
	{"DID", DIDHardware, "hardware", "text", "R", Anywhere, false, "hardware revision"},
	{"DID", DIDVersion, "running_version", "text", "R", Anywhere, false, "as F189"},
	{"DID", DIDProduct, "product", "text", "R", Anywhere, false, "product"},
	{"DID", DIDProfile, "profile", "14", "R", Anywhere, false, "BEMF, version u16, capabilities u16, maxNumberOfBlockLength u16, greatest bundle in bytes u32"},
	{"DID", DIDState, "state", "1", "R", Anywhere, false, "0 IDLE 1 OPENING 2 RECEIVING 3 RECEIVED 4 VERIFYING 5 VERIFIED 6 WAIT_SAFE 7 INSTALLING 8 REBOOT_PENDING 9 TRIAL 10 CONFIRMED 11 ROLLED_BACK 12 FAILED 13 ABORTED"},
	{"DID", DIDResult, "result", "1", "R", Anywhere, false, "why, as a number: 0 ok 1 no transfer 2 busy 3 bad parameter 4 not allowed 5 no space 6 bad signature 7 bad hash 8 incompatible 9 older security version 10 SoC 11 temperature 12 current 13 contactors or mode 14 battery data missing or old 15 alarm 16 not now 17 storage 18 timeout 19 power 20 health check 21 rolled back 99 internal"},
	{"DID", DIDProgress, "progress", "16", "R", Anywhere, false, "bytes as u32: received, total, first that is missing, verified"},
	{"DID", DIDReason, "reason", "text", "R", Anywhere, false, "why it waits, refuses or has failed, for people"},
	{"DID", DIDSafety, "safety", "2", "R", Anywhere, false, "what the gate refuses for: b0 SoC low b1 SoC high b2 temperature low b3 temperature high b4 current b5 data missing or old b6 instruments disagree b7 alarm b8 not in standby b9 contactors b10 dispatch or window b11 cells apart b12 consent b13 own check b14 UPS b15 other"},
	{"DID", DIDSignals, "signals", "text", "R", Anywhere, false, "what the gate saw last: a line each with name, value, unit"},
	{"DID", DIDTransfer, "transfer", "36", "RW", Anywhere, true, "size of the bundle u32, its SHA-256; written in the programming session with a key it announces a transfer or goes on with it"},
	{"DID", DIDOffered, "offered_version", "text", "R", Anywhere, false, "version of the release that was sent, once its manifest is verified"},
	{"DID", DIDDigest, "offered_digest", "text", "R", Anywhere, false, "digest of that release"},
	{"DID", DIDEvidence, "evidence", "text", "R", Anywhere, false, "head hash of the evidence of the last update"},
	{"DID", DIDOutcome, "outcome", "text", "R", Anywhere, false, "how the last update ended, in JSON as for servers; empty: none did"},
	{"DID", DIDStatus, "status", "3", "R", Anywhere, false, "status of the update manager u8, error code i16"},
	{"DID", DIDBus, "bus", "7", "R", Anywhere, false, "bit/s u32, block size u8, STmin u8, percent of the bus that a transfer may take u8"},
	{"DID", DIDCourse, "course", "20", "R", Anywhere, false, "how the installation goes: per mille of what FD01 says u16; bytes written into the slot u32; seconds left u32, until the state is over if nothing changes (WAIT_SAFE: the gate's wait, if only time is missing; INSTALLING: until all is written; TRIAL: until it is proven, or, with result 20, until it goes back), 0 not known; which try it is u16, 0 nothing is being installed; images written and read back u32, a bit for each in the order of the manifest, b0 the first; the bit of the image at which it has failed u32, 0 it was not at one"},
}

// Routines lists the routines. All are started only (31 01).
var Routines = []Row{
	{"RID", RIDCheckMemory, "check_memory", "0 or 32", "start", InProgramming, true, "verifies all that was received; option: its SHA-256; answer 00 verified, 01 not: see FD04"},
	{"RID", RIDPreconditions, "check_programming_preconditions", "0", "start", InExtended | InProgramming, false, "asks the gate; answer 00 yes; NRC 22, 86, 87, 92 or 93 no: see FD04"},
	{"RID", RIDInstall, "install", "0", "start", InProgramming, true, "asks for the installation of what was verified; answer 00; the gate decides when"},
	{"RID", RIDAbort, "abort", "0", "start", InProgramming, true, "takes back what was received, and what was asked for with it, until the device begins to change to it; answer 00; NRC 22: too late"},
	{"RID", RIDErase, "erase_memory", "any", "start", InProgramming, true, "removes an old transfer; answer 00"},
	{"RID", RIDDependencies, "check_programming_dependencies", "0", "start", InProgramming, true, "may what was verified be installed on this unit; answer 00 yes, 01 no: see FD04"},
}

// Map lists all identifiers.
func Map() []Row { return append(append([]Row(nil), Data...), Routines...) }

// WriteCSV writes [Map] as a table with a head, for import in other tools.
func WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	if err := c.Write([]string{"kind", "id", "name", "bytes", "access", "session", "key", "description"}); err != nil {
		return err
	}
	for _, r := range Map() {
		key := "no"
		if r.Key {
			key = "yes"
		}
		if err := c.Write([]string{r.Kind, fmt.Sprintf("%04X", r.ID), r.Name, r.Size, r.Access, r.Sessions.String(), key, r.Description}); err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}
