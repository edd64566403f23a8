package stream

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"github.com/interlock-energy/ota"
)

// maxMessage bounds what is parsed, in bytes: a block of the largest size in base64,
// and its fields.
const maxMessage = MaxBlockSize/3*4 + 1024

// maxFiles of a stream (AWS service quotas: 50 today); more are refused.
const maxFiles = 1024

// getRequest is a GetStream request. n is always given: with a bitmap it is only a
// limit, but the service's default would be too low for small blocks at a time.
type getRequest struct {
	Token   string `json:"c" cbor:"c"`
	Version int    `json:"s,omitempty" cbor:"s,omitempty"`
	File    int    `json:"f" cbor:"f"`
	Length  int    `json:"l" cbor:"l"` // of a block, in bytes
	Offset  int    `json:"o" cbor:"o"` // the block that bit 0 stands for
	Count   int    `json:"n" cbor:"n"`
	Bitmap  bitmap `json:"b,omitempty" cbor:"b,omitempty"`
}

// bitmap has block Offset+8i+j as bit j of byte i, the lowest bit being j = 0.
type bitmap []byte

// MarshalJSON writes the hexadecimal string of the guide's example, "0x130080".
func (b bitmap) MarshalJSON() ([]byte, error) { return json.Marshal("0x" + hex.EncodeToString(b)) }

type describeRequest struct {
	Token string `json:"c" cbor:"c"`
}

// dataMessage is one block. Pointers tell a zero from a field that is missing.
type dataMessage struct {
	Token  string `json:"c" cbor:"c"`
	File   *int64 `json:"f" cbor:"f"`
	Length *int64 `json:"l" cbor:"l"` // of the payload, in bytes
	Block  *int64 `json:"i" cbor:"i"`
	Data   []byte `json:"p" cbor:"p"` // base64 in JSON
}

// rejectedMessage has its long names from an older version of the service.
type rejectedMessage struct {
	Code       string `json:"o" cbor:"o"`
	Text       string `json:"m" cbor:"m"`
	Token      string `json:"c" cbor:"c"`
	OldCode    string `json:"code" cbor:"code"`
	OldMessage string `json:"message" cbor:"message"`
	OldToken   string `json:"clientToken" cbor:"clientToken"`
}

type descriptionMessage struct {
	Token   string `json:"c" cbor:"c"`
	Version int    `json:"s" cbor:"s"`
	Text    string `json:"d" cbor:"d"`
	Files   []struct {
		ID   *int64 `json:"f" cbor:"f"`
		Size *int64 `json:"z" cbor:"z"`
	} `json:"r" cbor:"r"`
}

// decoder bounds what a message can cost. It is not built before it is needed.
var decoder = sync.OnceValues(func() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:  8,
		MaxArrayElements: maxFiles,
		MaxMapPairs:      64,
		TagsMd:           cbor.TagsForbidden,
	}.DecMode()
})

func (f Format) encode(v any) ([]byte, error) {
	if f == JSON {
		return json.Marshal(v)
	}
	return cbor.Marshal(v)
}

func (f Format) decode(b []byte, v any) error {
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes, want at most %d", len(b), maxMessage)
	}
	if f == JSON {
		return json.Unmarshal(b, v)
	}
	d, err := decoder()
	if err != nil {
		return err
	}
	return d.Unmarshal(b, v)
}

// parseData reads a block and checks that it has all its fields and the length that
// it says. Whether it was asked for is not its business.
func (f Format) parseData(b []byte) (*dataMessage, error) {
	m := new(dataMessage)
	if err := f.decode(b, m); err != nil {
		return nil, fmt.Errorf("read block: %w", err)
	}
	if m.File == nil || m.Length == nil || m.Block == nil || m.Data == nil {
		return nil, errors.New("read block: one of f, l, i and p is missing")
	}
	if *m.Length != int64(len(m.Data)) {
		return nil, fmt.Errorf("read block %d: it says that it has %d bytes, and has %d", *m.Block, *m.Length, len(m.Data))
	}
	return m, nil
}

func (f Format) parseRejected(b []byte) (token string, r *Rejected, err error) {
	var m rejectedMessage
	if err := f.decode(b, &m); err != nil {
		return "", nil, fmt.Errorf("read refusal: %w", err)
	}
	r = &Rejected{Code: m.Code, Message: m.Text}
	if r.Code == "" {
		r.Code = m.OldCode
	}
	if r.Message == "" {
		r.Message = m.OldMessage
	}
	if token = m.Token; token == "" {
		token = m.OldToken
	}
	if r.Code == "" {
		return "", nil, errors.New("read refusal: it has no code")
	}
	return token, r, nil
}

func (f Format) parseDescription(b []byte) (token string, d Description, err error) {
	var m descriptionMessage
	if err := f.decode(b, &m); err != nil {
		return "", Description{}, fmt.Errorf("read description: %w", err)
	}
	if len(m.Files) > maxFiles {
		return "", Description{}, fmt.Errorf("read description: %d files, want at most %d", len(m.Files), maxFiles)
	}
	d = Description{Version: m.Version, Text: m.Text, Files: map[int]int64{}}
	for _, file := range m.Files {
		if file.ID == nil || file.Size == nil || *file.ID < 0 || *file.ID > MaxFileID || *file.Size < 0 {
			return "", Description{}, errors.New("read description: a file without a number from 0 to 255, or without a size")
		}
		d.Files[int(*file.ID)] = *file.Size
	}
	return m.Token, d, nil
}

// passing reports whether a refusal says nothing about the next time.
func (e *Rejected) passing() bool {
	switch e.Code {
	case "InternalError", "RequestThrottled", "ThrottlingException", "Throttled", "ServiceUnavailable":
		return true
	}
	return false
}

// Unwrap tells what the code means, after the guide's "Handling errors from AWS IoT
// MQTT-based file delivery".
func (e *Rejected) Unwrap() []error {
	switch e.Code {
	case "ResourceNotFound", "VersionMismatch", "ETagMismatch":
		return []error{ErrStale, ota.ErrServer}
	case "Unauthorized":
		return []error{ota.ErrAuthentication}
	}
	return []error{ota.ErrServer}
}
