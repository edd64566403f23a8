package uds

import (
	"context"
	"slices"
)

// answering is the work on one request.
type answering struct {
	s     *Server
	l     *line
	ctx   context.Context // of the request
	call  Call
	after func(context.Context)
}

// answer returns the positive answer to a request. The order of the checks is that of
// ISO 14229-1:2020, figures 5 and 6: service, session, security, length, sub-function, and
// then what only the handler knows.
func (a *answering) answer(pdu []byte) ([]byte, error) {
	if err := a.allowed(a.call.Service); err != nil {
		return nil, err
	}
	h := a.s.holding(a.l)
	if h != nil && a.call.Service != RequestTransferExit {
		h.exited = nil
	}
	switch a.call.Service {
	case DiagnosticSessionControl:
		return a.session(pdu)
	case ECUReset:
		return a.reset(pdu)
	case ReadDataByIdentifier:
		return a.read(pdu)
	case WriteDataByIdentifier:
		return a.write(pdu)
	case CommunicationControl:
		return a.communication(pdu)
	case ControlDTCSetting:
		return a.dtc(pdu)
	case RoutineControl:
		return a.routine(pdu)
	case SecurityAccess:
		return a.security(h, pdu)
	case Authentication:
		return a.authentication(h, pdu)
	case RequestDownload:
		return a.download(h, pdu)
	case RequestFileTransfer:
		return a.file(h, pdu)
	case TransferData:
		return a.block(h, pdu)
	case RequestTransferExit:
		return a.exit(h, pdu)
	}
	return nil, ServiceNotSupported
}

// allowed checks what needs no more than the service. Whatever keeps its state in a
// session is never allowed in the default one.
func (a *answering) allowed(service Service) error {
	if !serves(a.s.Handler, service) {
		return ServiceNotSupported
	}
	access := a.s.Access
	if access == nil {
		access = DefaultAccess()
	}
	needs := access[service]
	if len(needs.Sessions) > 0 && !slices.Contains(needs.Sessions, a.call.Session) ||
		a.call.Session == Default && lastsASession(service) {
		return ServiceNotSupportedInSession
	}
	if needs.Unlocked && !a.call.Unlocked() {
		return SecurityAccessDenied
	}
	return nil
}

func lastsASession(service Service) bool {
	switch service {
	case SecurityAccess, Authentication, RequestDownload, TransferData, RequestTransferExit, RequestFileTransfer:
		return true
	}
	return false
}

// serves reports whether a handler serves a service.
func serves(handler any, service Service) (ok bool) {
	switch service {
	case DiagnosticSessionControl, TesterPresent:
		ok = true
	case ECUReset:
		_, ok = handler.(Resetter)
	case ReadDataByIdentifier:
		_, ok = handler.(DataReader)
	case WriteDataByIdentifier:
		_, ok = handler.(DataWriter)
	case CommunicationControl:
		_, ok = handler.(CommunicationController)
	case ControlDTCSetting:
		_, ok = handler.(DTCController)
	case RoutineControl:
		_, ok = handler.(RoutineController)
	case SecurityAccess:
		_, ok = handler.(Securer)
	case Authentication:
		_, ok = handler.(Authenticator)
	case RequestDownload:
		_, ok = handler.(Downloader)
	case RequestFileTransfer:
		_, ok = handler.(FileTransferer)
	case TransferData, RequestTransferExit:
		if _, ok = handler.(Downloader); !ok {
			_, ok = handler.(FileTransferer)
		}
	}
	return ok
}

// invalid is what is said of a message that cannot be read.
func invalid(err error) error { return nrcOf(err, IncorrectMessageLength) }

// present answers TesterPresent.
func present(pdu []byte) []byte {
	switch {
	case len(pdu) != 2:
		return refuse(TesterPresent, IncorrectMessageLength)
	case pdu[1]&^suppress != 0:
		return refuse(TesterPresent, SubFunctionNotSupported)
	}
	return EchoAnswer{TesterPresent, 0}.Append(nil)
}

