package uds

import (
	"errors"
	"fmt"
)

// NRC is a negative response code (ISO 14229-1:2020, table A.1). It is an error: a
// handler returns one to say what the tester is told, and a [Client] returns one within
// its error.
type NRC byte

// Negative response codes.
const (
	GeneralReject                    NRC = 0x10
	ServiceNotSupported              NRC = 0x11
	SubFunctionNotSupported          NRC = 0x12
	IncorrectMessageLength           NRC = 0x13 // incorrectMessageLengthOrInvalidFormat
	ResponseTooLong                  NRC = 0x14
	BusyRepeatRequest                NRC = 0x21
	ConditionsNotCorrect             NRC = 0x22
	RequestSequenceError             NRC = 0x24
	NoResponseFromSubnetComponent    NRC = 0x25
	FailurePreventsExecution         NRC = 0x26 // failurePreventsExecutionOfRequestedAction
	RequestOutOfRange                NRC = 0x31
	SecurityAccessDenied             NRC = 0x33
	AuthenticationRequired           NRC = 0x34
	InvalidKey                       NRC = 0x35
	ExceededNumberOfAttempts         NRC = 0x36
	RequiredTimeDelayNotExpired      NRC = 0x37
	SecureDataTransmissionRequired   NRC = 0x38
	SecureDataTransmissionNotAllowed NRC = 0x39
	SecureDataVerificationFailed     NRC = 0x3A
	CertificateTimePeriod            NRC = 0x50 // certificateVerificationFailed ...
	CertificateSignature             NRC = 0x51
	CertificateChainOfTrust          NRC = 0x52
	CertificateType                  NRC = 0x53
	CertificateFormat                NRC = 0x54
	CertificateContent               NRC = 0x55
	CertificateScope                 NRC = 0x56
	CertificateInvalid               NRC = 0x57 // ... to here
	OwnershipVerificationFailed      NRC = 0x58
	ChallengeCalculationFailed       NRC = 0x59
	SettingAccessRightsFailed        NRC = 0x5A
	SessionKeyCreationFailed         NRC = 0x5B
	ConfigurationDataUsageFailed     NRC = 0x5C
	DeauthenticationFailed           NRC = 0x5D
	UploadDownloadNotAccepted        NRC = 0x70
	TransferDataSuspended            NRC = 0x71
	GeneralProgrammingFailure        NRC = 0x72
	WrongBlockSequenceCounter        NRC = 0x73
	ResponsePending                  NRC = 0x78 // requestCorrectlyReceived-ResponsePending
	SubFunctionNotSupportedInSession NRC = 0x7E // in the active session
	ServiceNotSupportedInSession     NRC = 0x7F // in the active session
	RPMTooHigh                       NRC = 0x81
	RPMTooLow                        NRC = 0x82
	EngineIsRunning                  NRC = 0x83
	EngineIsNotRunning               NRC = 0x84
	EngineRunTimeTooLow              NRC = 0x85
	TemperatureTooHigh               NRC = 0x86
	TemperatureTooLow                NRC = 0x87
	VehicleSpeedTooHigh              NRC = 0x88
	VehicleSpeedTooLow               NRC = 0x89
	ThrottlePedalTooHigh             NRC = 0x8A
	ThrottlePedalTooLow              NRC = 0x8B
	TransmissionRangeNotInNeutral    NRC = 0x8C
	TransmissionRangeNotInGear       NRC = 0x8D
	BrakeSwitchNotClosed             NRC = 0x8F
	ShifterLeverNotInPark            NRC = 0x90
	TorqueConverterClutchLocked      NRC = 0x91
	VoltageTooHigh                   NRC = 0x92
	VoltageTooLow                    NRC = 0x93
	ResourceTemporarilyNotAvailable  NRC = 0x94
)

