package can_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Every service in every session, with and without a key.
func TestServicesInSessions(t *testing.T) {
	const announce = "2E FD07 00000100 0000000000000000000000000000000000000000000000000000000000000000"
	for _, tt := range []struct {
		request string
		want    [4]string // default, extended, programming without and with a key
	}{
		{"10 01", [4]string{"5001", "5001", "5001", "5001"}},
		{"10 03", [4]string{"5003", "5003", "5003", "5003"}},
		{"10 02", [4]string{"5002", "5002", "5002", "5002"}},
		{"10 04", [4]string{"7F1012", "7F1012", "7F1012", "7F1012"}},
		{"11 01", [4]string{"7F117F", "7F117F", "7F1133", "7F1122"}},
		{"11 03", [4]string{"7F117F", "7F117F", "7F1133", "7F1112"}},
		{"22 F18C", [4]string{"62F18C626573732D37", "62F18C626573732D37", "62F18C626573732D37", "62F18C626573732D37"}},
		{"22 F186", [4]string{"62F18601", "62F18603", "62F18602", "62F18602"}},
		{"22 FD01 FD02", [4]string{"62FD0100FD0200", "62FD0100FD0200", "62FD0100FD0200", "62FD0100FD0200"}},
		{"22 FD7F", [4]string{"7F2231", "7F2231", "7F2231", "7F2231"}},
		{"27 01", [4]string{"7F277F", "6701", "6701", "67010000"}},
		{"27 03", [4]string{"7F277F", "7F2712", "7F2712", "7F2712"}},
		{"27 01 00", [4]string{"7F277F", "7F2713", "7F2713", "6701"}},
		{"28 03 01", [4]string{"7F287F", "6803", "6803", "6803"}},
		{"28 04 01 0001", [4]string{"7F287F", "7F2812", "7F2812", "7F2812"}},
		{"28 00 00", [4]string{"7F287F", "7F2831", "7F2831", "7F2831"}},
		{"29 08", [4]string{"7F297F", "690803", "690803", "690803"}},
		{"2E F18C 41", [4]string{"7F2E7F", "7F2E7F", "7F2E33", "7F2E31"}},
		{announce, [4]string{"7F2E7F", "7F2E7F", "7F2E33", "6EFD07"}},
		{announce[:12], [4]string{"7F2E7F", "7F2E7F", "7F2E33", "7F2E13"}},
		{"31 01 0203", [4]string{"7F3131", "7101020300", "7101020300", "7101020300"}},
		{"31 02 0203", [4]string{"7F3131", "7F3112", "7F3112", "7F3112"}},
		{"31 01 0203 00", [4]string{"7F3131", "7F3113", "7F3113", "7F3113"}},
		{"31 01 FF00", [4]string{"7F3131", "7F3131", "7F3133", "7101FF0000"}},
		{"31 01 0202", [4]string{"7F3131", "7F3131", "7F3133", "7F3124"}},
		{"31 01 0202 00", [4]string{"7F3131", "7F3131", "7F3133", "7F3113"}},
		{"31 01 FF01", [4]string{"7F3131", "7F3131", "7F3133", "7F3124"}},
		{"31 01 F001", [4]string{"7F3131", "7F3131", "7F3133", "7F3124"}},
		{"31 01 F002", [4]string{"7F3131", "7F3131", "7F3133", "7101F00200"}},
		{"31 01 1234", [4]string{"7F3131", "7F3131", "7F3131", "7F3131"}},
		{"34 00 44 00000000 00000100", [4]string{"7F347F", "7F347F", "7F3433", "74200FFF"}},
		{"34 00 44 00000000 00000000", [4]string{"7F347F", "7F347F", "7F3433", "7F3431"}},
		{"34 00 44 00000001 00000100", [4]string{"7F347F", "7F347F", "7F3433", "7F3431"}},
		{"34 00 44 00000000 FFFFFFFF", [4]string{"7F347F", "7F347F", "7F3433", "7F3431"}},
		{"34 11 44 00000000 00000100", [4]string{"7F347F", "7F347F", "7F3433", "7F3431"}},
		{"34 00 22 0000 0100", [4]string{"7F347F", "7F347F", "7F3433", "7F3431"}},
		{"36 01 00", [4]string{"7F367F", "7F367F", "7F3633", "7F3624"}},
		{"37", [4]string{"7F377F", "7F377F", "7F3733", "7F3724"}},
		{file(1, 256), [4]string{"7F387F", "7F387F", "7F3833", "7801"}},
		{file(4, 0)[:len(file(4, 0))-21], [4]string{"7F387F", "7F387F", "7F3833", "7F3831"}},
		{"38 01 0001 41 00 04 00000100 00000100", [4]string{"7F387F", "7F387F", "7F3833", "7F3831"}},
		{"3E 00", [4]string{"7E00", "7E00", "7E00", "7E00"}},
		{"3E 80", [4]string{"", "", "", ""}},
		{"85 02", [4]string{"7F857F", "C502", "C502", "C502"}},
		{"85 03", [4]string{"7F857F", "7F8512", "7F8512", "7F8512"}},
		{"19 02 FF", [4]string{"7F1911", "7F1911", "7F1911", "7F1911"}},
		{"23 44 00000000 00000010", [4]string{"7F2311", "7F2311", "7F2311", "7F2311"}},
		{"3D 00", [4]string{"7F3D11", "7F3D11", "7F3D11", "7F3D11"}},
	} {
		for i, session := range []string{"default", "extended", "programming, no key", "programming"} {
			t.Run(tt.request[:min(len(tt.request), 20)]+" in "+session, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, nil, nil)
					x := r.tester()
					switch i {
					case 1:
						x.want("10 03", "50 03")
					case 2:
						x.want("10 02", "50 02")
					case 3:
						x.enter(r)
					}
					x.want(tt.request, tt.want[i])
					if got := r.inbox.State(); got.Received != 0 {
						t.Errorf("the inbox has %d bytes", got.Received)
					}
				})
			})
		}
	}
}

