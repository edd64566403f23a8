package awstest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// format is one of the two in which streams speak.
type format struct {
	name    string
	badCode string
	encode  func(v any) ([]byte, error)
	decode  func(data []byte, v any) error
	bytes   func(b []byte) any // a block
}

var formats = map[string]format{
	"json": {"json", "InvalidJson", json.Marshal, json.Unmarshal, func(b []byte) any { return base64.StdEncoding.EncodeToString(b) }},
	"cbor": {"cbor", "InvalidCbor", cbor.Marshal, cbor.Unmarshal, func(b []byte) any { return b }},
}

type streamTopic struct {
	thing, stream, verb, format string
}

// parseStreamTopic reads $aws/things/{thing}/streams/{stream}/{verb}/{format}; ok is
// false for topics on which the service itself speaks, and for those of others.
func parseStreamTopic(topic string) (at streamTopic, ok bool) {
	parts := strings.Split(topic, "/")
	if len(parts) != 7 || parts[0] != "$aws" || parts[1] != "things" || parts[3] != "streams" {
		return at, false
	}
	at = streamTopic{thing: parts[2], stream: parts[4], verb: parts[5], format: parts[6]}
	switch at.verb {
	case "description", "data", "rejected":
		return at, false
	}
	return at, true
}

func (at streamTopic) message(verb string, f format, v map[string]any) Message {
	for key, value := range v {
		if value == nil {
			delete(v, key)
		}
	}
	payload, err := f.encode(v)
	if err != nil { // of plain values: cannot be
		payload = []byte(`{"o":"InternalError"}`)
	}
	return Message{Topic: "$aws/things/" + at.thing + "/streams/" + at.stream + "/" + verb + "/" + f.name, Payload: payload}
}

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// streamRequest is a device's get or describe.
type streamRequest struct {
	token            string
	version          int // s; 0: any
	file, size       int // f, l
	hasFile, hasSize bool
	offset, count    int    // o, n, in blocks; n 0: as many as fit
	bitmap           []byte // b; nil: all
}

// wants says whether a block is asked for: bit 0 of byte 0 is the block at the offset.
func (r streamRequest) wants(block int) bool {
	if r.bitmap == nil {
		return true
	}
	i := block - r.offset
	return i/8 < len(r.bitmap) && r.bitmap[i/8]>>(i%8)&1 == 1
}

// maxStreamToken is in bytes.
const maxStreamToken = 64

func parseStreamRequest(f format, payload []byte) (streamRequest, *refusal) {
	var r streamRequest
	var w struct {
		C *string `json:"c" cbor:"c"`
		S *int    `json:"s" cbor:"s"`
		F *int    `json:"f" cbor:"f"`
		L *int    `json:"l" cbor:"l"`
		O *int    `json:"o" cbor:"o"`
		N *int    `json:"n" cbor:"n"`
		B any     `json:"b" cbor:"b"`
	}
	var object map[string]any
	if f.decode(payload, &object) != nil || object == nil {
		return r, refuse(f.badCode, "The request could not be interpreted as %s", f.name)
	}
	if f.decode(payload, &w) != nil {
		return r, refuse("InvalidRequest", "A field has the wrong type")
	}
	if w.C != nil {
		if len(*w.C) > maxStreamToken {
			return r, refuse("InvalidRequest", "c: got %d bytes, want at most %d", len(*w.C), maxStreamToken)
		}
		r.token = *w.C
	}
	for _, field := range []struct {
		from *int
		to   *int
	}{{w.S, &r.version}, {w.F, &r.file}, {w.L, &r.size}, {w.O, &r.offset}, {w.N, &r.count}} {
		if field.from != nil {
			*field.to = *field.from
		}
	}
	r.hasFile, r.hasSize = w.F != nil, w.L != nil
	switch b := w.B.(type) {
	case nil:
	case []byte: // CBOR
		r.bitmap = b
	case string: // JSON: hexadecimal
		bitmap, err := hex.DecodeString(strings.TrimPrefix(b, "0x"))
		if err != nil || f.name != "json" {
			return r, refuse("InvalidRequest", "b: got %q, want hexadecimal digits in JSON, a byte string in CBOR", b)
		}
		r.bitmap = bitmap
	default:
		return r, refuse("InvalidRequest", "b: wrong type")
	}
	if r.bitmap != nil && len(r.bitmap) == 0 {
		return r, refuse("InvalidRequest", "b: it is empty")
	}
	return r, nil
}
