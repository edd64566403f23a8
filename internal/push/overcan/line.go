package overcan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Line says how to get onto the bus, and to whom. To is all that is needed.
type Line struct {
	// To is "slcan:/dev/ttyACM0" for a serial adapter, "tcp13://192.168.0.7:20001" for a
	// TCP converter that speaks frames of 13 bytes, or the name of a network interface of
	// Linux, such as "can0".
	To      string
	Bitrate int     // of the bus, in bit/s; 0: 500,000. Only a serial adapter is told; the others have it already
	Baud    int     // of a serial adapter's port, in bit/s; 0: 115,200. Those on USB do not care
	Silent  bool    // the serial adapter never answers, as some do
	Share   int     // percent of the bus that may be used for this, 1 to 100; 0: 50
	Address Address // of both ends

	exact bool // timers and sequences as ISO 15765-2 has them
}

// Address is the pair of identifiers that a tester and a device talk with. The zero
// value is the one that devices have by default, of 29 bits.
type Address struct {
	TX, RX   uint32 // what the tester sends with, and what the device answers with
	Extended bool   // of 29 bits
}

// Fixed29 is normal fixed addressing of ISO 15765-2, 10.3.2.
func Fixed29(target, source byte) Address {
	id := func(to, from byte) uint32 { return 0x18DA<<16 | uint32(to)<<8 | uint32(from) }
	return Address{TX: id(target, source), RX: id(source, target), Extended: true}
}

func (a Address) orDefault() Address {
	if a == (Address{}) {
		return Fixed29(profile.DeviceAddress, profile.TesterAddress)
	}
	return a
}

func (a Address) isotp() isotp.Address {
	if a.Extended {
		return isotp.Normal29(a.TX, a.RX)
	}
	return isotp.Normal(a.TX, a.RX)
}

// String is such as "18DA10F1/18DAF110".
func (a Address) String() string {
	if a.Extended {
		return fmt.Sprintf("%08X/%08X", a.TX, a.RX)
	}
	return fmt.Sprintf("%03X/%03X", a.TX, a.RX)
}

// What a Line is without being told otherwise.
const (
	DefaultBitrate = 500_000
	DefaultShare   = 50
	defaultBaud    = 115_200
)

// What we ask of the device when it answers at length: small enough that the battery's
// own frames get in between.
const (
	ownBlockSize = 8
	ownSTmin     = time.Millisecond
)

// withDefaults says what is wrong with a line, apart from what only opening it can tell.
func (l Line) withDefaults() (Line, error) {
	if l.Bitrate == 0 {
		l.Bitrate = DefaultBitrate
	}
	if l.Share == 0 {
		l.Share = DefaultShare
	}
	if l.Baud == 0 {
		l.Baud = defaultBaud
	}
	l.Address = l.Address.orDefault()
	most := uint32(can.MaxStandard)
	if l.Address.Extended {
		most = can.MaxExtended
	}
	switch a := l.Address; {
	case l.Bitrate < 10_000 || l.Bitrate > 1_000_000:
		return l, fmt.Errorf("bitrate is %d bit/s, want 10,000 to 1,000,000", l.Bitrate)
	case l.Share < 1 || l.Share > 100:
		return l, fmt.Errorf("share of the bus is %d %%, want 1 to 100", l.Share)
	case a.TX > most || a.RX > most:
		return l, fmt.Errorf("identifiers are %v, want at most %X", a, most)
	case a.TX == a.RX:
		return l, fmt.Errorf("identifiers are %v, want two that differ", a)
	}
	return l, nil
}

// Validate says what is wrong with l, apart from what only opening it can tell.
func (l Line) Validate() error {
	if l.To == "" {
		return errors.New("no line is given: name slcan:PORT, tcp13://HOST:PORT or a network interface such as can0")
	}
	_, err := l.withDefaults()
	return err
}

// pace is how many frames a second may be sent so that all of the transfer, the device's
// flow control included, takes no more than its share.
func (l Line) pace() int {
	if l.Share >= 100 {
		return 0 // the bus itself is the limit
	}
	frames := float64(l.Bitrate) / float64(frameBits(l.Address.Extended)) * float64(l.Share) / 100
	const (
		flow    = float64(usualBlockSize) / (usualBlockSize + 1)
		answers = 0.97 // the rest is for answers and the questions between blocks
	)
	return max(1, int(frames*flow*answers))
}

// config is the transport's.
func (l Line) config() isotp.Config {
	return isotp.Config{BlockSize: ownBlockSize, STmin: ownSTmin, FramesPerSecond: l.pace(), Mend: !l.exact, Adapt: !l.exact}
}

// Dial gets onto the bus.
func (l Line) Dial(ctx context.Context) (uds.Conn, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	l, _ = l.withDefaults()
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w: %w", l.To, push.ErrLine, err)
	}
	return conn, nil
}

func (l Line) dial(ctx context.Context) (uds.Conn, error) {
	filters := can.Filters{{ID: l.Address.RX, Mask: can.MaxExtended, Extended: l.Address.Extended}}
	if port, ok := strings.CutPrefix(l.To, "slcan:"); ok {
		p, err := serial.Open(serial.Config{Path: port, Baud: l.Baud})
		if err != nil {
			return nil, err
		}
		bus, err := can.OpenSLCAN(ctx, p, can.SLCANConfig{Bitrate: l.Bitrate, Filters: filters, Pace: -1, Silent: l.Silent})
		if err != nil {
			p.Close()
			return nil, err
		}
		return l.Over(bus)
	}
	if host, ok := strings.CutPrefix(l.To, "tcp13://"); ok {
		if _, _, err := net.SplitHostPort(host); err != nil {
			return nil, fmt.Errorf("%w, want tcp13://HOST:PORT", err)
		}
		return l.Over(can.NewTCP13(host, can.TCP13Config{Filters: filters, Pace: -1}))
	}
	// The kernel's own transport keeps better time than a program can.
	conn, err := isotp.OpenKernel(l.To, l.Address.isotp(), l.config())
	if err == nil {
		return conn, nil
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	bus, err := can.DialSocketCAN(l.To, filters)
	if err != nil {
		return nil, err
	}
	return l.Over(bus)
}

// Over is the transport on a bus that is open already. It is closed with it. To is not used.
func (l Line) Over(bus can.Bus) (uds.Conn, error) {
	l, err := l.withDefaults()
	if err != nil {
		return nil, err
	}
	mux := isotp.NewMux(bus)
	channel, err := mux.Open(l.Address.isotp(), l.config())
	if err != nil {
		mux.Close()
		return nil, err
	}
	return muxed{channel, mux}, nil
}

// muxed is the only channel of its mux.
type muxed struct {
	*isotp.Channel
	mux *isotp.Mux
}

// Close closes the bus too.
func (m muxed) Close() error { return errors.Join(m.Channel.Close(), m.mux.Close()) }

// margin is what the way there and back may take.
func (l Line) margin() time.Duration {
	if strings.HasPrefix(l.To, "tcp13://") {
		return 500 * time.Millisecond
	}
	return 250 * time.Millisecond
}
