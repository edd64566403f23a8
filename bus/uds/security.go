package uds

import (
	"encoding/binary"
	"fmt"
)

// SecurityRequest (27) asks for a seed, or sends the key that belongs to it.
type SecurityRequest struct {
	// Level is the sub-function, 01 to 7E: odd numbers ask for the seed of a level, the
	// even ones that follow send its key.
	Level    byte
	Suppress bool
	Data     []byte // the key; for a seed usually nothing
}

// IsKey reports whether the request sends a key.
func (r SecurityRequest) IsKey() bool { return r.Level%2 == 0 }

// ParseSecurityRequest reads a SecurityRequest. Data is a part of pdu.
func ParseSecurityRequest(pdu []byte) (SecurityRequest, error) {
	b, err := body(pdu, byte(SecurityAccess), 1)
	if err != nil {
		return SecurityRequest{}, err
	}
	return SecurityRequest{b[0] &^ suppress, b[0]&suppress != 0, b[1:]}, nil
}

// Append appends the request to dst.
func (r SecurityRequest) Append(dst []byte) []byte {
	return append(append(dst, byte(SecurityAccess), withSuppress(r.Level, r.Suppress)), r.Data...)
}

// SecurityAnswer (67) brings a seed, or says that the key was right. A seed of nothing
// but zeros says that the level is unlocked already.
type SecurityAnswer struct {
	Level byte
	Seed  []byte
}

// ParseSecurityAnswer reads a SecurityAnswer. Seed is a part of pdu.
func ParseSecurityAnswer(pdu []byte) (SecurityAnswer, error) {
	b, err := body(pdu, byte(SecurityAccess)+positive, 1)
	if err != nil {
		return SecurityAnswer{}, err
	}
	return SecurityAnswer{b[0], b[1:]}, nil
}

// Append appends the answer to dst.
func (a SecurityAnswer) Append(dst []byte) []byte {
	return append(append(dst, byte(SecurityAccess)+positive, a.Level), a.Seed...)
}

// Task is the sub-function of Authentication (ISO 14229-1:2020, table 74).
type Task byte

// Tasks that this package knows: those of challenge and response ("ACR") in one
// direction.
const (
	Deauthenticate         Task = 0x00
	RequestChallenge       Task = 0x05 // requestChallengeForAuthentication
	VerifyProofOfOwnership Task = 0x06 // verifyProofOfOwnershipUnidirectional
	ReadConfiguration      Task = 0x08 // authenticationConfiguration
)

// Results of Authentication (ISO 14229-1:2020, table B.5).
const (
	RequestAccepted        byte = 0x00
	ConfigurationAPCE      byte = 0x02 // certificates
	ConfigurationACR       byte = 0x03 // challenge and response, asymmetric
	ConfigurationSymmetric byte = 0x04 // challenge and response, symmetric
	DeauthenticationDone   byte = 0x10
	OwnershipVerified      byte = 0x12 // authentication complete
)

const algorithmSize = 16 // bytes (ISO 14229-1:2020, 10.6)

// Algorithm is an algorithmIndicator: the object identifier of the algorithm in BER,
// padded with zeros at its end.
type Algorithm [algorithmSize]byte

// AuthenticationRequest (29).
type AuthenticationRequest struct {
	Task          Task
	Suppress      bool
	Configuration byte      // communicationConfiguration; RequestChallenge
	Algorithm     Algorithm // RequestChallenge, VerifyProofOfOwnership
	Proof         []byte    // proofOfOwnershipClient, up to 65,535 bytes; VerifyProofOfOwnership
	Challenge     []byte    // challengeClient, as Proof
	Additional    []byte    // additionalParameter, as Proof
}

// ParseAuthenticationRequest reads an AuthenticationRequest. Its slices are parts of pdu.
// A task that this package does not know has only Task and Suppress.
func ParseAuthenticationRequest(pdu []byte) (AuthenticationRequest, error) {
	b, err := body(pdu, byte(Authentication), 1)
	if err != nil {
		return AuthenticationRequest{}, err
	}
	r := AuthenticationRequest{Task: Task(b[0] &^ suppress), Suppress: b[0]&suppress != 0}
	b = b[1:]
	switch r.Task {
	case Deauthenticate, ReadConfiguration:
	case RequestChallenge:
		if len(b) < 1+algorithmSize {
			return AuthenticationRequest{}, tooShort(Authentication, len(pdu), 3+algorithmSize)
		}
		r.Configuration = b[0]
		b = b[1+copy(r.Algorithm[:], b[1:]):]
	case VerifyProofOfOwnership:
		if len(b) < algorithmSize {
			return AuthenticationRequest{}, tooShort(Authentication, len(pdu), 2+algorithmSize)
		}
		b = b[copy(r.Algorithm[:], b):]
		for _, field := range []*[]byte{&r.Proof, &r.Challenge, &r.Additional} {
			if *field, b, err = counted(b); err != nil {
				return AuthenticationRequest{}, err
			}
		}
	default:
		return r, nil
	}
	return r, nothingLeft(Authentication, b)
}

