package isotp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/bus/can"
)

// Socket options (linux/can/isotp.h).
const (
	solISOTP = 100 + unix.CAN_ISOTP // SOL_CAN_BASE

	optOptions = 1 // struct can_isotp_options
	optFlow    = 2 // struct can_isotp_fc_options
	optLink    = 5 // struct can_isotp_ll_options

	flagListen     = 0x001 // sends no flow control
	flagBytes      = 0x002 // extended addressing
	flagPad        = 0x004 // what is sent
	flagRxByte     = 0x200 // its own for what is received
	flagWait       = 0x400 // write returns when the last frame was sent
	flagFunctional = 0x800 // single frames to all

	flagExtendedID = 0x8000_0000 // CAN_EFF_FLAG
	classicMTU     = 16          // CAN_MTU
)

// OpenKernel lets Linux do it (can_isotp, since 5.10), on the interface called ifname,
// such as "can0", which must be up. Where the kernel cannot, the error wraps
// [errors.ErrUnsupported].
//
// The kernel's timers are a second each, its receiver never asks to wait, and its sender
// waits as often as it is asked to: NAs, NAr, NBs, NCr, WFTmax and Wait say nothing here.
// It takes PDUs of 4095 bytes at least, and longer ones as its version and settings allow.
// What Send gives up because of its context the kernel goes on with; the next Send waits
// for that.
func OpenKernel(ifname string, a Address, c Config) (Conn, error) {
	k, err := openKernel(ifname, a, c)
	if err != nil {
		return nil, fmt.Errorf("open ISO-TP socket %v on %s: %w", a, ifname, err)
	}
	return k, nil
}

// kernel is a socket. It is a blocking one, outside of the runtime's poller: some
// versions refuse to send without waiting while anybody polls the socket (before 6.6, and
// before 6.1.58 of the long-lived series).
type kernel struct {
	address Address
	name    string
	most    int // bytes of a PDU to receive
	single  int // bytes of a single frame
	fd      int
	wake    int // eventfd: ends the reader's poll

	requests chan request
	results  chan result
	done     chan struct{}
	close    sync.Once

	writing sync.Mutex // while the kernel sends
	reading sync.Mutex // while an error of the socket is on its way to stolen
	stolen  error      // of a write, that a read was told
}

type request struct {
	pdu  []byte
	done chan error
}

func openKernel(ifname string, a Address, c Config) (*kernel, error) {
	if err := a.validate(); err != nil {
		return nil, err
	}
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", can.ErrDown, err)
	}
	fd, err := unix.Socket(unix.AF_CAN, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.CAN_ISOTP)
	if err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
			err = fmt.Errorf("%w: %w: is the module can_isotp there?", errors.ErrUnsupported, err)
		}
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := prepareKernel(fd, link.Index, a, s); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), unix.Close(fd))
	}
	k := &kernel{
		address: a, name: ifname, most: s.MaxPDU, single: newFormat(a, s).most(), fd: fd, wake: wake,
		requests: make(chan request), results: make(chan result, queueMost), done: make(chan struct{}),
	}
	var both sync.WaitGroup
	both.Go(k.write)
	both.Go(k.read)
	go func() { // Close does not wait for a write that nothing can end
		both.Wait()
		unix.Close(fd)
		unix.Close(wake)
	}()
	return k, nil
}

func prepareKernel(fd, index int, a Address, s settings) error {
	flags, txtime := uint32(flagWait), uint32(s.gap.Nanoseconds()) // 0: the kernel's
	if !s.Unpadded {
		flags |= flagPad
	}
	if a.bytes {
		flags |= flagBytes | flagRxByte
	}
	rx := a.rx
	if a.functional {
		rx = a.tx ^ 1 // the kernel wants another one; here it says nothing
		flags |= flagFunctional
	}
	tx := a.tx
	if a.functional && !a.sends {
		flags ^= flagFunctional | flagListen
		tx, rx = rx, a.rx
	}
	options := binary.NativeEndian.AppendUint32(nil, flags)
	options = binary.NativeEndian.AppendUint32(options, txtime)
	options = append(options, a.txByte, s.pad, s.pad, a.rxByte)
	for _, option := range []struct {
		name  string
		at    int
		value []byte
	}{
		{"options", optOptions, options},
		{"flow control", optFlow, []byte{byte(s.BlockSize), s.stmin, 0}},
		{"link", optLink, []byte{classicMTU, can.MaxLen, 0}},
	} {
		if err := unix.SetsockoptString(fd, solISOTP, option.at, string(option.value)); err != nil {
			return fmt.Errorf("set the %s: %w", option.name, err)
		}
	}
	if a.long {
		tx, rx = tx|flagExtendedID, rx|flagExtendedID
	}
	if err := unix.Bind(fd, &unix.SockaddrCAN{Ifindex: index, RxID: rx, TxID: tx}); err != nil {
		return fmt.Errorf("bind: %w", meaning(err))
	}
	return nil
}

