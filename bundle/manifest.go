package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/interlock-energy/ota"
)

// Unsigned reads the manifest of an envelope WITHOUT CHECKING ANY SIGNATURE.
// Anybody can have written it. It is for looking at a release, and for devices
// on a developer's desk that are configured with verify_signature: false; a
// device in the field that uses it installs whatever it is given.
//
// It parses as strictly as [Keys.Verify]. Errors wrap [ota.ErrValidation].
func Unsigned(signed []byte) (*ota.Manifest, error) {
	e, err := parseEnvelope(signed)
	if err != nil {
		return nil, err
	}
	return parseManifest(e.payload)
}

// parseManifest reads a payload. What it cannot understand to the last field, it
// refuses: the signer may have meant a rule that this version would break.
func parseManifest(payload []byte) (*ota.Manifest, error) {
	if err := checkJSON(payload); err != nil {
		return nil, refuse("read manifest: %w", err)
	}
	if err := checkFields(payload); err != nil {
		return nil, refuse("read manifest: %w", err)
	}
	// The format first: in a newer one everything else may be different.
	var first struct {
		Format  int             `json:"format"`
		Expires json.RawMessage `json:"expires"`
	}
	if err := json.Unmarshal(payload, &first); err != nil {
		return nil, refuse("read manifest: %w", explain(err))
	}
	if first.Format != 1 {
		return nil, refuse("read manifest: format %d is not known here, want 1", first.Format)
	}
	m := new(ota.Manifest)
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, refuse("read manifest: %w", explain(err))
	}
	// The zero time means "never expires" in Go; who wrote it meant something else.
	if m.Expires.IsZero() && len(first.Expires) > 0 {
		return nil, refuse("read manifest: expires is %s; leave it out if the release does not expire", first.Expires)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	for i := range m.Images {
		// It could never match, which would be noticed only after the last byte.
		if m.Images[i].SHA256 == (ota.Hash{}) {
			return nil, refuse("read manifest: image %s: sha256 is missing", m.Images[i].Component)
		}
	}
	m.Digest = digest(payload)
	return m, nil
}

func digest(payload []byte) string {
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:])
}

// checkFields refuses what package encoding/json lets pass: a field given twice
// (the last wins), a field in other letter case, or in letters that fold to it
// as ſ does to s (taken for the field), and null (the field keeps its zero, so
// "expires": null would mean for ever). Every name in a manifest has lower-case
// letters, digits and _ only, hence no other name can match.
func checkFields(b []byte) error {
	type level struct {
		names map[string]bool // nil in a list
		name  string          // of the field whose value is next; "" if a name is next
	}
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	for {
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var top *level
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		} else if t != json.Delim('{') {
			return errors.New("not an object")
		}
		if d, ok := t.(json.Delim); ok && (d == '}' || d == ']') {
			stack = stack[:len(stack)-1]
			if len(stack) > 0 {
				stack[len(stack)-1].name = ""
			}
			continue
		}
		if name, ok := t.(string); ok && top != nil && top.names != nil && top.name == "" {
			if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
				return fmt.Errorf("unknown field %q: names have lower-case letters, digits and _ only", abridge(name))
			}
			if top.names[name] {
				return fmt.Errorf("field %q is given twice", abridge(name))
			}
			top.names[name], top.name = true, name
			continue
		}
		switch t {
		case nil:
			if top != nil && top.names != nil {
				return fmt.Errorf("field %q is null; leave it out instead", abridge(top.name))
			}
			return errors.New("null where a value is wanted")
		case json.Delim('{'), json.Delim('['):
			if len(stack) == maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
			next := level{}
			if t == json.Delim('{') {
				next.names = map[string]bool{}
			}
			stack = append(stack, next)
			continue
		}
		if top != nil {
			top.name = ""
		}
	}
}

// explain turns the errors of package encoding/json into sentences about a manifest.
func explain(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s: got %s, want %s", e.Field, abridge(e.Value), e.Type)
	}
	const unknown = "json: unknown field " // no type of its own in package encoding/json
	if name, ok := strings.CutPrefix(err.Error(), unknown); ok {
		return fmt.Errorf("unknown field %s: it may be a rule that this version does not know; update this software first", abridge(name))
	}
	return err
}
