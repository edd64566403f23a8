package uds_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// image is what is programmed: three blocks of 6 bytes, and a short one.
var image = []byte("abcdefghijklmnopqrst")

// again does a step until it has an answer, and begins again what came out of step.
func again(step func() error) error {
	var err error
	for range 4 {
		if err = step(); !errors.Is(err, uds.ErrNoAnswer) &&
			!errors.Is(err, uds.RequestSequenceError) && !errors.Is(err, uds.WrongBlockSequenceCounter) {
			break
		}
	}
	return err
}

// reprogram is the whole sequence as a careful tester does it.
func reprogram(ctx context.Context, c *uds.Client) error {
	routine := func(rid uds.RID) func() error {
		return func() error { _, err := c.Routine(ctx, uds.StartRoutine, rid, nil); return err }
	}
	enter := func(s uds.Session) func() error {
		return func() error { _, err := c.DiagnosticSession(ctx, s); return err }
	}
	for _, step := range []func() error{
		enter(uds.Extended),
		routine(uds.CheckProgrammingPreconditions),
		func() error { return c.ControlDTC(ctx, uds.DTCRequest{Setting: 2}) },
		func() error { return c.ControlCommunication(ctx, uds.CommunicationRequest{Control: 1, Type: 1}) },
		enter(uds.Programming),
		func() error {
			seed, err := c.RequestSeed(ctx, 1, nil)
			if err != nil || bytes.Equal(seed, make([]byte, len(seed))) {
				return err
			}
			return c.SendKey(ctx, 1, key(seed))
		},
		routine(uds.EraseMemory),
		func() error { return download(ctx, c) },
		routine(uds.CheckMemory),
		routine(uds.CheckProgrammingDependencies),
		func() error {
			// Once: a server that has reset is not asked to do it again.
			if err := c.Reset(ctx, uds.HardReset); !errors.Is(err, uds.ErrNoAnswer) {
				return err
			}
			return nil
		},
	} {
		if err := again(step); err != nil {
			return err
		}
	}
	return nil
}

func download(ctx context.Context, c *uds.Client) error {
	var size int
	err := again(func() (err error) {
		size, err = c.RequestDownload(ctx, uds.DownloadRequest{Size: uint64(len(image))})
		return err
	})
	if err != nil {
		return err
	}
	counter := byte(1)
	for block := range slices.Chunk(image, size) {
		if _, err := c.TransferData(ctx, counter, block); err != nil {
			return err
		}
		counter++
	}
	return again(func() error { _, err := c.TransferExit(ctx, nil); return err })
}

// TestEveryMessageLost: each message of the sequence, in both directions, is lost, comes
// twice, or comes late, in turn. The image arrives whole, each block once.
func TestEveryMessageLost(t *testing.T) {
	type fault struct {
		name  string
		times int
		late  time.Duration
	}
	count := 0
	for _, f := range []fault{{"lost", 0, 0}, {"twice", 2, 0}, {"late", 1, time.Second}, {"very late", 1, 3 * time.Second}} {
		for _, fromServer := range []bool{false, true} {
			for index, more := 0, true; more; index++ {
				synctest.Test(t, func(t *testing.T) {
					near, far := newPipe()
					line := near
					if fromServer {
						line = far
					}
					n := 0
					line.verdict = func([]byte) int {
						if n++; n-1 == index && f.late == 0 {
							return f.times
						}
						return 1
					}
					line.late = func([]byte) time.Duration {
						if n-1 == index {
							return f.late
						}
						return 0
					}
					b := newBench(t, &uds.Server{MaxBlock: 8})
					ctx, cancel := context.WithCancel(t.Context())
					b.cancel = cancel
					b.done.Go(func() { b.ends = append(b.ends, b.server.Serve(ctx, uds.Tester{Conn: far})) })
					defer b.stop()
					c := uds.NewClient(near, uds.ClientConfig{})
					defer c.Close()
					if err := reprogram(t.Context(), c); err != nil {
						t.Errorf("message %d %s, from the server %v: %v", index, f.name, fromServer, err)
					}
					if len(b.d.done) == 0 || !bytes.Equal(b.d.done[len(b.d.done)-1], image) {
						t.Errorf("message %d %s, from the server %v: got %q, want %q", index, f.name, fromServer, b.d.done, image)
					}
					time.Sleep(10 * time.Second)
					synctest.Wait()
					more = n > index+1
					count++
				})
			}
		}
	}
	t.Logf("%d sequences", count)
	if count < 4*2*15 {
		t.Errorf("%d sequences only", count)
	}
}