// Append appends the request to dst.
func (r AuthenticationRequest) Append(dst []byte) []byte {
	dst = append(dst, byte(Authentication), withSuppress(byte(r.Task), r.Suppress))
	switch r.Task {
	case RequestChallenge:
		dst = append(append(dst, r.Configuration), r.Algorithm[:]...)
	case VerifyProofOfOwnership:
		dst = append(dst, r.Algorithm[:]...)
		for _, field := range [][]byte{r.Proof, r.Challenge, r.Additional} {
			dst = appendCounted(dst, field)
		}
	}
	return dst
}

// AuthenticationAnswer (69).
type AuthenticationAnswer struct {
	Task       Task
	Result     byte      // authenticationReturnParameter
	Algorithm  Algorithm // RequestChallenge, VerifyProofOfOwnership
	Challenge  []byte    // challengeServer; RequestChallenge
	Additional []byte    // neededAdditionalParameter; RequestChallenge
	SessionKey []byte    // sessionKeyInfo; VerifyProofOfOwnership
}

// ParseAuthenticationAnswer reads an AuthenticationAnswer to one of the tasks that this
// package knows. Its slices are parts of pdu.
func ParseAuthenticationAnswer(pdu []byte) (AuthenticationAnswer, error) {
	b, err := body(pdu, byte(Authentication)+positive, 2)
	if err != nil {
		return AuthenticationAnswer{}, err
	}
	a := AuthenticationAnswer{Task: Task(b[0]), Result: b[1]}
	b = b[2:]
	var fields []*[]byte
	switch a.Task {
	case Deauthenticate, ReadConfiguration:
		return a, nothingLeft(Authentication, b)
	case RequestChallenge:
		fields = []*[]byte{&a.Challenge, &a.Additional}
	case VerifyProofOfOwnership:
		fields = []*[]byte{&a.SessionKey}
	default:
		return AuthenticationAnswer{}, fmt.Errorf("%w: read %v: task %02X is not known", ErrMessage, Authentication, byte(a.Task))
	}
	if len(b) < algorithmSize {
		return AuthenticationAnswer{}, tooShort(Authentication, len(pdu), 3+algorithmSize)
	}
	b = b[copy(a.Algorithm[:], b):]
	for _, field := range fields {
		if *field, b, err = counted(b); err != nil {
			return AuthenticationAnswer{}, err
		}
	}
	return a, nothingLeft(Authentication, b)
}

// Append appends the answer to dst.
func (a AuthenticationAnswer) Append(dst []byte) []byte {
	dst = append(dst, byte(Authentication)+positive, byte(a.Task), a.Result)
	switch a.Task {
	case RequestChallenge:
		dst = append(dst, a.Algorithm[:]...)
		dst = appendCounted(appendCounted(dst, a.Challenge), a.Additional)
	case VerifyProofOfOwnership:
		dst = appendCounted(append(dst, a.Algorithm[:]...), a.SessionKey)
	}
	return dst
}

// counted takes a field that begins with its length in two bytes.
func counted(b []byte) (field, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, fmt.Errorf("%w: read %v: a length is missing", ErrMessage, Authentication)
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return nil, nil, fmt.Errorf("%w: read %v: a field of %d bytes has %d", ErrMessage, Authentication, n, len(b))
	}
	return b[:n:n], b[n:], nil
}

// appendCounted is its counterpart; what is behind the longest length is cut off.
func appendCounted(dst, field []byte) []byte {
	field = field[:min(len(field), 0xFFFF)]
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(field))), field...)
}

func nothingLeft(s Service, b []byte) error {
	if len(b) != 0 {
		return fmt.Errorf("%w: read %v: %d bytes too many", ErrMessage, s, len(b))
	}
	return nil
}
