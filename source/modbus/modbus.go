// Package modbus takes releases from a Modbus master: the device is a server, and a
// plant controller, a SCADA system or a technician's laptop writes a bundle into it, over
// TCP, TLS or a serial line, while the registers say to everybody how the update stands.
//
// For device builders: start with [New], give the source to the manager, and run
// [Source.Run] beside it. For those who write masters: the register map and how a
// transfer goes are in package profile and in docs/fieldbus-modbus.csv; `interlock push
// modbus` is such a master.
//
// Modbus knows nobody, so nothing is trusted because of it: a release is what the
// manifest's signature says, and the gate decides when it is installed. What the package
// promises:
//
//   - One master writes at a time: the session belongs to the address (and the role) that
//     opened it, or to the serial line. Another one is told that the device is busy, until
//     the first has written nothing for the idle timeout. The same master, from a new
//     connection or after a restart, goes on at once.
//   - Writes are taken over TLS from clients with one of the roles; over plain TCP only
//     where that is allowed, from the addresses that are; from a serial line unless that
//     is forbidden, since whoever reaches it stands before the device.
//   - What was acknowledged is there: also after the session was lost, the master or
//     the agent restarted, or another manifest was tried. A block that was acknowledged is never asked for again,
//     but where its chunk turns out to be wrong, or the power failed before it was on the disk.
//   - A repeated command is answered as before and not done again.
//   - Every answer comes at once. What takes long is done in the background and shows in
//     the status, which is of one moment.
//   - A line that breaks is opened again, for ever; nothing that comes over one ends the agent:
//     a request that panics is exception 4, and no lock is left behind.
//
// Exceptions: 1 for who or what is not allowed, 2 for registers, files and records that
// are not there, 3 for what is wrong in itself (length, CRC-32, block, session, command),
// 4 for the disk, 6 for not now. Commands leave their result in the status of the master
// that sent them.
//
// Sources: Modbus Application Protocol Specification V1.1b3; Modbus Messaging on TCP/IP
// Implementation Guide V1.0b ("TCP guide"); MODBUS/TCP Security v21.
package modbus

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bus/crash"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// Line is a serial line on which the device is an RTU server.
type Line struct {
	serial.Config
	Echo bool // the adapter hears what it sends
}

// Config says where the device is asked, by whom, and about what. Inbox, State and at
// least one of Listen, ListenTLS and Lines are needed.
type Config struct {
	Listen    string      // host:port of plain TCP, usually port 502
	ListenTLS string      // host:port of Modbus/TCP Security, usually port 802
	TLS       *tls.Config // for ListenTLS; see ServerTLS of bus/modbus. Certificates of clients must be required
	Lines     []Line

	// Unit is the device's number, 1 to 247; default 1. On TCP 0 and 255 are the device
	// too (TCP guide, the unit identifier in the MBAP header: devices that are connected
	// directly).
	Unit byte
	Base *uint16 // address of the map's first register; default profile.Base
	// Functions are those by which the bytes may be written, 16 and 21; default both.
	// Commands are always written by function 16.
	Functions []bus.Function

	AllowPlain bool           // plain TCP may write, from Allow
	Allow      []netip.Prefix // required with AllowPlain
	Roles      []string       // of TLS clients that may write; default "Updater"
	ForbidRTU  bool           // serial lines may only read
	// ReadFrom are the addresses that may read over TCP and TLS; default: all. Those that
	// may write may read as well.
	ReadFrom []netip.Prefix

	IdleTimeout time.Duration // a session without a write ends after this, 1 s to 1 h; default 60 s
	Window      int           // blocks that a master may have in flight, 1 to 1000; default 32
	MaxSize     int64         // bytes of a transfer, at most; that of the inbox. Default 256 MiB
	Components  int           // that this device has, for display; default 1
	OpenEvery   time.Duration // OPEN is taken so often in the long run; default 2 s
	OpenBurst   int           // and so many times at once; default 5

	Inbox *inbox.Inbox // where the bytes go

	// State says how the device is; it must return at once.
	State func() api.CheckinRequest
	// Precheck asks the gate without any effect: nil for yes. Nil: not offered.
	Precheck func(context.Context) error
	// Rollback goes back to the previous firmware, or says why not. Nil: not offered.
	Rollback func(context.Context) error
	// Withdraw takes back what the update manager has in hand of the release with this digest, as ABORT
	// wants, and removes it from Inbox. [ota.ErrBusy] says that it is too late: what was asked for goes
	// on. It must not touch any other release. Nil: what the manager has in hand is never given up.
	Withdraw func(ctx context.Context, digest string) error
	// Installing is told that a master has asked for the installation, which may count as
	// a person's consent; it must return at once. Default: nothing.
	Installing func()
	// Evidence returns what is written down about the last update, for file 0xF003; it
	// must return at once. Nil: none.
	Evidence func() []byte

	// NetListen opens listeners; default: the operating system's.
	NetListen func(ctx context.Context, address string) (net.Listener, error)
	// OpenLine opens serial lines; default: package bus/serial.
	OpenLine func(Line) (io.ReadWriteCloser, error)

	Log *slog.Logger     // default: slog.Default()
	Now func() time.Time // default: time.Now

	Crashes *crash.Log // keeps account of panics; nil: the process's
}

// Source is an [ota.Source], an [ota.Reporter] and an [ota.Waker].
type Source struct {
	cfg      Config
	identity profile.Identity

	addresses map[bus.Transport]*address

	// transfer is held for reading while bytes are put into the inbox, and for writing
	// while a command changes what they belong to: a block that was checked against one
	// session must not arrive in the next one's transfer.
	transfer sync.RWMutex
	// commands serves one command after the other.
	commands sync.Mutex
	work     sync.WaitGroup // in the background

	// mu guards what follows. It is never held while anything is waited for.
	mu       sync.Mutex
	run      context.Context // of Run
	session  *session
	last     answer    // to the last command that was taken
	refused  []refusal // others, newest first
	task     *task     // PRECHECK, ROLLBACK or an ABORT that takes a while, as last asked for
	aborted  bool
	opens    bucket
	retry    time.Duration // to be waited after the last exception 6
	upload   *upload       // the manifest of format 2
	evidence []byte        // as it was when record 0 was read
	warned   time.Time
	trouble  map[string]error // see Trouble, by what is not served
}

var (
	_ ota.Source   = (*Source)(nil)
	_ ota.Reporter = (*Source)(nil)
	_ ota.Waker    = (*Source)(nil)
)

// Latest implements [ota.Source].
func (s *Source) Latest(ctx context.Context) ([]byte, error) { return s.cfg.Inbox.Latest(ctx) }

// Open implements [ota.Source].
func (s *Source) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	return s.cfg.Inbox.Open(ctx, m, im, offset)
}

// Report implements [ota.Reporter]: the outcome is kept, and shown to whoever asks.
func (s *Source) Report(ctx context.Context, r ota.Report) error { return s.cfg.Inbox.Report(ctx, r) }

// Wake implements [ota.Waker]: it receives when a master asks for an installation.
func (s *Source) Wake() <-chan struct{} { return s.cfg.Inbox.Wake() }
