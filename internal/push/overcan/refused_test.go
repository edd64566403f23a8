package overcan_test

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can/profile"
)

func newKey(t *testing.T, kind string) (crypto.Signer, []byte) {
	t.Helper()
	private, public, err := bundle.GenerateKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key, public
}

// What a device does not take, and what the tester says about it. Nothing of the file gets
// into the device.
func TestRefused(t *testing.T) {
	release, file, change := small(t)
	stranger, _ := newKey(t, "ed25519")
	other := errors.New("it is for product wind, and this unit is a bess")
	for name, tt := range map[string]struct {
		change func(*site)
		want   error
		says   string
	}{
		"another tester's key":  {func(s *site) { s.key = stranger }, ota.ErrAuthentication, "does not know this tester's key"},
		"no key":                {func(s *site) { s.key = nil }, ota.ErrAuthentication, "give the private key"},
		"a device without keys": {func(s *site) { s.source.Testers = nil }, ota.ErrAuthentication, "from nobody"},
		"too large":             {func(s *site) { s.source.MaxSize = 500 }, ota.ErrInsufficientSpace, "the device takes 500"},
		"another product": {func(s *site) {
			s.box.Judge = func(*ota.Manifest) error { return fmt.Errorf("%w: %w", ota.ErrIncompatible, other) }
		}, ota.ErrIncompatible, other.Error()},
		"signed by somebody else": {func(s *site) {
			s.box.Verify = func([]byte) (*ota.Manifest, error) {
				return nil, fmt.Errorf("%w: no signature by a known key", ota.ErrValidation)
			}
		}, ota.ErrValidation, "no signature by a known key"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, func(s *site) { change(s); tt.change(s) })
				began := time.Now()
				err := s.stage(t.Context())
				if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
					t.Errorf("got %v, want %v that says %q", err, tt.want, tt.says)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("it took %v to find out, want at most 5 s", took)
				}
				if b := s.inbox.State(); b.Phase != inbox.Empty && b.Phase != inbox.Failed {
					t.Errorf("the inbox is %s", b.Phase)
				}
			})
		})
	}
}

// Keys and devices that are taken.
func TestTaken(t *testing.T) {
	release, file, change := small(t)
	for name, change2 := range map[string]func(*site){
		"a device that is open": func(s *site) { s.key, s.source.Testers, s.source.AllowOpen = nil, nil, true },
		"11 bits":               func(s *site) { s.source.ID, s.line.Address = 0x7E0, overcan.Address{TX: 0x7E0, RX: 0x7E8} },
		"other addresses": func(s *site) {
			s.source.Device, s.source.Tester, s.line.Address = 0x21, 0xF3, overcan.Fixed29(0x21, 0xF3)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, func(s *site) { change(s); change2(s) })
				if err := s.stage(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.installed()
			})
		})
	}
}

// The gate is asked without any effect, and its words get to the person.
func TestPrecheck(t *testing.T) {
	release, file, _ := small(t)
	for name, tt := range map[string]struct {
		gate error
		code ota.ErrorCode
	}{
		"yes":             {nil, 0},
		"charge":          {&ota.Refusal{Code: ota.ErrBatteryLow, Reason: "state of charge 22.0 %, want at least 30 %", Causes: []ota.Cause{ota.CauseSoCLow}}, ota.ErrBatteryLow},
		"temperature":     {&ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "cells have 47.0 °C, want at most 45 °C", Causes: []ota.Cause{ota.CauseTemperatureHigh}}, ota.ErrBMSUnsafe},
		"not these hours": {&ota.Refusal{Code: ota.ErrNone, Reason: "outside the window", Causes: []ota.Cause{ota.CauseWindow}}, ota.ErrNone},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, func(s *site) { s.gate = tt.gate; s.key = nil }) // nobody need show a key
				d := s.tester()
				err := d.Precheck(t.Context())
				if tt.gate == nil {
					if err != nil {
						t.Errorf("got %v", err)
					}
				} else {
					refusal, ok := errors.AsType[*ota.Refusal](err)
					if want := tt.gate.(*ota.Refusal); !ok || refusal.Code != tt.code || refusal.Reason != want.Reason {
						t.Errorf("got %#v, %v, want %v", refusal, err, want)
					}
				}
				st, err := d.Status(t.Context())
				if err != nil || st.State != push.Idle || st.Running != "1.0.0" {
					t.Errorf("afterwards: %+v, %v", st, err)
				}
				if b := s.inbox.State(); b.Phase != inbox.Empty {
					t.Errorf("the inbox is %s", b.Phase)
				}
			})
		})
	}
}

