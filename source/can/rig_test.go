package can_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/bustest"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can"
	"github.com/interlock-energy/ota/source/can/profile"
)

// A rig is a device with the source on an emulated bus, in a bubble of simulated time.
type rig struct {
	t      *testing.T
	bus    *bustest.CAN
	tap    *bustest.Tap // all frames
	real   bool         // time is
	config can.Config
	box    inbox.Config
	key    crypto.Signer

	*can.Source
	inbox *inbox.Inbox
	stop  func()

	mu   sync.Mutex
	head api.CheckinRequest
}

// newRig starts a device that takes r, or nothing. Change may set what the test is about.
func newRig(t *testing.T, verify ota.Verify, change func(*rig)) *rig {
	t.Helper()
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	tester, err := can.ParseTester("anna", public)
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	tap := new(bustest.Tap)
	r := &rig{t: t, key: key, tap: tap, bus: bustest.NewCAN(bustest.CANConfig{Worst: true, Tap: tap})}
	t.Cleanup(func() { r.bus.Close() })
	r.head = api.CheckinRequest{Head: api.Head{Device: "bess-7", Product: "bess", Hardware: "rev2", Agent: "0.9.0", Version: "1.0.0"}}
	if verify == nil {
		verify = func([]byte) (*ota.Manifest, error) { return nil, ota.ErrValidation }
	}
	r.box = inbox.Config{Dir: t.TempDir(), Verify: verify, Log: quiet}
	r.config = can.Config{
		Link:     can.Link{Open: func(context.Context) (bus.Bus, error) { return r.bus.Join("device"), nil }},
		Testers:  []can.Tester{tester},
		StateDir: t.TempDir(),
		State:    r.state,
		Precheck: func(context.Context) error { return nil },
		Log:      quiet,
	}
	if change != nil {
		change(r)
	}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) state() api.CheckinRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head
}

func (r *rig) set(change func(*api.CheckinRequest)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.head)
}

// start starts the agent's part; stop and start restart it.
func (r *rig) start() {
	r.t.Helper()
	var err error
	if r.inbox, err = inbox.Open(r.box); err != nil {
		r.t.Fatal(err)
	}
	r.config.Inbox = r.inbox
	if r.Source, err = can.New(r.config); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func(s *can.Source) { ended <- s.Run(ctx) }(r.Source)
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				r.t.Errorf("Run: %v", err)
			}
			if err := r.inbox.Close(); err != nil {
				r.t.Errorf("close the inbox: %v", err)
			}
		})
	}
	if !r.real {
		synctest.Wait() // until it listens
	}
}

// A tester is at the other end of the bus.
type tester struct {
	t    *testing.T
	mux  *isotp.Mux
	conn *isotp.Channel
	all  *isotp.Channel // to all devices
}

func (r *rig) tester() *tester { r.t.Helper(); return r.testerOn(0) }

// testerOn is a tester that sends to an identifier of 11 bits; 0: to the default one.
func (r *rig) testerOn(id uint32) *tester {
	r.t.Helper()
	mux := isotp.NewMux(r.bus.Join("tester"))
	address := isotp.Fixed29(profile.DeviceAddress, profile.TesterAddress)
	if id != 0 {
		address = isotp.Normal(id, id+8)
	}
	conn, err := mux.Open(address, isotp.Config{})
	if err != nil {
		r.t.Fatal(err)
	}
	all, err := mux.Open(isotp.Functional29(0x33, profile.TesterAddress), isotp.Config{})
	if err != nil {
		r.t.Fatal(err)
	}
	x := &tester{t: r.t, mux: mux, conn: conn, all: all}
	r.t.Cleanup(x.leave)
	return x
}

// leave takes the tester off the bus, without a word.
func (x *tester) leave() { x.mux.Close() }

// raw sends a request and returns the final answer, nil if none comes for 6 s.
func (x *tester) raw(request []byte) []byte {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := x.conn.Send(ctx, request); err != nil {
		x.t.Fatalf("send % X: %v", request[:min(len(request), 20)], err)
	}
	return x.answer(6 * time.Second)
}

func (x *tester) answer(patience time.Duration) []byte {
	x.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		b, err := x.conn.Receive(ctx)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil:
			x.t.Fatalf("receive an answer: %v", err)
		case len(b) == 3 && b[0] == 0x7F && b[2] == byte(uds.ResponsePending):
			continue
		}
		return b
	}
}

// ask is raw in hexadecimal.
func (x *tester) ask(request string) string {
	x.t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(request, " ", ""))
	if err != nil {
		x.t.Fatal(err)
	}
	return fmt.Sprintf("%X", x.raw(b))
}

// want asks and compares: the answer begins with want.
func (x *tester) want(request, want string) string {
	x.t.Helper()
	got := x.ask(request)
	want = strings.ReplaceAll(want, " ", "")
	if want == "" && got != "" || !strings.HasPrefix(got, want) {
		x.t.Errorf("%.60s: got %.80s, want %s", request, got, want)
	}
	return got
}

