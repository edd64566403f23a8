package can

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	bus "github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can/profile"
)

// pipe is one end of a connection in memory, a fake of ISO-TP that loses nothing.
type pipe struct {
	out, in chan []byte
	done    chan struct{}
}

func (p pipe) Send(ctx context.Context, b []byte) error {
	select {
	case p.out <- bytes.Clone(b):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p pipe) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.in:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.done:
		return nil, io.EOF
	}
}

func (p pipe) Close() error { return nil }

// FuzzSource is a device that hears any sequence of requests: each begins with its
// length in two bytes. With the first byte odd, the tester has shown a key before.
//
// Whatever comes: one final answer at most, no bytes in the inbox without the programming
// session and a key, and what was acknowledged is what is there.
func FuzzSource(f *testing.F) {
	release := otatest.NewSigningKey(f).Release(f, "1.1.0", 500)
	seq := func(first byte, requests ...[]byte) []byte {
		b := []byte{first}
		for _, r := range requests {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(r))), r...)
		}
		return b
	}
	size := uint64(len(release.Bundle))
	whole := [][]byte{uds.DownloadRequest{Size: size}.Append(nil), append([]byte{0x36, 1}, release.Bundle...), {0x37}, {0x31, 1, 2, 2}, {0x31, 1, 0xF0, 1}, {0x11, 1}}
	f.Add(seq(1, whole...))
	f.Add(seq(0, whole...))
	f.Add(seq(0, []byte{0x10, 2}, []byte{0x27, 1}, append([]byte{0x27, 2}, make([]byte, 64)...), whole[0], whole[1]))
	f.Add(seq(1, profile.Transfer{Size: 100}.Append([]byte{0x2E, 0xFD, 7}), uds.DownloadRequest{Size: 100}.Append(nil), []byte{0x36, 1, 1, 2, 3}, []byte{0x10, 1}, []byte{0x36, 2, 4}))
	f.Add(seq(1, uds.FileRequest{Mode: uds.AddFile, Name: profile.FileName, Size: size, Compressed: size}.Append(nil), append([]byte{0x36, 1}, release.Bundle[:300]...),
		uds.FileRequest{Mode: uds.ResumeFile, Name: profile.FileName, Size: size, Compressed: size}.Append(nil), append([]byte{0x36, 1}, release.Bundle[300:]...)))
	f.Add(seq(1, []byte{0x31, 1, 0xFF, 0}, []byte{0x22, 0xFD, 3, 0xFD, 4}, []byte{0x28, 3, 1}, []byte{0x85, 2}, []byte{0x3E, 0x80}, []byte{0x29, 5, 0}))
	quiet := slog.New(slog.DiscardHandler)
	private, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		f.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		f.Fatal(err)
	}
	anna, err := ParseTester("anna", public)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		box, err := inbox.Open(inbox.Config{FS: otatest.NewDisk(), Dir: "/data/inbox", Verify: release.Verify, Max: 1 << 20, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer box.Close()
		s, err := New(Config{Link: Link{Open: func(context.Context) (bus.Bus, error) { return nil, bus.ErrDown }}, Testers: []Tester{anna},
			FS: otatest.NewDisk(), StateDir: "/data/state", Inbox: box, MaxSize: 1 << 20, Log: quiet, Precheck: func(context.Context) error { return ota.ErrNotNow },
			State: func() api.CheckinRequest { return api.CheckinRequest{Head: api.Head{Device: "d"}} }})
		if err != nil {
			t.Fatal(err)
		}
		p := pipe{make(chan []byte, 64), make(chan []byte, 64), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.server.Serve(ctx, uds.Tester{Conn: p}) }()
		defer func() { cancel(); <-ended }()
		d := &fuzzed{t: t, p: p, box: box}
		if len(b) == 0 {
			return
		}
		if b[0]&1 != 0 {
			d.ask([]byte{0x10, 2})
			seed := d.ask([]byte{0x27, 1})
			sig, err := profile.SignSeed(key, "d", seed[2:])
			if err != nil {
				t.Fatal(err)
			}
			if got := d.ask(append([]byte{0x27, 2}, sig...)); got[0] != 0x67 {
				t.Fatalf("unlock: % X", got)
			}
			d.unlocked, d.programming = true, true
		}
		for b = b[1:]; len(b) > 2; {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			if n > 0 {
				d.request(b[2 : 2+n])
			}
			b = b[2+n:]
		}
	})
}

// fuzzed follows what a device says to what it hears.
type fuzzed struct {
	t                     *testing.T
	p                     pipe
	box                   *inbox.Inbox
	programming, unlocked bool
}

// ask sends a request and returns the final answer, nil if there is none.
func (d *fuzzed) ask(request []byte) []byte {
	d.p.in <- request
	d.p.in <- []byte{0x3E, 0} // is answered after it, or with busy
	var final []byte
	for {
		b := <-d.p.out
		switch {
		case len(b) == 3 && b[0] == 0x7F && b[2] == 0x78:
			continue
		case len(b) == 3 && b[0] == 0x7F && b[1] == 0x3E && b[2] == 0x21: // asked too early
			d.p.in <- []byte{0x3E, 0}
			continue
		case len(b) == 2 && b[0] == 0x7E && b[1] == 0 && request[0] != 0x3E:
			return final
		case len(b) == 2 && b[0] == 0x7E:
			request = []byte{0xFF} // its own; that of the question follows
			continue
		}
		if final != nil {
			d.t.Fatalf("% X: two answers, % X and % X", request, final, b)
		}
		final = b
	}
}

func (d *fuzzed) request(request []byte) {
	before := d.box.State()
	if request[0] == 0x3E { // would be taken for the question after it
		return
	}
	answer := d.ask(request)
	after := d.box.State()
	positive := len(answer) > 0 && answer[0] == request[0]+0x40
	if may := d.unlocked && d.programming; !may && (after.Offer != before.Offer || after.Received > before.Received && before.Phase != inbox.Opening) {
		d.t.Fatalf("% X without the programming session and a key: %+v, before %+v", request, after, before)
	}
	if after.Received > before.Received && request[0] != 0x36 && before.Phase != inbox.Opening {
		d.t.Fatalf("% X brought bytes: %+v", request, after)
	}
	if after.Received < 0 || after.Received > after.Offer.Size || after.Offer.Size > 1<<20 {
		d.t.Fatalf("% X: %+v", request, after)
	}
	if positive && request[0] == 0x36 && after.Received-before.Received == int64(len(request)-2) {
		got := make([]byte, len(request)-2)
		if _, err := d.box.ReadAt(got, after.Missing-int64(len(got))); after.Missing == after.Received && (err != nil && err != io.EOF || !bytes.Equal(got, request[2:])) {
			d.t.Fatalf("36 was acknowledged, and other bytes are there: %v", err)
		}
	}
	if request[0] == 0x10 || request[0] == 0x11 {
		now := d.ask([]byte{0x22, 0xF1, 0x86})
		d.programming = len(now) == 4 && now[3] == 2
		if quiet := len(request) == 2 && request[1]&0x80 != 0 && len(answer) == 0; positive || quiet || !d.programming {
			d.unlocked = false // a session begins locked (ISO 14229-1, 10.2)
		}
	}
}