// Requests to all devices are heard; what must not be answered is not.
func TestFunctional(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, nil)
		x := r.tester()
		for request, want := range map[string]string{"\x10\x03": "5003", "\x3E\x00": "7E00", "\x22\xFD\x7F": "", "\x19\x02": ""} {
			if err := x.all.Send(t.Context(), []byte(request)); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%X", x.answer(time.Second)); len(got) < len(want) || got[:len(want)] != want || want == "" && got != "" {
				t.Errorf("% X to all: got %s, want %s", request, got, want)
			}
		}
	})
}

func TestIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(r *rig) { r.config.Evidence = func() string { return "head" } })
		r.set(func(h *api.CheckinRequest) {
			h.Signals = []ota.Signal{{Name: "soc", Value: 62.5, Unit: "%"}}
			h.Code, h.Reason, h.Causes = ota.ErrBatteryLow, "state of charge 22.0 %", []ota.Cause{ota.CauseSoCLow}
		})
		x := r.tester()
		for did, want := range map[uint16]string{
			profile.DIDBoot: "\x010.9.0", profile.DIDSoftware: "1.0.0", profile.DIDVersion: "1.0.0", profile.DIDSupplier: "Interlock",
			profile.DIDSerial: "bess-7", profile.DIDHardware: "rev2", profile.DIDProduct: "bess", profile.DIDSignals: "soc 62.5 %\n",
			profile.DIDStatus: "\x00\xFF\xF7", profile.DIDEvidence: "head", profile.DIDOutcome: "", profile.DIDOffered: "", profile.DIDReason: "state of charge 22.0 %",
			profile.DIDBus: "\x00\x07\xA1\x20\x08\x01\x32",
		} {
			if got := string(x.read(did)); got != want {
				t.Errorf("%04X: got %q, want %q", did, got, want)
			}
		}
		got, err := profile.ParseIdentity(x.read(profile.DIDProfile))
		want := profile.Identity{Version: profile.Version, MaxBlock: 4095, MaxBytes: 256 << 20,
			Caps: profile.CapAnnounce | profile.CapFile | profile.CapSecurityAccess | profile.CapAuthentication | profile.CapPrecheck}
		if err != nil || got != want {
			t.Errorf("identity: got %+v %v, want %+v", got, err, want)
		}
		// Every identifier of the table can be read, and nothing else.
		for did := uint16(0xF100); did != 0; did++ {
			if did > 0xF200 && did < 0xFC00 {
				did = 0xFC00
			}
			in := slices.ContainsFunc(profile.Data, func(r profile.Row) bool { return r.ID == did })
			b := x.raw([]byte{0x22, byte(did >> 8), byte(did)})
			if read := len(b) >= 3 && b[0] == 0x62; read != in {
				t.Errorf("%04X: in the table %v, readable %v", did, in, read)
			}
		}
	})
}

