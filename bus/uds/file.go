package uds

import (
	"encoding/binary"
	"fmt"
)

// FileMode is a modeOfOperation (ISO 14229-1:2020, table G.1).
type FileMode byte

// What is done with a file.
const (
	AddFile       FileMode = 0x01
	DeleteFile    FileMode = 0x02
	ReplaceFile   FileMode = 0x03 // or adds it
	ReadFile      FileMode = 0x04
	ReadDirectory FileMode = 0x05
	ResumeFile    FileMode = 0x06 // goes on with AddFile or ReplaceFile
)

func (m FileMode) known() bool  { return m >= AddFile && m <= ResumeFile }
func (m FileMode) writes() bool { return m == AddFile || m == ReplaceFile || m == ResumeFile }

// MaxFileName is the longest name, with its path.
const MaxFileName = 0xFFFF

// FileRequest (38) announces a file, or asks for one.
type FileRequest struct {
	Mode FileMode
	Name string // with its path, 1 to MaxFileName bytes
	// Format is the dataFormatIdentifier: compression and encryption; 00: neither. Not
	// for DeleteFile and ReadDirectory.
	Format byte
	// Size is the file's, and Compressed what will be sent of it. AddFile, ReplaceFile,
	// ResumeFile.
	Size, Compressed uint64
	// SizeBytes is how many bytes each of them takes in the message; 0: 4, or as many
	// as are needed.
	SizeBytes int
}

// ParseFileRequest reads a FileRequest.
func ParseFileRequest(pdu []byte) (FileRequest, error) {
	b, err := body(pdu, byte(RequestFileTransfer), 4)
	if err != nil {
		return FileRequest{}, err
	}
	r := FileRequest{Mode: FileMode(b[0])}
	if !r.Mode.known() {
		return FileRequest{}, outOfRange(fmt.Errorf("%w: read %v: mode %02X, want 01 to 06", ErrMessage, RequestFileTransfer, b[0]))
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if b = b[3:]; n == 0 || len(b) < n {
		return FileRequest{}, fmt.Errorf("%w: read %v: a name of %d bytes, %d are there", ErrMessage, RequestFileTransfer, n, len(b))
	}
	r.Name, b = string(b[:n]), b[n:]
	if r.Mode != DeleteFile && r.Mode != ReadDirectory {
		if len(b) == 0 {
			return FileRequest{}, tooShort(RequestFileTransfer, len(pdu), len(pdu)+1)
		}
		r.Format, b = b[0], b[1:]
	}
	if r.Mode.writes() {
		if b, err = r.parseSizes(b); err != nil {
			return FileRequest{}, err
		}
	}
	if err := nothingLeft(RequestFileTransfer, b); err != nil {
		return FileRequest{}, err
	}
	return r, nil
}

func (r *FileRequest) parseSizes(b []byte) (rest []byte, err error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: read %v: sizes are missing", ErrMessage, RequestFileTransfer)
	}
	n := int(b[0])
	if b = b[1:]; n == 0 || len(b) < 2*n {
		return nil, fmt.Errorf("%w: read %v: two sizes of %d bytes, %d are there", ErrMessage, RequestFileTransfer, n, len(b))
	}
	r.SizeBytes = n
	var fits, fitsCompressed bool
	r.Size, fits = parseUint(b[:n])
	r.Compressed, fitsCompressed = parseUint(b[n : 2*n])
	if !fits || !fitsCompressed {
		return nil, outOfRange(fmt.Errorf("%w: read %v: sizes % X: want at most 64 bits each", ErrMessage, RequestFileTransfer, head(b)))
	}
	return b[2*n:], nil
}

// Append appends the request to dst.
func (r FileRequest) Append(dst []byte) []byte {
	name := r.Name[:min(len(r.Name), MaxFileName)]
	dst = append(dst, byte(RequestFileTransfer), byte(r.Mode))
	dst = append(binary.BigEndian.AppendUint16(dst, uint16(len(name))), name...)
	if r.Mode != DeleteFile && r.Mode != ReadDirectory {
		dst = append(dst, r.Format)
	}
	if r.Mode.writes() {
		n := r.SizeBytes
		if n <= 0 {
			n = 4
		}
		n = min(max(n, width(r.Size), width(r.Compressed)), 255)
		dst = appendUint(appendUint(append(dst, byte(n)), r.Size, n), r.Compressed, n)
	}
	return dst
}

