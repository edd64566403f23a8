package uds

import (
	"context"
	"errors"
	"time"
)

// ClientConfig says how patient a client is. The zero value works.
type ClientConfig struct {
	// P2 is how long the server may take for an answer, until it says so itself in its
	// answer to DiagnosticSession; 0: 50 ms.
	P2 time.Duration
	// P2Star is the same after ResponsePending; 0: 5 s.
	P2Star time.Duration
	// Margin is what the way there and back may take, added to P2 and P2Star; 0: 500 ms.
	Margin time.Duration
	// MaxPending is how long a server may answer ResponsePending to one request; 0: 10 min.
	MaxPending time.Duration
	// KeepAlive is after how much silence the server is told that the client is there,
	// while a session other than the default one is open; 0: 2 s; negative: never.
	KeepAlive time.Duration
	// Functional is where TesterPresent goes; nil: where all goes.
	Functional Conn
	// Repeats is how often a request that got no answer is sent again, if that does no
	// harm: see each call; 0: 2; negative: never.
	Repeats int
	// Busy is how often a request is sent again that was answered with
	// BusyRepeatRequest; 0: 20; negative: never. BusyPause is the time between; 0: 250 ms.
	Busy      int
	BusyPause time.Duration
}

// Errors of a client, besides [NegativeAnswer] and those of its Conn.
var (
	ErrNoAnswer = errors.New("no answer")
	ErrAnswer   = errors.New("the answer does not fit the request")
	ErrClosed   = errors.New("the client is closed")
)

// Client asks one server. Its methods may be called by several goroutines; there is one
// request at a time.
type Client struct {
	conn Conn
	cfg  ClientConfig
}

// NewClient returns a client that reads all that comes from conn, until Close.
func NewClient(conn Conn, cfg ClientConfig) *Client { return &Client{conn: conn, cfg: cfg} }

// Close stops the client and waits until nothing of it runs. It does not close conn.
func (c *Client) Close() error { return nil }

// Session is the session that the server is in, as far as the client knows.
func (c *Client) Session() Session { return Default }

// Request sends any request once and returns the positive answer. A negative one is a
// [NegativeAnswer]. If the request wants no positive answer, it returns nil when none
// came within P2.
func (c *Client) Request(ctx context.Context, pdu []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// DiagnosticSession enters a session; it is repeated. From now on the server is kept in
// it, and its times are used.
func (c *Client) DiagnosticSession(ctx context.Context, s Session) (SessionAnswer, error) {
	return SessionAnswer{}, errors.ErrUnsupported
}

// Reset asks for a reset.
func (c *Client) Reset(ctx context.Context, r Reset) error { return errors.ErrUnsupported }

// TesterPresent says that the client is there and wants an answer; it is repeated.
func (c *Client) TesterPresent(ctx context.Context) error { return errors.ErrUnsupported }

// ReadData reads one identifier; it is repeated.
func (c *Client) ReadData(ctx context.Context, did DID) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// WriteData writes one identifier.
func (c *Client) WriteData(ctx context.Context, did DID, data []byte) error {
	return errors.ErrUnsupported
}

// RequestSeed asks for the seed of an odd level; it is repeated. A seed of zeros says
// that the level is unlocked.
func (c *Client) RequestSeed(ctx context.Context, level byte, record []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// SendKey sends the key of the same odd level.
func (c *Client) SendKey(ctx context.Context, level byte, key []byte) error {
	return errors.ErrUnsupported
}

// Challenge asks for what is to be signed; it is repeated.
func (c *Client) Challenge(ctx context.Context, algorithm Algorithm) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// Prove sends a proof of ownership for the challenge. Task is filled in.
func (c *Client) Prove(ctx context.Context, proof AuthenticationRequest) error {
	return errors.ErrUnsupported
}

// Deauthenticate gives up the rights; it is repeated.
func (c *Client) Deauthenticate(ctx context.Context) error { return errors.ErrUnsupported }

// ControlCommunication switches the server's other traffic; it is repeated.
func (c *Client) ControlCommunication(ctx context.Context, r CommunicationRequest) error {
	return errors.ErrUnsupported
}

// ControlDTC switches the recording of trouble codes; it is repeated.
func (c *Client) ControlDTC(ctx context.Context, r DTCRequest) error { return errors.ErrUnsupported }

// Routine starts or stops a routine, or asks for its results; only the last is repeated.
func (c *Client) Routine(ctx context.Context, control Control, rid RID, options []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// RequestDownload announces data. It returns how many bytes fit a block: MaxBlock of
// the answer less 2.
func (c *Client) RequestDownload(ctx context.Context, r DownloadRequest) (payload int, err error) {
	return 0, errors.ErrUnsupported
}

// RequestFile announces a file, or asks for one.
func (c *Client) RequestFile(ctx context.Context, r FileRequest) (FileAnswer, error) {
	return FileAnswer{}, errors.ErrUnsupported
}

// TransferData sends a block; it is repeated, with the same counter, which the server
// answers without taking it twice. After [RequestSequenceError] or
// [WrongBlockSequenceCounter] the transfer is lost: it begins again with RequestDownload.
func (c *Client) TransferData(ctx context.Context, counter byte, block []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// TransferExit says that all was sent.
func (c *Client) TransferExit(ctx context.Context, parameters []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
