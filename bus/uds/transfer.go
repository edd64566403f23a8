package uds

import "fmt"

// DownloadRequest (34) announces data for the server's memory.
type DownloadRequest struct {
	Format  byte // dataFormatIdentifier: compression and encryption; 00: neither
	Address uint64
	Size    uint64
	// AddressBytes and SizeBytes are how many bytes they take in the message, 1 to 15;
	// 0: 4, or as many as are needed.
	AddressBytes int
	SizeBytes    int
}

// ParseDownloadRequest reads a DownloadRequest. Address and Size must fit 64 bits.
func ParseDownloadRequest(pdu []byte) (DownloadRequest, error) {
	b, err := body(pdu, byte(RequestDownload), 4)
	if err != nil {
		return DownloadRequest{}, err
	}
	r := DownloadRequest{Format: b[0], AddressBytes: int(b[1] & 0x0F), SizeBytes: int(b[1] >> 4)}
	b = b[2:]
	if r.AddressBytes == 0 || r.SizeBytes == 0 {
		return DownloadRequest{}, outOfRange(fmt.Errorf("%w: read %v: an address of %d bytes, a size of %d; want at least 1 each",
			ErrMessage, RequestDownload, r.AddressBytes, r.SizeBytes))
	}
	if len(b) != r.AddressBytes+r.SizeBytes {
		return DownloadRequest{}, fmt.Errorf("%w: read %v: %d bytes of address and size, want %d and %d",
			ErrMessage, RequestDownload, len(b), r.AddressBytes, r.SizeBytes)
	}
	var fitsAddress, fitsSize bool
	r.Address, fitsAddress = parseUint(b[:r.AddressBytes])
	r.Size, fitsSize = parseUint(b[r.AddressBytes:])
	if !fitsAddress || !fitsSize {
		return DownloadRequest{}, outOfRange(fmt.Errorf("%w: read %v: address % X, size % X: want at most 64 bits",
			ErrMessage, RequestDownload, b[:r.AddressBytes], b[r.AddressBytes:]))
	}
	return r, nil
}

// Append appends the request to dst.
func (r DownloadRequest) Append(dst []byte) []byte {
	a, s := fitting(r.AddressBytes, r.Address), fitting(r.SizeBytes, r.Size)
	dst = append(dst, byte(RequestDownload), r.Format, byte(s<<4|a))
	return appendUint(appendUint(dst, r.Address, a), r.Size, s)
}

// fitting is how many bytes a number takes that should have n of them.
func fitting(n int, v uint64) int {
	if n <= 0 {
		n = 4
	}
	return min(max(n, width(v)), 15)
}

// DownloadAnswer (74) accepts the data.
type DownloadAnswer struct {
	// MaxBlock is the length of a TransferData request at most, with its service and
	// counter: MaxBlock-2 bytes of data fit (ISO 14229-1:2020, 14.2.3.2).
	MaxBlock uint64
}

// ParseDownloadAnswer reads a DownloadAnswer.
func ParseDownloadAnswer(pdu []byte) (DownloadAnswer, error) {
	b, err := body(pdu, byte(RequestDownload)+positive, 2)
	if err != nil {
		return DownloadAnswer{}, err
	}
	most, rest, err := maxBlock(RequestDownload, b)
	if err == nil {
		err = nothingLeft(RequestDownload, rest)
	}
	return DownloadAnswer{most}, err
}

// maxBlock takes a lengthFormatIdentifier, whose high half says how many bytes the
// number behind it has, and that number. RequestFileTransfer has no halves there, but
// the number alone.
func maxBlock(s Service, b []byte) (most uint64, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, tooShort(s, 1, 2)
	}
	n := int(b[0])
	if s == RequestDownload {
		n = int(b[0] >> 4)
	}
	if b = b[1:]; n == 0 || len(b) < n {
		return 0, nil, fmt.Errorf("%w: read %v: the length of a block has %d bytes of %d", ErrMessage, s, len(b), n)
	}
	most, ok := parseUint(b[:n])
	if !ok || most < 3 {
		return 0, nil, fmt.Errorf("%w: read %v: blocks of % X bytes, want at least 3, in 64 bits", ErrMessage, s, b[:n])
	}
	return most, b[n:], nil
}

// Append appends the answer to dst, with two bytes for MaxBlock if that is enough.
func (a DownloadAnswer) Append(dst []byte) []byte {
	n := max(width(a.MaxBlock), 2)
	return appendUint(append(dst, byte(RequestDownload)+positive, byte(n<<4)), a.MaxBlock, n)
}

// TransferRequest (36) brings a block.
type TransferRequest struct {
	Counter byte // blockSequenceCounter: 1 for the first block, 0 after 255
	Data    []byte
}

// ParseTransferRequest reads a TransferRequest. Data is a part of pdu.
func ParseTransferRequest(pdu []byte) (TransferRequest, error) {
	b, err := body(pdu, byte(TransferData), 1)
	if err != nil {
		return TransferRequest{}, err
	}
	return TransferRequest{b[0], b[1:]}, nil
}

// Append appends the request to dst.
func (r TransferRequest) Append(dst []byte) []byte {
	return append(append(dst, byte(TransferData), r.Counter), r.Data...)
}

// TransferAnswer (76) says that the block was taken, or brings one.
type TransferAnswer struct {
	Counter byte
	Data    []byte
}

// ParseTransferAnswer reads a TransferAnswer. Data is a part of pdu.
func ParseTransferAnswer(pdu []byte) (TransferAnswer, error) {
	b, err := body(pdu, byte(TransferData)+positive, 1)
	if err != nil {
		return TransferAnswer{}, err
	}
	return TransferAnswer{b[0], b[1:]}, nil
}

// Append appends the answer to dst.
func (a TransferAnswer) Append(dst []byte) []byte {
	return append(append(dst, byte(TransferData)+positive, a.Counter), a.Data...)
}

// ExitRequest (37) says that all blocks were sent.
type ExitRequest struct {
	Parameters []byte
}

// ParseExitRequest reads an ExitRequest. Parameters is a part of pdu.
func ParseExitRequest(pdu []byte) (ExitRequest, error) {
	b, err := body(pdu, byte(RequestTransferExit), 0)
	return ExitRequest{b}, err
}

// Append appends the request to dst.
func (r ExitRequest) Append(dst []byte) []byte {
	return append(append(dst, byte(RequestTransferExit)), r.Parameters...)
}

// ExitAnswer (77) says that the transfer is closed.
type ExitAnswer struct {
	Parameters []byte
}

// ParseExitAnswer reads an ExitAnswer. Parameters is a part of pdu.
func ParseExitAnswer(pdu []byte) (ExitAnswer, error) {
	b, err := body(pdu, byte(RequestTransferExit)+positive, 0)
	return ExitAnswer{b}, err
}

// Append appends the answer to dst.
func (a ExitAnswer) Append(dst []byte) []byte {
	return append(append(dst, byte(RequestTransferExit)+positive), a.Parameters...)
}
