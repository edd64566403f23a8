package profile

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/interlock-energy/ota"
)

// Identity says that a device speaks this profile, and what it can (DIDProfile).
type Identity struct {
	Version  uint16 // [Version]
	Caps     uint16 // capabilities
	MaxBlock uint16 // maxNumberOfBlockLength, in bytes
	MaxBytes uint32 // of a bundle
}

// Append appends the 14 bytes of d.
func (d Identity) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, Magic)
	b = binary.BigEndian.AppendUint16(b, d.Version)
	b = binary.BigEndian.AppendUint16(b, d.Caps)
	b = binary.BigEndian.AppendUint16(b, d.MaxBlock)
	return binary.BigEndian.AppendUint32(b, d.MaxBytes)
}

// ParseIdentity reads what [Identity.Append] writes. Another magic is an error: the
// device speaks something else.
func ParseIdentity(b []byte) (Identity, error) {
	if err := long("the identity of the profile", b, 14); err != nil {
		return Identity{}, err
	}
	if m := binary.BigEndian.Uint32(b); m != Magic {
		return Identity{}, fmt.Errorf("read the identity of the profile: it begins with %08X, want %08X", m, Magic)
	}
	d := Identity{Version: binary.BigEndian.Uint16(b[4:]), Caps: binary.BigEndian.Uint16(b[6:]),
		MaxBlock: binary.BigEndian.Uint16(b[8:]), MaxBytes: binary.BigEndian.Uint32(b[10:])}
	if d.Version>>8 != Version>>8 {
		return d, fmt.Errorf("read the identity of the profile: version %d.%d, want %d.x", d.Version>>8, d.Version&0xFF, Version>>8)
	}
	return d, nil
}

// Progress is how much of a transfer is there (DIDProgress). All are bytes.
type Progress struct {
	Received uint32 // that are there, gaps not counted
	Total    uint32 // that come; 0: nothing was announced
	Next     uint32 // offset of the first that is missing: where 34 goes on
	Verified uint32 // while State is Verifying: done
}

// Append appends the 16 bytes of p.
func (p Progress) Append(b []byte) []byte {
	for _, v := range []uint32{p.Received, p.Total, p.Next, p.Verified} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// ParseProgress reads what [Progress.Append] writes.
func ParseProgress(b []byte) (Progress, error) {
	if err := long("the progress", b, 16); err != nil {
		return Progress{}, err
	}
	u := binary.BigEndian.Uint32
	return Progress{Received: u(b), Total: u(b[4:]), Next: u(b[8:]), Verified: u(b[12:])}, nil
}

// Transfer names what comes (DIDTransfer). Announced again with the same values, it goes
// on where it was. A SHA256 of zeros is not known: then only Size says whether it is the
// same.
type Transfer struct {
	Size   uint32 // bytes of the bundle file
	SHA256 ota.Hash
}

// Append appends the 36 bytes of t.
func (t Transfer) Append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, t.Size), t.SHA256[:]...)
}

// ParseTransfer reads what [Transfer.Append] writes.
func ParseTransfer(b []byte) (Transfer, error) {
	if err := long("the identity of the transfer", b, 36); err != nil {
		return Transfer{}, err
	}
	return Transfer{Size: binary.BigEndian.Uint32(b), SHA256: ota.Hash(b[4:36])}, nil
}

// Status is the manager's word, whatever brings its releases (DIDStatus).
type Status struct {
	Status ota.Status    // one byte
	Code   ota.ErrorCode // i16
}

// Append appends the 3 bytes of s.
func (s Status) Append(b []byte) []byte {
	return binary.BigEndian.AppendUint16(append(b, byte(s.Status)), uint16(int16(s.Code)))
}

// ParseStatus reads what [Status.Append] writes.
func ParseStatus(b []byte) (Status, error) {
	if err := long("the status", b, 3); err != nil {
		return Status{}, err
	}
	return Status{Status: ota.Status(b[0]), Code: ota.ErrorCode(int16(binary.BigEndian.Uint16(b[1:])))}, nil
}

// Bus is how fast the device wants to be sent to (DIDBus).
type Bus struct {
	Bitrate   uint32 // bit/s; 0: not known
	BlockSize byte   // consecutive frames for one flow control
	STmin     byte   // least time between them, coded as in ISO 15765-2, 9.6.5.4
	Share     byte   // percent of the bus that a transfer may take; 100: all of it
}

// Append appends the 7 bytes of u.
func (u Bus) Append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, u.Bitrate), u.BlockSize, u.STmin, u.Share)
}

// ParseBus reads what [Bus.Append] writes.
func ParseBus(b []byte) (Bus, error) {
	if err := long("the bus", b, 7); err != nil {
		return Bus{}, err
	}
	return Bus{Bitrate: binary.BigEndian.Uint32(b), BlockSize: b[4], STmin: b[5], Share: b[6]}, nil
}

