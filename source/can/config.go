package can

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Config says on which bus the device listens, to whom, and what it tells. Link, Inbox
// and State are required.
type Config struct {
	Link Link

	// IDs on the bus. By default testers reach the device with 29-bit identifiers, normal
	// fixed addressing (ISO 15765-2): 18DA<Device><Tester>, and to all devices at once
	// with 18DB33<Tester>.
	Device   byte // address of the device; 0: [profile.DeviceAddress]
	Tester   byte // address of the tester; 0: [profile.TesterAddress]
	Priority int  // of 29-bit identifiers: 1 to 7, 7 gives way to all others; 0: 6, the standard's

	// ID is the documented setting can_id: the identifier that testers send to, instead
	// of the above. Up to 7FF it has 11 bits; above that 29. 0: as above.
	ID uint32
	// AnswerID is the identifier of the answers to ID; 0: ID + 8 with 11 bits (7E0 and
	// 7E8, ISO 15765-4); with 29 bits, ID with its two lowest bytes exchanged, and then
	// ID must be of the form xxDAttss. Both must differ from what the battery uses.
	AnswerID uint32
	// FunctionalID is the identifier of 11 bits for requests to all devices; 0: 7DF. With
	// 29 bits it is 18DB33<Tester>.
	FunctionalID uint32

	// How fast a transfer may be. The pause that testers are asked for (STmin) is the
	// greater of STmin and what Share needs.
	Bitrate   int           // bit/s; 0: 500,000
	BlockSize int           // consecutive frames for a flow control frame, 2 to 255; 0: 8
	STmin     time.Duration // at least, up to 127 ms; 0: 1 ms; negative: as Share says alone
	Share     int           // percent of the bus that requests and answers may take, 5 to 100; 0: 50
	MaxBlock  int           // maxNumberOfBlockLength, and the longest answer, which cuts texts: 130 to 4095; 0: 4095

	// Testers may program the device: they prove that they have the key. None: nobody may,
	// unless AllowOpen says that everybody on the bus may. The bundle's signatures are
	// checked in any case.
	Testers   []Tester
	AllowOpen bool

	Inbox   *inbox.Inbox
	MaxSize int64 // bytes of a bundle, told to testers; 0: 256 MiB

	State func() api.CheckinRequest // what the device says about itself
	// Precheck asks the gate, and changes nothing. A [*ota.Refusal] says why not. Nil: the
	// routine is not there.
	Precheck func(ctx context.Context) error
	// Withdraw takes back what the update manager has in hand of the release with this digest, as the
	// routine F002 wants, and removes it from Inbox. [ota.ErrBusy] says that it is too late: what was
	// asked for goes on. It must not touch any other release. Nil: what the manager has in hand is never
	// given up.
	Withdraw func(ctx context.Context, digest string) error
	// Requested is told that a tester has asked for the installation of the release with
	// this digest, once that is on the disk. Nil: nobody is told.
	Requested func(tester, digest string)
	Evidence  func() string // head hash of the evidence of the last update; nil: what its report says

	// StateDir keeps how many wrong keys came, over restarts. Required if Testers are.
	FS       durable.FS // default: durable.OS
	StateDir string

	Log *slog.Logger     // default: slog.Default()
	Now func() time.Time // default: time.Now

	Crashes *crash.Log // keeps account of panics; nil: the process's
}

// Link says where the bus is: exactly one field is set.
type Link struct {
	Interface string // SocketCAN: can0. The kernel's ISO-TP is used if it is there
	SLCAN     string // serial port of an adapter: /dev/ttyACM0
	Baud      int    // of that port; 0: 115,200. Adapters on USB ignore it
	Silent    bool   // that adapter answers to nothing
	TCP       string // host:port of a converter with frames of 13 bytes

	// Shared is a link that has other users, too: a battery's reader, for instance. Baud is then
	// that of a serial line that it goes over, if the line really has that speed; 0: it does not
	// limit what goes over it.
	Shared *bus.Shared

	// Open returns another kind of bus. It is called again after the bus was lost, and
	// owns nothing of an earlier one, which is closed.
	Open func(context.Context) (bus.Bus, error)
}

// complete checks cfg and fills in what is left out.
func (cfg *Config) complete() error {
	for _, r := range []struct {
		name           string
		v              *int
		def, low, high int
	}{
		{"priority", &cfg.Priority, 6, 1, 7},
		{"bitrate", &cfg.Bitrate, 500_000, 10_000, 1_000_000},
		{"block size", &cfg.BlockSize, 8, 2, 255},
		{"share of the bus", &cfg.Share, 50, 5, 100},
		{"block length", &cfg.MaxBlock, profile.MaxBlock, 130, profile.MaxBlock},
	} {
		if *r.v == 0 {
			*r.v = r.def
		}
		if *r.v < r.low || *r.v > r.high {
			return fmt.Errorf("%s is %d, want %d to %d", r.name, *r.v, r.low, r.high)
		}
	}
	switch {
	case cfg.STmin == 0:
		cfg.STmin = time.Millisecond
	case cfg.STmin > longestSTmin:
		return fmt.Errorf("STmin is %v, want at most %v", cfg.STmin, longestSTmin)
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = 256 << 20
	}
	if cfg.MaxSize < 0 || cfg.MaxSize > 1<<32-1 {
		return fmt.Errorf("the greatest bundle has %d bytes, want 1 to %d: UDS says sizes in four bytes here", cfg.MaxSize, int64(1<<32-1))
	}
	switch {
	case cfg.Inbox == nil:
		return errors.New("Inbox is missing")
	case cfg.State == nil:
		return errors.New("State is missing")
	case len(cfg.Testers) > 0 && cfg.StateDir == "":
		return errors.New("the state directory is missing; wrong keys must be counted over restarts")
	case len(cfg.Testers) > 0 && cfg.AllowOpen:
		return errors.New("testers are named, and programming is open to everybody; keep one")
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := cfg.addresses(); err != nil {
		return err
	}
	return cfg.Link.check()
}