// read returns the value of a data identifier.
func (x *tester) read(did uint16) []byte {
	x.t.Helper()
	b := x.raw(uds.ReadRequest{DIDs: []uds.DID{uds.DID(did)}}.Append(nil))
	if len(b) < 3 || b[0] != 0x62 {
		x.t.Fatalf("read %04X: got % X", did, b)
	}
	return b[3:]
}

func (x *tester) deviceState() profile.State {
	x.t.Helper()
	return profile.State(x.read(profile.DIDState)[0])
}

func (x *tester) reason() string { x.t.Helper(); return string(x.read(profile.DIDReason)) }

func (x *tester) progress() profile.Progress {
	x.t.Helper()
	p, err := profile.ParseProgress(x.read(profile.DIDProgress))
	if err != nil {
		x.t.Fatal(err)
	}
	return p
}

// unlock shows the key, with service 27.
func (x *tester) unlock(key crypto.Signer) []byte {
	x.t.Helper()
	seed := x.raw([]byte{0x27, profile.SecurityLevel})
	if len(seed) != 2+profile.SeedSize || seed[0] != 0x67 {
		return seed
	}
	sig, err := profile.SignSeed(key, string(x.read(profile.DIDSerial)), seed[2:])
	if err != nil {
		x.t.Fatal(err)
	}
	return x.raw(append([]byte{0x27, profile.SecurityLevel + 1}, sig...))
}

// enter goes into the programming session and shows the key.
func (x *tester) enter(r *rig) {
	x.t.Helper()
	x.want("10 03", "50 03")
	x.want("31 01 0203", "71 01 0203 00")
	x.want("10 02", "50 02")
	if got := x.unlock(r.key); len(got) == 0 || got[0] != 0x67 {
		x.t.Fatalf("unlock: got % X", got)
	}
}

// announcement is the request that says which bundle comes.
func announcement(b []byte) []byte {
	t := profile.Transfer{Size: uint32(len(b)), SHA256: sha256.Sum256(b)}
	return t.Append([]byte{0x2E, profile.DIDTransfer >> 8, profile.DIDTransfer & 0xFF})
}

func download(address, size int) []byte {
	return uds.DownloadRequest{Address: uint64(address), Size: uint64(size)}.Append(nil)
}

// blocks sends b from an offset on, in blocks of n bytes, and returns the last answer.
func (x *tester) blocks(b []byte, from, n int) []byte {
	x.t.Helper()
	var answer []byte
	for counter := byte(1); from < len(b); counter++ {
		block := b[from:min(from+n, len(b))]
		answer = x.raw(append([]byte{0x36, counter}, block...))
		if len(answer) != 2 || answer[0] != 0x76 || answer[1] != counter {
			return answer
		}
		from += len(block)
	}
	return answer
}

// push does the whole sequence, and goes on where an earlier one stopped.
func (x *tester) push(r *rig, b []byte, block int) {
	x.t.Helper()
	x.enter(r)
	if got := x.raw(announcement(b)); fmt.Sprintf("%X", got) != "6EFD07" {
		x.t.Fatalf("announce: got % X", got)
	}
	if p := x.progress(); p.Next < p.Total {
		if got := x.raw(download(int(p.Next), int(p.Total-p.Next))); len(got) == 0 || got[0] != 0x74 {
			x.t.Fatalf("34 at %d: got % X: %s", p.Next, got, x.reason())
		}
		if got := x.blocks(b, int(p.Next), block); len(got) == 0 || got[0] != 0x76 {
			x.t.Fatalf("36: got % X: %s", got, x.reason())
		}
		x.want("37", "77")
	}
	x.want("31 01 0202", "71 01 0202 00")
	x.want("31 01 FF01", "71 01 FF01 00")
	x.want("31 01 F001", "71 01 F001 00")
}

// offered checks that the manager gets exactly what was pushed.
func (r *rig) offered(want *otatest.SignedRelease) {
	r.t.Helper()
	got, err := r.Latest(r.t.Context())
	if err != nil || !bytes.Equal(got, want.Signed) {
		r.t.Fatalf("Latest: got %d bytes, %v; want the %d of the envelope", len(got), err, len(want.Signed))
	}
	for i := range want.Manifest.Images {
		im := &want.Manifest.Images[i]
		rc, err := r.Open(r.t.Context(), want.Manifest, im, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || !bytes.Equal(b, want.Images[im.Component]) {
			r.t.Errorf("%s: got %d bytes, %v; want those of the image", im.Component, len(b), err)
		}
	}
}

// frame is a frame with an identifier of 29 bits if it needs them.
func frame(id uint32, data ...byte) bus.Frame {
	if id > bus.MaxStandard {
		return bus.Extended(id, data...)
	}
	return bus.Standard(id, data...)
}
