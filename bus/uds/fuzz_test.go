package uds_test

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// FuzzParse: no bytes make a Parse function panic; what it reads, it writes and reads
// again as the same.
func FuzzParse(f *testing.F) {
	for i, c := range messages {
		f.Add(i, unhex(f, c.hex))
	}
	f.Fuzz(func(t *testing.T, kind int, pdu []byte) {
		c := messages[uint(kind)%uint(len(messages))]
		m, err := c.parse(pdu)
		if err != nil {
			if !errors.Is(err, uds.ErrMessage) {
				t.Errorf("% X: %v is not ErrMessage", pdu, err)
			}
			return
		}
		if a, ok := m.(uds.AuthenticationRequest); ok && a.Task != 0 && a.Task != 5 && a.Task != 6 && a.Task != 8 {
			return // only its head is read
		}
		if a, ok := m.(uds.SessionAnswer); ok && len(pdu) == 2 && a.P2 == 0 {
			return // written with times
		}
		written := m.Append(nil)
		again, err := c.parse(written)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("% X: read as %+v, written as % X, read as %+v, %v", pdu, m, written, again, err)
		}
	})
}

// script packs requests for FuzzServer.
func script(pdus ...string) []byte {
	var b []byte
	for _, pdu := range pdus {
		raw := []byte(pdu)
		b = append(b, 0, byte(len(raw)))
		b = append(b, raw...)
	}
	return b
}

// FuzzServer: any requests, of two testers, at any times. Each is answered at most once
// but for ResponsePending, data come to the handler only within a transfer that was
// allowed, and in the end nothing is open. The first byte of a step says who asks, how
// much time passes and how long the handler takes; the second how long the request is.
func FuzzServer(f *testing.F) {
	raw := func(all []string) []string {
		for i, s := range all {
			all[i] = string(unhex(f, s))
		}
		return all
	}
	f.Add(script(raw(sequence())...))
	f.Add(script(raw([]string{"10 02", "27 01", "27 02" + keyOf(1, 2, 3, 1), "38 06 00 01 61 00 01 0C 0C", "36 01 00 01", "36 01 00 01", "37", "37", "10 01"})...))
	f.Add(script(raw([]string{"10 03", "29 05 00" + strings.Repeat("00", 16), "29 06" + strings.Repeat("00", 16) + "0001 00 0000 0000", "27 01", "27 02 00", "11 01"})...))
	f.Fuzz(func(t *testing.T, input []byte) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, &uds.Server{MaxBlock: 64, MaxRun: 20 * time.Second})
			defer b.stop()
			testers := []*tester{b.join("F1"), b.join("F2")}
			for steps := 0; len(input) >= 2 && steps < 100; steps++ {
				op, n := input[0], int(input[1])
				input = input[2:]
				pdu := input[:min(n, len(input))]
				input = input[len(pdu):]
				x := testers[op&1]
				if op&8 != 0 {
					b.d.mu.Lock()
					b.d.delay = func(string) time.Duration { return time.Duration(op>>4) * 2 * time.Second }
					b.d.mu.Unlock()
				}
				conn := x.conn
				if op&2 != 0 {
					conn = x.functional
				}
				conn.Send(t.Context(), pdu)
				synctest.Wait()
				finals := 0
				for answer := x.within(0); answer != ""; answer = x.within(0) {
					if !strings.HasPrefix(answer, "7F") || !strings.HasSuffix(answer, "78") {
						finals++
					}
					if len(answer) > 2*64 {
						t.Errorf("% X: an answer of %d bytes, want at most 64", pdu, len(answer)/2)
					}
				}
				if finals > 1 && op&4 == 0 {
					t.Errorf("% X: %d answers", pdu, finals)
				}
				if op&4 != 0 {
					time.Sleep(time.Duration(op>>4) * 600 * time.Millisecond)
					synctest.Wait()
					for _, x := range testers {
						for x.within(0) != "" {
							continue
						}
					}
				}
				b.d.mu.Lock()
				b.d.delay = nil
				if b.d.open > 1 || len(b.d.memory) > 1<<16 {
					t.Errorf("%d transfers are open, of %d bytes", b.d.open, len(b.d.memory))
				}
				b.d.mu.Unlock()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			b.d.mu.Lock()
			if b.d.open != 0 {
				t.Errorf("%d transfers are open after S3", b.d.open)
			}
			b.d.mu.Unlock()
			for _, x := range testers {
				for x.within(0) != "" {
					continue
				}
				x.must("22 FD 00", "62 FD 00 01 00")
			}
		})
	})
}

// FuzzClient: any answers at all. Each call ends, and what it returns without an error
// came in an answer to it.
func FuzzClient(f *testing.F) {
	for _, c := range messages {
		f.Add(bytes.Repeat(append([]byte{byte(len(unhex(f, c.hex)))}, unhex(f, c.hex)...), 4))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		synctest.Test(t, func(t *testing.T) {
			near, far := newPipe()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					if _, err := far.Receive(ctx); err != nil {
						return
					}
					for range 2 {
						if len(input) > 0 {
							n := min(int(input[0]&0x1F), len(input)-1)
							far.Send(ctx, input[1:1+n])
							input = input[1+n:]
						}
					}
				}
			}()
			c := uds.NewClient(near, uds.ClientConfig{MaxPending: time.Minute})
			if data, err := c.ReadData(ctx, 0xF195); err == nil && data == nil {
				t.Error("no data and no error")
			}
			c.DiagnosticSession(ctx, uds.Programming)
			c.RequestSeed(ctx, 1, nil)
			c.SendKey(ctx, 1, []byte{1})
			c.Challenge(ctx, uds.Algorithm{})
			c.Prove(ctx, uds.AuthenticationRequest{})
			c.Routine(ctx, uds.StartRoutine, uds.EraseMemory, nil)
			if n, err := c.RequestDownload(ctx, uds.DownloadRequest{Size: 10}); err == nil && n < 1 {
				t.Errorf("blocks of %d bytes", n)
			}
			c.TransferData(ctx, 1, []byte{1})
			c.TransferExit(ctx, nil)
			if a, err := c.RequestFile(ctx, uds.FileRequest{Mode: uds.ResumeFile, Name: "a"}); err == nil && a.Mode != uds.ResumeFile {
				t.Errorf("an answer to another mode: %+v", a)
			}
			c.ReadSeveral(ctx, func(uds.DID) int { return 3 }, 1, 2)
			c.TesterPresent(ctx)
			c.Reset(ctx, uds.HardReset)
			c.Close()
			cancel()
			<-done
		})
	})
}
