package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"

	"github.com/interlock-energy/ota"
)

// VerifyAny returns an [ota.Verify] that hands an envelope to the verifier for its
// payloadType: [PayloadType] for releases, [CodeSignedType]. A type that is not in
// verifiers, or has nil there, is refused. The map must not change afterwards.
func VerifyAny(verifiers map[string]ota.Verify) ota.Verify {
	return func(signed []byte) (*ota.Manifest, error) {
		kind, err := payloadTypeOf(signed)
		if err != nil {
			return nil, err
		}
		verify := verifiers[kind]
		if verify == nil {
			return nil, refuse("read envelope: payloadType %q is not taken here", abridge(kind))
		}
		return verify(signed)
	}
}

// payloadTypeOf reads only what a verifier is chosen by; that reads all of it again.
func payloadTypeOf(b []byte) (kind string, err error) {
	if len(b) == 0 || len(b) > MaxEnvelopeSize {
		return "", refuse("read envelope: got %d bytes, want 1 to %d", len(b), MaxEnvelopeSize)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	found, err := readObject(dec, []string{"payloadType"}, func(string) (err error) {
		kind, err = readString(dec)
		return err
	})
	if err == nil && !slices.Contains(found, "payloadType") {
		err = errors.New("payloadType is missing")
	}
	if err != nil {
		return "", refuse("read envelope: %w", err)
	}
	return kind, nil
}
