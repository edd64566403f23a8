package overcan_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/source/can/profile"
)

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

// over is a device at the other end of a line.
func over(t *testing.T, l *line, cfg overcan.Config) *overcan.Device {
	t.Helper()
	cfg.Dial = func(context.Context) (uds.Conn, error) { return l.open(true), nil }
	d, err := overcan.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var allRoutines = []uds.RID{profile.RIDPreconditions, profile.RIDErase, profile.RIDCheckMemory, profile.RIDDependencies}

func TestPlain(t *testing.T) {
	image := random(1, 10_000)
	for name, tt := range map[string]struct {
		ecu  *ecu
		want error
	}{
		"all routines":             {ecu: &ecu{routines: allRoutines}},
		"no routines":              {ecu: &ecu{}},
		"small blocks":             {ecu: &ecu{maxBlock: 130}},
		"forgets the transfer":     {ecu: &ecu{reset: 2, maxBlock: 1000}},
		"wants its maker's key":    {ecu: &ecu{locked: true}, want: ota.ErrAuthentication},
		"preconditions do not":     {ecu: &ecu{routines: allRoutines, refuse: uds.ConditionsNotCorrect}, want: ota.ErrNotNow},
		"temperature is too high":  {ecu: &ecu{routines: allRoutines, refuse: uds.TemperatureTooHigh}, want: ota.ErrNotNow},
		"a condition of its maker": {ecu: &ecu{routines: allRoutines, refuse: 0xF0}, want: ota.ErrNotNow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				l := new(line)
				tt.ecu.serve(ctx, l)
				d := over(t, l, overcan.Config{})
				defer d.Close()
				var done int64
				err := d.SendPlain(ctx, bytes.NewReader(image), int64(len(image)), overcan.Plain{Address: 0x8000}, push.Tell{Progress: func(n int64) { done = n }})
				synctest.Wait() // it restarts after its answer
				if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
					t.Fatalf("got %v, want %v\n%v", err, tt.want, l.log)
				}
				if tt.want != nil {
					if tt.ecu.memory != nil || tt.ecu.resets != 0 {
						t.Errorf("refused, and yet %d bytes were written and it was restarted %d times", len(tt.ecu.memory), tt.ecu.resets)
					}
					return
				}
				if !bytes.Equal(tt.ecu.memory, image) || tt.ecu.address != 0x8000 {
					t.Errorf("got %d bytes at %#x, want %d at 0x8000", len(tt.ecu.memory), tt.ecu.address, len(image))
				}
				if tt.ecu.resets != 1 || done != int64(len(image)) {
					t.Errorf("got %d restarts and progress %d, want 1 and %d", tt.ecu.resets, done, len(image))
				}
				if !slices.Equal(tt.ecu.asked, tt.ecu.routines) {
					t.Errorf("got routines %04X, want %04X", tt.ecu.asked, tt.ecu.routines)
				}
				if want := []byte{0x44, 0, 0, 0x80, 0, 0, 0, 0x27, 0x10}; tt.ecu.erased != nil && !bytes.Equal(tt.ecu.erased, want) {
					t.Errorf("got % X erased, want % X", tt.ecu.erased, want)
				}
			})
		})
	}
}

// Every PDU of a plain transfer is lost once, in either direction.
func TestPlainEachLost(t *testing.T) {
	image := random(2, 2_000)
	runs := 0
	for k := 0; ; k++ {
		happened := false
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l := &line{fault: func(n int, _ bool, _ []byte) verdict {
				if n == k {
					happened = true
					return lose
				}
				return pass
			}}
			e := &ecu{routines: allRoutines, maxBlock: 300}
			e.serve(ctx, l)
			d := over(t, l, overcan.Config{})
			defer d.Close()
			began := time.Now()
			if err := d.SendPlain(ctx, bytes.NewReader(image), int64(len(image)), overcan.Plain{}, push.Tell{}); err != nil {
				t.Fatalf("PDU %d lost: %v\n%v", k, err, l.log)
			}
			synctest.Wait()
			if !bytes.Equal(e.memory, image) {
				t.Errorf("PDU %d lost: other bytes arrived", k)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("PDU %d lost: took %v, want less than 10 s", k, took)
			}
		})
		if !happened {
			break
		}
		runs++
	}
	if runs < 30 {
		t.Errorf("got %d PDUs, want at least 30", runs)
	}
	t.Logf("%d PDUs, each lost once", runs)
}
