package modbus

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/interlock-energy/ota"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/inbox/standing"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// taskTimeout bounds PRECHECK, ROLLBACK, and an ABORT of what the update manager has in hand.
const taskTimeout = 30 * time.Second

// command takes a command block that p, who may write, has written.
func (s *Source) command(p peer, registers []uint16) error {
	s.commands.Lock()
	defer s.commands.Unlock()
	c, err := profile.DecodeCommand(registers)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.deny(p, c.Seq, profile.BadParameter)
		return fmt.Errorf("%w: %w", bus.IllegalValue, err)
	}
	st := s.cfg.Inbox.State()
	now, is, err := s.known(p, c, st)
	if is {
		return err
	}
	result, err := s.do(p, c, now, st)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgive(p)
	s.last = answer{p, c, s.cfg.Now(), result, err}
	s.cfg.Log.Info("command", "master", p.String(), "command", c.Code.String(), "number", c.Seq, "result", result.String())
	return err
}

// known answers a command that was answered before, or that is not p's to send. Otherwise it returns the session.
func (s *Source) known(p peer, c profile.Command, st inbox.State) (now *session, is bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.current(st)
	switch {
	case s.last.command == c && s.last.peer == p && s.cfg.Now().Sub(s.last.at) < s.cfg.IdleTimeout:
		s.forgive(p)
		return now, true, s.last.err
	case now != nil && now.peer != p:
		s.retry = s.idleLeft(st)
		s.deny(p, c.Seq, profile.Busy)
		return now, true, bus.DeviceBusy
	case now != nil:
		now.last = s.cfg.Now()
	}
	return now, false, nil
}

// do carries out a command. What belongs to it is checked: now, unless it is nil, is
// the session of p.
func (s *Source) do(p peer, c profile.Command, now *session, st inbox.State) (profile.Result, error) {
	if s.withdraws() { // what is there may be gone in a moment
		return profile.Busy, bus.DeviceBusy
	}
	switch c.Code {
	case profile.Open, profile.Resume:
		return s.begins(p, c, st)
	case profile.Confirm:
		return profile.OK, nil // a hint; the log has it
	case profile.Precheck:
		return s.ask(s.cfg.Precheck)
	case profile.Rollback:
		return s.ask(s.cfg.Rollback)
	case profile.CloseAll, profile.Install, profile.Abort, profile.VerifyFile:
		if now == nil || now.id != c.Session {
			return profile.NoSession, bus.IllegalValue
		}
	default:
		return profile.BadParameter, bus.IllegalValue
	}
	switch c.Code {
	case profile.VerifyFile:
		return s.verifyFile(c, st)
	case profile.Install:
		return s.install(c, now, st)
	case profile.Abort:
		return s.abort(now, st)
	}
	s.transfer.Lock()
	defer s.transfer.Unlock()
	return resultOf(s.cfg.Inbox.Finish())
}