// What the gate says becomes a code of the standard if it is the only thing that is
// wrong, and a sentence in any case. The refusals are those of the real gate.
func TestPreconditions(t *testing.T) {
	thresholds := bms.Recommended()
	thresholds.RequireBeat, thresholds.MinOthers, thresholds.MaxUncounted = false, 0, 0
	well := func(now time.Time) bms.Reading {
		r := bms.Measured(60, 20, 25, 0.1, now)
		r.Set(bms.CellMin, 3.30)
		r.Set(bms.CellMax, 3.31)
		r.NoAlarms, r.Mode, r.Contactors, r.Control = false, bms.ModeStandby, bms.ContactorsClosed, bms.ControlRemote
		return r
	}
	for _, tt := range []struct {
		name   string
		change func(r *bms.Reading)
		err    error // instead
		nrc    string
		safety profile.Safety
		result profile.Result
	}{
		{"well", func(*bms.Reading) {}, nil, "", 0, profile.OK},
		{"too hot", func(r *bms.Reading) { r.Set(bms.TemperatureMax, 55) }, nil, "86", profile.TemperatureHigh, profile.Temperature},
		{"too cold", func(r *bms.Reading) { r.Set(bms.TemperatureMin, -5) }, nil, "87", profile.TemperatureLow, profile.Temperature},
		{"cell too high", func(r *bms.Reading) { r.Set(bms.CellMax, 3.64); r.Set(bms.CellMin, 3.63) }, nil, "92", profile.Other, profile.InternalTrouble},
		{"cell too low", func(r *bms.Reading) { r.Set(bms.CellMax, 2.6); r.Set(bms.CellMin, 2.6) }, nil, "93", profile.Other, profile.InternalTrouble},
		{"too hot and charged too little", func(r *bms.Reading) { r.Set(bms.TemperatureMax, 55); r.Set(bms.SoC, 10) }, nil, "22", profile.TemperatureHigh | profile.SoCLow, profile.Temperature},
		{"too hot and current", func(r *bms.Reading) { r.Set(bms.TemperatureMax, 55); r.Set(bms.Current, 80) }, nil, "22", profile.TemperatureHigh | profile.CurrentHigh, profile.Temperature},
		{"charged too little", func(r *bms.Reading) { r.Set(bms.SoC, 10) }, nil, "22", profile.SoCLow, profile.SoC},
		{"current", func(r *bms.Reading) { r.Set(bms.Current, 80) }, nil, "22", profile.CurrentHigh, profile.Current},
		{"alarm", func(r *bms.Reading) { r.Alarms = []string{"fire"} }, nil, "22", profile.Alarms, profile.Alarm},
		{"old", func(r *bms.Reading) { r.At = r.At.Add(-time.Hour) }, nil, "22", profile.StaleData, profile.Stale},
		{"another gate", nil, &ota.Refusal{Reason: "outside of the window", Causes: []ota.Cause{ota.CauseWindow}}, "22", profile.Dispatch, profile.NotNow},
		{"a gate without causes", nil, &ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "no"}, "22", profile.Other, profile.InternalTrouble},
		{"a gate that errs", nil, errors.New("read the battery: no answer"), "22", 0, profile.InternalTrouble},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				verdict := tt.err
				r := newRig(t, nil, func(r *rig) {
					r.config.Precheck = func(context.Context) error {
						if tt.err != nil {
							return tt.err
						}
						reading := well(time.Now())
						tt.change(&reading)
						verdict = bms.Decide(reading, thresholds, nil, time.Now())
						return verdict
					}
				})
				x := r.tester()
				x.want("10 03", "50 03")
				if tt.nrc == "" {
					x.want("31 01 0203", "71 01 0203 00")
					if got := x.reason(); got != "" {
						t.Errorf("reason %q", got)
					}
					return
				}
				x.want("31 01 0203", "7F 31 "+tt.nrc)
				want := verdict.Error()
				if refusal, ok := errors.AsType[*ota.Refusal](verdict); ok {
					want = refusal.Reason
				}
				if got := x.reason(); got != want || got == "" {
					t.Errorf("reason %q, want %q", got, want)
				}
				safety, err := profile.ParseSafety(x.read(profile.DIDSafety))
				if err != nil || safety != tt.safety {
					t.Errorf("safety %v %v, want %v", safety.Names(), err, tt.safety.Names())
				}
				if got := profile.Result(x.read(profile.DIDResult)[0]); got != tt.result {
					t.Errorf("result %v, want %v", got, tt.result)
				}
				if tt.err == nil {
					signals, err := profile.ParseSignals(string(x.read(profile.DIDSignals)))
					if i := slices.IndexFunc(signals, func(s ota.Signal) bool { return s.Name == "soc" }); err != nil || i < 0 {
						t.Errorf("signals %v %v", signals, err)
					}
				}
				x.want("10 01", "50 01") // the next tester is told of its own requests
				if got := x.reason(); got != "" {
					t.Errorf("reason after the session: %q", got)
				}
			})
		})
	}
}