// Course is how an installation goes (DIDCourse). What is 0 is not known, or does not apply.
type Course struct {
	Progress     uint16 // per mille of what State says
	Written      uint32 // bytes of the release in the slot
	Left         uint32 // seconds until State is over if nothing changes
	Attempt      uint16 // which try it is, from 1
	ImagesDone   uint32 // written and read back: a bit for each, in the manifest's order
	ImagesFailed uint32 // the bit of the one at which the installation has failed
}

// Append appends the 20 bytes of c.
func (c Course) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, c.Progress)
	b = binary.BigEndian.AppendUint32(b, c.Written)
	b = binary.BigEndian.AppendUint32(b, c.Left)
	b = binary.BigEndian.AppendUint16(b, c.Attempt)
	b = binary.BigEndian.AppendUint32(b, c.ImagesDone)
	return binary.BigEndian.AppendUint32(b, c.ImagesFailed)
}

// ParseCourse reads what [Course.Append] writes.
func ParseCourse(b []byte) (Course, error) {
	if err := long("how the installation goes", b, 20); err != nil {
		return Course{}, err
	}
	u := binary.BigEndian.Uint32
	return Course{Progress: binary.BigEndian.Uint16(b), Written: u(b[2:]), Left: u(b[6:]), Attempt: binary.BigEndian.Uint16(b[10:]),
		ImagesDone: u(b[12:]), ImagesFailed: u(b[16:])}, nil
}

// AppendBoot appends the value of DIDBoot: one module, and its version.
func AppendBoot(b []byte, version string) []byte { return append(append(b, 1), Text(version)...) }

// ParseBoot reads what [AppendBoot] writes.
func ParseBoot(b []byte) (version string, err error) {
	if len(b) == 0 || b[0] != 1 {
		return "", fmt.Errorf("read the boot software's identification: % X, want 01 and a version", b[:min(len(b), 8)])
	}
	return Text(string(b[1:])), nil
}

// AppendSafety appends the 2 bytes of s.
func AppendSafety(b []byte, s Safety) []byte { return binary.BigEndian.AppendUint16(b, uint16(s)) }

// ParseSafety reads what [AppendSafety] writes.
func ParseSafety(b []byte) (Safety, error) {
	if err := long("the safety bits", b, 2); err != nil {
		return 0, err
	}
	return Safety(binary.BigEndian.Uint16(b)), nil
}

// FormatSignals writes one signal a line: its name, its value and its unit, with a space
// in between. Whole lines only, of [MaxText] bytes at most.
func FormatSignals(signals []ota.Signal) string {
	var b strings.Builder
	for _, s := range signals {
		line := strings.Join(strings.Fields(s.Name), "_") + " " + strconv.FormatFloat(s.Value, 'g', -1, 64)
		if unit := strings.Join(strings.Fields(s.Unit), "_"); unit != "" {
			line += " " + unit
		}
		if b.Len()+len(line)+1 > MaxText {
			break
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// ParseSignals reads what [FormatSignals] writes. Times and sources are not in it.
func ParseSignals(text string) ([]ota.Signal, error) {
	var signals []ota.Signal
	for line := range strings.Lines(Text(text)) {
		fields := strings.Fields(line)
		if len(fields) != 2 && len(fields) != 3 {
			return nil, fmt.Errorf("read the signals: line %q, want a name, a value and a unit", line)
		}
		v, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return nil, fmt.Errorf("read the signals: %s is %q, want a number", fields[0], fields[1])
		}
		s := ota.Signal{Name: fields[0], Value: v}
		if len(fields) == 3 {
			s.Unit = fields[2]
		}
		signals = append(signals, s)
	}
	return signals, nil
}

// EncodeOutcome writes a report as JSON, as devices send it to servers, in so many bytes
// at most: its reason is cut where it would be too long. Nil, nothing has ended yet, is no
// bytes at all. An error says that it is too long without its reason.
func EncodeOutcome(r *ota.Report, most int) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	out := *r
	out.Reason = Text(out.Reason)
	for {
		b, err := json.Marshal(out)
		if err != nil || len(b) <= most {
			return b, err
		}
		if out.Reason == "" {
			return nil, fmt.Errorf("write how the update ended: %d bytes, want at most %d", len(b), most)
		}
		out.Reason = cut(out.Reason, len(out.Reason)/2)
	}
}

// ParseOutcome reads what [EncodeOutcome] writes.
func ParseOutcome(b []byte) (*ota.Report, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) > MaxBlock {
		return nil, fmt.Errorf("read how the update ended: %d bytes, want at most %d", len(b), MaxBlock)
	}
	r := new(ota.Report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read how the update ended: %w", err)
	}
	return r, nil
}

// Text makes s fit for a bus: valid UTF-8 of [MaxText] bytes at most.
func Text(s string) string { return cut(strings.ToValidUTF8(s, "?"), MaxText) }

// cut shortens valid UTF-8 to so many bytes at most, at a character.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

func long(what string, b []byte, want int) error {
	if len(b) < want {
		return fmt.Errorf("read %s: %d bytes, want %d", what, len(b), want)
	}
	return nil
}