var nrcTexts = map[NRC]string{
	GeneralReject:                    "general reject",
	ServiceNotSupported:              "service not supported",
	SubFunctionNotSupported:          "sub-function not supported",
	IncorrectMessageLength:           "incorrect message length or invalid format",
	ResponseTooLong:                  "response too long",
	BusyRepeatRequest:                "busy, repeat the request",
	ConditionsNotCorrect:             "conditions not correct",
	RequestSequenceError:             "request sequence error",
	NoResponseFromSubnetComponent:    "no response from the sub-net component",
	FailurePreventsExecution:         "a failure prevents the execution of the requested action",
	RequestOutOfRange:                "request out of range",
	SecurityAccessDenied:             "security access denied",
	AuthenticationRequired:           "authentication required",
	InvalidKey:                       "invalid key",
	ExceededNumberOfAttempts:         "exceeded number of attempts",
	RequiredTimeDelayNotExpired:      "required time delay not expired",
	SecureDataTransmissionRequired:   "secure data transmission required",
	SecureDataTransmissionNotAllowed: "secure data transmission not allowed",
	SecureDataVerificationFailed:     "secure data verification failed",
	CertificateTimePeriod:            "certificate: invalid time period",
	CertificateSignature:             "certificate: invalid signature",
	CertificateChainOfTrust:          "certificate: invalid chain of trust",
	CertificateType:                  "certificate: invalid type",
	CertificateFormat:                "certificate: invalid format",
	CertificateContent:               "certificate: invalid content",
	CertificateScope:                 "certificate: invalid scope",
	CertificateInvalid:               "certificate: invalid",
	OwnershipVerificationFailed:      "ownership verification failed",
	ChallengeCalculationFailed:       "challenge calculation failed",
	SettingAccessRightsFailed:        "setting of access rights failed",
	SessionKeyCreationFailed:         "session key creation or derivation failed",
	ConfigurationDataUsageFailed:     "configuration data usage failed",
	DeauthenticationFailed:           "de-authentication failed",
	UploadDownloadNotAccepted:        "upload or download not accepted",
	TransferDataSuspended:            "transfer of data suspended",
	GeneralProgrammingFailure:        "general programming failure",
	WrongBlockSequenceCounter:        "wrong block sequence counter",
	ResponsePending:                  "request received, response pending",
	SubFunctionNotSupportedInSession: "sub-function not supported in the active session",
	ServiceNotSupportedInSession:     "service not supported in the active session",
	RPMTooHigh:                       "rpm too high",
	RPMTooLow:                        "rpm too low",
	EngineIsRunning:                  "engine is running",
	EngineIsNotRunning:               "engine is not running",
	EngineRunTimeTooLow:              "engine run time too low",
	TemperatureTooHigh:               "temperature too high",
	TemperatureTooLow:                "temperature too low",
	VehicleSpeedTooHigh:              "vehicle speed too high",
	VehicleSpeedTooLow:               "vehicle speed too low",
	ThrottlePedalTooHigh:             "throttle or pedal too high",
	ThrottlePedalTooLow:              "throttle or pedal too low",
	TransmissionRangeNotInNeutral:    "transmission range not in neutral",
	TransmissionRangeNotInGear:       "transmission range not in gear",
	BrakeSwitchNotClosed:             "brake switch not closed",
	ShifterLeverNotInPark:            "shifter lever not in park",
	TorqueConverterClutchLocked:      "torque converter clutch locked",
	VoltageTooHigh:                   "voltage too high",
	VoltageTooLow:                    "voltage too low",
	ResourceTemporarilyNotAvailable:  "resource temporarily not available",
}

// String returns the code and its name.
func (n NRC) String() string {
	text := nrcTexts[n]
	switch {
	case text != "":
	case n >= 0x95 && n <= 0xEF:
		text = "reserved for conditions that are not correct"
	case n >= 0xF0 && n <= 0xFE:
		text = "a condition of the manufacturer is not correct"
	default:
		text = "reserved"
	}
	return fmt.Sprintf("%s (NRC %02X)", text, byte(n))
}

// Error implements error.
func (n NRC) Error() string { return n.String() }

// Valid reports whether a server may say n in a final answer: 00 would be a positive
// response, and 78 only announces one.
func (n NRC) Valid() bool { return n != 0 && n != 0xFF && n != ResponsePending }

// nrcOf is what a tester is told about err: the NRC in it, or otherwise.
func nrcOf(err error, otherwise NRC) NRC {
	if n, ok := errors.AsType[NRC](err); ok && n.Valid() {
		return n
	}
	return otherwise
}

// A NegativeAnswer is what a server says when it does not do as asked: 7F, the service
// and the code. It is the error of a [Client]'s calls.
type NegativeAnswer struct {
	Service Service
	Code    NRC
}

// ParseNegativeAnswer reads a negative answer.
func ParseNegativeAnswer(pdu []byte) (NegativeAnswer, error) {
	if len(pdu) != 3 || pdu[0] != negative {
		return NegativeAnswer{}, fmt.Errorf("%w: read a negative answer: got % X, want 7F and two bytes", ErrMessage, head(pdu))
	}
	return NegativeAnswer{Service(pdu[1]), NRC(pdu[2])}, nil
}

// Append appends the answer to dst.
func (a NegativeAnswer) Append(dst []byte) []byte {
	return append(dst, negative, byte(a.Service), byte(a.Code))
}

// Error implements error.
func (a *NegativeAnswer) Error() string { return fmt.Sprintf("%v refused: %v", a.Service, a.Code) }

// Unwrap returns the code, so that errors.Is(err, uds.ConditionsNotCorrect) says whether
// it was that.
func (a *NegativeAnswer) Unwrap() error { return a.Code }