// TestBlocksOnce: with every tenth message lost at random and others twice, no block is
// taken twice within a transfer, and none that was answered is missing.
func TestBlocksOnce(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			near, far := newPipe()
			state := seed*2862933555777941757 + 1
			chance := func([]byte) int {
				state = state*6364136223846793005 + 1442695040888963407
				switch v := state >> 33 % 10; v {
				case 0:
					return 0
				case 1:
					return 2
				default:
					return 1
				}
			}
			far.verdict, near.verdict = chance, nil
			b := newBench(t, &uds.Server{MaxBlock: 8})
			ctx, cancel := context.WithCancel(t.Context())
			b.cancel = cancel
			b.done.Go(func() { b.ends = append(b.ends, b.server.Serve(ctx, uds.Tester{Conn: far})) })
			defer b.stop()
			c := uds.NewClient(near, uds.ClientConfig{Repeats: 8})
			defer c.Close()
			if err := reprogram(t.Context(), c); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if !bytes.Equal(b.d.done[len(b.d.done)-1], image) {
				t.Errorf("seed %d: got %q, want %q", seed, b.d.done, image)
			}
		})
	}
}

// sequence is the same as raw requests, which a tester may stop after.
func sequence() []string {
	all := []string{"22 F1 95", "10 03", "31 01 02 03", "85 02", "28 01 01", "10 02", "27 01", "27 02" + keyOf(1, 2, 3, 1), "31 01 FF 00", "34 00 44 00 00 00 00 00 00 00 14"}
	counter := 1
	for block := range slices.Chunk(image, 6) {
		all = append(all, fmt.Sprintf("36 %02X %X", counter, block))
		counter++
	}
	return append(all, "37", "31 01 02 02", "31 01 FF 01", "11 01")
}

// TestTesterStops: after every request, answered or still worked on, the tester goes
// away. After S3 the server is as it was, and another tester does it all.
func TestTesterStops(t *testing.T) {
	requests := sequence()
	for stop := range len(requests) + 1 {
		for _, working := range []bool{false, true} {
			run(t, &uds.Server{MaxBlock: 8}, func(b *bench, x *tester) {
				for i, pdu := range requests[:stop] {
					if working && i == stop-1 {
						b.d.delay = func(string) time.Duration { return 3 * time.Second }
						x.tell(pdu)
						time.Sleep(3 * time.Second)
						synctest.Wait()
						b.d.delay = nil
						for x.within(0) != "" {
							continue // what nobody was there for
						}
						break
					}
					if got := x.ask(pdu); got == "" || got[:2] == "7F" {
						t.Fatalf("%s: got %s", pdu, got)
					}
				}
				other := b.join("F2")
				time.Sleep(5 * time.Second)
				synctest.Wait()
				b.d.mu.Lock()
				open, ended := b.d.open, slices.Clone(b.d.ended)
				b.d.mu.Unlock()
				if open != 0 {
					t.Errorf("stopped after %d: %d transfers are open", stop, open)
				}
				if inSession := stop > 1; inSession != (len(ended) == 1) {
					t.Errorf("stopped after %d: ends: %v", stop, ended)
				}
				other.must("22 FD 00", "62 FD 00 01 00")
				x.must("22 FD 00", "62 FD 00 01 00")
				if stop > 9 {
					x.must("36 01 00", "7F 36 7F")
				}
				for _, pdu := range requests {
					if got := other.ask(pdu); got == "" || got[:2] == "7F" {
						t.Fatalf("stopped after %d, then another: %s: got %s", stop, pdu, got)
					}
				}
				if got := b.d.done[len(b.d.done)-1]; !bytes.Equal(got, image) {
					t.Errorf("stopped after %d: the other brought %q, want %q", stop, got, image)
				}
			})
		}
	}
}
