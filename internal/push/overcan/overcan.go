// Package overcan brings a bundle into a device over CAN: it is the tester of the profile
// that source/can serves, on UDS (ISO 14229-1) and ISO-TP (ISO 15765-2), for the service
// technician's laptop. What it shares with other buses is in package push.
//
// Start with [New] and give the Device to [push.Run]. [Device.SendPlain] is another matter:
// it writes a file into a controller of another maker, which knows nothing of bundles.
//
// What is promised, beside what package push does:
//
//   - Whatever the line does, the device is asked what it has before anything is sent
//     again. What it has acknowledged is sent again only if it says that it has lost it.
//   - On a line that loses frames, blocks get the length with which most bytes get through,
//     down to those of a single frame, and the timers become as short as the device is quick,
//     once one of them has run out. A line that loses nothing is given the standard's times.
//   - The pace that the device asks for (block size and STmin) is kept, and so is the share
//     of the bus in [Line]: the battery's own frames must get through.
//   - The tester's key signs what [profile.SecurityMessage] says, and is never sent.
//   - Nothing is silenced on the bus: services 28 and 85 are never asked for.
package overcan

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Config says where the device is and who asks.
type Config struct {
	Line Line
	// Key shows the device who asks: Ed25519, or ECDSA on P-256. Nil: nobody, which only
	// a device that is open takes.
	Key crypto.Signer
	// Margin is what the way to the device and back may take, added to the time in which
	// it answers; 0: 250 ms, and 500 ms over TCP.
	Margin time.Duration

	// Dial opens another kind of connection than Line says; Line then only says how fast
	// it is. It is called again after a connection was lost, which is closed.
	Dial func(context.Context) (uds.Conn, error)
}

// Device is a device on a CAN bus. It is a [push.Device].
type Device struct {
	noCourse bool // the device does not know DIDCourse

	cfg    Config
	conn   uds.Conn
	client *uds.Client

	identity *profile.Identity // nil: Identify was not called
	serial   string            // what the tester signs
	bus      profile.Bus       // zero: it does not say

	inside    bool      // in the programming session, unlocked
	announced bool      // and it knows which file comes
	exact     bool      // a controller of another maker, of which nothing is known
	heard     int       // requests with an answer
	silent    int       // requests in a row without an answer
	last      time.Time // when the last answer came, or the bus was opened
	line      quality
	reach     int // bytes of the longest block to try: twice what got through lately; 0: any
}

var _ push.Device = (*Device)(nil)

// New returns a device. The bus is opened when it is first needed.
func New(cfg Config) (*Device, error) {
	line, err := cfg.Line.withDefaults()
	if err == nil && cfg.Dial == nil {
		err = line.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("reach a device over CAN: %w", err)
	}
	cfg.Line = line
	if cfg.Margin == 0 {
		cfg.Margin = line.margin()
	}
	if cfg.Key != nil { // found here, rather than when the device asks
		if _, err := profile.SignSeed(cfg.Key, "", make([]byte, profile.SeedSize)); err != nil {
			return nil, fmt.Errorf("reach a device over CAN: %w", err)
		}
	}
	return &Device{cfg: cfg}, nil
}

// Close leaves the bus. A session that is open ends by itself.
func (d *Device) Close() error {
	d.hangUp()
	return nil
}

