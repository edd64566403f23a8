// Package overmodbus pushes a bundle into a device over Modbus: TCP, TCP within TLS, and
// RTU on a serial line. It is the master's side of the profile "BESS-MFT" of package
// source/modbus/profile, for [push.Run].
//
// Start with [New] and a client of package bus/modbus, which must have a way to connect
// again (Config.Redial) if a transfer is to survive the loss of its connection.
//
// What is promised, beside what package push does:
//
//   - Blocks are written by function 16, each with its number and its CRC-32, in the
//     order of the file, on TCP several at once.
//   - A block whose answer did not come is asked about before it is sent again: by the
//     device's next missing block, or its bitmap. A block whose acknowledgement came is
//     sent again only if the device says that it no longer has it.
//   - A command whose answer did not come is given again with the same number, by which
//     the device knows that it is not a second one.
package overmodbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// Config says which device, and how. Only Client is needed.
type Config struct {
	Client *modbus.Client // closed by the Device. It must not repeat writes by itself
	Unit   byte           // 0: 1
	Base   uint16         // where the profile begins; 0: profile.Base
	Window int            // how many blocks may be on their way; 0: 1, as it must be on a serial line. The device may want fewer
	Line   string         // for people: "9600 baud", "Modbus TCP"
	Rate   float64        // bytes of the file per second that the line allows, see RTURate; 0: it is measured
}

// RTURate is how many bytes of a file a serial line carries in a second at most, with
// characters of so many bits: a block of 224 bytes is a request of 245 characters and an
// answer of 8, each followed by silence (serial guide 2.5.1.1), and the device takes 5 ms.
func RTURate(baud, bits int) float64 {
	if baud <= 0 || bits <= 0 {
		return 0
	}
	char := float64(bits) / float64(baud)
	silence := 3.5 * char
	if baud > 19200 {
		silence = 0.00175
	}
	const request, answer, turnaround = 9 + 2*profile.DataSize, 8, 0.005
	return profile.BlockSize / ((request+answer)*char + 2*silence + turnaround)
}

// Device is a device on Modbus. It is a [push.Device].
type Device struct {
	Config
	id      profile.Identity
	trip    time.Duration   // there and back, measured
	seq     uint16          // of the last command
	session uint16          // 0: none
	offer   profile.Command // what Send brings: size, format and hash
}

var _ push.Device = (*Device)(nil)

// New returns the device at the other end of a client.
func New(c Config) (*Device, error) {
	if c.Client == nil {
		return nil, errors.New("push over Modbus: no client is given")
	}
	if c.Unit == 0 {
		c.Unit = 1
	}
	if c.Base == 0 {
		c.Base = profile.Base
	}
	if int(c.Base)+profile.Size > 1<<16 {
		return nil, fmt.Errorf("push over Modbus: the profile has %d registers, and there is no room for them after %#04x; the highest base is %#04x", profile.Size, c.Base, 1<<16-profile.Size)
	}
	c.Window = max(1, c.Window)
	return &Device{Config: c}, nil
}

// Close closes the client.
func (d *Device) Close() error { return d.Client.Close() }

// Identify implements [push.Device].
func (d *Device) Identify(ctx context.Context) (push.Identity, error) {
	registers, err := d.read(ctx, profile.OffsetIdentity, profile.IdentitySize)
	if err != nil {
		return push.Identity{}, fmt.Errorf("ask unit %d who it is: %w", d.Unit, notThere(err))
	}
	if d.id, err = profile.DecodeIdentity(registers); err != nil {
		return push.Identity{}, fmt.Errorf("ask unit %d who it is: %w", d.Unit, err)
	}
	begin := time.Now()
	status, err := d.status(ctx)
	if err != nil {
		return push.Identity{}, err
	}
	d.trip = time.Since(begin) // not of the first request, which connects
	if d.seq == 0 {
		d.seq = status.Seq // the next one is new to the device, whoever gave the last
	}
	id := push.Identity{Protocol: fmt.Sprintf("BESS-MFT %d.%d", d.id.Version>>8, d.id.Version&0xFF)}
	begin = time.Now()
	display, err := d.display(ctx)
	if err != nil {
		return push.Identity{}, err
	}
	d.trip = min(d.trip, time.Since(begin)/time.Duration(len(displayParts)))
	id.Device, id.Product, id.Running = display.Device, display.Product, display.Running
	return id, nil
}

// notThere says what it means if the identity cannot be read.
func notThere(err error) error {
	if r, ok := errors.AsType[*Refused](err); ok && r.Exception != modbus.GatewayPath && r.Exception != modbus.GatewayTarget {
		return push.Fail(err, "%v; look whether the unit and the base address are those of its configuration", err)
	}
	return err
}

