package profile

import "fmt"

// A Code is what a command asks for.
type Code uint16

// Commands. OPEN, RESUME, CLOSE and VERIFY_FILE are part of a transfer, and INSTALL and
// ABORT end it; these but OPEN and RESUME need the session.
const (
	Open       Code = 1 // begin a transfer, or go on with it if it is there
	Resume     Code = 2 // go on with what is there, of this size and hash
	CloseAll   Code = 3 // all blocks were written: verify
	Install    Code = 4 // ask for the installation; the device's gate decides when
	Abort      Code = 5 // give up and forget what was received; Busy while the device takes back what INSTALL has asked for
	Confirm    Code = 6 // a hint and nothing else: the device proves itself
	Rollback   Code = 7 // go back to the previous firmware, where the device offers that
	VerifyFile Code = 8 // compare file Arg with the CRC-32 Arg2
	Precheck   Code = 9 // ask the gate, without any effect; Busy until the answer is there
)

var codeNames = [...]string{"", "OPEN", "RESUME", "CLOSE", "INSTALL", "ABORT", "CONFIRM", "ROLLBACK", "VERIFY_FILE", "PRECHECK"}

func (c Code) String() string {
	if c > 0 && int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("COMMAND_%d", uint16(c))
}

// Known says whether the profile has such a command.
func (c Code) Known() bool { return c >= Open && c <= Precheck }

// Component types.
const (
	TypeController = 1
	TypeBMS        = 2
	TypeModule     = 3
	TypeConverter  = 4
	TypeBundle     = 15 // the manifest says what is for whom
)

// Formats of a transfer.
const (
	FormatBundle = 1 // a bundle file
	FormatBare   = 2 // the images; the manifest was written before
)

// FlagDryRun lets everything happen but the installation.
const FlagDryRun = 1 << 0

// Command is what a master asks for. It is written in one request.
type Command struct {
	Code      Code
	Seq       uint16 // not 0; the same command with the same number again is answered again, not done again
	Session   uint16 // 0 in OPEN and RESUME
	Component uint16 // Type...; TypeBundle
	Index     uint16 // of the component; 0: all
	Size      uint32 // bytes of all that comes
	Format    uint16 // Format...
	Flags     uint16 // Flag...
	SHA256    [32]byte
	Arg, Arg2 uint32
}

// Encode fills dst, which has CommandSize registers.
func (c *Command) Encode(dst []uint16) {
	dst = dst[:CommandSize]
	dst[0], dst[1], dst[2], dst[3], dst[4] = uint16(c.Code), c.Seq, c.Session, c.Component, c.Index
	put32(dst[5:], c.Size)
	dst[7], dst[8] = c.Format, c.Flags
	pack(dst[9:25], c.SHA256[:])
	put32(dst[25:], c.Arg)
	put32(dst[27:], c.Arg2)
	dst[29] = 0
}

// DecodeCommand reads a command block, which must be whole, with a number and with
// nothing in what is reserved. Errors wrap ErrFormat. Whether the command is known, and
// fits, is for the device to say.
func DecodeCommand(src []uint16) (Command, error) {
	if len(src) != CommandSize {
		return Command{}, fmt.Errorf("%w: the command has %d registers, want %d in one request", ErrFormat, len(src), CommandSize)
	}
	c := Command{Code: Code(src[0]), Seq: src[1], Session: src[2], Component: src[3], Index: src[4], Size: get32(src[5:]),
		Format: src[7], Flags: src[8], Arg: get32(src[25:]), Arg2: get32(src[27:])}
	unpack(c.SHA256[:], src[9:25])
	switch {
	case c.Seq == 0:
		return c, fmt.Errorf("%w: the command's number is 0, want 1 to 65535", ErrFormat)
	case src[29] != 0:
		return c, fmt.Errorf("%w: the reserved register is 0x%04x, want 0", ErrFormat, src[29])
	}
	return c, nil
}

func put32(dst []uint16, v uint32) { dst[0], dst[1] = uint16(v>>16), uint16(v) }

func get32(src []uint16) uint32 { return uint32(src[0])<<16 | uint32(src[1]) }

// pack puts bytes into registers, high byte first; what is left of dst is 0.
func pack(dst []uint16, b []byte) {
	clear(dst)
	for i, v := range b {
		dst[i/2] |= uint16(v) << (8 - 8*(i%2))
	}
}

// unpack is the opposite of pack, for as many bytes as dst has.
func unpack(dst []byte, src []uint16) {
	for i := range dst {
		dst[i] = byte(src[i/2] >> (8 - 8*(i%2)))
	}
}

// Bytes returns the bytes of registers, high byte first, appended to dst.
func Bytes(dst []byte, registers []uint16) []byte {
	for _, v := range registers {
		dst = append(dst, byte(v>>8), byte(v))
	}
	return dst
}

// Registers returns bytes as registers, high byte first, appended to dst; an odd byte
// at the end is padded with 0.
func Registers(dst []uint16, b []byte) []uint16 {
	for ; len(b) >= 2; b = b[2:] {
		dst = append(dst, uint16(b[0])<<8|uint16(b[1]))
	}
	if len(b) == 1 {
		dst = append(dst, uint16(b[0])<<8)
	}
	return dst
}