// meaning gives the kernel's errors our names (net/can/isotp.c, in its first comment).
func meaning(err error) error {
	names := []struct {
		errno unix.Errno
		name  error
	}{
		{unix.ECOMM, ErrTimeout}, // N_Bs
		{unix.EMSGSIZE, ErrOverflow},
		{unix.EBADMSG, ErrFlow},
		{unix.ETIMEDOUT, ErrTimeout}, // N_Cr
		{unix.EILSEQ, ErrSequence},
		{unix.ENETDOWN, can.ErrDown},
		{unix.ENODEV, can.ErrDown},
		{unix.ENXIO, can.ErrDown},
		{unix.EADDRNOTAVAIL, can.ErrDown}, // not bound any more: the interface was removed
	}
	for _, n := range names {
		if errors.Is(err, n.errno) {
			return fmt.Errorf("%w: %w", n.name, err)
		}
	}
	return err
}

// ofWrite reports whether an error of the socket belongs to what is being sent.
func ofWrite(err error) bool {
	return errors.Is(err, unix.ECOMM) || errors.Is(err, unix.EMSGSIZE)
}

// Send implements [Conn].
func (k *kernel) Send(ctx context.Context, pdu []byte) error {
	if err := k.send(ctx, pdu); err != nil {
		return fmt.Errorf("send %d bytes to %v on %s: %w", len(pdu), k.address, k.name, err)
	}
	return nil
}

func (k *kernel) send(ctx context.Context, pdu []byte) error {
	if err := k.address.check(len(pdu), k.single); err != nil {
		return err
	}
	// A copy, because the kernel may still be at it when the context is not.
	r := request{pdu: slices.Clone(pdu), done: make(chan error, 1)}
	select {
	case k.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-k.done:
		return can.ErrClosed
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-k.done:
		return can.ErrClosed
	}
}

// write hands PDUs to the kernel, one after the other. A signal would break the one that
// is being sent, and the runtime sends signals to its threads: this thread takes none.
func (k *kernel) write() {
	runtime.LockOSThread() // for ever: the thread ends with this goroutine
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	masked := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil)
	for {
		select {
		case r := <-k.requests:
			if masked != nil {
				r.done <- fmt.Errorf("keep signals away: %w", masked)
				continue
			}
			r.done <- k.writeOne(r.pdu)
		case <-k.done:
			return
		}
	}
}

func (k *kernel) writeOne(pdu []byte) error {
	k.reading.Lock()
	k.stolen = nil
	k.reading.Unlock()
	k.writing.Lock()
	_, err := unix.Write(k.fd, pdu)
	k.writing.Unlock()
	if err == nil {
		k.reading.Lock()
		err = k.stolen
		k.reading.Unlock()
	}
	if err != nil {
		return meaning(err)
	}
	return nil
}

// read takes PDUs from the kernel. While nobody receives them, they wait in the kernel,
// which drops what is too much.
func (k *kernel) read() {
	buf := make([]byte, k.most+1)
	for {
		n, err := k.readOne(buf)
		one := result{pdu: slices.Clone(buf[:max(n, 0)])}
		switch {
		case errors.Is(err, can.ErrClosed):
			return
		case errors.Is(err, unix.EAGAIN), err == nil && n > k.most:
			continue
		case err != nil:
			one = result{err: meaning(err)}
		}
		select {
		case k.results <- one:
		case <-k.done:
			return
		}
	}
}

// readOne waits for something and reads it. An error of the socket is told once, to
// whoever asks first: while the kernel sends, it is left to write.
func (k *kernel) readOne(buf []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}, {Fd: int32(k.wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("poll: %w", err)
		case fds[1].Revents != 0:
			return 0, can.ErrClosed
		case fds[0].Revents&unix.POLLERR != 0 && !k.writing.TryLock():
			k.writing.Lock()
			k.writing.Unlock()
			continue
		case fds[0].Revents&unix.POLLERR != 0:
			k.writing.Unlock()
		case fds[0].Revents == 0:
			continue
		}
		k.reading.Lock()
		n, _, err := unix.Recvfrom(k.fd, buf, unix.MSG_DONTWAIT)
		if err != nil && ofWrite(err) {
			k.stolen, err = err, unix.EAGAIN
		}
		k.reading.Unlock()
		return n, err
	}
}

// Receive implements [Conn].
func (k *kernel) Receive(ctx context.Context) ([]byte, error) {
	var err error
	select {
	case one := <-k.results:
		if one.err == nil {
			return one.pdu, nil
		}
		err = one.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-k.done:
		err = can.ErrClosed
	}
	return nil, fmt.Errorf("receive from %v on %s: %w", k.address, k.name, err)
}

// Close implements [Conn].
func (k *kernel) Close() error {
	var err error
	k.close.Do(func() {
		// In this order: without done, write goes on, and the descriptors stay.
		_, err = unix.Write(k.wake, binary.NativeEndian.AppendUint64(nil, 1))
		close(k.done)
	})
	return err
}
