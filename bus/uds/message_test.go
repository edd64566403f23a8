package uds_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// message is what all requests and answers have.
type message interface{ Append([]byte) []byte }

func parsing[M message](parse func([]byte) (M, error)) func([]byte) (message, error) {
	return func(b []byte) (message, error) { m, err := parse(b); return m, err }
}

func parseRead(b []byte) (uds.ReadAnswer, error) {
	return uds.ParseReadAnswer(b, func(d uds.DID) int { return int(d & 7) })
}

// messages are one of each kind, as the standard writes it.
var messages = []struct {
	hex   string
	value message
	parse func([]byte) (message, error)
}{
	{"7F 31 78", uds.NegativeAnswer{Service: uds.RoutineControl, Code: uds.ResponsePending}, parsing(uds.ParseNegativeAnswer)},
	{"10 03", uds.SessionRequest{Session: uds.Extended}, parsing(uds.ParseSessionRequest)},
	{"10 82", uds.SessionRequest{Session: uds.Programming, Suppress: true}, parsing(uds.ParseSessionRequest)},
	{"50 02 00 32 01 F4", uds.SessionAnswer{Session: uds.Programming, P2: 50 * time.Millisecond, P2Star: 5 * time.Second}, parsing(uds.ParseSessionAnswer)},
	{"11 01", uds.ResetRequest{Reset: uds.HardReset}, parsing(uds.ParseResetRequest)},
	{"51 01", uds.ResetAnswer{Reset: uds.HardReset}, parsing(uds.ParseResetAnswer)},
	{"51 04 0A", uds.ResetAnswer{Reset: uds.EnableRapidPowerShutDown, PowerDown: 10}, parsing(uds.ParseResetAnswer)},
	{"3E 80", uds.PresentRequest{Suppress: true}, parsing(uds.ParsePresentRequest)},
	{"7E 00", uds.EchoAnswer{Service: uds.TesterPresent}, parsing(uds.ParseEchoAnswer)},
	{"28 03 01", uds.CommunicationRequest{Control: 3, Type: 1}, parsing(uds.ParseCommunicationRequest)},
	{"28 05 01 00 0A", uds.CommunicationRequest{Control: 5, Type: 1, Node: 10}, parsing(uds.ParseCommunicationRequest)},
	{"68 03", uds.EchoAnswer{Service: uds.CommunicationControl, Sub: 3}, parsing(uds.ParseEchoAnswer)},
	{"85 02 FF FF FF", uds.DTCRequest{Setting: 2, Options: []byte{255, 255, 255}}, parsing(uds.ParseDTCRequest)},
	{"C5 02", uds.EchoAnswer{Service: uds.ControlDTCSetting, Sub: 2}, parsing(uds.ParseEchoAnswer)},
	{"22 F1 95 F1 8C", uds.ReadRequest{DIDs: []uds.DID{0xF195, 0xF18C}}, parsing(uds.ParseReadRequest)},
	{"62 F1 82 01 02 F1 81 03", uds.ReadAnswer{Records: []uds.Record{{DID: 0xF182, Data: []byte{1, 2}}, {DID: 0xF181, Data: []byte{3}}}}, parsing(parseRead)},
	{"2E FD 10 01", uds.WriteRequest{DID: 0xFD10, Data: []byte{1}}, parsing(uds.ParseWriteRequest)},
	{"6E FD 10", uds.WriteAnswer{DID: 0xFD10}, parsing(uds.ParseWriteAnswer)},
	{"27 01", uds.SecurityRequest{Level: 1, Data: []byte{}}, parsing(uds.ParseSecurityRequest)},
	{"27 02 AB", uds.SecurityRequest{Level: 2, Data: []byte{0xAB}}, parsing(uds.ParseSecurityRequest)},
	{"67 01 CD", uds.SecurityAnswer{Level: 1, Seed: []byte{0xCD}}, parsing(uds.ParseSecurityAnswer)},
	{"29 00", uds.AuthenticationRequest{}, parsing(uds.ParseAuthenticationRequest)},
	{"29 88", uds.AuthenticationRequest{Task: uds.ReadConfiguration, Suppress: true}, parsing(uds.ParseAuthenticationRequest)},
	{"29 05 07 06032B6570" + strings.Repeat("00", 11), uds.AuthenticationRequest{Task: uds.RequestChallenge, Configuration: 7, Algorithm: uds.Algorithm{6, 3, 0x2B, 0x65, 0x70}}, parsing(uds.ParseAuthenticationRequest)},
	{"29 06 06032B6570" + strings.Repeat("00", 11) + "0002 AABB 0001 CC 0000", uds.AuthenticationRequest{Task: uds.VerifyProofOfOwnership, Algorithm: uds.Algorithm{6, 3, 0x2B, 0x65, 0x70}, Proof: []byte{0xAA, 0xBB}, Challenge: []byte{0xCC}, Additional: []byte{}}, parsing(uds.ParseAuthenticationRequest)},
	{"69 00 10", uds.AuthenticationAnswer{Result: uds.DeauthenticationDone}, parsing(uds.ParseAuthenticationAnswer)},
	{"69 08 03", uds.AuthenticationAnswer{Task: uds.ReadConfiguration, Result: uds.ConfigurationACR}, parsing(uds.ParseAuthenticationAnswer)},
	{"69 05 00" + strings.Repeat("00", 16) + "0002 AABB 0000", uds.AuthenticationAnswer{Task: uds.RequestChallenge, Challenge: []byte{0xAA, 0xBB}, Additional: []byte{}}, parsing(uds.ParseAuthenticationAnswer)},
	{"69 06 12" + strings.Repeat("00", 16) + "0000", uds.AuthenticationAnswer{Task: uds.VerifyProofOfOwnership, Result: uds.OwnershipVerified, SessionKey: []byte{}}, parsing(uds.ParseAuthenticationAnswer)},
	{"31 01 FF 00 44", uds.RoutineRequest{Control: uds.StartRoutine, RID: uds.EraseMemory, Options: []byte{0x44}}, parsing(uds.ParseRoutineRequest)},
	{"71 01 FF 00 00", uds.RoutineAnswer{Control: uds.StartRoutine, RID: uds.EraseMemory, Status: []byte{0}}, parsing(uds.ParseRoutineAnswer)},
	{"34 00 44 00 00 10 00 00 00 02 00", uds.DownloadRequest{Address: 0x1000, Size: 0x200, AddressBytes: 4, SizeBytes: 4}, parsing(uds.ParseDownloadRequest)},
	{"34 11 33 60 20 00 00 FF FF", uds.DownloadRequest{Format: 0x11, Address: 0x602000, Size: 0xFFFF, AddressBytes: 3, SizeBytes: 3}, parsing(uds.ParseDownloadRequest)}, // the example of the standard, 14.2.5
	{"74 20 0F FF", uds.DownloadAnswer{MaxBlock: 4095}, parsing(uds.ParseDownloadAnswer)},
	{"36 01 AA", uds.TransferRequest{Counter: 1, Data: []byte{0xAA}}, parsing(uds.ParseTransferRequest)},
	{"76 01", uds.TransferAnswer{Counter: 1, Data: []byte{}}, parsing(uds.ParseTransferAnswer)},
	{"37", uds.ExitRequest{Parameters: []byte{}}, parsing(uds.ParseExitRequest)},
	{"77 01", uds.ExitAnswer{Parameters: []byte{1}}, parsing(uds.ParseExitAnswer)},
	{"38 01 00 03 61 2F 62 11 02 C3 50 75 30", uds.FileRequest{Mode: uds.AddFile, Name: "a/b", Format: 0x11, Size: 50000, Compressed: 30000, SizeBytes: 2}, parsing(uds.ParseFileRequest)},
	{"38 02 00 01 61", uds.FileRequest{Mode: uds.DeleteFile, Name: "a"}, parsing(uds.ParseFileRequest)},
	{"38 04 00 01 61 00", uds.FileRequest{Mode: uds.ReadFile, Name: "a"}, parsing(uds.ParseFileRequest)},
	{"38 05 00 01 61", uds.FileRequest{Mode: uds.ReadDirectory, Name: "a"}, parsing(uds.ParseFileRequest)},
	{"38 06 00 01 61 00 01 08 08", uds.FileRequest{Mode: uds.ResumeFile, Name: "a", Size: 8, Compressed: 8, SizeBytes: 1}, parsing(uds.ParseFileRequest)},
	{"78 01 02 C3 50 11", uds.FileAnswer{Mode: uds.AddFile, MaxBlock: 50000, Format: 0x11}, parsing(uds.ParseFileAnswer)},
	{"78 02", uds.FileAnswer{Mode: uds.DeleteFile}, parsing(uds.ParseFileAnswer)},
	{"78 04 02 0F FF 00 00 04 00 00 00 06 00 00 00 05", uds.FileAnswer{Mode: uds.ReadFile, MaxBlock: 4095, Size: 6, Compressed: 5}, parsing(uds.ParseFileAnswer)},
	{"78 05 02 0F FF 00 00 04 00 00 00 06", uds.FileAnswer{Mode: uds.ReadDirectory, MaxBlock: 4095, Size: 6}, parsing(uds.ParseFileAnswer)},
	{"78 06 02 0F FF 00 00 00 00 00 00 01 00 00", uds.FileAnswer{Mode: uds.ResumeFile, MaxBlock: 4095, Position: 65536}, parsing(uds.ParseFileAnswer)},
}