// The same file once more: not a byte goes over the bus for what is proven or waits, and
// all of it after a roll back.
func TestAgain(t *testing.T) {
	release, file, change := small(t)
	for name, tt := range map[string]struct {
		result ota.Result
		blocks bool
	}{"proven": {ota.Succeeded, false}, "rolled back": {ota.RolledBack, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, change)
				if err := s.stage(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.watch(nil)
				if err := s.stage(t.Context()); err != nil { // waits for the manager
					t.Errorf("while it waits: %v", err)
				}
				if _, blocks := sentAgain(s.messages()); blocks != 0 {
					t.Errorf("while it waits: %d blocks", blocks)
				}
				s.manager(t.Context(), tt.result)
				s.watch(nil)
				if err := s.stage(t.Context()); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				if _, blocks := sentAgain(s.messages()); (blocks > 0) != tt.blocks {
					t.Errorf("afterwards: %d blocks, want some: %v", blocks, tt.blocks)
				}
				if tt.blocks {
					s.installed()
				}
			})
		})
	}
}

// Another file takes the place of one that came in part.
func TestAnotherFile(t *testing.T) {
	key := otatest.NewSigningKey(t)
	first, second := key.Release(t, "1.1.0", 5000), key.Release(t, "1.2.0", 3000)
	one, two := bundleFile(t, first), bundleFile(t, second)
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, second, two, func(s *site) { s.source.MaxBlock = 500 })
		ctx, cancel := contextUntil(t, s, 6)
		defer cancel()
		if err := s.tester().Send(ctx, one, push.Tell{}); err == nil {
			t.Fatal("it was not interrupted")
		}
		time.Sleep(6 * time.Second)
		s.watch(nil)
		if err := s.stage(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.installed()
		if st := s.inbox.State(); st.Version != "1.2.0" {
			t.Errorf("got %s", st.Version)
		}
	})
}

// A release that is being installed is not replaced by another: the tester says so.
func TestOccupied(t *testing.T) {
	key := otatest.NewSigningKey(t)
	first, second := key.Release(t, "1.1.0", 500), key.Release(t, "1.2.0", 600)
	one, two := bundleFile(t, first), bundleFile(t, second)
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, first, one, func(s *site) { s.box.InHand = func() string { return first.Manifest.Digest } })
		if err := s.stage(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := s.tester().Send(t.Context(), two, push.Tell{})
		if !errors.Is(err, push.ErrOccupied) || !errors.Is(err, ota.ErrBusy) {
			t.Errorf("got %v, want %v", err, push.ErrOccupied)
		}
		s.installed()
	})
}

// A tester that stops and is started at once finds its own session still open.
func TestRestartAtOnce(t *testing.T) {
	release, file, change := small(t)
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, release, file, change)
		ctx, cancel := contextUntil(t, s, 2)
		defer cancel()
		if err := s.tester().Send(ctx, file, push.Tell{}); err == nil {
			t.Fatal("it was not interrupted")
		}
		// No pause: the session of the first is still open, and it is the same address.
		if err := s.stage(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.installed()
	})
}

// hide takes capabilities out of what a device says that it can.
func hide(t *testing.T, b []byte, caps uint16) []byte {
	t.Helper()
	if !bytes.HasPrefix(b, []byte{0x62, profile.DIDProfile >> 8, profile.DIDProfile & 0xFF}) {
		return b
	}
	id, err := profile.ParseIdentity(b[3:])
	if err != nil {
		t.Error(err)
	}
	id.Caps &^= caps
	return id.Append(b[:3:3])
}