// open gets onto the bus, if we are not on it.
func (d *Device) open(ctx context.Context) (*uds.Client, error) {
	if d.client != nil {
		return d.client, nil
	}
	dial := d.cfg.Dial
	if dial == nil {
		line := d.cfg.Line
		line.exact = d.exact
		dial = line.Dial
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	d.conn, d.last = conn, time.Now()
	d.client = uds.NewClient(conn, uds.ClientConfig{Margin: d.cfg.Margin, Adapt: !d.exact, Repeats: repeats})
	return d.client, nil
}

func (d *Device) hangUp() {
	if d.client == nil {
		return
	}
	d.conn.Close() // first: it ends what the client waits for
	d.client.Close()
	d.client, d.conn, d.silent = nil, nil, 0
	d.outside()
}

// outside forgets what we were in.
func (d *Device) outside() { d.inside, d.announced = false, false }

// ask does one thing with the device. What is wrong with the line is [push.ErrLine];
// after all but silence it is opened anew by the next call.
func (d *Device) ask(ctx context.Context, what string, do func(*uds.Client) error) error {
	client, err := d.open(ctx)
	if err == nil {
		err = do(client)
	}
	switch {
	case err == nil:
		d.answered()
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if code(err) != 0 {
		d.answered()
		return fmt.Errorf("%s: %w", what, err)
	}
	if d.silent++; d.broken(err) {
		d.hangUp()
	}
	if errors.Is(err, push.ErrLine) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, push.ErrLine, err)
}

// repeats is how often what may be done twice is asked for again if no answer comes. Of a
// message of seven frames less than half get through where one frame in ten is lost.
const repeats = 4

// insist is ask for what may be done twice: silence is no reason to begin anew at once.
func (d *Device) insist(ctx context.Context, what string, do func(*uds.Client) error) error {
	for try := 0; ; try++ {
		err := d.ask(ctx, what, do)
		if err == nil || try == repeats || d.client == nil || !errors.Is(err, uds.ErrNoAnswer) {
			return err
		}
	}
}

// After so many requests in a row without an answer, and so much time, the bus is opened
// anew: an adapter may hang. On a line that only loses frames some get through before.
const (
	mostSilent = 8
	longSilent = 4 * time.Second // and a session ends after 5 s
)

// answered notes that the device was heard.
func (d *Device) answered() { d.silent, d.heard, d.last = 0, d.heard+1, time.Now() }

// broken says that err is more than a frame that was lost.
func (d *Device) broken(err error) bool {
	if errors.Is(err, can.ErrDown) || errors.Is(err, can.ErrBusOff) || errors.Is(err, can.ErrClosed) {
		return true
	}
	return d.silent >= mostSilent && time.Since(d.last) >= longSilent || !errors.Is(err, uds.ErrNoAnswer) && !errors.Is(err, uds.ErrAnswer)
}

// read reads one identifier.
func (d *Device) read(ctx context.Context, did uds.DID) (b []byte, err error) {
	err = d.ask(ctx, fmt.Sprintf("read %04X", uint16(did)), func(c *uds.Client) error {
		b, err = c.ReadData(ctx, did)
		return err
	})
	return b, err
}

// text reads an identifier that may be missing.
func (d *Device) text(ctx context.Context, did uds.DID) (string, error) {
	b, err := d.read(ctx, did)
	if notThere(err) {
		return "", nil
	}
	return profile.Text(string(b)), err
}

// start runs a routine and returns what it says.
func (d *Device) start(ctx context.Context, rid uds.RID, option []byte) (status []byte, err error) {
	err = d.insist(ctx, fmt.Sprintf("start routine %04X", uint16(rid)), func(c *uds.Client) error {
		status, err = c.Routine(ctx, uds.StartRoutine, rid, option)
		return err
	})
	return status, err
}

func (d *Device) enter(ctx context.Context, s uds.Session) error {
	return d.ask(ctx, fmt.Sprintf("enter the %v", s), func(c *uds.Client) error {
		_, err := c.DiagnosticSession(ctx, s)
		return err
	})
}

// leave goes back to the default session, so that the device need not wait for that.
// That it does not answer changes nothing.
func (d *Device) leave(ctx context.Context) error {
	d.outside()
	err := d.enter(ctx, uds.Default)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, push.ErrLine) {
		return nil
	}
	return err
}

// code is the negative answer in err; 0: there is none.
func code(err error) uds.NRC {
	if n, ok := errors.AsType[*uds.NegativeAnswer](err); ok {
		return n.Code
	}
	return 0
}

// notThere says that a device does not know what it was asked for.
func notThere(err error) bool {
	switch code(err) {
	case uds.ServiceNotSupported, uds.SubFunctionNotSupported, uds.RequestOutOfRange, uds.SubFunctionNotSupportedInSession, uds.ServiceNotSupportedInSession:
		return true
	}
	return false
}

// Identify implements [push.Device].
func (d *Device) Identify(ctx context.Context) (push.Identity, error) {
	b, err := d.read(ctx, profile.DIDProfile)
	if notThere(err) || code(err) != 0 {
		return push.Identity{}, push.Fail(ota.ErrIncompatible, "who answers to %v speaks UDS, but is no device that takes bundles: %v", d.cfg.Line.Address, err)
	}
	if err != nil {
		return push.Identity{}, err
	}
	p, err := profile.ParseIdentity(b)
	if err != nil {
		return push.Identity{}, push.Fail(ota.ErrIncompatible, "who answers to %v is no device that takes bundles: %v", d.cfg.Line.Address, err)
	}
	id := push.Identity{Protocol: fmt.Sprintf("UDS, profile %d.%d", p.Version>>8, p.Version&0xFF)}
	for did, value := range map[uds.DID]*string{profile.DIDSerial: &id.Device, profile.DIDProduct: &id.Product, profile.DIDVersion: &id.Running} {
		if *value, err = d.text(ctx, did); err != nil {
			return push.Identity{}, err
		}
	}
	switch b, err := d.read(ctx, profile.DIDBus); {
	case err == nil:
		if d.bus, err = profile.ParseBus(b); err != nil {
			return push.Identity{}, err
		}
	case !notThere(err):
		return push.Identity{}, err
	}
	d.identity, d.serial = &p, id.Device
	return id, nil
}

