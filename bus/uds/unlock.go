package uds

import (
	"bytes"
	"errors"
	"slices"
	"time"
)

// tries is how many wrong keys and proofs there were.
type tries struct {
	n     int
	err   error // of loading: nobody is unlocked, until it works
	until time.Time
}

// inMemory keeps the attempts of a server that has no Attempts.
type inMemory struct{}

func (inMemory) Load() (int, error) { return 0, nil }
func (inMemory) Save(int) error     { return nil }

func (s *Server) attempts() Attempts {
	if s.Attempts == nil {
		return inMemory{}
	}
	return s.Attempts
}

func (s *Server) maxAttempts() int { return orElse(s.MaxAttempts, 3) }

// loadAttempts begins with the delay if an earlier life of the server ended in it. What panics has
// told nothing: nobody is unlocked.
func (s *Server) loadAttempts() {
	s.tries.err = errNotLoaded
	defer s.Crashes.Catch("read how many wrong keys came", nil)
	s.tries.n, s.tries.err = s.attempts().Load()
	if s.tries.n >= s.maxAttempts() || s.tries.n < 0 {
		s.tries.n = s.maxAttempts()
		s.tries.until = time.Now().Add(s.delay())
	}
}

var errNotLoaded = errors.New("it is not known how many wrong keys came")

func (s *Server) delay() time.Duration { return orElse(s.Delay, 10*time.Second) }

// mayTry says whether somebody may try to unlock.
func (s *Server) mayTry() error {
	if s.tries.err != nil {
		if s.loadAttempts(); s.tries.err != nil {
			return ConditionsNotCorrect
		}
	}
	if time.Now().Before(s.tries.until) {
		return RequiredTimeDelayNotExpired
	}
	return nil
}

// try counts an attempt, checks it, and counts it out again if it was right. wrong is
// what is said if check says nothing better.
func (s *Server) try(wrong NRC, check func() error) error {
	if err := s.mayTry(); err != nil {
		return err
	}
	n := min(s.tries.n+1, s.maxAttempts())
	if err := s.attempts().Save(n); err != nil {
		return ConditionsNotCorrect
	}
	s.tries.n = n
	last := n >= s.maxAttempts()
	if last { // before the check: one that panics must not win another attempt
		s.tries.until = time.Now().Add(s.delay())
	}
	if err := check(); err != nil {
		if last {
			s.tries.until = time.Now().Add(s.delay())
			return ExceededNumberOfAttempts
		}
		return nrcOf(err, wrong)
	}
	s.tries.until = time.Time{}
	if err := s.attempts().Save(0); err != nil {
		return ConditionsNotCorrect
	}
	s.tries.n = 0
	return nil
}

func (a *answering) security(h *held, pdu []byte) ([]byte, error) {
	r, err := ParseSecurityRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if r.Level == 0 || r.Level == 0x7F {
		return nil, SubFunctionNotSupported
	}
	if r.IsKey() {
		return a.key(h, r)
	}
	return a.seed(h, r)
}

// seed makes one up, or says again the one that no key came for: a tester that asks twice,
// or a line that doubles what it asks, would otherwise have the key to the first taken for a
// wrong one (ISO 14229-1:2020, annex I, has both kinds: Static_Seed).
func (a *answering) seed(h *held, r SecurityRequest) ([]byte, error) {
	if h.level == r.Level {
		return SecurityAnswer{r.Level, make([]byte, h.seedSize)}.Append(nil), nil
	}
	if err := a.s.mayTry(); err != nil {
		h.seed, h.seedLevel = nil, 0
		return nil, err
	}
	if h.seedLevel == r.Level && bytes.Equal(h.seedFor, r.Data) {
		return SecurityAnswer{r.Level, h.seed}.Append(nil), nil
	}
	h.seed, h.seedLevel = nil, 0
	seed, err := a.s.Handler.(Securer).Seed(a.ctx, a.call, r.Level, r.Data)
	if err != nil {
		return nil, err
	}
	if isZero(seed) {
		return nil, ConditionsNotCorrect // it would say that the level is unlocked
	}
	h.seed, h.seedLevel, h.seedFor = slices.Clone(seed), r.Level, slices.Clone(r.Data)
	return SecurityAnswer{r.Level, seed}.Append(nil), nil
}

// key checks a key once: the seed is gone, whatever comes out.
func (a *answering) key(h *held, r SecurityRequest) ([]byte, error) {
	level, seed := r.Level-1, h.seed
	if h.seedLevel != level {
		return nil, RequestSequenceError
	}
	if len(r.Data) == 0 {
		return nil, IncorrectMessageLength
	}
	h.seed, h.seedLevel = nil, 0
	err := a.s.try(InvalidKey, func() error {
		return a.s.Handler.(Securer).CheckKey(a.ctx, a.call, level, seed, r.Data)
	})
	if err != nil {
		return nil, err
	}
	h.level, h.seedSize = level, len(seed)
	return SecurityAnswer{Level: r.Level}.Append(nil), nil
}

func isZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

func (a *answering) authentication(h *held, pdu []byte) ([]byte, error) {
	r, err := ParseAuthenticationRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	answer := AuthenticationAnswer{Task: r.Task, Algorithm: r.Algorithm}
	switch r.Task {
	case Deauthenticate:
		h.role, h.challenge = "", nil
		answer.Result = DeauthenticationDone
	case ReadConfiguration:
		answer.Result = ConfigurationACR
	case RequestChallenge:
		answer.Challenge, err = a.challenge(h, r)
	case VerifyProofOfOwnership:
		answer.Result = OwnershipVerified
		err = a.proof(h, r)
	default:
		err = SubFunctionNotSupported
	}
	if err != nil {
		return nil, err
	}
	return answer.Append(nil), nil
}

// challenge is said again until a proof came, as a seed is.
func (a *answering) challenge(h *held, r AuthenticationRequest) ([]byte, error) {
	said := h.challenge
	h.challenge = nil
	if err := a.s.mayTry(); err != nil {
		return nil, err
	}
	if len(said) > 0 && h.algorithm == r.Algorithm {
		h.challenge = said
		return said, nil
	}
	challenge, err := a.s.Handler.(Authenticator).Challenge(a.ctx, a.call, r.Algorithm)
	if err != nil {
		return nil, err
	}
	if len(challenge) == 0 {
		return nil, ChallengeCalculationFailed
	}
	h.challenge, h.algorithm = slices.Clone(challenge), r.Algorithm
	return challenge, nil
}

// proof checks a proof once: the challenge is gone, whatever comes out.
func (a *answering) proof(h *held, r AuthenticationRequest) error {
	challenge := h.challenge
	if len(challenge) == 0 || h.algorithm != r.Algorithm {
		return RequestSequenceError
	}
	h.challenge = nil
	var role string
	err := a.s.try(OwnershipVerificationFailed, func() (err error) {
		role, err = a.s.Handler.(Authenticator).VerifyProof(a.ctx, a.call, challenge, r)
		if err == nil && role == "" {
			err = SettingAccessRightsFailed
		}
		return err
	})
	if err == nil {
		h.role = role
	}
	return err
}