// FileAnswer (78) accepts the request.
type FileAnswer struct {
	Mode     FileMode
	MaxBlock uint64 // as in DownloadAnswer; not for DeleteFile
	Format   byte   // as in the request; 00 for ReadDirectory; not for DeleteFile
	// Size and Compressed are the file's for ReadFile; Size alone is that of the list for
	// ReadDirectory.
	Size, Compressed uint64
	// Position is how many bytes the server has of a file that is resumed: the data go
	// on there.
	Position uint64
}

// ParseFileAnswer reads a FileAnswer.
func ParseFileAnswer(pdu []byte) (FileAnswer, error) {
	b, err := body(pdu, byte(RequestFileTransfer)+positive, 1)
	if err != nil {
		return FileAnswer{}, err
	}
	a := FileAnswer{Mode: FileMode(b[0])}
	b = b[1:]
	if !a.Mode.known() {
		return FileAnswer{}, fmt.Errorf("%w: read %v: mode %02X, want 01 to 06", ErrMessage, RequestFileTransfer, byte(a.Mode))
	}
	if a.Mode != DeleteFile {
		if a.MaxBlock, b, err = maxBlock(RequestFileTransfer, b); err != nil {
			return FileAnswer{}, err
		}
		if len(b) == 0 {
			return FileAnswer{}, tooShort(RequestFileTransfer, len(pdu), len(pdu)+1)
		}
		a.Format, b = b[0], b[1:]
	}
	switch a.Mode {
	case ReadFile, ReadDirectory:
		if b, err = a.parseSizes(b); err != nil {
			return FileAnswer{}, err
		}
	case ResumeFile:
		if len(b) < 8 {
			return FileAnswer{}, tooShort(RequestFileTransfer, len(pdu), len(pdu)-len(b)+8)
		}
		a.Position, b = binary.BigEndian.Uint64(b), b[8:]
	}
	if err := nothingLeft(RequestFileTransfer, b); err != nil {
		return FileAnswer{}, err
	}
	return a, nil
}

func (a *FileAnswer) parseSizes(b []byte) (rest []byte, err error) {
	if len(b) < 2 {
		return nil, fmt.Errorf("%w: read %v: sizes are missing", ErrMessage, RequestFileTransfer)
	}
	n, count := int(binary.BigEndian.Uint16(b)), 1
	if a.Mode == ReadFile {
		count = 2
	}
	if b = b[2:]; n == 0 || len(b) < count*n {
		return nil, fmt.Errorf("%w: read %v: %d sizes of %d bytes, %d are there", ErrMessage, RequestFileTransfer, count, n, len(b))
	}
	fits, fitsCompressed := true, true
	a.Size, fits = parseUint(b[:n])
	if count == 2 {
		a.Compressed, fitsCompressed = parseUint(b[n : 2*n])
	}
	if !fits || !fitsCompressed {
		return nil, fmt.Errorf("%w: read %v: sizes % X: want at most 64 bits each", ErrMessage, RequestFileTransfer, head(b))
	}
	return b[count*n:], nil
}

// Append appends the answer to dst.
func (a FileAnswer) Append(dst []byte) []byte {
	dst = append(dst, byte(RequestFileTransfer)+positive, byte(a.Mode))
	if a.Mode != DeleteFile {
		n := max(width(a.MaxBlock), 2)
		dst = append(appendUint(append(dst, byte(n)), a.MaxBlock, n), a.Format)
	}
	switch a.Mode {
	case ReadFile:
		n := max(width(a.Size), width(a.Compressed), 4)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
		dst = appendUint(appendUint(dst, a.Size, n), a.Compressed, n)
	case ReadDirectory:
		n := max(width(a.Size), 4)
		dst = appendUint(binary.BigEndian.AppendUint16(dst, uint16(n)), a.Size, n)
	case ResumeFile:
		dst = binary.BigEndian.AppendUint64(dst, a.Position)
	}
	return dst
}