// identified makes sure that we know who is there.
func (d *Device) identified(ctx context.Context) error {
	if d.identity != nil {
		return nil
	}
	_, err := d.Identify(ctx)
	return err
}

// Status implements [push.Device].
func (d *Device) Status(ctx context.Context) (push.Status, error) {
	var s push.Status
	state, result, err := d.state(ctx)
	if err != nil {
		return s, err
	}
	p, err := d.progress(ctx)
	if err != nil {
		return s, err
	}
	s.State, s.Result = push.State(state), push.Result(result)
	s.Received, s.Size = int64(p.Received), int64(p.Total)
	if state == profile.Verifying && p.Total > 0 {
		s.Done = float64(p.Verified) / float64(p.Total)
	}
	if s.Reason, err = d.text(ctx, profile.DIDReason); err != nil {
		return s, err
	}
	if s.Version, err = d.text(ctx, profile.DIDOffered); err != nil {
		return s, err
	}
	if s.Running, err = d.text(ctx, profile.DIDVersion); err != nil {
		return s, err
	}
	return s, d.course(ctx, &s)
}

// course reads how an installation goes, from devices that say so.
func (d *Device) course(ctx context.Context, s *push.Status) error {
	if s.State < push.WaitSafe || d.noCourse {
		return nil // there is nothing to know, and frames are few
	}
	b, err := d.read(ctx, profile.DIDCourse)
	if notThere(err) {
		d.noCourse = true
		return nil
	}
	if err != nil {
		return err
	}
	c, err := profile.ParseCourse(b)
	if err != nil {
		return err
	}
	if s.State == push.Installing {
		s.Done = float64(min(c.Progress, 1000)) / 1000
	}
	s.Left, s.Attempt = time.Duration(c.Left)*time.Second, int(c.Attempt)
	s.ImagesDone, s.ImagesFailed = c.ImagesDone, c.ImagesFailed
	return nil
}

// state reads how far the device is, and why it is no further.
func (d *Device) state(ctx context.Context) (profile.State, profile.Result, error) {
	state, err := d.read(ctx, profile.DIDState)
	if err != nil {
		return 0, 0, err
	}
	result, err := d.read(ctx, profile.DIDResult)
	if err != nil {
		return 0, 0, err
	}
	if len(state) < 1 || len(result) < 1 {
		return 0, 0, fmt.Errorf("read how far the device is: got %d and %d bytes, want one of each", len(state), len(result))
	}
	return profile.State(state[0]), profile.Result(result[0]), nil
}

func (d *Device) progress(ctx context.Context) (profile.Progress, error) {
	b, err := d.read(ctx, profile.DIDProgress)
	if err != nil {
		return profile.Progress{}, err
	}
	return profile.ParseProgress(b)
}

// Precheck implements [push.Device].
func (d *Device) Precheck(ctx context.Context) error {
	if err := d.identified(ctx); err != nil {
		return err
	}
	if d.identity.Caps&profile.CapPrecheck == 0 {
		return push.Fail(ota.ErrIncompatible, "the device has no gate that could be asked")
	}
	d.outside()
	if err := d.enter(ctx, uds.Extended); err != nil {
		return occupied(err)
	}
	_, err := d.start(ctx, profile.RIDPreconditions, nil)
	if refuses(err) {
		refusal := d.refusal(ctx, err)
		if errors.Is(refusal, push.ErrLine) || ctx.Err() != nil {
			return refusal
		}
		err = refusal
	}
	return errors.Join(err, d.leave(ctx))
}

// refuses says that the gate does: NRC 22 or one of the conditions from 81 on.
func refuses(err error) bool {
	n := code(err)
	return n == uds.ConditionsNotCorrect || n >= 0x81
}

// refusal is the gate's no, with the device's words.
func (d *Device) refusal(ctx context.Context, negative error) error {
	_, result, err := d.state(ctx)
	if err != nil {
		return err
	}
	s := push.Status{Result: push.Result(result)}
	if s.Reason, err = d.text(ctx, profile.DIDReason); err != nil {
		return err
	}
	if s.Reason == "" && result == profile.OK {
		s.Reason = code(negative).String()
	}
	refusal := s.Refusal()
	text, err := d.text(ctx, profile.DIDSignals)
	if err != nil {
		return err
	}
	refusal.Signals, _ = profile.ParseSignals(text) // they only explain
	return refusal
}

// occupied says that somebody else has the device, if that is what err is.
func occupied(err error) error {
	switch code(err) {
	case uds.ConditionsNotCorrect, uds.BusyRepeatRequest, uds.ResourceTemporarilyNotAvailable:
		return fmt.Errorf("%w: another tester may have it, for whose silence it waits 5 s: %w", push.ErrOccupied, err)
	}
	return err
}
