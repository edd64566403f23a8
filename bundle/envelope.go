package bundle

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/interlock-energy/ota"
)

// PayloadType is the payloadType of an envelope that holds a manifest.
const PayloadType = "application/vnd.interlock.manifest+json"

// Bounds of what an unverified envelope can cost. A verifier tries each
// signature with each key, and the payload can be 12 MiB.
const (
	MaxSignatures = 16
	MaxKeys       = 16

	maxSignatureSize = 1024 // bytes; RSA-8192
	maxKeyIDSize     = 256  // characters
	maxFields        = 16   // of an object in the envelope
	maxDepth         = 8    // of nested objects and lists
	maxSkipped       = 1000 // values, brackets and names in a field that is not known
)

// envelope is a DSSE envelope that is well formed. Nothing about it is verified.
type envelope struct {
	payloadType string
	message     []byte // what is signed: PAE(payloadType, payload)
	payload     []byte // the end of message
	signatures  []signature
}

type signature struct {
	keyID string // a hint, which never decides anything
	sig   []byte
}

// parseEnvelope reads the JSON of a DSSE envelope, version 1.0.2. Fields that it
// does not know are skipped, as DSSE demands; fields given twice, or in other
// letter case, are refused, because another parser could read them differently.
func parseEnvelope(b []byte) (*envelope, error) { return parseTyped(b, PayloadType) }

// parseTyped is parseEnvelope for a payload of the type want.
func parseTyped(b []byte, want string) (*envelope, error) {
	if len(b) == 0 || len(b) > MaxEnvelopeSize {
		return nil, refuse("read envelope: got %d bytes, want 1 to %d", len(b), MaxEnvelopeSize)
	}
	if err := checkJSON(b); err != nil {
		return nil, refuse("read envelope: %w", err)
	}
	var e envelope
	var payloadType, payload string
	dec := json.NewDecoder(bytes.NewReader(b))
	found, err := readObject(dec, []string{"payloadType", "payload", "signatures"}, func(name string) (err error) {
		switch name {
		case "payloadType":
			payloadType, err = readString(dec)
		case "payload":
			payload, err = readString(dec)
		case "signatures":
			e.signatures, err = readSignatures(dec)
		}
		return err
	})
	if err != nil {
		return nil, refuse("read envelope: %w", err)
	}
	for _, name := range []string{"payloadType", "payload", "signatures"} {
		if !slices.Contains(found, name) {
			return nil, refuse("read envelope: %s is missing", name)
		}
	}
	if payloadType != want {
		return nil, refuse("read envelope: payloadType %q, want %q", abridge(payloadType), want)
	}
	raw, err := decodeBase64(payload)
	if err != nil {
		return nil, refuse("read envelope: payload: %w", err)
	}
	if len(raw) == 0 {
		return nil, refuse("read envelope: payload is empty")
	}
	e.setTyped(want, raw)
	return &e, nil
}

func (e *envelope) setPayload(payload []byte) { e.setTyped(PayloadType, payload) }

// setTyped applies DSSE's pre-authentication encoding:
// "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body.
func (e *envelope) setTyped(payloadType string, payload []byte) {
	e.payloadType = payloadType
	e.message = pae(payloadType, payload)
	e.payload = e.message[len(e.message)-len(payload):]
}

func pae(payloadType string, body []byte) []byte {
	head := "DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(body)) + " "
	return append(append(make([]byte, 0, len(head)+len(body)), head...), body...)
}

// encode returns the envelope as JSON, always with the same bytes.
func (e *envelope) encode() ([]byte, error) {
	type jsonSignature struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	out := struct {
		PayloadType string          `json:"payloadType"`
		Payload     []byte          `json:"payload"`
		Signatures  []jsonSignature `json:"signatures"`
	}{PayloadType: e.payloadType, Payload: e.payload, Signatures: []jsonSignature{}} // never null
	for _, s := range e.signatures {
		out.Signatures = append(out.Signatures, jsonSignature{s.keyID, s.sig})
	}
	j, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode envelope: %w", err)
	}
	if len(j) > MaxEnvelopeSize {
		return nil, fmt.Errorf("encode envelope: %w: %d bytes, want at most %d; take larger chunks (up to %d bytes)",
			ota.ErrValidation, len(j), MaxEnvelopeSize, ota.MaxChunkSize)
	}
	return j, nil
}

