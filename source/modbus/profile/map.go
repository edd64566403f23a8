package profile

import (
	"encoding/csv"
	"fmt"
	"io"
)

// A Row is an entry of the register map.
type Row struct {
	Offset      uint16 // to the base
	Registers   int
	Name        string
	Type        string // u16, i16, u32, ascii, bytes
	Unit        string // with the scale: 0.1 %
	Access      string // R or W
	Description string
}

// Map returns the register map, in order. What is between the rows is reserved and
// reads as 0.
func Map() []Row {
	rows := []Row{
		{0x00, 2, "magic", "u32", "", "R", "0x42454D46"},
		{0x02, 1, "profile", "u16", "", "R", "0x0100: version 1.0"},
		{0x03, 1, "caps", "u16", "", "R", "bit 0 blocks (FC16), 1 files (FC21), 2 read back (FC20), 3 FC23, 4 resume, 5 writes need TLS and a role, 6 single components, 7 pipelining"},
		{0x04, 1, "block_size", "u16", "byte", "R", "bytes of a block; only the last is shorter"},
		{0x05, 1, "window_max", "u16", "block", "R", "most blocks in flight"},
		{0x06, 1, "idle_timeout", "u16", "s", "R", "without a write for so long the session is dropped; what was received stays"},
		{0x07, 1, "components", "u16", "", "R", "number of components"},
		{0x08, 2, "max_size", "u32", "byte", "R", "of a transfer"},
		{0x0A, 2, "there_size", "u32", "byte", "R", "of the transfer that is there, or was there last, as in its OPEN; 0: there was none, or the device does not say"},
		{0x0C, 1, "there_format", "u16", "", "R", "as in its OPEN"},
		{0x10, 16, "there_sha256", "bytes", "", "R", "as in its OPEN: a master that has lost its session, or never had it, sends RESUME with these"},

		{0x20, 1, "cmd", "u16", "", "W", "1 OPEN, 2 RESUME, 3 CLOSE, 4 INSTALL, 5 ABORT (also of what INSTALL has asked for, until the device changes to it), 6 CONFIRM, 7 ROLLBACK, 8 VERIFY_FILE, 9 PRECHECK. The command is one FC16 of all 30 registers from here"},
		{0x21, 1, "cmd_seq", "u16", "", "W", "not 0; the same command with the same number is answered again, not done again"},
		{0x22, 1, "cmd_session", "u16", "", "W", "0 in OPEN and RESUME"},
		{0x23, 1, "component_type", "u16", "", "W", "15 (a bundle says itself what is for whom)"},
		{0x24, 1, "component_index", "u16", "", "W", "0"},
		{0x25, 2, "size", "u32", "byte", "W", "OPEN, RESUME: of all that comes"},
		{0x27, 1, "format", "u16", "", "W", "OPEN, RESUME: 1 bundle file, 2 images after a manifest in file 0xF001"},
		{0x28, 1, "flags", "u16", "", "W", "bit 0 dry run: everything but the installation"},
		{0x29, 16, "sha256", "bytes", "", "W", "OPEN, RESUME: of all that comes"},
		{0x39, 2, "arg", "u32", "", "W", "VERIFY_FILE: number of the file"},
		{0x3B, 2, "arg2", "u32", "", "W", "VERIFY_FILE: CRC-32 (IEEE) of its bytes"},
		{0x3D, 1, "cmd_reserved", "u16", "", "W", "0"},

		{0x40, 1, "state", "u16", "", "R", statesText()},
		{0x41, 1, "result", "u16", "", "R", resultsText()},
		{0x42, 1, "seq", "u16", "", "R", "number of the last command that was answered"},
		{0x43, 1, "session", "u16", "", "R", "of the master that reads; 0: none"},
		{0x44, 2, "blocks", "u32", "block", "R", "of the transfer"},
		{0x46, 2, "blocks_received", "u32", "block", "R", "bytes received, in whole blocks"},
		{0x48, 2, "block_missing", "u32", "", "R", "the first that is not there; as blocks if none is missing"},
		{0x4A, 1, "window_free", "u16", "block", "R", "blocks that are taken now"},
		{0x4B, 1, "retry_after", "u16", "ms", "R", "after exception 6"},
		{0x4C, 1, "progress", "u16", "0.1 %", "R", "of what the state says"},
		{0x4D, 1, "safety", "u16", "", "R", "why the gate refuses: " + safetyText()},
		{0x4E, 1, "safety_reasons", "u16", "", "R", "how many reasons the gate gave"},
		{0x4F, 1, "idle_left", "u16", "s", "R", "until the session is dropped"},
		{0x50, 2, "bytes_written", "u32", "byte", "R", "into the slot that does not run"},
		{0x52, 2, "modules_done", "u32", "", "R", "a bit for each image of the release, in the order of the manifest: written into the slot, and read back. Bit 0 is the first; those from the 33rd on have none"},
		{0x54, 2, "modules_failed", "u32", "", "R", "the bit of the image at which the installation has failed; 0: it was not at an image, as with firmware that is not healthy"},
		{0x56, 2, "seconds_left", "u32", "s", "R", "until the state is over if nothing changes: in state 6 the gate's wait, if only time is missing; in state 7 until all is written; in state 9 until it is proven, or, with result 20, until it goes back; 0: not known"},
		{0x58, 1, "attempt", "u16", "", "R", "which try it is: restarts into this release, and the next one while that is to come; 0: nothing is being installed"},

		{0x60, 16, "running_version", "ascii", "", "R", "version that runs"},
		{0x70, 16, "update_version", "ascii", "", "R", "version in hand"},
		{0x80, 16, "device", "ascii", "", "R", "identifier of the device"},
		{0x90, 16, "product", "ascii", "", "R", ""},
		{0xA0, 80, "reason", "ascii", "", "R", "why it waits or failed, for people"},
		{0xF0, 1, "ota_status", "i16", "", "R", "0 IDLE, 1 CHECKING, 2 UPDATE_AVAILABLE, 3 DOWNLOADING, 4 VERIFYING, 5 READY_TO_APPLY, 6 APPLYING, 7 COMPLETE, 8 REBOOTING, 9 FAILED, 10 ABORTED, 11 TRIAL, 12 ROLLING_BACK"},
		{0xF1, 1, "error_code", "i16", "", "R", "0, or negative"},
		{0xF2, 1, "soc", "i16", "0.1 %", "R", "state of charge; 0x8000 here and below: not available"},
		{0xF3, 1, "temperature_min", "i16", "0.1 °C", "R", "of the coldest place"},
		{0xF4, 1, "temperature_max", "i16", "0.1 °C", "R", "of the hottest place"},
		{0xF5, 1, "current", "i16", "0.1 A", "R", "with the sign of the battery system"},
		{0xF6, 1, "voltage", "i16", "0.1 V", "R", "of the battery"},
		{0xF7, 1, "cell_min", "i16", "mV", "R", "of the lowest cell"},
		{0xF8, 1, "cell_max", "i16", "mV", "R", "of the highest cell"},
		{0xF9, 1, "soh", "i16", "0.1 %", "R", "state of health"},
		{0xFA, 1, "age", "u16", "s", "R", "of the oldest of these values; 65535: there are none"},

		{0x100, 1, "data_session", "u16", "", "W", "a block is one FC16 (or the write of FC23) from here"},
		{0x101, 2, "data_block", "u32", "", "W", "number of the block; the first is 0"},
		{0x103, 1, "data_length", "u16", "byte", "W", "1 to 224"},
		{0x104, 2, "data_crc32", "u32", "", "W", "CRC-32 (IEEE) of the bytes"},
		{0x106, 112, "data", "bytes", "", "W", "half as many registers as bytes; an odd last byte is padded with 0"},
	}
	return rows
}

func statesText() string {
	text := ""
	for i, name := range stateNames {
		text += fmt.Sprintf(", %d %s", i, name)
	}
	return text[2:]
}

func resultsText() string {
	text := "why the last command was refused, or else why the state is what it is"
	for r := OK; r <= Internal; r++ {
		if t, ok := resultTexts[r]; ok {
			text += fmt.Sprintf(", %d %s", r, t)
		}
	}
	return text
}

func safetyText() string {
	text := ""
	for i, name := range safetyNames {
		text += fmt.Sprintf(", bit %d %s", i, name)
	}
	return text[2:]
}

// WriteCSV writes the map as comma-separated values (RFC 4180) with a header line.
// Offsets are hexadecimal; addresses are those with the default base, decimal, as
// masters want them.
func WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	out.Write([]string{"offset", "address", "registers", "name", "type", "unit", "access", "description"})
	for _, r := range Map() {
		out.Write([]string{fmt.Sprintf("0x%03X", r.Offset), fmt.Sprint(Base + int(r.Offset)), fmt.Sprint(r.Registers), r.Name, r.Type, r.Unit, r.Access, r.Description})
	}
	out.Flush()
	return out.Error()
}
