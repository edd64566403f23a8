package uds

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Server answers the requests of testers. Only Handler is needed. Its fields must not
// change once Serve was called.
type Server struct {
	// Handler implements some of the interfaces of this package: DataReader and so on.
	Handler any
	// Access says what a tester needs for each service; nil: DefaultAccess.
	Access map[Service]Access
	// Attempts keeps the number of wrong keys and proofs; nil: in memory. Each is counted
	// durably before it is checked, so that switching the power off wins nothing.
	Attempts Attempts
	// MaxAttempts is how many wrong keys and proofs lead to Delay; 0: 3. After the delay
	// there is one more attempt, until one is right. Both services count together, for
	// all testers.
	MaxAttempts int
	// Delay is how long nobody may try, after MaxAttempts or after the start of a server
	// that has counted as many; 0: 10 s.
	Delay time.Duration

	// P2 is how long a tester waits for an answer; 0: 50 ms. The server answers, or says
	// ResponsePending, after half of it.
	P2 time.Duration
	// P2Star is how long a tester waits after ResponsePending; 0: 5 s. The server says
	// so again after 80 % of it.
	P2Star time.Duration
	// S3 is after how much silence a session ends; 0: 5 s (ISO 14229-2:2013, table 5).
	S3 time.Duration
	// MaxRun is how long a request may take, with ResponsePending; 0: 5 min.
	MaxRun time.Duration
	// MaxBlock is the longest TransferData request, with its 2 bytes of service and
	// counter, and the longest answer; 0: 4095, the most that fits ISO 15765-2 without
	// its escape. At least 8.
	MaxBlock int

	mu sync.Mutex
}

// Access is what a tester needs for a service.
type Access struct {
	Sessions []Session // one of these; empty: any
	Unlocked bool      // SecurityAccess or Authentication
}

// DefaultAccess is as strict as services can be without knowledge of what they do:
// programming needs the programming session and to be unlocked, what changes something
// needs a session other than the default one. Who may unlock, reset or write is left to
// the handler.
func DefaultAccess() map[Service]Access {
	session := []Session{Programming, Extended, Safety}
	programming := []Session{Programming}
	return map[Service]Access{
		ECUReset:              {Sessions: session},
		SecurityAccess:        {Sessions: session},
		Authentication:        {Sessions: session},
		CommunicationControl:  {Sessions: session},
		ControlDTCSetting:     {Sessions: session},
		WriteDataByIdentifier: {Sessions: session, Unlocked: true},
		RequestDownload:       {Sessions: programming, Unlocked: true},
		TransferData:          {Sessions: programming, Unlocked: true},
		RequestTransferExit:   {Sessions: programming, Unlocked: true},
		RequestFileTransfer:   {Sessions: programming, Unlocked: true},
	}
}

// Attempts keeps a number over restarts. Save returns once it is durable. If one of
// them errs, nobody is unlocked.
type Attempts interface {
	Load() (int, error)
	Save(n int) error
}

// Tester is one that asks.
type Tester struct {
	Name string // in Call
	Conn Conn
	// Functional is where its requests to all servers come in; nil: nowhere. They are
	// answered on Conn.
	Functional Conn
}

// Serve answers a tester until ctx ends or its line does, and returns after the last
// handler did: nil if ctx ended. It may be called for several testers at once. There is
// one session, as the standard wants it: while a tester holds another than the default
// one, the rest find the default session, and are told [ConditionsNotCorrect] if they ask
// for another. Whatever tester asks while a request of another is worked on is told
// [BusyRepeatRequest]. Serve does not close t's connections.
func (s *Server) Serve(ctx context.Context, t Tester) error {
	return errors.ErrUnsupported
}
