package can

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SocketCAN is a CAN interface of Linux. The kernel applies the filters, waits for its
// turn on the bus, and gives this socket no echo of what it sends. An interface that
// went down, or a controller that went off the bus, may come back; the socket stays
// good for it. One that was removed, such as an adapter that was unplugged, does not
// come back to this socket, which is down from then on.
type SocketCAN struct {
	name string
	file *os.File
	raw  syscall.RawConn // of file

	mu     sync.Mutex
	stats  Stats
	closed bool
	gone   error // the interface was removed
	down   error // what Send was told and Receive was not
	told   bool  // Receive has told that the interface is down

	// read and write deadlines belong to whoever holds the token
	reading, writing chan struct{}
}

// DialSocketCAN opens the interface called name, such as "can0" or "vcan0", which must
// be up: "ip link set can0 up type can bitrate 500000".
func DialSocketCAN(name string, filters Filters) (*SocketCAN, error) {
	bus, err := dialSocketCAN(name, filters)
	if err != nil {
		return nil, fmt.Errorf("open CAN interface %s: %w", name, err)
	}
	return bus, nil
}

func dialSocketCAN(name string, filters Filters) (*SocketCAN, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	if link.Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("%w: set it up first, for instance with: ip link set %s up type can bitrate 500000", ErrDown, name)
	}
	if len(filters) > filtersMost {
		return nil, fmt.Errorf("%d filters, want at most %d", len(filters), filtersMost)
	}
	fd, err := unix.Socket(unix.AF_CAN, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.CAN_RAW)
	if err != nil {
		return nil, fmt.Errorf("socket: %w: is CAN in this kernel (modules can and can_raw)?", err)
	}
	if err := prepare(fd, link.Index, filters); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// A file, because the runtime then waits for it and knows deadlines.
	file := os.NewFile(uintptr(fd), "can:"+name)
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &SocketCAN{name: name, file: file, raw: raw, stats: Stats{Links: 1},
		reading: make(chan struct{}, 1), writing: make(chan struct{}, 1)}, nil
}

