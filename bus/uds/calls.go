package uds

import (
	"context"
	"fmt"
	"math"
)

// call asks, and reads the answer.
func call[A any](ctx context.Context, c *Client, request Request, repeats int, parse func([]byte) (A, error)) (A, error) {
	var answer A
	pdu := request.Append(nil)
	b, err := c.ask(ctx, pdu, repeats)
	if err != nil || b == nil {
		return answer, err
	}
	if answer, err = parse(b); err != nil {
		return answer, fmt.Errorf("ask for %v: %w: %w", Service(pdu[0]), ErrAnswer, err)
	}
	return answer, nil
}

// DiagnosticSession enters a session; it is repeated. From now on the server is kept in
// it, and its times are used.
func (c *Client) DiagnosticSession(ctx context.Context, s Session) (SessionAnswer, error) {
	a, err := call(ctx, c, SessionRequest{Session: s}, c.cfg.Repeats, ParseSessionAnswer)
	if err == nil {
		c.entered(a)
	}
	return a, err
}

// Reset asks for a reset. Afterwards the client takes the server for being in the
// default session.
func (c *Client) Reset(ctx context.Context, r Reset) error {
	_, err := call(ctx, c, ResetRequest{Reset: r}, 0, ParseResetAnswer)
	if err == nil {
		c.entered(SessionAnswer{Session: Default})
	}
	return err
}

// TesterPresent says that the client is there and wants an answer; it is repeated.
func (c *Client) TesterPresent(ctx context.Context) error {
	_, err := call(ctx, c, PresentRequest{}, c.cfg.Repeats, ParseEchoAnswer)
	return err
}

// ReadData reads one identifier; it is repeated.
func (c *Client) ReadData(ctx context.Context, did DID) ([]byte, error) {
	all := func(DID) int { return -1 }
	a, err := call(ctx, c, ReadRequest{[]DID{did}}, c.cfg.Repeats, func(pdu []byte) (ReadAnswer, error) {
		return ParseReadAnswer(pdu, all)
	})
	if err != nil {
		return nil, err
	}
	if a.Records[0].DID != did {
		return nil, fmt.Errorf("read %04X: %w: it brings %04X", uint16(did), ErrAnswer, uint16(a.Records[0].DID))
	}
	return a.Records[0].Data, nil
}

// ReadSeveral reads several identifiers at once; it is repeated. size says how many
// bytes each has; negative: the rest of the answer. What the server does not have is
// missing in the result.
func (c *Client) ReadSeveral(ctx context.Context, size func(DID) int, dids ...DID) ([]Record, error) {
	a, err := call(ctx, c, ReadRequest{dids}, c.cfg.Repeats, func(pdu []byte) (ReadAnswer, error) {
		return ParseReadAnswer(pdu, size)
	})
	return a.Records, err
}

// WriteData writes one identifier. It is not repeated.
func (c *Client) WriteData(ctx context.Context, did DID, data []byte) error {
	_, err := call(ctx, c, WriteRequest{did, data}, 0, ParseWriteAnswer)
	return err
}

// RequestSeed asks for the seed of an odd level; it is repeated. A seed of zeros says
// that the level is unlocked.
func (c *Client) RequestSeed(ctx context.Context, level byte, record []byte) ([]byte, error) {
	a, err := call(ctx, c, SecurityRequest{Level: level, Data: record}, c.cfg.Repeats, ParseSecurityAnswer)
	return a.Seed, err
}

// SendKey sends the key of the same odd level. It is not repeated: the seed was good for
// one key, and wrong ones are counted.
func (c *Client) SendKey(ctx context.Context, level byte, key []byte) error {
	_, err := call(ctx, c, SecurityRequest{Level: level + 1, Data: key}, 0, ParseSecurityAnswer)
	return err
}

// Challenge asks for what is to be signed; it is repeated.
func (c *Client) Challenge(ctx context.Context, algorithm Algorithm) ([]byte, error) {
	a, err := call(ctx, c, AuthenticationRequest{Task: RequestChallenge, Algorithm: algorithm}, c.cfg.Repeats, ParseAuthenticationAnswer)
	return a.Challenge, err
}

// Prove sends a proof of ownership for the challenge; Task is filled in. It is not
// repeated, as SendKey is not.
func (c *Client) Prove(ctx context.Context, proof AuthenticationRequest) error {
	proof.Task = VerifyProofOfOwnership
	a, err := call(ctx, c, proof, 0, ParseAuthenticationAnswer)
	if err == nil && a.Result != OwnershipVerified {
		err = fmt.Errorf("prove ownership: %w: result %02X, want %02X", ErrAnswer, a.Result, OwnershipVerified)
	}
	return err
}

// Deauthenticate gives up the rights; it is repeated.
func (c *Client) Deauthenticate(ctx context.Context) error {
	_, err := call(ctx, c, AuthenticationRequest{Task: Deauthenticate}, c.cfg.Repeats, ParseAuthenticationAnswer)
	return err
}

// ControlCommunication switches the server's other traffic; it is repeated.
func (c *Client) ControlCommunication(ctx context.Context, r CommunicationRequest) error {
	_, err := call(ctx, c, r, c.cfg.Repeats, ParseEchoAnswer)
	return err
}

// ControlDTC switches the recording of trouble codes; it is repeated.
func (c *Client) ControlDTC(ctx context.Context, r DTCRequest) error {
	_, err := call(ctx, c, r, c.cfg.Repeats, ParseEchoAnswer)
	return err
}

// Routine starts or stops a routine, or asks for its results; only the last is repeated.
// It returns what the routine says.
func (c *Client) Routine(ctx context.Context, control Control, rid RID, options []byte) ([]byte, error) {
	repeats := 0
	if control == RoutineResults {
		repeats = c.cfg.Repeats
	}
	a, err := call(ctx, c, RoutineRequest{Control: control, RID: rid, Options: options}, repeats, ParseRoutineAnswer)
	return a.Status, err
}

// RequestDownload announces data. It returns how many bytes fit a block: MaxBlock of
// the answer less 2. It is not repeated: some servers refuse a second one.
func (c *Client) RequestDownload(ctx context.Context, r DownloadRequest) (payload int, err error) {
	a, err := call(ctx, c, r, 0, ParseDownloadAnswer)
	if err != nil {
		return 0, err
	}
	return int(min(a.MaxBlock, math.MaxInt32)) - 2, nil
}

// RequestFile announces a file, or asks for one. It is not repeated.
func (c *Client) RequestFile(ctx context.Context, r FileRequest) (FileAnswer, error) {
	return call(ctx, c, r, 0, ParseFileAnswer)
}

// TransferData sends a block; it is repeated, with the same counter, which the server
// answers without taking it twice. After [RequestSequenceError] or
// [WrongBlockSequenceCounter] the transfer is lost: it begins again with RequestDownload.
func (c *Client) TransferData(ctx context.Context, counter byte, block []byte) ([]byte, error) {
	a, err := call(ctx, c, TransferRequest{counter, block}, c.cfg.Repeats, ParseTransferAnswer)
	return a.Data, err
}

// TransferExit says that all was sent. It is not repeated: of a server that is asked
// twice, [RequestSequenceError] does not say whether the first time was a success.
func (c *Client) TransferExit(ctx context.Context, parameters []byte) ([]byte, error) {
	a, err := call(ctx, c, ExitRequest{parameters}, 0, ParseExitAnswer)
	return a.Parameters, err
}