// TestMessages: bytes and values belong together, both ways; what is cut off somewhere
// is another message or none; errors say that they are about messages.
func TestMessages(t *testing.T) {
	for _, c := range messages {
		pdu := unhex(t, c.hex)
		if got := c.value.Append([]byte("x"))[1:]; !bytes.Equal(got, pdu) {
			t.Errorf("%+v: got % X, want % X", c.value, got, pdu)
		}
		got, err := c.parse(pdu)
		if err != nil || !reflect.DeepEqual(got, c.value) {
			t.Errorf("% X: got %+v, %v; want %+v", pdu, got, err, c.value)
		}
		for n := range pdu {
			m, err := c.parse(pdu[:n])
			switch {
			case err != nil && !errors.Is(err, uds.ErrMessage):
				t.Errorf("% X: %v is not ErrMessage", pdu[:n], err)
			case err == nil && !bytes.HasPrefix(m.Append(nil), pdu[:n]):
				t.Errorf("% X: read as %+v", pdu[:n], m)
			}
		}
		wrong := bytes.Clone(pdu)
		wrong[0] ^= 1
		if m, err := c.parse(wrong); err == nil {
			t.Errorf("% X: read as %+v", wrong, m)
		}
	}
	if got, err := uds.ParseSessionAnswer([]byte{0x50, 3}); err != nil || got.Session != uds.Extended || got.P2 != 0 {
		t.Errorf("an old answer: got %+v, %v", got, err)
	}
	long := uds.SessionAnswer{Session: 3, P2: time.Hour, P2Star: 5*time.Second + 1}
	if got, want := fmt.Sprintf("%X", long.Append(nil)), "5003FFFF01F5"; got != want {
		t.Errorf("long times: got %s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%X", uds.DownloadRequest{Address: 1, Size: 1 << 40}.Append(nil)), "3400640000000101"+"0000000000"; got != want {
		t.Errorf("a large size: got %s, want %s", got, want)
	}
}

// TestNames: each code has a text; what is not named is said to be reserved.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for n := range 256 {
		s := uds.NRC(n).Error()
		if seen[s] || !strings.Contains(s, fmt.Sprintf("NRC %02X", n)) {
			t.Errorf("NRC %02X: %q", n, s)
		}
		seen[s] = true
	}
	for n, want := range map[uds.NRC]string{
		0x22: "conditions not correct (NRC 22)",
		0x86: "temperature too high (NRC 86)", 0x87: "temperature too low (NRC 87)",
		0x92: "voltage too high (NRC 92)", 0x93: "voltage too low (NRC 93)",
		0x94: "resource temporarily not available (NRC 94)",
		0x95: "reserved for conditions that are not correct (NRC 95)",
		0xF0: "a condition of the manufacturer is not correct (NRC F0)",
		0x8E: "reserved (NRC 8E)",
	} {
		if got := n.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got, want := uds.TransferData.String(), "TransferData (36)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
