package can

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/inbox/standing"
	"github.com/interlock-energy/ota/source/can/profile"
)

// handler answers one request at a time. What it remembers is only what a tester may
// forget: all else is the inbox's.
type handler struct {
	cfg   *Config
	inbox *inbox.Inbox

	mu        sync.Mutex
	announced bool    // this session has said which bundle comes
	refused   *refuse // why the last request was refused, until one is accepted
}

// refuse is what is told about a request that was refused.
type refuse struct {
	result  profile.Result
	reason  string
	safety  profile.Safety
	signals []ota.Signal
}

func newHandler(cfg *Config) *handler { return &handler{cfg: cfg, inbox: cfg.Inbox} }

// access is what each service needs. What only reads is free for all; a key is wanted for
// all that changes anything, unless programming is open.
func (cfg *Config) access() map[uds.Service]uds.Access {
	a := uds.DefaultAccess()
	programming := uds.Access{Sessions: []uds.Session{uds.Programming}, Unlocked: !cfg.AllowOpen}
	for _, s := range []uds.Service{uds.WriteDataByIdentifier, uds.RequestDownload, uds.TransferData, uds.RequestTransferExit, uds.RequestFileTransfer, uds.ECUReset} {
		a[s] = programming
	}
	return a
}

// no remembers why a request is refused, and is what the tester is told.
func (h *handler) no(code uds.NRC, err error) error {
	why := standing.Why(err)
	r := &refuse{result: profile.Result(why.Result), reason: why.Text, safety: profile.Safety(why.Safety)}
	if refusal, ok := errors.AsType[*ota.Refusal](err); ok {
		r.signals = refusal.Signals
	}
	h.mu.Lock()
	h.refused = r
	h.mu.Unlock()
	h.cfg.Log.Info("refuse what a tester on CAN asks for", "code", code.Error(), "reason", r.reason)
	return fmt.Errorf("%w: %w", code, err)
}

// yes forgets what was refused before.
func (h *handler) yes() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = nil
}

// EnterSession implements [uds.SessionController].
func (h *handler) EnterSession(_ context.Context, call uds.Call, session uds.Session) error {
	switch {
	case session != uds.Extended && session != uds.Programming:
		return uds.SubFunctionNotSupported
	case session == uds.Programming && len(h.cfg.Testers) == 0 && !h.cfg.AllowOpen:
		return h.no(uds.SecurityAccessDenied, errNoTesters)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced = false // whoever begins anew says anew what comes
	return nil
}

var errNoTesters = fmt.Errorf("%w: this device has no keys of testers, so that none may program it; name them in its configuration", ota.ErrAuthentication)

// SessionEnded implements [uds.SessionEnder]. The transfer stays.
func (h *handler) SessionEnded(call uds.Call, why uds.End) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced, h.refused = false, nil
	if call.Session == uds.Programming {
		h.cfg.Log.Info("programming session on CAN ended", "why", string(why))
	}
}

// ControlCommunication implements [uds.CommunicationController]: this node sends nothing
// that could be silenced, and what others send is not its to silence.
func (h *handler) ControlCommunication(_ context.Context, _ uds.Call, r uds.CommunicationRequest) error {
	if r.Control > 3 {
		return uds.SubFunctionNotSupported
	}
	if t := r.Type & 0x0F; t == 0 || t > 3 {
		return uds.RequestOutOfRange
	}
	return nil
}

// ControlDTC implements [uds.DTCController]: there are no trouble codes.
func (h *handler) ControlDTC(_ context.Context, _ uds.Call, r uds.DTCRequest) error {
	if r.Setting != 1 && r.Setting != 2 {
		return uds.SubFunctionNotSupported
	}
	return nil
}

// PrepareReset implements [uds.Resetter]. A positive answer promises that the update
// manager has the release in hand: the restart is part of the update, and the gate's.
func (h *handler) PrepareReset(ctx context.Context, call uds.Call, reset uds.Reset) error {
	if reset != uds.HardReset {
		return uds.SubFunctionNotSupported
	}
	b := h.inbox.State()
	switch v := look(b, h.cfg.State()); v.state {
	case profile.Verified:
		return h.install(call)
	case profile.WaitSafe, profile.Installing, profile.RebootPending:
		h.yes()
		return nil
	default:
		return h.no(uds.ConditionsNotCorrect, fmt.Errorf("the controller is restarted only to install a release, and the state is %v", v.state))
	}
}

// Reset implements [uds.Resetter]. The update manager restarts the controller, nobody else.
func (h *handler) Reset(context.Context, uds.Call, uds.Reset) {}

// ReadData implements [uds.DataReader].
func (h *handler) ReadData(_ context.Context, call uds.Call, did uds.DID) ([]byte, error) {
	head := h.cfg.State()
	switch did {
	case profile.DIDBoot:
		return profile.AppendBoot(nil, head.Agent), nil
	case profile.DIDSession:
		return []byte{byte(call.Session)}, nil
	case profile.DIDSoftware, profile.DIDVersion:
		return h.text(head.Version)
	case profile.DIDSupplier:
		return h.text("Interlock")
	case profile.DIDSerial:
		return h.text(head.Device)
	case profile.DIDHardware:
		return h.text(head.Hardware)
	case profile.DIDProduct:
		return h.text(head.Product)
	case profile.DIDProfile:
		return h.identity().Append(nil), nil
	case profile.DIDStatus:
		return profile.Status{Status: head.Status, Code: head.Code}.Append(nil), nil
	case profile.DIDBus:
		return profile.Bus{Bitrate: uint32(h.cfg.Bitrate), BlockSize: byte(h.cfg.BlockSize), STmin: stmin(h.cfg.pause()), Share: byte(h.cfg.Share)}.Append(nil), nil
	}
	return h.readTransfer(did)
}

