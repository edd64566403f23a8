package uds

import (
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
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

	// Crashes keeps account of panics, of the handler above all; nil: the process's. The tester is
	// told GeneralReject, or GeneralProgrammingFailure by the services that write, and is back in the
	// default session: locked, without a transfer ([EndCrash]). A panic elsewhere ends Serve.
	Crashes *crash.Log

	load  sync.Once
	tries tries // touched by the running request alone

	mu      sync.Mutex
	running bool  // a request, of any tester
	held    *held // nil: all testers are in the default session
}

// held is the one session that is not the default one. Only its tester changes what is
// in it: in its loop while no request of it runs, and otherwise in that request.
type held struct {
	by        *line
	session   Session
	level     byte // unlocked; 0: none
	role      string
	seedLevel byte // of the seed that waits for its key; 0: none
	seed      []byte
	seedFor   []byte // securityAccessDataRecord of that request
	seedSize  int    // of the level that is unlocked
	challenge []byte
	algorithm Algorithm
	transfer  *transfer
	exited    []byte // the answer to RequestTransferExit, if that was the last request
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func (s *Server) p2() time.Duration        { return orElse(s.P2, 50*time.Millisecond) }
func (s *Server) p2Star() time.Duration    { return orElse(s.P2Star, 5*time.Second) }
func (s *Server) s3() time.Duration        { return orElse(s.S3, 5*time.Second) }
func (s *Server) maxBlock() int            { return max(orElse(s.MaxBlock, 4095), 8) }
func (s *Server) maxRun() time.Duration    { return orElse(s.MaxRun, 5*time.Minute) }
func (s *Server) pendingAt() time.Duration { return s.p2() / 2 }

// acquire takes the right to run a request, of which there is one.
func (s *Server) acquire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		return false
	}
	s.running = true
	return true
}

func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = false
}

// holding returns the session that l holds, nil if that is the default one.
func (s *Server) holding(l *line) *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil && s.held.by == l {
		return s.held
	}
	return nil
}

// hold begins a session for l. false: another tester holds one.
func (s *Server) hold(l *line, h *held) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil && s.held.by != l {
		return false
	}
	s.held = h
	return true
}

// leave ends the session that l holds, if any. The others find it taken until the
// handler was told, so that nothing of the new session comes before the end of the old.
func (s *Server) leave(l *line, why End) {
	h := s.holding(l)
	if h == nil {
		return
	}
	s.closeTransfer(h)
	s.sessionEnded(l.call(h), why)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = nil
}

// closeTransfer and sessionEnded tell the handler, whose panic must not keep a session.
func (s *Server) closeTransfer(h *held) {
	defer s.Crashes.Catch("close a UDS transfer", func(error) { h.transfer, h.exited = nil, nil })
	h.closeTransfer()
}

func (s *Server) sessionEnded(call Call, why End) {
	defer s.Crashes.Catch("end a UDS session", nil)
	if e, ok := s.Handler.(SessionEnder); ok {
		e.SessionEnded(call, why)
	}
}

// Access is what a tester needs for a service. SecurityAccess, Authentication and all
// that belongs to transfers need another session than the default one in any case, since
// that is what ends them.
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
