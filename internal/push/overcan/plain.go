package overcan

import (
	"context"
	"fmt"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Plain says how a file gets into a controller of another maker.
type Plain struct {
	Address uint32 // in the controller's memory
	NoReset bool   // do not restart it at the end
}

// SendPlain writes a file into a controller that knows UDS and nothing of bundles, with the
// sequence that most makers use: sessions, preconditions, erasure, download, checks and a
// restart. What the controller does not have of it is left out, but for the programming
// session and the download.
//
// Nothing here knows whether the controller may be programmed now: its own preconditions
// (routine 0203) are obeyed if it has them, as an [*ota.Refusal]. Nor can it be told
// whether the new firmware works. A controller that wants a key in its maker's own way
// (service 27) is not programmed.
//
// A transfer that breaks begins again at the first byte: no standard says how such a
// controller could be asked what it has.
func (d *Device) SendPlain(ctx context.Context, file io.ReaderAt, size int64, p Plain, tell push.Tell) error {
	if size < 1 || int64(p.Address)+size > 1<<32 {
		return fmt.Errorf("write %d bytes at %#x: want at least one, and an end within 32 bits", size, p.Address)
	}
	d.hangUp() // the timers that adapt are for devices that are known
	d.exact = true
	t := &plain{Device: d, Plain: p, file: file, size: size, tell: tell}
	return d.persist(ctx, tell, func() (bool, error) {
		before := t.most
		err := t.attempt(ctx)
		return t.most > before, err
	})
}

// plain is a file on its way into a controller of another maker.
type plain struct {
	*Device
	Plain
	file    io.ReaderAt
	size    int64
	tell    push.Tell
	most    int64 // bytes that it took in the best attempt
	written bool  // and all checks held: only the restart is left
}

func (t *plain) attempt(ctx context.Context) error {
	if !t.written {
		if err := t.prepare(ctx); err != nil {
			return err
		}
		if err := t.blocks(ctx); err != nil {
			return locked(err)
		}
		for _, rid := range []uds.RID{profile.RIDCheckMemory, profile.RIDDependencies} {
			if err := t.optional(ctx, rid, nil); err != nil {
				return locked(err)
			}
		}
		t.written = true
	}
	if t.NoReset {
		return t.leave(ctx)
	}
	err := t.ask(ctx, "restart the controller", func(c *uds.Client) error { return c.Reset(ctx, uds.HardReset) })
	if notThere(err) {
		return t.leave(ctx)
	}
	return err
}

// prepare goes as far as an empty memory.
func (t *plain) prepare(ctx context.Context) error {
	if err := t.enter(ctx, uds.Extended); err != nil && !notThere(err) {
		return occupied(err)
	}
	if err := t.optional(ctx, profile.RIDPreconditions, nil); err != nil {
		if refuses(err) {
			return &ota.Refusal{Code: ota.ErrNone, Reason: "the controller's preconditions for programming do not hold: " + code(err).String()}
		}
		return err
	}
	if err := t.enter(ctx, uds.Programming); err != nil {
		return occupied(err)
	}
	where := append([]byte{0x44}, binaryAddress(t.Address, uint32(t.size))...) // addressAndLengthFormatIdentifier: 4 bytes each
	return locked(t.optional(ctx, profile.RIDErase, where))
}

func binaryAddress(address, size uint32) []byte {
	var b []byte
	for _, v := range []uint32{address, size} {
		b = append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return b
}

// optional runs a routine that may be missing.
func (t *plain) optional(ctx context.Context, rid uds.RID, option []byte) error {
	var status []byte
	err := t.ask(ctx, fmt.Sprintf("start routine %04X", uint16(rid)), func(c *uds.Client) (err error) {
		status, err = c.Routine(ctx, uds.StartRoutine, rid, option)
		return err
	})
	if notThere(err) {
		return nil
	}
	if err == nil && len(status) > 0 && status[0] != profile.RoutineDone {
		return fmt.Errorf("start routine %04X: its status is %02X, want 00", uint16(rid), status[0])
	}
	return err
}

// blocks sends all of the file.
func (t *plain) blocks(ctx context.Context) error {
	most := 0
	err := t.ask(ctx, "announce the download", func(c *uds.Client) (err error) {
		most, err = c.RequestDownload(ctx, uds.DownloadRequest{Address: uint64(t.Address), Size: uint64(t.size), AddressBytes: 4, SizeBytes: 4})
		return err
	})
	if err != nil {
		return err
	}
	t.tell.Stuck(nil)
	counter, next := byte(1), int64(0)
	for buf := make([]byte, t.payload()); next < t.size; counter++ {
		n := int(min(int64(t.sized(most)), t.size-next))
		if _, err := t.file.ReadAt(buf[:n], next); err != nil {
			return fmt.Errorf("read the file: %w", unexpected(err))
		}
		if err := t.one(ctx, counter, buf[:n], next); err != nil {
			return err
		}
		next += int64(n)
		t.most = max(t.most, next)
		t.tell.Done(next)
	}
	return t.ask(ctx, "end the transfer", func(c *uds.Client) error {
		_, err := c.TransferExit(ctx, nil)
		return err
	})
}

// locked says what keeps a controller of another maker closed.
func locked(err error) error {
	switch code(err) {
	case uds.SecurityAccessDenied, uds.AuthenticationRequired:
		return push.Fail(ota.ErrAuthentication, "the controller wants to be unlocked in its maker's own way, which only the maker's tool can: %v", err)
	}
	return err
}