// Plan implements [push.Device].
func (d *Device) Plan(bytes int64) push.Plan {
	rate := d.Rate
	line := d.Line
	if rate <= 0 && d.trip > 0 {
		rate = float64(d.window()) * profile.BlockSize / d.trip.Seconds()
		line = fmt.Sprintf("%s, %v there and back", line, d.trip.Round(100*time.Microsecond))
	}
	return push.Plan{Bytes: bytes, Line: line, Rate: rate}
}

// window is how many blocks may be on their way.
func (d *Device) window() int {
	if d.id.Caps&profile.CapPipelining == 0 {
		return 1
	}
	return max(1, min(d.Window, int(d.id.Window)))
}

// Status implements [push.Device].
func (d *Device) Status(ctx context.Context) (push.Status, error) {
	s, err := d.status(ctx)
	if err != nil {
		return push.Status{}, err
	}
	display, err := d.display(ctx)
	if err != nil {
		return push.Status{}, err
	}
	return describe(&s, &display), nil
}

// describe says in the words of package push what a device says.
func describe(s *profile.Status, d *profile.Display) push.Status {
	out := push.Status{State: push.State(s.State), Result: push.Result(s.Result), Reason: d.Reason, Running: d.Running, Version: d.Update,
		Received: int64(s.Received) * profile.BlockSize, Size: int64(s.Blocks) * profile.BlockSize,
		Left: time.Duration(s.SecondsLeft) * time.Second, Attempt: int(s.Attempt), ImagesDone: s.ModulesDone, ImagesFailed: s.ModulesFailed}
	if s.State == profile.Verifying || s.State == profile.Installing {
		out.Done = float64(min(s.Progress, 1000)) / 1000
	}
	return out
}

// Precheck implements [push.Device].
func (d *Device) Precheck(ctx context.Context) error {
	if err := d.command(ctx, &profile.Command{Code: profile.Precheck}); err != nil {
		return err
	}
	for {
		s, err := d.status(ctx)
		if err != nil {
			return err
		}
		if s.Seq != d.seq {
			return fmt.Errorf("ask the gate: %w: another master gave a command meanwhile", push.ErrOccupied)
		}
		if s.Result == profile.OK {
			return nil
		}
		if s.Result != profile.Busy {
			display, err := d.display(ctx)
			if err != nil {
				return err
			}
			out := describe(&s, &display)
			return out.Refusal()
		}
		if err := push.Wait(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// Install implements [push.Device]. A session that was lost since Send, by a restart of
// the device or because it was idle, is taken up again, and the device asked once more:
// a restart may have come between the command and its answer.
func (d *Device) Install(ctx context.Context) error {
	for try := 1; ; try++ {
		err := d.install(ctx)
		r, refused := errors.AsType[*Refused](err)
		lost := refused && r.Exception == modbus.IllegalValue && (r.Result == profile.NoSession || r.Result == profile.OK)
		if !lost || try == answerPatience {
			return err
		}
	}
}

func (d *Device) install(ctx context.Context) error {
	s, err := d.status(ctx)
	if err != nil {
		return err
	}
	if d.session == 0 || s.Session != d.session {
		if s, err = d.begin(ctx, profile.Resume); err != nil {
			return err
		}
	}
	if s.State > profile.Verified {
		return nil // it was asked for before
	}
	return d.command(ctx, &profile.Command{Code: profile.Install, Session: d.session})
}

// Refused is an exception of the device, with the result that it gives for it.
type Refused struct {
	Exception  modbus.Exception
	Result     profile.Result // of its status; 0: not asked, or it gives none
	Reason     string
	RetryAfter time.Duration
}

func (r *Refused) Error() string {
	text := fmt.Sprintf("the device answers exception %d", byte(r.Exception))
	if why := profile.ExceptionText(byte(r.Exception)); why != "" {
		text += ", " + why
	}
	if r.Result != 0 {
		text += ": " + r.Result.String()
	}
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	return text
}

// Unwrap returns the kind of the refusal.
func (r *Refused) Unwrap() []error {
	switch {
	case r.Exception == modbus.IllegalFunction:
		return []error{r.Exception, ota.ErrAuthentication}
	case r.Result == profile.Busy:
		return []error{r.Exception, push.ErrOccupied}
	case r.Result != 0:
		return []error{r.Exception, push.Result(r.Result).Code()}
	}
	return []error{r.Exception, ota.ErrServer}
}