func readSignatures(dec *json.Decoder) ([]signature, error) {
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.Join(errors.New("signatures is not a list"), err)
	}
	var list []signature
	for dec.More() {
		if len(list) == MaxSignatures {
			return nil, fmt.Errorf("more than %d signatures", MaxSignatures)
		}
		var s signature
		var encoded string
		found, err := readObject(dec, []string{"keyid", "sig"}, func(name string) (err error) {
			if name == "keyid" {
				s.keyID, err = readString(dec)
			} else {
				encoded, err = readString(dec)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("signature %d: %w", len(list)+1, err)
		}
		if !slices.Contains(found, "sig") {
			return nil, fmt.Errorf("signature %d: sig is missing", len(list)+1)
		}
		if len(s.keyID) > maxKeyIDSize {
			return nil, fmt.Errorf("signature %d: keyid has %d characters, want at most %d", len(list)+1, len(s.keyID), maxKeyIDSize)
		}
		if s.sig, err = decodeBase64(encoded); err != nil {
			return nil, fmt.Errorf("signature %d: %w", len(list)+1, err)
		}
		if len(s.sig) > maxSignatureSize {
			return nil, fmt.Errorf("signature %d has %d bytes, want at most %d", len(list)+1, len(s.sig), maxSignatureSize)
		}
		list = append(list, s)
	}
	_, err := dec.Token()
	return list, err
}

// readObject reads an object and calls value at the value of each known field,
// which it must consume. It returns the names that it found.
func readObject(dec *json.Decoder, known []string, value func(name string) error) (found []string, err error) {
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("not an object"), err)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		if slices.Contains(found, name) {
			return nil, fmt.Errorf("field %q is given twice", abridge(name))
		}
		if found = append(found, name); len(found) > maxFields {
			return nil, fmt.Errorf("more than %d fields", maxFields)
		}
		if slices.Contains(known, name) {
			if err := value(name); err != nil {
				return nil, err
			}
			continue
		}
		for _, k := range known {
			if strings.EqualFold(name, k) {
				return nil, fmt.Errorf("field %q is %q in other letter case", abridge(name), k)
			}
		}
		if err := skipValue(dec); err != nil {
			return nil, fmt.Errorf("field %q: %w", abridge(name), err)
		}
	}
	_, err = dec.Token()
	return found, err
}

func readString(dec *json.Decoder) (string, error) {
	t, err := dec.Token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("got %v where a string is wanted", t)
	}
	return s, nil
}

func skipValue(dec *json.Decoder) error {
	for depth, n := 0, 0; ; n++ {
		if n == maxSkipped {
			return fmt.Errorf("more than %d values", maxSkipped)
		}
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if d, ok := t.(json.Delim); ok {
			if d == '{' || d == '[' {
				depth++
			} else {
				depth--
			}
		}
		if depth > maxDepth {
			return fmt.Errorf("nested deeper than %d", maxDepth)
		}
		if depth == 0 {
			return nil
		}
	}
}

// checkJSON reports whether b is one JSON value, whole, in valid UTF-8, and
// nothing else. Package encoding/json alone would replace wrong UTF-8 silently.
func checkJSON(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("not valid UTF-8")
	}
	if json.Valid(b) {
		return nil
	}
	var v json.RawMessage
	err := json.Unmarshal(b, &v) // for the reason and the place
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not one JSON value: at byte %d: %w", e.Offset, err)
	}
	return errors.Join(errors.New("not one JSON value"), err)
}

// decodeBase64 accepts the standard and the URL-safe alphabet (RFC 4648,
// sections 4 and 5), as DSSE demands, with padding. One text has only one
// meaning and, within an alphabet, one form: no white space, no stray bits, no
// mixture.
func decodeBase64(s string) ([]byte, error) {
	enc := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.URLEncoding
	}
	if i := strings.IndexAny(s, "\r\n"); i >= 0 { // which package base64 skips
		return nil, fmt.Errorf("base64 has a line end at %d", i)
	}
	b, err := enc.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("not base64: %w", err)
	}
	return b, nil
}

// abridge keeps what an attacker wrote out of long log lines.
func abridge(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
