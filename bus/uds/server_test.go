package uds_test

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// bench is a server with the fake device, and its testers.
type bench struct {
	t      *testing.T
	d      *device
	server *uds.Server
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	ends   []error // of Serve
}

// tester is one of them, who sends bytes.
type tester struct {
	t          *testing.T
	conn       *pipe
	functional *pipe
}

func newBench(t *testing.T, server *uds.Server) *bench {
	t.Helper()
	b := &bench{t: t, d: &device{}, server: server}
	if server.Handler == nil {
		server.Handler = b.d
	}
	return b
}

// run runs a test in simulated time.
func run(t *testing.T, server *uds.Server, test func(b *bench, x *tester)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, server)
		x := b.join("F1")
		defer b.stop()
		test(b, x)
	})
}

func (b *bench) join(name string) *tester {
	near, far := newPipe()
	nearAll, farAll := newPipe()
	ctx, cancel := context.WithCancel(context.Background())
	if before := b.cancel; before == nil {
		b.cancel = cancel
	} else {
		b.cancel = func() { before(); cancel() }
	}
	b.done.Go(func() {
		err := b.server.Serve(ctx, uds.Tester{Name: name, Conn: far, Functional: farAll})
		b.mu.Lock()
		defer b.mu.Unlock()
		b.ends = append(b.ends, err)
	})
	return &tester{b.t, near, nearAll}
}

