package uds_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
)

// TestRightKeyCounts: a right key forgives the wrong ones before it.
func TestRightKeyCounts(t *testing.T) {
	run(t, &uds.Server{}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		for range 3 {
			for range 2 {
				x.must("27 01", "67 01 01 02 03 01")
				x.must("27 02 00", "7F 27 35")
			}
			x.must("27 01", "67 01 01 02 03 01")
			x.must("27 02"+keyOf(1, 2, 3, 1), "67 02")
			x.must("10 03", inExtended) // locked again
		}
	})
}

// TestLongAnswer: an answer that is longer than the tester may expect is none.
func TestLongAnswer(t *testing.T) {
	run(t, &uds.Server{MaxBlock: 8}, func(b *bench, x *tester) {
		x.must("10 03", inExtended)
		x.must("29 05 00"+strings.Repeat("00", 16), "7F 29 14")
	})
}

// TestAccess: who needs what is a table.
func TestAccess(t *testing.T) {
	open := uds.DefaultAccess()
	open[uds.RequestDownload] = uds.Access{Sessions: []uds.Session{uds.Programming}}
	open[uds.ReadDataByIdentifier] = uds.Access{Unlocked: true}
	open[uds.SecurityAccess] = uds.Access{}
	run(t, &uds.Server{Access: open}, func(b *bench, x *tester) {
		x.must("22 F1 95", "7F 22 33")
		x.must("27 01", "7F 27 7F") // in no case without a session
		x.must("10 02", inProgramming)
		x.must("34 00 11 00 08", "74 20 0F FF")
		x.must("36 01 00", "7F 36 33")
		b.d.illegal = nil // it was told to allow it
	})
}

func TestNoConnection(t *testing.T) {
	if err := (&uds.Server{}).Serve(t.Context(), uds.Tester{}); err == nil {
		t.Error("served a tester without a connection")
	}
}

// TestStaleAnswer: an answer that came after its request was given up is not that of the
// same request, asked again later.
func TestStaleAnswer(t *testing.T) {
	scripted(t, uds.ClientConfig{Repeats: -1}, func(n int, request string) []string {
		if n == 0 {
			return []string{"62F19501 in 600ms"}
		}
		return []string{"62F19502"}
	}, func(t *testing.T, c *uds.Client, line *pipe) {
		if _, err := c.ReadData(t.Context(), 0xF195); !errors.Is(err, uds.ErrNoAnswer) {
			t.Errorf("got %v, want %v", err, uds.ErrNoAnswer)
		}
		time.Sleep(time.Second)
		got, err := c.ReadData(t.Context(), 0xF195)
		if want := []byte{2}; err != nil || !bytes.Equal(got, want) {
			t.Errorf("got % X, %v; want % X", got, err, want)
		}
	})
}

// TestQuietPending: whoever was asked for patience must be told how it ended.
func TestQuietPending(t *testing.T) {
	pending := func(int, string) []string { return []string{"7F3178"} }
	scripted(t, uds.ClientConfig{}, pending, func(t *testing.T, c *uds.Client, line *pipe) {
		if _, err := c.Request(t.Context(), unhex(t, "3181FF00")); !errors.Is(err, uds.ErrNoAnswer) {
			t.Errorf("got %v, want %v", err, uds.ErrNoAnswer)
		}
	})
}

// TestRefusedOnce: a refusal is an answer, and not asked for again.
func TestRefusedOnce(t *testing.T) {
	refused := func(int, string) []string { return []string{"7F2231"} }
	scripted(t, uds.ClientConfig{}, refused, func(t *testing.T, c *uds.Client, line *pipe) {
		if _, err := c.ReadData(t.Context(), 1); !errors.Is(err, uds.RequestOutOfRange) {
			t.Errorf("got %v, want %v", err, uds.RequestOutOfRange)
		}
		if got, want := len(line.log()), 1; got != want {
			t.Errorf("sent %d times, want %d", got, want)
		}
	})
}
