package uds_test

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/crash"
	"github.com/interlock-energy/ota/bus/crash/crashtest"
	"github.com/interlock-energy/ota/bus/uds"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

// TestPanic has the handler panic in each service: the tester is told, and is back in the default session, without
// a transfer and locked; and it, and another tester, are served as before.
func TestPanic(t *testing.T) {
	const download = "34 00 44 00 00 00 00 00 00 00 08"
	algorithm := strings.Repeat("00", 16)
	proof := "29 06" + algorithm + "0008" + hex.EncodeToString(key([]byte("challenge"))) + "0000 0000"
	for _, c := range []struct {
		what    string // the call of the handler that panics
		before  []string
		request string
		code    string
	}{
		{"enter safety", nil, "10 04", "10"},
		{"prepare reset", nil, "11 01", "10"},
		{"read F195", nil, "22 F1 95", "10"},
		{"write", nil, "2E FD 10 01", "72"},
		{"seed 3", nil, "27 03", "10"},
		{"key 3", []string{"27 03"}, "27 04" + keyOf(1, 2, 3, 3), "10"},
		{"challenge", nil, "29 0500" + algorithm, "10"},
		{"proof", []string{"29 0500" + algorithm}, proof, "10"},
		{"communication", nil, "28 03 01", "10"},
		{"dtc", nil, "85 02", "10"},
		{"routine", nil, "31 01 FF 00", "72"},
		{"download", nil, download, "10"},
		{"file", nil, "38 01 00 01 61 00 01 08 08", "10"},
		{"data", []string{download}, "36 01 01 02", "72"},
		{"exit", []string{download, "36 01 01 02 03 04 05 06 07 08"}, "37", "72"},
	} {
		t.Run(c.what, func(t *testing.T) {
			log := crashtest.Expected()
			run(t, &uds.Server{Crashes: log}, func(b *bench, x *tester) {
				other := b.join("F2")
				x.program()
				for _, r := range c.before {
					if got := x.ask(r); got == "" || strings.HasPrefix(got, "7F") {
						t.Fatalf("%s: got %s", r, got)
					}
				}
				b.d.mu.Lock()
				b.d.fail = func(what string) error {
					if strings.HasPrefix(what, c.what) {
						panic("on purpose")
					}
					return nil
				}
				b.d.mu.Unlock()
				service := strings.ToUpper(c.request[:2])
				x.must(c.request, "7F "+service+c.code)
				if crashtest.Count(log) != 1 {
					t.Errorf("%d crashes are noted, want 1", crashtest.Count(log))
				}
				if got := b.d.endings(); !slices.Equal(got, []uds.End{uds.EndCrash}) {
					t.Errorf("ends of sessions: got %v, want %v", got, uds.EndCrash)
				}
				b.d.mu.Lock()
				if b.d.open != 0 {
					t.Errorf("%d transfers are open", b.d.open)
				}
				b.d.fail = nil
				b.d.mu.Unlock()
				for _, y := range []*tester{x, other} {
					y.must("22 FD 00", "62 FD 00 01 00") // default session, locked
					y.must("2E FD 10 01", "7F 2E 7F")
				}
				other.program()
				other.must(download, "74 20 0F FF")
			})
		})
	}
}

// TestPanicAfterReset is one that comes after the positive answer.
func TestPanicAfterReset(t *testing.T) {
	log := crashtest.Expected()
	run(t, &uds.Server{Crashes: log}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		b.d.mu.Lock()
		b.d.fail = func(what string) error {
			if strings.HasPrefix(what, "reset") {
				panic("on purpose")
			}
			return nil
		}
		b.d.mu.Unlock()
		x.must("11 01", "51 01")
		synctest.Wait()
		x.must("10 03", inExtended)
		if crashtest.Count(log) != 1 {
			t.Errorf("%d crashes are noted, want 1", crashtest.Count(log))
		}
	})
}