// A device without a gate to ask does not have the routine, and says so.
func TestNoPrecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(r *rig) { r.config.Precheck = nil })
		x := r.tester()
		x.want("10 03", "50 03")
		x.want("31 01 0203", "7F 31 31")
		if id, err := profile.ParseIdentity(x.read(profile.DIDProfile)); err != nil || id.Caps&profile.CapPrecheck != 0 {
			t.Errorf("identity %+v %v", id, err)
		}
	})
}

// Keys: none, a wrong one, the lock after three, and all of it over a restart.
func TestKeys(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	t.Run("no testers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, func(r *rig) { r.config.Testers = nil })
			x := r.tester()
			x.want("10 03", "50 03")
			x.want("10 02", "7F 10 33")
			if x.reason() == "" {
				t.Error("no reason")
			}
			x.want("27 01", "7F 27 33")
		})
	})
	t.Run("open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, release.Verify, func(r *rig) { r.config.Testers, r.config.AllowOpen = nil, true })
			x := r.tester()
			x.want("10 02", "50 02")
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle, 0, 4093)
			x.want("37", "77")
			x.want("31 01 0202", "71 01 0202 00")
			x.want("31 01 F001", "71 01 F001 00")
			r.offered(release)
		})
	})
	t.Run("authentication", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, release.Verify, nil)
			x := r.tester()
			x.want("10 02", "50 02")
			x.want(fmt.Sprintf("29 05 00 %032X", 0), "7F 29 31")
			answer := x.raw(append([]byte{0x29, 5, 0}, profile.Algorithm[:]...))
			if len(answer) != 3+16+2+32+2 {
				t.Fatalf("challenge: % X", answer)
			}
			sig, err := profile.SignSeed(r.key, "bess-7", answer[21:53])
			if err != nil {
				t.Fatal(err)
			}
			x.want(fmt.Sprintf("29 06 %X 0040 %X 0000 0000", profile.Algorithm, sig), "69 06 12")
			if got := x.raw(announcement(release.Bundle)); fmt.Sprintf("%X", got) != "6EFD07" {
				t.Errorf("announce: % X", got)
			}
			x.want("29 00", "69 00 10")
			if got := x.raw(announcement(release.Bundle)); fmt.Sprintf("%X", got) != "7F2E33" {
				t.Errorf("announce without rights: % X", got)
			}
		})
	})
	t.Run("wrong keys", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, release.Verify, nil)
			x := r.tester()
			wrong := func(want string) {
				t.Helper()
				x.want("27 01", "67 01")
				x.want(fmt.Sprintf("27 02 %0128X", 7), want)
			}
			x.want("10 02", "50 02")
			wrong("7F 27 35")
			wrong("7F 27 35")
			r.stop()
			r.start() // the count is kept
			x.want("10 02", "50 02")
			wrong("7F 27 36")
			x.want("27 01", "7F 27 37")
			r.stop()
			r.start()
			began := time.Now()
			x.want("10 02", "50 02")
			x.want("27 01", "7F 27 37") // and so is the delay
			time.Sleep(time.Until(began.Add(9900 * time.Millisecond)))
			x.want("10 02", "50 02")
			x.want("27 01", "7F 27 37")
			time.Sleep(200 * time.Millisecond)
			if got := x.unlock(r.key); fmt.Sprintf("%X", got) != "6702" {
				t.Errorf("the right key after the delay: % X", got)
			}
			x.want("10 02", "50 02")
			wrong("7F 27 35") // the count begins anew
		})
	})
	t.Run("another device's seed, an old seed, and a level without one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, release.Verify, nil)
			x := r.tester()
			x.want("10 02", "50 02")
			x.want(fmt.Sprintf("27 02 %0128X", 7), "7F 27 24")
			first := x.raw([]byte{0x27, 1})
			if again := x.raw([]byte{0x27, 1}); !cmp.Equal(first, again) {
				t.Errorf("no key came, and the seed is % X, was % X", again, first)
			}
			x.want(fmt.Sprintf("27 02 %0128X", 7), "7F 27 35")
			sig, _ := profile.SignSeed(r.key, "bess-7", first[2:])
			second := x.raw([]byte{0x27, 1})
			if cmp.Equal(first, second) {
				t.Error("the same seed twice, with a key between")
			}
			x.want(fmt.Sprintf("27 02 %X", sig), "7F 27 35")
			other, _ := profile.SignSeed(r.key, "bess-8", x.raw([]byte{0x27, 1})[2:])
			x.want(fmt.Sprintf("27 02 %X", other), "7F 27 36")
		})
	})
}