// readTransfer reads what is known of the transfer and the update.
func (h *handler) readTransfer(did uds.DID) ([]byte, error) {
	b, head := h.inbox.State(), h.cfg.State()
	v, signals := look(b, head), head.Signals
	h.mu.Lock()
	if r := h.refused; r != nil {
		v.result, v.reason, v.safety = r.result, r.reason, r.safety
		if r.signals != nil {
			signals = r.signals
		}
	}
	h.mu.Unlock()
	switch did {
	case profile.DIDState:
		return []byte{byte(v.state)}, nil
	case profile.DIDResult:
		return []byte{byte(v.result)}, nil
	case profile.DIDReason:
		return h.text(v.reason)
	case profile.DIDSafety:
		return profile.AppendSafety(nil, v.safety), nil
	case profile.DIDSignals:
		return h.text(profile.FormatSignals(signals))
	case profile.DIDProgress:
		return profile.Progress{Received: uint32(b.Received), Total: uint32(b.Offer.Size), Next: uint32(b.Missing), Verified: uint32(b.Verified)}.Append(nil), nil
	case profile.DIDCourse:
		return v.course.Append(nil), nil
	case profile.DIDTransfer:
		return profile.Transfer{Size: uint32(b.Offer.Size), SHA256: b.Offer.SHA256}.Append(nil), nil
	case profile.DIDOffered:
		return h.text(b.Version)
	case profile.DIDDigest:
		return h.text(b.Digest)
	case profile.DIDEvidence:
		return h.text(h.evidence(b))
	case profile.DIDOutcome:
		out := b.Outcome
		if out == nil {
			out = b.Last
		}
		b, err := profile.EncodeOutcome(out, h.room())
		if err != nil {
			return nil, fmt.Errorf("%w: %w", uds.ResponseTooLong, err)
		}
		return b, nil
	}
	return nil, uds.RequestOutOfRange
}

func (h *handler) evidence(b inbox.State) string {
	switch {
	case h.cfg.Evidence != nil:
		return h.cfg.Evidence()
	case b.Outcome != nil:
		return b.Outcome.Evidence
	case b.Last != nil:
		return b.Last.Evidence
	}
	return ""
}

// room is for the value of one identifier: an answer has a service and the identifier too.
func (h *handler) room() int { return h.cfg.MaxBlock - 3 }

// text is a value, which is cut where an answer would be too long.
func (h *handler) text(s string) ([]byte, error) {
	s = profile.Text(s)
	return []byte(strings.ToValidUTF8(s[:min(len(s), h.room())], "")), nil
}

func (h *handler) identity() profile.Identity {
	caps := uint16(profile.CapAnnounce | profile.CapFile)
	if len(h.cfg.Testers) > 0 {
		caps |= profile.CapSecurityAccess | profile.CapAuthentication
	}
	if h.cfg.AllowOpen {
		caps |= profile.CapOpen
	}
	if h.cfg.Precheck != nil {
		caps |= profile.CapPrecheck
	}
	return profile.Identity{Version: profile.Version, Caps: caps, MaxBlock: uint16(h.cfg.MaxBlock), MaxBytes: uint32(h.cfg.MaxSize)}
}

// WriteData implements [uds.DataWriter]: the announcement of a transfer is all that can
// be written.
func (h *handler) WriteData(_ context.Context, call uds.Call, did uds.DID, data []byte) error {
	if did != profile.DIDTransfer {
		return uds.RequestOutOfRange
	}
	if len(data) != 36 {
		return uds.IncorrectMessageLength
	}
	t, err := profile.ParseTransfer(data)
	if err != nil {
		return uds.IncorrectMessageLength
	}
	return h.begin(inbox.Offer{Size: int64(t.Size), SHA256: t.SHA256}, true)
}

// Routine implements [uds.RoutineController].
func (h *handler) Routine(ctx context.Context, call uds.Call, control uds.Control, rid uds.RID, options []byte) ([]byte, error) {
	i := slices.IndexFunc(profile.Routines, func(r profile.Row) bool { return r.ID == uint16(rid) })
	if i < 0 || rid == profile.RIDPreconditions && h.cfg.Precheck == nil {
		return nil, uds.RequestOutOfRange
	}
	row := profile.Routines[i]
	switch {
	case row.Sessions&sessionBit(call.Session) == 0:
		return nil, uds.RequestOutOfRange
	case row.Key && !call.Unlocked() && !h.cfg.AllowOpen:
		return nil, uds.SecurityAccessDenied
	case control != uds.StartRoutine:
		return nil, uds.SubFunctionNotSupported
	case len(options) > 0 && row.Size == "0", len(options) != 0 && len(options) != 32 && rid == profile.RIDCheckMemory:
		return nil, uds.IncorrectMessageLength
	}
	switch rid {
	case profile.RIDPreconditions:
		return h.precheck(ctx)
	case profile.RIDErase:
		return done(h.erase())
	case profile.RIDAbort:
		return done(h.abort(ctx))
	case profile.RIDCheckMemory:
		return h.check(ctx, options)
	case profile.RIDDependencies:
		return h.dependencies()
	}
	return done(h.install(call))
}

func done(err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return []byte{profile.RoutineDone}, nil
}

func sessionBit(s uds.Session) profile.Session {
	switch s {
	case uds.Programming:
		return profile.InProgramming
	case uds.Extended:
		return profile.InExtended
	}
	return profile.InDefault
}

// precheck asks the gate.
func (h *handler) precheck(ctx context.Context) ([]byte, error) {
	if err := h.cfg.Precheck(ctx); err != nil {
		return nil, h.no(refused(err), err)
	}
	h.yes()
	return []byte{profile.RoutineDone}, nil
}
