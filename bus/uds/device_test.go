package uds_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// device is a fake controller that serves everything, and notes what it is asked.
type device struct {
	mu      sync.Mutex
	calls   []string
	ended   []uds.End
	open    int // transfers that are not closed
	most    int // that were open at once
	memory  []byte
	done    [][]byte // memories of transfers that were exited
	illegal []string // calls that should not have been made

	delay func(what string) time.Duration // how long a call takes; nil: no time
	fail  func(what string) error         // what it says; nil: it works
}

// call notes a call, takes its time, and says how it goes.
func (d *device) call(ctx context.Context, c uds.Call, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	d.mu.Lock()
	d.calls = append(d.calls, what)
	if c.Service == uds.RequestDownload || c.Service == uds.TransferData || c.Service == uds.RequestFileTransfer || c.Service == uds.RequestTransferExit {
		if c.Session != uds.Programming || !c.Unlocked() {
			d.illegal = append(d.illegal, fmt.Sprintf("%s in %v, %+v", what, c.Session, c))
		}
	}
	delay, fail := d.delay, d.fail
	d.mu.Unlock()
	if delay != nil {
		if t := delay(what); t > 0 {
			select {
			case <-time.After(t):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if fail != nil {
		return fail(what)
	}
	return nil
}

func (d *device) log() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.calls...)
}

func (d *device) endings() []uds.End {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]uds.End(nil), d.ended...)
}

func (d *device) EnterSession(ctx context.Context, c uds.Call, s uds.Session) error {
	if s > uds.Safety {
		return uds.SubFunctionNotSupported
	}
	return d.call(ctx, c, "enter %v", s)
}

func (d *device) SessionEnded(c uds.Call, why uds.End) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = append(d.ended, why)
}

func (d *device) PrepareReset(ctx context.Context, c uds.Call, r uds.Reset) error {
	if r > uds.EnableRapidPowerShutDown {
		return uds.SubFunctionNotSupported
	}
	return d.call(ctx, c, "prepare reset %d", r)
}

func (d *device) Reset(ctx context.Context, c uds.Call, r uds.Reset) { d.call(ctx, c, "reset %d", r) }

func (d *device) ReadData(ctx context.Context, c uds.Call, did uds.DID) ([]byte, error) {
	if err := d.call(ctx, c, "read %04X", uint16(did)); err != nil {
		return nil, err
	}
	switch did {
	case 0xF195:
		return []byte("1.2.3"), nil
	case 0xF18C:
		return []byte("SN-1"), nil
	case 0xFD00:
		return []byte{byte(c.Session), c.Level}, nil
	case 0xFDFF:
		return make([]byte, 4095), nil
	}
	return nil, fmt.Errorf("no such data: %w", uds.RequestOutOfRange)
}

func (d *device) WriteData(ctx context.Context, c uds.Call, did uds.DID, data []byte) error {
	if did != 0xFD10 {
		return uds.RequestOutOfRange
	}
	return d.call(ctx, c, "write %04X %x", uint16(did), data)
}

// key is what the fake expects for a seed. No real device computes keys like this.
func key(seed []byte) []byte { sum := sha256.Sum256(seed); return sum[:8] }

func (d *device) Seed(ctx context.Context, c uds.Call, level byte, record []byte) ([]byte, error) {
	if level != 1 && level != 3 {
		return nil, uds.SubFunctionNotSupported
	}
	return []byte{1, 2, 3, level}, d.call(ctx, c, "seed %d", level)
}

func (d *device) CheckKey(ctx context.Context, c uds.Call, level byte, seed, k []byte) error {
	if err := d.call(ctx, c, "key %d", level); err != nil {
		return err
	}
	if !bytes.Equal(k, key(seed)) {
		return fmt.Errorf("not the key")
	}
	return nil
}

func (d *device) Challenge(ctx context.Context, c uds.Call, a uds.Algorithm) ([]byte, error) {
	return []byte("challenge"), d.call(ctx, c, "challenge")
}

func (d *device) VerifyProof(ctx context.Context, c uds.Call, challenge []byte, p uds.AuthenticationRequest) (string, error) {
	if err := d.call(ctx, c, "proof"); err != nil {
		return "", err
	}
	if !bytes.Equal(p.Proof, key(challenge)) {
		return "", uds.CertificateSignature
	}
	return "Updater", nil
}

func (d *device) ControlCommunication(ctx context.Context, c uds.Call, r uds.CommunicationRequest) error {
	return d.call(ctx, c, "communication %d %d", r.Control, r.Type)
}

func (d *device) ControlDTC(ctx context.Context, c uds.Call, r uds.DTCRequest) error {
	return d.call(ctx, c, "dtc %d", r.Setting)
}

func (d *device) Routine(ctx context.Context, c uds.Call, control uds.Control, rid uds.RID, options []byte) ([]byte, error) {
	switch rid {
	case uds.CheckMemory, uds.CheckProgrammingPreconditions, uds.EraseMemory, uds.CheckProgrammingDependencies:
		return []byte{0}, d.call(ctx, c, "routine %d %04X", control, uint16(rid))
	}
	return nil, uds.RequestOutOfRange
}

func (d *device) Download(ctx context.Context, c uds.Call, r uds.DownloadRequest) (uds.Transfer, error) {
	if r.Address > 1<<20 {
		return nil, uds.RequestOutOfRange
	}
	if err := d.call(ctx, c, "download %d at %d", r.Size, r.Address); err != nil {
		return nil, err
	}
	return d.begin(nil), nil
}

func (d *device) TransferFile(ctx context.Context, c uds.Call, r uds.FileRequest) (uds.FileAnswer, uds.Transfer, error) {
	if err := d.call(ctx, c, "file %d %s", r.Mode, r.Name); err != nil {
		return uds.FileAnswer{}, nil, err
	}
	switch r.Mode {
	case uds.DeleteFile:
		return uds.FileAnswer{}, nil, nil
	case uds.ReadFile:
		return uds.FileAnswer{Size: 6, Compressed: 6}, d.begin([][]byte{[]byte("abc"), []byte("def")}), nil
	case uds.ResumeFile:
		return uds.FileAnswer{Position: 10}, d.begin(nil), nil
	}
	return uds.FileAnswer{}, d.begin(nil), nil
}

// transfer takes blocks into the memory of the fake, or gives those of gives.
type transfer struct {
	d     *device
	gives [][]byte
	over  bool
}

func (d *device) begin(gives [][]byte) *transfer {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open++
	d.most = max(d.most, d.open)
	d.memory = nil
	return &transfer{d: d, gives: gives}
}

func (t *transfer) Data(ctx context.Context, c uds.Call, block []byte) ([]byte, error) {
	if err := t.d.call(ctx, c, "data %d", len(block)); err != nil {
		return nil, err
	}
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	if t.over {
		t.d.illegal = append(t.d.illegal, "data after Close")
	}
	if t.gives != nil {
		if len(t.gives) == 0 {
			return nil, uds.RequestSequenceError
		}
		answer := t.gives[0]
		t.gives = t.gives[1:]
		return answer, nil
	}
	t.d.memory = append(t.d.memory, block...)
	return nil, nil
}

func (t *transfer) Exit(ctx context.Context, c uds.Call, parameters []byte) ([]byte, error) {
	if err := t.d.call(ctx, c, "exit"); err != nil {
		return nil, err
	}
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	t.d.done = append(t.d.done, t.d.memory)
	return nil, nil
}

func (t *transfer) Close() {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	if t.over {
		t.d.illegal = append(t.d.illegal, "closed twice")
	}
	t.over = true
	t.d.open--
}