// begins carries out OPEN and RESUME.
func (s *Source) begins(p peer, c profile.Command, st inbox.State) (profile.Result, error) {
	o := inbox.Offer{Size: int64(c.Size), SHA256: c.SHA256, Bare: c.Format == profile.FormatBare}
	switch {
	case c.Session != 0, c.Component != profile.TypeBundle, c.Index != 0, c.Flags&^profile.FlagDryRun != 0,
		c.Format != profile.FormatBundle && c.Format != profile.FormatBare,
		o.Bare && !s.takes(bus.WriteFile), o.Size == 0, o.SHA256 == ota.Hash{}:
		return profile.BadParameter, bus.IllegalValue
	case o.Size > s.cfg.MaxSize:
		return profile.NoSpace, bus.IllegalValue
	}
	dry := c.Flags&profile.FlagDryRun != 0
	if c.Code == profile.Resume {
		if st.Phase == inbox.Empty || st.Offer != o {
			return profile.NoSession, bus.IllegalValue
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.begin(p, o, dry, true)
		return profile.OK, nil
	}
	if s.opensLater() {
		return profile.Busy, bus.DeviceBusy
	}
	s.transfer.Lock()
	defer s.transfer.Unlock()
	resumed, err := s.cfg.Inbox.Begin(o)
	if errors.Is(err, inbox.ErrEarly) {
		return profile.BadParameter, bus.IllegalValue // the manifest of format 2 is to be written first
	}
	if err != nil {
		return resultOf(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin(p, o, dry, resumed)
	s.task = nil
	return profile.OK, nil
}

// opensLater says that OPEN comes too often.
func (s *Source) opensLater() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retry = s.opens.take(s.cfg.Now())
	return s.retry > 0
}

// install asks for the installation; the gate decides when.
func (s *Source) install(c profile.Command, now *session, st inbox.State) (profile.Result, error) {
	if now.dry || c.Flags&profile.FlagDryRun != 0 {
		if st.Phase != inbox.Verified {
			return profile.BadParameter, bus.IllegalValue
		}
		if s.cfg.Precheck == nil {
			return profile.OK, nil
		}
		return s.ask(s.cfg.Precheck)
	}
	if err := s.cfg.Inbox.Request(); err != nil {
		return resultOf(err)
	}
	s.mu.Lock()
	s.task = nil // from now on the status says what the update does
	s.mu.Unlock()
	if s.cfg.Installing != nil {
		s.cfg.Installing()
	}
	return profile.OK, nil
}

// abort gives up what is there. Once its installation was asked for, it is the update manager's to give up,
// and that may take a while.
func (s *Source) abort(now *session, st inbox.State) (profile.Result, error) {
	if st.Asked && s.cfg.Withdraw != nil {
		return s.withdraw(now, st.Digest)
	}
	s.transfer.Lock()
	defer s.transfer.Unlock()
	if err := s.cfg.Inbox.Drop(); err != nil {
		return resultOf(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session, s.task, s.aborted = nil, nil, st.Phase != inbox.Ended // that has its own outcome
	return profile.OK, nil
}

// withdraw takes back the release with this digest. If the update manager is visibly past that, it is refused
// at once, as busy. Whether it is in time after all, only the manager knows.
func (s *Source) withdraw(now *session, digest string) (profile.Result, error) {
	if device := s.cfg.State(); device.UpdateDigest == digest && activated(device.State) {
		err := fmt.Errorf("%w: it is too late to take it back", inbox.ErrBusy)
		state := standing.Of(s.cfg.Inbox.State(), device, false).State
		s.mu.Lock()
		defer s.mu.Unlock()
		s.task = &task{err: err, state: state} // its text is shown
		return resultOf(err)
	}
	return s.begun(&task{withdraws: true}, func(ctx context.Context) error {
		if err := s.cfg.Withdraw(ctx, digest); errors.Is(err, ota.ErrBusy) {
			// Not busy: that is what the result says until this is known.
			return fmt.Errorf("%w: it is too late to take it back: %v", inbox.ErrPhase, err)
		} else if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.aborted = true
		if s.session == now {
			s.session = nil
		}
		return nil
	})
}

// activated says that an update is past the point where it can be taken back.
func activated(state ota.State) bool {
	switch state {
	case ota.Activating, ota.Trial, ota.Soak, ota.RollBack:
		return true
	}
	return false
}

// withdraws reports whether what is there is being taken back now, and how long to wait then.
func (s *Source) withdraws() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.task == nil || !s.task.running || !s.task.withdraws {
		return false
	}
	s.retry = time.Second
	return true
}

// verifyFile compares what was received of one file with its CRC-32.
func (s *Source) verifyFile(c profile.Command, st inbox.State) (profile.Result, error) {
	from, ok := int64(0), false
	if c.Arg <= profile.LastFile {
		from, ok = profile.Offset(uint16(c.Arg), 0)
	}
	if !ok || from >= st.Offer.Size {
		return profile.BadParameter, bus.IllegalValue
	}
	size := min(profile.FileSize, st.Offer.Size-from)
	if !s.cfg.Inbox.Has(from, size) {
		return profile.BadHash, bus.IllegalValue
	}
	b := make([]byte, size)
	if n, err := s.cfg.Inbox.ReadAt(b, from); int64(n) < size {
		return resultOf(fmt.Errorf("read what was received: %w: %w", ota.ErrFlashWrite, err))
	}
	if crc32.ChecksumIEEE(b) != c.Arg2 {
		return profile.BadHash, bus.IllegalValue
	}
	return profile.OK, nil
}

// task is a question that is answered in the background.
type task struct {
	running   bool
	withdraws bool           // it takes back what is there
	err       error          // once it is not
	state     standing.State // of the update when it was answered
}

// ask begins a task; nil is one that this device does not offer.
func (s *Source) ask(question func(context.Context) error) (profile.Result, error) {
	if question == nil {
		return profile.NotAllowed, bus.IllegalFunction
	}
	return s.begun(new(task), question)
}

// begun has question answered in the background, as t.
func (s *Source) begun(t *task, question func(context.Context) error) (profile.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.task != nil && s.task.running {
		s.retry = time.Second
		return profile.Busy, bus.DeviceBusy
	}
	if s.run == nil || s.run.Err() != nil {
		return profile.Internal, bus.DeviceFailure // it does not serve
	}
	t.running = true
	s.task = t
	ctx, cancel := context.WithTimeout(s.run, taskTimeout)
	s.work.Go(func() {
		defer cancel()
		defer s.cfg.Crashes.Catch("answer a Modbus master's question", func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			t.running, t.err = false, err
		})
		err := question(ctx)
		state := standing.Of(s.cfg.Inbox.State(), s.cfg.State(), false).State
		s.mu.Lock()
		defer s.mu.Unlock()
		t.running, t.err, t.state = false, err, state
	})
	return profile.OK, nil
}

// resultOf says what an error of the inbox is on the bus.
func resultOf(err error) (profile.Result, error) {
	for _, r := range []struct {
		is     error
		result profile.Result
		tell   bus.Exception
	}{
		{inbox.ErrBusy, profile.Busy, bus.DeviceBusy},
		{inbox.ErrEarly, profile.Busy, bus.DeviceBusy},
		{inbox.ErrNone, profile.NoSession, bus.IllegalValue},
		{inbox.ErrRange, profile.BadParameter, bus.IllegalValue},
		{inbox.ErrConflict, profile.BadHash, bus.IllegalValue},
		{inbox.ErrMissing, profile.BadParameter, bus.IllegalValue},
		{inbox.ErrPhase, profile.BadParameter, bus.IllegalValue},
		{ota.ErrInsufficientSpace, profile.NoSpace, bus.DeviceFailure},
		{ota.ErrFlashWrite, profile.Storage, bus.DeviceFailure},
		{ota.ErrValidation, profile.BadSignature, bus.IllegalValue},
		{ota.ErrIncompatible, profile.Incompatible, bus.IllegalValue},
		{ota.ErrNoUpdate, profile.Incompatible, bus.IllegalValue},
	} {
		if errors.Is(err, r.is) {
			return r.result, fmt.Errorf("%w: %w", r.tell, err)
		}
	}
	if err == nil {
		return profile.OK, nil
	}
	return profile.Internal, fmt.Errorf("%w: %w", bus.DeviceFailure, err)
}