func (b *bench) stop() {
	b.cancel()
	b.done.Wait()
	for _, err := range b.ends {
		if err != nil {
			b.t.Errorf("Serve: %v", err)
		}
	}
	b.d.mu.Lock()
	defer b.d.mu.Unlock()
	if b.d.open != 0 || b.d.most > 1 {
		b.t.Errorf("%d transfers are open, %d at most; want 0 and 1", b.d.open, b.d.most)
	}
	if len(b.d.illegal) > 0 {
		b.t.Errorf("calls that should not have been: %q", b.d.illegal)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// within returns the next answer, "" if there is none in time.
func (x *tester) within(d time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	pdu, err := x.conn.Receive(ctx)
	if err != nil {
		return ""
	}
	return strings.ToUpper(hex.EncodeToString(pdu))
}

// tell sends a request; ask waits for its answer, which comes at once or not at all.
func (x *tester) tell(pdu string) { x.conn.Send(context.Background(), unhex(x.t, pdu)) }
func (x *tester) ask(pdu string) string {
	x.tell(pdu)
	return x.within(20 * time.Millisecond)
}
func (x *tester) askAll(pdu string) string {
	x.functional.Send(context.Background(), unhex(x.t, pdu))
	return x.within(20 * time.Millisecond)
}

// must asks, and wants this answer.
func (x *tester) must(pdu, want string) {
	x.t.Helper()
	if got := x.ask(pdu); got != strings.ReplaceAll(want, " ", "") {
		x.t.Fatalf("%s: got %s, want %s", pdu, got, want)
	}
}

const (
	inExtended    = "50 03 00 32 01 F4"
	inProgramming = "50 02 00 32 01 F4"
	inDefault     = "50 01 00 32 01 F4"
)

func keyOf(seed ...byte) string { return strings.ToUpper(hex.EncodeToString(key(seed))) }

// program brings a tester to where it may download.
func (x *tester) program() {
	x.t.Helper()
	x.must("10 03", inExtended)
	x.must("10 02", inProgramming)
	x.must("27 01", "67 01 01 02 03 01")
	x.must("27 02"+keyOf(1, 2, 3, 1), "67 02")
}

// TestAnswers: every service, and every code that the server itself gives, where it does.
func TestAnswers(t *testing.T) {
	const (
		extended    = "10 03"
		programming = "10 02"
		seed        = "27 01"
		download    = "34 00 44 00 00 00 00 00 00 00 08"
	)
	unlock := "27 02" + keyOf(1, 2, 3, 1)
	unlocked := []string{programming, seed, unlock}
	began := append(slices.Clone(unlocked), download)
	algorithm := strings.Repeat("00", 16)
	proof := "29 06" + algorithm + "0008" + hex.EncodeToString(key([]byte("challenge"))) + "0000 0000"
	name := "00 01 61"

	for _, c := range []struct {
		before  []string
		request string
		want    string
	}{
		{nil, "10 01", inDefault},
		{nil, "10 03", inExtended},
		{nil, "10 02", inProgramming},
		{nil, "10 81", ""},
		{nil, "10 83", ""},
		{nil, "10", "7F 10 13"},
		{nil, "10 03 00", "7F 10 13"},
		{nil, "10 00", "7F 10 12"},
		{nil, "10 7E", "7F 10 12"},
		{nil, "10 FE", "7F 10 12"}, // a negative answer comes, wanted or not
		{nil, "14 FF FF FF", "7F 14 11"},
		{nil, "35 00 44 00 00 00 00 00 00 00 08", "7F 35 11"},
		{nil, "50 01", ""}, // answers are not answered
		{nil, "7F 10 12", ""},
		{nil, "C0", ""},
		{nil, "00", ""},

		{nil, "11 01", "7F 11 7F"},
		{[]string{extended}, "11 01", "51 01"},
		{[]string{extended}, "11 81", ""},
		{[]string{extended}, "11 04", "51 04 FF"},
		{[]string{extended}, "11 00", "7F 11 12"},
		{[]string{extended}, "11 05", "7F 11 12"},
		{[]string{extended}, "11", "7F 11 13"},
		{[]string{extended, "11 01"}, "11 01", "7F 11 7F"},

		{nil, "22 F1 95", "62 F1 95 31 2E 32 2E 33"},
		{nil, "22 F1 95 F1 8C", "62 F1 95 31 2E 32 2E 33 F1 8C 53 4E 2D 31"},
		{nil, "22 00 00 F1 8C", "62 F1 8C 53 4E 2D 31"},
		{nil, "22 00 00", "7F 22 31"},
		{nil, "22 F1", "7F 22 13"},
		{nil, "22", "7F 22 13"},
		{nil, "22 F1 95 F1", "7F 22 13"},
		{nil, "22 FD FF", "7F 22 14"},
		{nil, "22" + strings.Repeat("F195", 65), "7F 22 13"},
		{nil, "22 FD 00", "62 FD 00 01 00"},
		{unlocked, "22 FD 00", "62 FD 00 02 01"},

		{nil, "27 01", "7F 27 7F"},
		{[]string{extended}, "27 01", "67 01 01 02 03 01"},
		{[]string{extended}, "27 81", ""},
		{[]string{extended}, "27", "7F 27 13"},
		{[]string{extended}, "27 00", "7F 27 12"},
		{[]string{extended}, "27 7F", "7F 27 12"},
		{[]string{extended}, "27 05", "7F 27 12"},
		{[]string{extended}, unlock, "7F 27 24"},
		{[]string{extended, seed}, unlock, "67 02"},
		{[]string{extended, seed}, "27 04" + keyOf(1, 2, 3, 1), "7F 27 24"},
		{[]string{extended, seed}, "27 02", "7F 27 13"},
		{[]string{extended, seed}, "27 02 00", "7F 27 35"},
		{[]string{extended, seed, "27 02 00"}, unlock, "7F 27 24"}, // the seed was good for one key
		{[]string{extended, seed, "27 02 00", seed, "27 02 00", seed}, "27 02 00", "7F 27 36"},
		{[]string{extended, seed, "27 02 00", seed, "27 02 00", seed, "27 02 00"}, seed, "7F 27 37"},
		{unlocked, seed, "67 01 00 00 00 00"},
		{append(slices.Clone(unlocked), programming), seed, "67 01 01 02 03 01"}, // locked again
		{unlocked, "27 03", "67 03 01 02 03 03"},

		{nil, "28 01 01", "7F 28 7F"},
		{[]string{extended}, "28 01 01", "68 01"},
		{[]string{extended}, "28 81 01", ""},
		{[]string{extended}, "28 04 01 00 05", "68 04"},
		{[]string{extended}, "28 04 01", "7F 28 13"},
		{[]string{extended}, "28 01 01 00", "7F 28 13"},
		{[]string{extended}, "28 06 01", "7F 28 12"},
		{[]string{extended}, "28", "7F 28 13"},

		{nil, "29 08", "7F 29 7F"},
		{[]string{extended}, "29 08", "69 08 03"},
		{[]string{extended}, "29 00", "69 00 10"},
		{[]string{extended}, "29 01", "7F 29 12"},
		{[]string{extended}, "29", "7F 29 13"},
		{[]string{extended}, "29 08 00", "7F 29 13"},
		{[]string{extended}, "29 05 00", "7F 29 13"},
		{[]string{extended}, "29 05 00" + algorithm, "69 05 00" + algorithm + "0009" + strings.ToUpper(hex.EncodeToString([]byte("challenge"))) + "0000"},
		{[]string{extended}, proof, "7F 29 24"},
		{[]string{extended, "29 05 00" + algorithm}, "29 06" + strings.Repeat("01", 16) + "0001 00 0000 0000", "7F 29 24"},
		{[]string{extended, "29 05 00" + algorithm}, "29 06" + algorithm + "0001 00 0000 0000", "7F 29 51"},
		{[]string{extended, "29 05 00" + algorithm}, "29 06" + algorithm + "0009 00", "7F 29 13"},
		{[]string{extended, "29 05 00" + algorithm}, proof, "69 06 12" + algorithm + "0000"},
		{[]string{extended, "29 05 00" + algorithm, proof}, proof, "7F 29 24"},
		{[]string{extended, "29 05 00" + algorithm, proof, programming}, download, "74 20 0F FF"}, // who one is stays
		{[]string{extended, "29 05 00" + algorithm, proof, "10 01", programming}, download, "7F 34 33"},
		{[]string{extended, "29 05 00" + algorithm, proof, programming, "29 00"}, download, "7F 34 33"},

		{nil, "2E FD 10 01", "7F 2E 7F"},
		{[]string{extended}, "2E FD 10 01", "7F 2E 33"},
		{unlocked, "2E FD 10 01", "6E FD 10"},
		{unlocked, "2E FD 10", "7F 2E 13"},
		{unlocked, "2E FD 11 01", "7F 2E 31"},

		{nil, "31 01 FF 00", "71 01 FF 00 00"},
		{nil, "31 81 FF 00", ""},
		{nil, "31 03 02 03 05", "71 03 02 03 00"},
		{nil, "31 04 FF 00", "7F 31 12"},
		{nil, "31 00 FF 00", "7F 31 12"},
		{nil, "31 01 FF", "7F 31 13"},
		{nil, "31 01 12 34", "7F 31 31"},

		{nil, download, "7F 34 7F"},
		{[]string{extended}, download, "7F 34 7F"},
		{[]string{programming}, download, "7F 34 33"},
		{unlocked, download, "74 20 0F FF"},
		{began, download, "74 20 0F FF"},
		{unlocked, "34 00 44 00", "7F 34 13"},
		{unlocked, "34 00 44 00 00 00 00 00 00 08", "7F 34 13"},
		{unlocked, "34 00 04 00 00 00 00", "7F 34 31"},
		{unlocked, "34 00 19 01 00 00 00 00 00 00 00 00 08", "7F 34 31"},
		{unlocked, "34 00 44 FF 00 00 00 00 00 00 08", "7F 34 31"},

		{nil, "36 01 00", "7F 36 7F"},
		{[]string{programming}, "36 01 00", "7F 36 33"},
		{unlocked, "36 01 00", "7F 36 24"},
		{began, "36 01 00", "76 01"},
		{began, "36", "7F 36 13"},
		{began, "36 01", "7F 36 13"},
		{began, "36 01" + strings.Repeat("00", 4094), "7F 36 13"},
		{began, "36 00 00", "7F 36 73"},
		{began, "36 02 00", "7F 36 73"},
		{began, "36 01 00 00 00 00 00 00 00 00 00", "7F 36 71"},
		{append(slices.Clone(began), "36 01 00"), "36 01 00", "76 01"},
		{append(slices.Clone(began), "36 01 00"), "36 03 00", "7F 36 73"},
		{append(slices.Clone(began), "36 01 00", "10 02"), "36 02 00", "7F 36 33"},

		{nil, "37", "7F 37 7F"},
		{[]string{programming}, "37", "7F 37 33"},
		{unlocked, "37", "7F 37 24"},
		{began, "37", "7F 37 24"}, // not all has come
		{append(slices.Clone(began), "36 01 00 01 02 03 04 05 06 07"), "37", "77"},
		{append(slices.Clone(began), "36 01 00 01 02 03 04 05 06 07", "37"), "37", "77"},
		{append(slices.Clone(began), "36 01 00 01 02 03 04 05 06 07", "37", "22 F1 95"), "37", "7F 37 24"},
		{append(slices.Clone(began), "36 01 00 01 02 03 04 05 06 07", "37"), "36 02 00", "7F 36 24"},

		{nil, "38 02" + name, "7F 38 7F"},
		{[]string{programming}, "38 02" + name, "7F 38 33"},
		{unlocked, "38 02" + name, "78 02"},
		{unlocked, "38 01" + name + "00 01 08 08", "78 01 02 0F FF 00"},
		{unlocked, "38 03" + name + "00 01 08 08", "78 03 02 0F FF 00"},
		{unlocked, "38 04" + name + "00", "78 04 02 0F FF 00 00 04 00 00 00 06 00 00 00 06"},
		{unlocked, "38 05" + name, "78 05 02 0F FF 00 00 04 00 00 00 00"},
		{unlocked, "38 06" + name + "00 01 20 20", "78 06 02 0F FF 00 00 00 00 00 00 00 00 0A"},
		{unlocked, "38 06" + name + "00 01 09 09", "7F 38 31"}, // the server has more than there is
		{unlocked, "38 07" + name, "7F 38 31"},
		{unlocked, "38 02 00 00", "7F 38 13"},
		{unlocked, "38 02 00 05 61", "7F 38 13"},
		{unlocked, "38 02" + name + "00", "7F 38 13"},
		{unlocked, "38 01" + name + "00", "7F 38 13"},
		{unlocked, "38 01" + name + "00 01 08", "7F 38 13"},
		{unlocked, "38 01" + name + "00 09 010000000000000000 010000000000000000", "7F 38 31"},
		{append(slices.Clone(unlocked), "38 04"+name+"00"), "36 01", "76 01 61 62 63"},
		{append(slices.Clone(unlocked), "38 04"+name+"00", "36 01"), "36 01", "76 01 61 62 63"},
		{append(slices.Clone(unlocked), "38 04"+name+"00", "36 01"), "36 02", "76 02 64 65 66"},
		{append(slices.Clone(unlocked), "38 06"+name+"00 01 0C 0C", "36 01 00 01"), "37", "77"},

		{nil, "3E 00", "7E 00"},
		{nil, "3E 80", ""},
		{nil, "3E 01", "7F 3E 12"},
		{nil, "3E 81", "7F 3E 12"},
		{nil, "3E", "7F 3E 13"},
		{nil, "3E 00 00", "7F 3E 13"},

		{nil, "85 02", "7F 85 7F"},
		{[]string{extended}, "85 02", "C5 02"},
		{[]string{extended}, "85 82", ""},
		{[]string{extended}, "85 01 FF FF FF", "C5 01"},
		{[]string{extended}, "85 03", "7F 85 12"},
		{[]string{extended}, "85 00", "7F 85 12"},
		{[]string{extended}, "85", "7F 85 13"},
	} {
		run(t, &uds.Server{}, func(b *bench, x *tester) {
			for _, pdu := range c.before {
				x.ask(pdu)
				synctest.Wait() // a reset comes after its answer
			}
			if got, want := x.ask(c.request), strings.ReplaceAll(c.want, " ", ""); got != want {
				t.Errorf("%q, then %.40s: got %.60s, want %.60s", c.before, c.request, got, want)
			}
		})
	}
}

// TestFunctional: what only says that another server was meant is not said to a request
// to all (ISO 14229-1:2020, tables 6 and 7).
func TestFunctional(t *testing.T) {
	for request, want := range map[string]string{
		"22 F1 95": "62 F1 95 31 2E 32 2E 33",
		"22 00 00": "",         // 31
		"14":       "",         // 11
		"10 7E":    "",         // 12
		"11 01":    "",         // 7F
		"22 F1":    "7F 22 13", // all else is said
		"3E 00":    "7E 00",
		"3E 80":    "",
		"10 03":    inExtended,
	} {
		run(t, &uds.Server{}, func(b *bench, x *tester) {
			if got := x.askAll(request); got != strings.ReplaceAll(want, " ", "") {
				t.Errorf("%s to all: got %s, want %s", request, got, want)
			}
		})
	}
	// After patience was asked for, the tester is told in any case.
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		b.d.delay = func(string) time.Duration { return time.Second }
		x.functional.Send(b.t.Context(), unhex(t, "22 00 00"))
		if got, want := x.within(time.Second), "7F2278"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := x.within(2*time.Second), "7F2231"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		x.tell("31 81 FF 00")
		if got, want := x.within(time.Second), "7F3178"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := x.within(2*time.Second), "7101FF0000"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// bare is a handler that serves nothing.
type bare struct{}

func TestBareHandler(t *testing.T) {
	run(t, &uds.Server{Handler: bare{}}, func(b *bench, x *tester) {
		for _, s := range []string{"11 01", "22 F1 95", "27 01", "28 01 01", "29 08", "2E FD 10 00", "31 01 FF 00", "34 00 11 00 01", "36 01 00", "37", "38 02 00 01 61", "85 02"} {
			x.must(s, "7F"+s[:2]+"11")
		}
		x.must("10 03", "7F 10 12")
		x.must("10 01", inDefault)
		x.must("3E 00", "7E 00")
	})
}

// TestHandlersCode: the tester is told the code that the handler gives, for each code.
func TestHandlersCode(t *testing.T) {
	for n := range 256 {
		code := uds.NRC(n)
		want := code
		if !code.Valid() {
			want = uds.ConditionsNotCorrect
		}
		run(t, &uds.Server{}, func(b *bench, x *tester) {
			b.d.fail = func(string) error { return errors.Join(errors.New("a reason"), code) }
			x.must("31 01 FF 00", "7F 31"+strings.ToUpper(hex.EncodeToString([]byte{byte(want)})))
		})
	}
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		x.program()
		x.must("34 00 11 00 08", "74 20 0F FF")
		b.d.fail = func(string) error { return errors.New("the disk is full") }
		x.must("36 01 00", "7F 36 72")
		b.d.fail = nil
		x.must("36 01 01", "76 01") // it was not taken, and may come again
		x.must("36 02 02", "76 02")
	})
}

// TestWrap: the counter goes from FF to 00, and each block is taken once, however often
// it comes.
func TestWrap(t *testing.T) {
	run(t, &uds.Server{MaxBlock: 8}, func(b *bench, x *tester) {
		x.program()
		x.must("34 00 22 00 00 02 58", "74 20 00 08")
		var want []byte
		for i := 1; i <= 600; i++ {
			pdu := hex.EncodeToString([]byte{0x36, byte(i), byte(i >> 3)})
			for range 1 + i%3 {
				x.must(pdu, "76"+strings.ToUpper(hex.EncodeToString([]byte{byte(i)})))
			}
			want = append(want, byte(i>>3))
		}
		x.must("37", "77")
		if got := b.d.done[0]; !slices.Equal(got, want) {
			t.Errorf("got %d bytes that differ, want %d", len(got), len(want))
		}
	})
}