// TestPanicOfKeys: a key that makes the check panic is a wrong one, and wins no more attempts than that.
func TestPanicOfKeys(t *testing.T) {
	log := crashtest.Expected()
	run(t, &uds.Server{Crashes: log}, func(b *bench, x *tester) {
		b.d.fail = func(what string) error {
			if strings.HasPrefix(what, "key") {
				panic("on purpose")
			}
			return nil
		}
		for range 3 {
			x.must("10 03", inExtended)
			x.must("27 01", "67 01 01 02 03 01")
			x.must("27 02 01", "7F 27 10")
		}
		x.must("10 03", inExtended)
		x.must("27 01", "7F 27 37")
	})
}

// crashingAttempts is a fake disk that panics at first.
type crashingAttempts struct{ loads int }

func (a *crashingAttempts) Load() (int, error) {
	if a.loads++; a.loads < 3 {
		panic("on purpose")
	}
	return 0, nil
}
func (a *crashingAttempts) Save(int) error { return nil }

func TestPanicOfAttempts(t *testing.T) {
	log, attempts := crashtest.Expected(), new(crashingAttempts)
	run(t, &uds.Server{Crashes: log, Attempts: attempts}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		x.must("27 01", "7F 27 22")
		x.must("27 01", "67 01 01 02 03 01")
		if crashtest.Count(log) != 2 {
			t.Errorf("%d crashes are noted, want 2", crashtest.Count(log))
		}
	})
}

// crashingEnd is a fake handler that panics whenever something ends.
type crashingEnd struct{ *device }

func (crashingEnd) SessionEnded(uds.Call, uds.End) { panic("on purpose") }

func (d crashingEnd) Download(context.Context, uds.Call, uds.DownloadRequest) (uds.Transfer, error) {
	return crashingTransfer{}, nil
}

type crashingTransfer struct{ uds.Transfer }

func (crashingTransfer) Data(context.Context, uds.Call, []byte) ([]byte, error) { return nil, nil }
func (crashingTransfer) Close()                                                 { panic("on purpose") }

// TestPanicAtTheEnd: a session ends, whatever the handler does then.
func TestPanicAtTheEnd(t *testing.T) {
	log := crashtest.Expected()
	server := &uds.Server{Crashes: log, Handler: crashingEnd{new(device)}}
	run(t, server, func(b *bench, x *tester) {
		other := b.join("F2")
		x.program()
		x.must("34 00 44 00 00 00 00 00 00 00 08", "74 20 0F FF")
		time.Sleep(6 * time.Second) // S3
		synctest.Wait()
		if crashtest.Count(log) != 2 {
			t.Errorf("%d crashes are noted, want 2", crashtest.Count(log))
		}
		x.must("22 FD 00", "62 FD 00 01 00")
		other.must("10 03", inExtended)
	})
}

// crashingLine is a fake line that panics.
type crashingLine struct {
	*pipe
	receives, sends bool
}

func (c crashingLine) Receive(ctx context.Context) ([]byte, error) {
	if c.receives {
		panic("on purpose")
	}
	return c.pipe.Receive(ctx)
}

func (c crashingLine) Send(ctx context.Context, pdu []byte) error {
	if c.sends {
		panic("on purpose")
	}
	return c.pipe.Send(ctx, pdu)
}

// TestPanicOfLine: a line that panics ends Serve with an error, and the other testers go on.
func TestPanicOfLine(t *testing.T) {
	for _, sends := range []bool{false, true} {
		log := crashtest.Expected()
		run(t, &uds.Server{Crashes: log}, func(b *bench, x *tester) {
			near, far := newPipe()
			ended := make(chan error, 1)
			go func() {
				ended <- b.server.Serve(b.t.Context(), uds.Tester{Name: "F3", Conn: crashingLine{far, !sends, sends}})
			}()
			if sends {
				near.Send(b.t.Context(), unhex(b.t, "10 03"))
			}
			if err := <-ended; !errors.Is(err, crash.Err) {
				t.Errorf("sends %v: Serve: got %v, want one that says what panicked", sends, err)
			}
			x.must("10 03", inExtended)
		})
	}
}