// The session ends 5 s after the last request, and not before.
func TestSessionTimeout(t *testing.T) {
	for _, tt := range []struct {
		silence time.Duration
		want    byte
	}{{4990 * time.Millisecond, 2}, {5010 * time.Millisecond, 1}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil, nil)
			x := r.tester()
			x.enter(r)
			time.Sleep(tt.silence)
			if got := x.read(profile.DIDSession)[0]; got != tt.want {
				t.Errorf("session after %v: %d, want %d", tt.silence, got, tt.want)
			}
			if tt.want == 1 {
				x.want("34 00 44 00000000 00000100", "7F 34 7F")
			}
		})
	}
}

func TestReset(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 1000)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, nil)
		x := r.tester()
		x.enter(r)
		x.want("11 01", "7F 11 22")
		if x.reason() == "" {
			t.Error("no reason")
		}
		x.raw(announcement(release.Bundle))
		x.raw(download(0, len(release.Bundle)))
		x.blocks(release.Bundle, 0, 4093)
		x.want("37", "77")
		x.want("11 01", "7F 11 22") // not verified
		x.want("31 01 0202", "71 01 0202 00")
		x.want("11 01", "51 01")
		r.offered(release)
		if got := x.read(profile.DIDSession)[0]; got != 1 {
			t.Errorf("session %d after a reset, want 1", got)
		}
		if err := r.Report(t.Context(), ota.Report{ID: "1", Digest: release.Manifest.Digest, Result: ota.Failed, Code: ota.ErrInternal}); err != nil {
			t.Fatal(err)
		}
		x.enter(r)
		x.want("11 01", "7F 11 22") // it has ended
	})
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*can.Config){
		"no link":           func(c *can.Config) { c.Link = can.Link{} },
		"two links":         func(c *can.Config) { c.Link.TCP = "h:1" },
		"no inbox":          func(c *can.Config) { c.Inbox = nil },
		"no state":          func(c *can.Config) { c.State = nil },
		"no directory":      func(c *can.Config) { c.StateDir = "" },
		"open and testers":  func(c *can.Config) { c.AllowOpen = true },
		"same addresses":    func(c *can.Config) { c.Device = profile.TesterAddress },
		"answers alone":     func(c *can.Config) { c.AnswerID = 0x7E8 },
		"answer as request": func(c *can.Config) { c.ID, c.AnswerID = 0x7E0, 0x7E0 },
		"two lengths":       func(c *can.Config) { c.ID, c.AnswerID = 0x7E0, 0x18DA10F1 },
		"no partner":        func(c *can.Config) { c.ID = 0x18FF10F1 },
		"too large":         func(c *can.Config) { c.ID = 0x20000000 },
		"functional of 29":  func(c *can.Config) { c.FunctionalID = 0x7DF },
		"priority":          func(c *can.Config) { c.Priority = 8 },
		"share":             func(c *can.Config) { c.Share = 101 },
		"a little share":    func(c *can.Config) { c.Share = 4 },
		"block size":        func(c *can.Config) { c.BlockSize = 1 },
		"block":             func(c *can.Config) { c.MaxBlock = 4096 },
		"pause":             func(c *can.Config) { c.STmin = time.Second },
		"size":              func(c *can.Config) { c.MaxSize = 1 << 33 },
		"bitrate":           func(c *can.Config) { c.Bitrate = 5000 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newRig(t, nil, nil).config
				change(&c)
				if _, err := can.New(c); err == nil {
					t.Error("New: no error")
				}
			})
		})
	}
}

