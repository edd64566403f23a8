package overcan_test

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/interlock-energy/ota/bus/uds"
)

// ecu is a fake: a controller of another maker, which takes a download as the standard
// says and knows no data. Its fields say in which ways it differs.
type ecu struct {
	routines []uds.RID // that it has
	refuse   uds.NRC   // what routine 0203 answers; 0: yes
	locked   bool      // wants service 27
	maxBlock int
	reset    int // blocks after which it forgets the transfer once: NRC 24

	mu      sync.Mutex
	memory  []byte // what was downloaded whole
	address uint64
	resets  int
	asked   []uds.RID
	erased  []byte // option of the erasure
}

func (e *ecu) EnterSession(context.Context, uds.Call, uds.Session) error { return nil }

func (e *ecu) PrepareReset(context.Context, uds.Call, uds.Reset) error { return nil }

func (e *ecu) Reset(context.Context, uds.Call, uds.Reset) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.resets++
}

func (e *ecu) Routine(_ context.Context, _ uds.Call, _ uds.Control, rid uds.RID, option []byte) ([]byte, error) {
	if !slices.Contains(e.routines, rid) {
		return nil, uds.RequestOutOfRange
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, rid)
	switch {
	case rid == uds.CheckProgrammingPreconditions && e.refuse != 0:
		return nil, e.refuse
	case rid == uds.EraseMemory:
		e.erased = append([]byte(nil), option...)
	}
	return []byte{0}, nil
}

func (e *ecu) Download(_ context.Context, _ uds.Call, r uds.DownloadRequest) (uds.Transfer, error) {
	if e.locked {
		return nil, uds.SecurityAccessDenied
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.address = r.Address
	return &ecuTransfer{ecu: e, size: int(r.Size)}, nil
}

type ecuTransfer struct {
	ecu  *ecu
	size int
	got  bytes.Buffer
	n    int
}

func (t *ecuTransfer) Data(_ context.Context, _ uds.Call, block []byte) ([]byte, error) {
	t.ecu.mu.Lock()
	defer t.ecu.mu.Unlock()
	if t.n++; t.n > t.ecu.reset && t.ecu.reset > 0 {
		t.ecu.reset = 0
		t.size = -1
	}
	if t.size < 0 {
		return nil, uds.RequestSequenceError
	}
	t.got.Write(block)
	return nil, nil
}

func (t *ecuTransfer) Exit(context.Context, uds.Call, []byte) ([]byte, error) {
	if t.got.Len() != t.size {
		return nil, uds.GeneralProgrammingFailure
	}
	t.ecu.mu.Lock()
	defer t.ecu.mu.Unlock()
	t.ecu.memory = t.got.Bytes()
	return nil, nil
}

func (t *ecuTransfer) Close() {}

// serve answers on a line until the context ends.
func (e *ecu) serve(ctx context.Context, l *line) {
	access := uds.DefaultAccess()
	for _, s := range []uds.Service{uds.RequestDownload, uds.TransferData, uds.RequestTransferExit} {
		access[s] = uds.Access{Sessions: []uds.Session{uds.Programming}}
	}
	server := &uds.Server{Handler: e, Access: access, MaxBlock: e.maxBlock}
	conn := l.open(false)
	go func() { _ = server.Serve(ctx, uds.Tester{Name: "tester", Conn: conn}) }()
}