// The key signs seeds of the length that devices use, and nothing else.
func TestOddSeeds(t *testing.T) {
	release, file, change := small(t)
	for _, length := range []int{1, profile.SeedSize - 1, profile.SeedSize + 1, 1000} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, release, file, func(s *site) {
				change(s)
				s.mangle = func(b []byte) []byte {
					if len(b) > 2 && b[0] == 0x67 {
						return append(b[:2:2], bytes.Repeat([]byte{7}, length)...)
					}
					return b
				}
			})
			if err := s.stage(t.Context()); !errors.Is(err, ota.ErrAuthentication) || !strings.Contains(err.Error(), "nothing was signed") {
				t.Errorf("a seed of %d bytes: got %v, want %v", length, err, ota.ErrAuthentication)
			}
			for _, p := range s.messages() {
				if p.fromTester && p.data[0] == 0x27 && p.data[1] == 2 {
					t.Errorf("a seed of %d bytes: a key was sent", length)
				}
			}
		})
	}
}

// A file that is changed while it is pushed, in an image or in the envelope, is noticed by
// the device; and so is one that is whole, but not the one that was announced.
func TestChangedFile(t *testing.T) {
	release, _, change := small(t)
	for name, spoil := range map[string]func(b []byte){
		"image":    func(b []byte) { b[len(b)-1] ^= 1 },
		"envelope": func(b []byte) { b[40] ^= 1 },
		"nothing":  func([]byte) {},
	} {
		t.Run(name, func(t *testing.T) {
			file := bundleFile(t, release)
			b := bytes.Clone(release.Bundle)
			spoil(b)
			if err := os.WriteFile(file.Name, b, 0o600); err != nil { // the same file: it is open
				t.Fatal(err)
			}
			if name == "nothing" {
				file.SHA256[0]++
			}
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, change)
				began := time.Now()
				err := s.tester().Send(t.Context(), file, push.Tell{})
				if err == nil {
					t.Fatal("it was taken")
				}
				if took := time.Since(began); took > time.Minute {
					t.Errorf("it took %v, want less than a minute", took)
				}
				if p := s.inbox.State().Phase; p == inbox.Verified || p == inbox.Requested {
					t.Errorf("the inbox is %s", p)
				}
				t.Log(err)
			})
		})
	}
}

// A block that gets into the device with other bytes, which no bus should let happen, is
// asked for again.
func TestDamagedOnTheWay(t *testing.T) {
	release, file, change := small(t)
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, release, file, change)
		damaged := 0
		s.spoil = func(b []byte) []byte {
			if b[0] == byte(uds.TransferData) && bytes.HasSuffix(b, release.Bundle[len(release.Bundle)-20:]) && damaged == 0 {
				damaged++
				b[len(b)-1] ^= 1
			}
			return b
		}
		if err := s.stage(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p := s.inbox.State().Phase; damaged != 1 || p != inbox.Requested {
			t.Errorf("%d blocks damaged, the inbox is %s; want 1, %s", damaged, p, inbox.Requested)
		}
	})
}

// A device that offers service 29 alone is unlocked with it, with both kinds of keys.
func TestAuthentication(t *testing.T) {
	release, file, change := small(t)
	for _, kind := range []string{"ed25519", "p256"} {
		key, public := newKey(t, kind)
		for _, without := range []uint16{0, profile.CapSecurityAccess} {
			t.Run(fmt.Sprint(kind, without), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSite(t, release, file, func(s *site) {
						change(s)
						s.key = key
						s.source.Testers = testers(t, public)
						s.mangle = func(b []byte) []byte { return hide(t, b, without) }
					})
					if err := s.stage(t.Context()); err != nil {
						t.Fatal(err)
					}
					s.installed()
					want := byte(0x27)
					if without != 0 {
						want = 0x29
					}
					for _, p := range s.messages() {
						if p.fromTester && (p.data[0] == 0x27 || p.data[0] == 0x29) && p.data[0] != want {
							t.Errorf("service %02X was used, want %02X", p.data[0], want)
						}
					}
				})
			})
		}
	}
}