// The documented settings can_id and priority, and what they become on the bus.
func TestIdentifiers(t *testing.T) {
	for _, tt := range []struct {
		name             string
		change           func(*can.Config)
		request, answers uint32
	}{
		{"default", func(c *can.Config) {}, 0x18DA10F1, 0x18DAF110},
		{"priority", func(c *can.Config) { c.Priority = 7 }, 0x1CDA10F1, 0x1CDAF110},
		{"addresses", func(c *can.Config) { c.Device, c.Tester = 0x42, 0xF9 }, 0x18DA42F9, 0x18DAF942},
		{"11 bits", func(c *can.Config) { c.ID = 0x7E0 }, 0x7E0, 0x7E8},
		{"11 bits, both", func(c *can.Config) { c.ID, c.AnswerID = 0x610, 0x590 }, 0x610, 0x590},
		{"29 bits", func(c *can.Config) { c.ID = 0x1CDA21F1 }, 0x1CDA21F1, 0x1CDAF121},
		{"29 bits, both", func(c *can.Config) { c.ID, c.AnswerID = 0x1FFF0001, 0x1FFF0002 }, 0x1FFF0001, 0x1FFF0002},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil, func(r *rig) { tt.change(&r.config) })
				node := r.bus.Join("raw")
				defer node.Close()
				if err := node.Send(t.Context(), frame(tt.request, 2, 0x3E, 0)); err != nil {
					t.Fatal(err)
				}
				got, err := node.Receive(t.Context())
				if want := frame(tt.answers, 2, 0x7E, 0, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC); err != nil || got != want {
					t.Errorf("got %v %v, want %v", got, err, want)
				}
			})
		})
	}
}
