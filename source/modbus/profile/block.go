package profile

import (
	"fmt"
	"hash/crc32"
)

// dataHead is what comes before the bytes of a block: session, number, length, CRC-32.
const dataHead = 6

// A Block is a piece of the transfer, with all that a device needs to put it in its
// place: blocks may come in any order, and again. It is written in one request.
type Block struct {
	Session uint16
	Number  uint32
	Data    []byte // 1 to BlockSize
}

// Blocks returns how many blocks size bytes are.
func Blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// Append appends the registers of b to dst.
func (b *Block) Append(dst []uint16) []uint16 {
	sum := crc32.ChecksumIEEE(b.Data)
	dst = append(dst, b.Session, uint16(b.Number>>16), uint16(b.Number), uint16(len(b.Data)), uint16(sum>>16), uint16(sum))
	return Registers(dst, b.Data)
}

// DecodeBlock reads a block, whose bytes are put into room, which has BlockSize of
// them or more. Errors wrap ErrFormat.
func DecodeBlock(src []uint16, room []byte) (Block, error) {
	if len(src) <= dataHead {
		return Block{}, fmt.Errorf("%w: the block has %d registers, want at least %d in one request", ErrFormat, len(src), dataHead+1)
	}
	b := Block{Session: src[0], Number: get32(src[1:])}
	size := int(src[3])
	if size < 1 || size > BlockSize || len(src) != dataHead+(size+1)/2 {
		return b, fmt.Errorf("%w: block %d has %d registers and says %d bytes, want 1 to %d bytes and %d registers more than half of them", ErrFormat, b.Number, len(src), size, BlockSize, dataHead)
	}
	b.Data = room[:size]
	unpack(b.Data, src[dataHead:])
	if want, got := get32(src[4:]), crc32.ChecksumIEEE(b.Data); got != want {
		return b, fmt.Errorf("%w: block %d has CRC-32 %08x and says %08x", ErrFormat, b.Number, got, want)
	}
	return b, nil
}

// Files. A file has records 0 to 9999, of one register each (V1.1b3, 6.14).
const (
	FileSize     = 20000  // bytes
	FileRecords  = 10000  //
	LastFile     = 0xEFFF // of those with the bytes of the transfer, which begin with 1
	FileManifest = 0xF001 // its length in bytes in records 0 and 1, then the bytes
	FileBitmap   = 0xF002 // received blocks: block 16n+i is bit i of record n
	FileEvidence = 0xF003 // as FileManifest; read only

	// What does not fit into a file goes on in those with the numbers so much higher.
	FileNext = 0x100
	// MaxSpecial is how many bytes the manifest, the bitmap and the evidence can have,
	// with the length.
	MaxSpecial = 16 * FileSize

	// RecordsPerWrite is how many records are best written at once: most others do not
	// end with the file.
	RecordsPerWrite = 100
)

// Place returns the file and the record of a byte of the transfer, whose offset is even
// and below MaxInFiles.
func Place(offset int64) (file, record uint16) {
	return uint16(offset/FileSize) + 1, uint16(offset % FileSize / 2)
}

// MaxInFiles is how many bytes fit into the files of a transfer.
const MaxInFiles = LastFile * FileSize

// Offset is the opposite of Place. ok is false for records that are not of the transfer.
func Offset(file, record uint16) (offset int64, ok bool) {
	if file < 1 || file > LastFile || record >= FileRecords {
		return 0, false
	}
	return int64(file-1)*FileSize + int64(record)*2, true
}

// SpecialPlace returns the file and the record of a byte of one of the special files,
// whose offset is even and below MaxSpecial.
func SpecialPlace(first uint16, offset int) (file, record uint16) {
	return first + uint16(offset/FileSize)*FileNext, uint16(offset % FileSize / 2)
}

// SpecialOffset is the opposite: first is FileManifest, FileBitmap or FileEvidence.
func SpecialOffset(file, record uint16) (first uint16, offset int, ok bool) {
	first = file&0xFF | 0xF000
	if file < 0xF000 || first < FileManifest || first > FileEvidence || record >= FileRecords {
		return 0, 0, false
	}
	return first, int(file>>8&0xF)*FileSize + 2*int(record), true
}