func (a *answering) session(pdu []byte) ([]byte, error) {
	r, err := ParseSessionRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	answer := SessionAnswer{r.Session, a.s.p2(), a.s.p2Star()}.Append(nil)
	if r.Session == Default {
		a.s.leave(a.l, EndAsked)
		return answer, nil
	}
	controller, ok := a.s.Handler.(SessionController)
	if !ok || r.Session == 0 {
		return nil, SubFunctionNotSupported
	}
	// Asked first, so that the handler does not prepare for a session that cannot be.
	old := a.s.holding(a.l)
	next := &held{by: a.l, session: r.Session}
	if old == nil && !a.s.hold(a.l, &held{by: a.l, session: Default}) {
		return nil, ConditionsNotCorrect
	}
	if err := controller.EnterSession(a.ctx, a.call, r.Session); err != nil {
		if old == nil {
			a.s.hold(a.l, nil)
		}
		return nil, err
	}
	// A new session, or the same one anew, locks what SecurityAccess unlocked; who was
	// authenticated stays so until the default session (ISO 14229-1:2020, 10.2 and 10.6).
	if old != nil {
		old.closeTransfer()
		next.role = old.role
	}
	a.s.hold(a.l, next)
	return answer, nil
}

func (a *answering) reset(pdu []byte) ([]byte, error) {
	r, err := ParseResetRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if r.Reset == 0 {
		return nil, SubFunctionNotSupported
	}
	resetter := a.s.Handler.(Resetter)
	if err := resetter.PrepareReset(a.ctx, a.call, r.Reset); err != nil {
		return nil, err
	}
	a.after = func(ctx context.Context) { resetter.Reset(ctx, a.call, r.Reset) }
	return ResetAnswer{r.Reset, 0xFF}.Append(nil), nil
}

// mostDIDs is how many identifiers one request may ask for, so that it stays short work.
const mostDIDs = 64

func (a *answering) read(pdu []byte) ([]byte, error) {
	r, err := ParseReadRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if len(r.DIDs) > mostDIDs {
		return nil, IncorrectMessageLength
	}
	var found ReadAnswer
	size := 1
	for _, did := range r.DIDs {
		data, err := a.s.Handler.(DataReader).ReadData(a.ctx, a.call, did)
		if err != nil {
			if nrcOf(err, ConditionsNotCorrect) == RequestOutOfRange {
				continue // left out, unless all are (ISO 14229-1:2020, 11.2.4)
			}
			return nil, err
		}
		if size += 2 + len(data); size > a.s.maxBlock() {
			return nil, ResponseTooLong
		}
		found.Records = append(found.Records, Record{did, data})
	}
	if len(found.Records) == 0 {
		return nil, RequestOutOfRange
	}
	return found.Append(nil), nil
}

func (a *answering) write(pdu []byte) ([]byte, error) {
	r, err := ParseWriteRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if err := a.s.Handler.(DataWriter).WriteData(a.ctx, a.call, r.DID, r.Data); err != nil {
		return nil, err
	}
	return WriteAnswer{r.DID}.Append(nil), nil
}

func (a *answering) communication(pdu []byte) ([]byte, error) {
	r, err := ParseCommunicationRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if r.Control > 0x05 && r.Control < 0x40 || r.Control == 0x7F {
		return nil, SubFunctionNotSupported
	}
	if err := a.s.Handler.(CommunicationController).ControlCommunication(a.ctx, a.call, r); err != nil {
		return nil, err
	}
	return EchoAnswer{CommunicationControl, r.Control}.Append(nil), nil
}

func (a *answering) dtc(pdu []byte) ([]byte, error) {
	r, err := ParseDTCRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if r.Setting == 0 || r.Setting > 2 && r.Setting < 0x40 || r.Setting == 0x7F {
		return nil, SubFunctionNotSupported
	}
	if err := a.s.Handler.(DTCController).ControlDTC(a.ctx, a.call, r); err != nil {
		return nil, err
	}
	return EchoAnswer{ControlDTCSetting, r.Setting}.Append(nil), nil
}

func (a *answering) routine(pdu []byte) ([]byte, error) {
	r, err := ParseRoutineRequest(pdu)
	if err != nil {
		return nil, invalid(err)
	}
	if r.Control < StartRoutine || r.Control > RoutineResults {
		return nil, SubFunctionNotSupported
	}
	status, err := a.s.Handler.(RoutineController).Routine(a.ctx, a.call, r.Control, r.RID, r.Options)
	if err != nil {
		return nil, err
	}
	return RoutineAnswer{r.Control, r.RID, status}.Append(nil), nil
}