func prepare(fd, index int, filters Filters) error {
	if len(filters) > 0 {
		raw := make([]unix.CanFilter, len(filters))
		for i, f := range filters {
			// With this flag in the mask, frames of the other length do not match.
			raw[i] = unix.CanFilter{Id: f.ID & MaxExtended, Mask: f.Mask&MaxExtended | flagExtended}
			if f.Extended {
				raw[i].Id |= flagExtended
			}
		}
		if err := unix.SetsockoptCanRawFilter(fd, unix.SOL_CAN_RAW, unix.CAN_RAW_FILTER, raw); err != nil {
			return fmt.Errorf("set %d filters: %w", len(filters), err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_CAN_RAW, unix.CAN_RAW_ERR_FILTER, errController|errBusOff|errRestarted); err != nil {
		return fmt.Errorf("ask for error frames: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err != nil {
		return fmt.Errorf("ask for the number of frames that were lost: %w", err)
	}
	return unix.Bind(fd, &unix.SockaddrCAN{Ifindex: index})
}

// what names the error of a read or write.
func (s *SocketCAN) what(ctx context.Context, verb string, err error) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s CAN interface %s: %w: %w", verb, s.name, ErrDown, err)
	}
	return fmt.Errorf("%s CAN interface %s: %w", verb, s.name, err)
}

// Receive implements [Bus]. That the controller went off the bus is [ErrBusOff], once
// each time.
func (s *SocketCAN) Receive(ctx context.Context) (Frame, error) {
	select {
	case s.reading <- struct{}{}:
	case <-ctx.Done():
		return Frame{}, ctx.Err()
	}
	defer func() { <-s.reading }()
	stop := context.AfterFunc(ctx, func() { s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [sizeSocketCAN]byte
	for {
		n, err := s.readOne(b[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// Of this context, of lost, or of an earlier call that was given up at its last
			// moment. Taken back before asking which, so that the next one is not missed.
			if err = s.file.SetReadDeadline(time.Time{}); err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = s.lostInSend()
			}
			if err == nil {
				continue
			}
		}
		if err != nil {
			s.lost(err, true)
			return Frame{}, s.what(ctx, "read", err)
		}
		f, e, err := parseSocketCAN(b[:n])
		s.mu.Lock()
		s.told = false
		switch {
		case err != nil:
			s.stats.Garbage++
		case e == nil:
			s.stats.Received++
		case e.state != "":
			s.stats.State = e.state
		}
		s.mu.Unlock()
		switch {
		case err != nil:
		case e == nil:
			return f, nil
		case e.state == StateBusOff:
			return Frame{}, fmt.Errorf("read CAN interface %s: %w %s", s.name, ErrBusOff, e.detail)
		}
	}
}

// readOne reads a frame, and with it how many the kernel has dropped before because
// this socket's buffer was full (socket(7), SO_RXQ_OVFL).
func (s *SocketCAN) readOne(b []byte) (n int, err error) {
	var more [64]byte
	var used int
	if waited := s.raw.Read(func(fd uintptr) bool {
		for again := true; again; again = err == unix.EINTR {
			n, used, _, _, err = unix.Recvmsg(int(fd), b, more[:], 0)
		}
		return err != unix.EAGAIN
	}); waited != nil {
		return 0, waited
	}
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(more[:used])
	if err != nil {
		return n, fmt.Errorf("what came with a frame: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_RXQ_OVFL && len(m.Data) >= 4 {
			s.mu.Lock()
			s.stats.Lost += uint64(binary.NativeEndian.Uint32(m.Data) - uint32(s.stats.Lost)) // it wraps
			s.mu.Unlock()
		}
	}
	return n, nil
}

// lost remembers an error that says that the interface is down or gone. The kernel
// tells each of them once, to whichever of the two directions asks first, and later
// says nothing to a read: it would wait for ever.
func (s *SocketCAN) lost(err error, reading bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		s.gone = err
	case !errors.Is(err, unix.ENETDOWN):
		return
	case reading:
		s.told, s.down = true, nil
	case !s.told:
		s.down = err
	}
	if s.gone != nil || s.down != nil {
		s.file.SetReadDeadline(time.Unix(1, 0)) // wakes Receive
	}
}

// lostInSend returns what Receive has to tell because of what Send was told, nil if
// nothing.
func (s *SocketCAN) lostInSend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone != nil {
		return s.gone
	}
	return s.down
}

// fullFor is how long Send waits for room in the interface's queue.
const fullFor = time.Second

// Send implements [Bus]. It returns when the kernel has taken the frame, and waits up
// to a second while its queue is full.
func (s *SocketCAN) Send(ctx context.Context, f Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("send %v: %w", f, ctx.Err())
	}
	defer func() { <-s.writing }()
	raw := appendSocketCAN(nil, f)
	until := time.Now().Add(fullFor)
	for {
		err := s.writeOne(ctx, raw)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			continue // of an earlier call, as in Receive
		}
		if err == nil {
			s.mu.Lock()
			s.stats.Sent++
			s.told = false
			s.mu.Unlock()
			return nil
		}
		s.lost(err, false)
		// A full queue of the interface is ENOBUFS, which nothing wakes one up from.
		if !errors.Is(err, unix.ENOBUFS) || time.Now().After(until) {
			return fmt.Errorf("send %v: %w", f, s.what(ctx, "write to", err))
		}
		timer := time.NewTimer(time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("send %v: %w", f, ctx.Err())
		}
	}
}

func (s *SocketCAN) writeOne(ctx context.Context, raw []byte) error {
	if err := s.file.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := s.file.Write(raw)
	return err
}

// Stats counts what happened. Of frames that nobody received in time the kernel drops
// the newest; they are counted when a later one is received. Frames that the kernel's filters hold back are not seen.
func (s *SocketCAN) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Close implements [Bus].
func (s *SocketCAN) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.file.Close()
}
