package can_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/can/profile"
)

// A whole transfer as docs describe it, and what the manager gets.
func TestTransfer(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 3*4096+1234, 777)
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		r := newRig(t, release.Verify, func(r *rig) {
			r.config.Requested = func(tester, digest string) { asked = append(asked, tester+" "+digest) }
		})
		x := r.tester()
		if _, err := r.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("Latest before: %v", err)
		}
		x.push(r, release.Bundle, 4093)
		x.want("31 01 F001", "71 01 F001 00") // once is enough
		r.offered(release)
		if len(asked) != 1 || asked[0] != "F1 "+release.Manifest.Digest {
			t.Errorf("asked for: %q", asked)
		}
		select {
		case <-r.Wake():
		default:
			t.Error("the manager is not woken")
		}
		if got := string(x.read(profile.DIDOffered)); got != "1.1.0" {
			t.Errorf("offered version is %q", got)
		}
		if got := x.deviceState(); got != profile.WaitSafe {
			t.Errorf("state is %v", got)
		}
		rep := ota.Report{ID: "a", Digest: release.Manifest.Digest, Version: "1.1.0", Result: ota.Succeeded, Evidence: "abc"}
		if err := r.Report(t.Context(), rep); err != nil {
			t.Fatal(err)
		}
		out, err := profile.ParseOutcome(x.read(profile.DIDOutcome))
		if err != nil || out == nil || out.Result != ota.Succeeded || x.deviceState() != profile.Confirmed {
			t.Errorf("outcome: %+v %v, state %v", out, err, x.deviceState())
		}
		if got := string(x.read(profile.DIDEvidence)); got != "abc" {
			t.Errorf("evidence is %q", got)
		}
	})
}

// A tester that stops after every service, without a word; the agent lives on or is
// restarted; another tester finishes. Nothing that was acknowledged is asked for again.
func TestTesterStopsAfterEveryService(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 4096, 100)
	const block = 1000
	blocks := (len(release.Bundle) + block - 1) / block
	// Steps: 10 03, 0203, 10 02, 27 01, 27 02, announce, 34, blocks, 37, 0202, FF01, F001.
	for stop := 0; stop <= 11+blocks; stop++ {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprint(stop, restart), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, release.Verify, nil)
					acked := r.stopAfter(release.Bundle, block, stop)
					if restart {
						r.stop()
						r.start()
					} else {
						time.Sleep(6 * time.Second) // S3
					}
					x := r.tester()
					if got := x.read(profile.DIDSession)[0]; got != 1 {
						t.Errorf("session %d after a tester went, want 1", got)
					}
					if p := x.progress(); int(p.Received) < acked || int(p.Next) < acked {
						t.Errorf("progress is %+v, and %d bytes were acknowledged", p, acked)
					}
					x.push(r, release.Bundle, 1000)
					r.offered(release)
				})
			})
		}
	}
}

// stopAfter is a tester that does so many steps of a transfer and goes. It returns how
// many bytes were acknowledged.
func (r *rig) stopAfter(b []byte, block, steps int) (acked int) {
	r.t.Helper()
	x := r.tester()
	defer x.leave()
	var seed []byte
	all := []func() []byte{
		func() []byte { return x.raw([]byte{0x10, 3}) },
		func() []byte { return x.raw([]byte{0x31, 1, 2, 3}) },
		func() []byte { return x.raw([]byte{0x10, 2}) },
		func() []byte { seed = x.raw([]byte{0x27, 1}); return seed },
		func() []byte {
			sig, err := profile.SignSeed(r.key, "bess-7", seed[2:])
			if err != nil {
				r.t.Fatal(err)
			}
			return x.raw(append([]byte{0x27, 2}, sig...))
		},
		func() []byte { return x.raw(announcement(b)) },
		func() []byte { return x.raw(download(0, len(b))) },
	}
	for at := 0; at < len(b); at += block {
		piece := b[at:min(at+block, len(b))]
		counter := byte(at/block + 1)
		all = append(all, func() []byte {
			answer := x.raw(append([]byte{0x36, counter}, piece...))
			acked += len(piece)
			return answer
		})
	}
	for _, request := range [][]byte{{0x37}, {0x31, 1, 2, 2}, {0x31, 1, 0xFF, 1}, {0x31, 1, 0xF0, 1}} {
		all = append(all, func() []byte { return x.raw(request) })
	}
	for i, step := range all[:min(steps, len(all))] {
		if answer := step(); len(answer) == 0 || answer[0] == 0x7F {
			r.t.Fatalf("step %d: got % X: %s", i, answer, x.reason())
		}
	}
	return acked
}

// One transfer that is lost after every single block: each tester sends one and goes. All
// blocks are sent once.
func TestResumeAtEveryBlock(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, func(r *rig) { r.config.MaxBlock = 130 })
		sent := 0
		for next := 0; next < len(release.Bundle); sent++ {
			x := r.tester()
			x.enter(r)
			x.raw(announcement(release.Bundle))
			if p := x.progress(); int(p.Next) != next {
				t.Fatalf("after %d blocks %d is missing first, want %d", sent, p.Next, next)
			}
			if got := x.raw(download(next, len(release.Bundle)-next)); fmt.Sprintf("%X", got) != "74200082" {
				t.Fatalf("34 at %d: % X: %s", next, got, x.reason())
			}
			block := release.Bundle[next:min(next+128, len(release.Bundle))]
			if got := x.raw(append([]byte{0x36, 1}, block...)); fmt.Sprintf("%X", got) != "7601" {
				t.Fatalf("36 at %d: % X: %s", next, got, x.reason())
			}
			next += len(block)
			x.leave()
			if sent%2 == 0 {
				r.stop()
				r.start()
			} else {
				time.Sleep(6 * time.Second)
			}
		}
		if want := (len(release.Bundle) + 127) / 128; sent != want {
			t.Errorf("%d blocks were sent, want %d", sent, want)
		}
		r.tester().push(r, release.Bundle, 128)
		r.offered(release)
	})
}

// Plain testers know nothing of announcements; those of files use 38.
func TestOtherWays(t *testing.T) {
	key := otatest.NewSigningKey(t)
	release, other := key.Release(t, "1.1.0", 5000), key.Release(t, "1.2.0", 5000)
	finish := func(x *tester, r *rig, want *otatest.SignedRelease) {
		x.want("37", "77")
		x.want("31 01 0202", "71 01 0202 00")
		x.want("11 01", "51 01")
		r.offered(want)
	}
	for name, send := range map[string]func(x *tester, r *rig){
		"plain": func(x *tester, r *rig) {
			x.want("31 01 FF00", "71 01 FF00 00")
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle, 0, 2000)
		},
		"plain, in the place of another": func(x *tester, r *rig) {
			x.raw(download(0, len(other.Bundle)))
			x.blocks(other.Bundle[:2000], 0, 1000)
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle, 0, 1000)
		},
		"plain, going on": func(x *tester, r *rig) {
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle[:3000], 0, 1000)
			x.want("10 01", "50 01")
			x.enter(r)
			next := int(x.progress().Next)
			if next != 3000 {
				t.Errorf("%d is missing first, want 3000", next)
			}
			x.raw(download(next, len(release.Bundle)-next))
			x.blocks(release.Bundle, next, 1000)
		},
		"a file": func(x *tester, r *rig) {
			x.want(file(1, len(release.Bundle)), "78 01 02 0FFF 00")
			x.blocks(release.Bundle, 0, 4093)
		},
		"a file, in the place of another": func(x *tester, r *rig) {
			x.want(file(1, len(other.Bundle)), "78 01")
			x.blocks(other.Bundle[:1000], 0, 1000)
			x.want(file(1, len(release.Bundle)), "7F 38 31")
			x.want(file(3, len(release.Bundle)), "78 03")
			x.blocks(release.Bundle, 0, 4093)
		},
		"a file, going on": func(x *tester, r *rig) {
			x.want(file(1, len(release.Bundle)), "78 01")
			x.blocks(release.Bundle[:2000], 0, 1000)
			x.want("10 01", "50 01")
			x.enter(r)
			x.want(file(6, len(release.Bundle)+1), "7F 38 31")
			x.want(file(6, len(release.Bundle)), "78 06 02 0FFF 00 00000000000007D0")
			x.blocks(release.Bundle, 2000, 1000)
		},
		"a file, deleted before": func(x *tester, r *rig) {
			x.want(file(1, len(other.Bundle)), "78 01")
			x.blocks(other.Bundle[:1000], 0, 1000)
			x.want(fmt.Sprintf("38 02 %04X %X", len(profile.FileName), profile.FileName), "78 02")
			x.want(file(1, len(release.Bundle)), "78 01")
			x.blocks(release.Bundle, 0, 4093)
		},
		"announced, then erased": func(x *tester, r *rig) {
			x.raw(announcement(release.Bundle))
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle[:2000], 0, 1000)
			x.want("31 01 FF00", "71 01 FF00 00")
			if p := x.progress(); p.Next != 0 || int(p.Total) != len(release.Bundle) {
				t.Errorf("progress after erasing is %+v", p)
			}
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle, 0, 1000)
		},
		"announced, and all sent again": func(x *tester, r *rig) {
			x.raw(announcement(release.Bundle))
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle[:2000], 0, 1000)
			x.raw(download(0, len(release.Bundle)))
			x.blocks(release.Bundle, 0, 1000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, release.Verify, nil)
				x := r.tester()
				x.enter(r)
				send(x, r)
				finish(x, r, release)
			})
		})
	}
}

// file is a request for a file transfer, in hexadecimal.
func file(mode, size int) string {
	return fmt.Sprintf("38 %02X %04X %X 00 04 %08X %08X", mode, len(profile.FileName), profile.FileName, size, size)
}

// What is wrong with a bundle is told, with its code, and nothing of it is offered.
func TestBadBundles(t *testing.T) {
	key, stranger := otatest.NewSigningKey(t), otatest.NewSigningKey(t)
	release, forged := key.Release(t, "1.1.0", 9000), stranger.Release(t, "1.1.0", 9000)
	bad := bytes.Clone(release.Bundle)
	bad[len(bad)-1]++
	for _, tt := range []struct {
		name   string
		bundle []byte
		judge  func(*ota.Manifest) error
		blocks string // the last answer to a block
		result profile.Result
		state  profile.State
	}{
		{"signed by a stranger", forged.Bundle, nil, "7F3672", profile.BadSignature, profile.Failed},
		{"for another product", release.Bundle, func(*ota.Manifest) error { return fmt.Errorf("%w: product", ota.ErrIncompatible) }, "7F3672", profile.Incompatible, profile.Failed},
		{"not a bundle", bytes.Repeat([]byte{0x55}, 9000), nil, "7F3672", profile.BadSignature, profile.Failed},
		{"a wrong byte in an image", bad, nil, "", profile.BadHash, profile.Receiving},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, release.Verify, func(r *rig) { r.box.Judge = tt.judge })
				x := r.tester()
				x.enter(r)
				x.raw(announcement(tt.bundle))
				x.raw(download(0, len(tt.bundle)))
				got := fmt.Sprintf("%X", x.blocks(tt.bundle, 0, 500))
				if tt.blocks != "" && got != tt.blocks {
					t.Errorf("blocks: got %s, want %s", got, tt.blocks)
				}
				if x.raw([]byte{0x37})[0] == 0x77 {
					x.want("31 01 0202", "71 01 0202 01")
				}
				if s, res := x.deviceState(), profile.Result(x.read(profile.DIDResult)[0]); s != tt.state || res != tt.result {
					t.Errorf("state %v, result %v (%s), want %v, %v", s, res, x.reason(), tt.state, tt.result)
				}
				if x.reason() == "" {
					t.Error("no reason")
				}
				x.want("31 01 F001", "7F 31 24")
				if _, err := r.Latest(context.Background()); !errors.Is(err, ota.ErrNoUpdate) {
					t.Errorf("Latest: %v", err)
				}
				// What was wrong keeps nobody from sending what is right.
				if tt.judge == nil {
					x.raw(announcement(release.Bundle))
					x.want("31 01 FF00", "71 01 FF00 00")
					x.push(r, release.Bundle, 4093)
					r.offered(release)
				}
			})
		})
	}
}

// While the manager has the release in hand, nobody takes it away.
func TestInHand(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, release.Verify, func(r *rig) {
			r.box.InHand = func() string { return r.state().UpdateDigest }
		})
		x := r.tester()
		x.push(r, release.Bundle, 4093)
		r.set(func(h *api.CheckinRequest) {
			h.UpdateDigest, h.Status, h.Done, h.Total = release.Manifest.Digest, ota.StatusDownloading, 2500, 5000
			h.Course = ota.Course{Try: 2, SecondsLeft: 70_000, FailedImage: 1}
		})
		course, err := profile.ParseCourse(x.read(profile.DIDCourse))
		if want := (profile.Course{Progress: 500, Written: 2500, Left: 70_000, Attempt: 2, ImagesFailed: 1}); course != want || err != nil {
			t.Errorf("course: got %+v, %v, want %+v", course, err, want)
		}
		for request, want := range map[string]string{
			"31 01 FF00":                 "7F 31 22",
			"31 01 F002":                 "7F 31 22",
			"31 01 F001":                 "71 01 F001 00", // once is enough
			"34 00 44 00000000 00001388": "7F 34 22",
		} {
			x.want(request, want)
		}
		other := announcement(bytes.Repeat([]byte{1}, 300))
		if got := fmt.Sprintf("%X", x.raw(other)); got != "7F2E22" {
			t.Errorf("another announcement: got %s, want 7F2E22", got)
		}
		if got := profile.Result(x.read(profile.DIDResult)[0]); got != profile.Busy || x.reason() == "" {
			t.Errorf("result %v, reason %q", got, x.reason())
		}
		x.want("11 01", "51 01")
		r.offered(release)
		x.enter(r)
		x.want("34 00 44 00000000 00001388", "7F 34 22")
		r.offered(release)
	})
}

// A tester takes back what it has asked for, until the manager activates it, and may push it again. The
// answer comes when that is done; what the manager does not give up is too late, or not known.
func TestWithdraw(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 5000)
	for _, tt := range []struct {
		name   string
		err    error
		waits  time.Duration
		want   string
		result profile.Result
		reason string
	}{
		{"given up", nil, 20 * time.Second, "71 01 F002 00", profile.OK, "aborted by a person"},
		{"too late", fmt.Errorf("withdraw: %w: the restart is under way", ota.ErrBusy), time.Second, "7F 31 22", profile.Busy, "too late"},
		{"the disk", fmt.Errorf("keep the report: %w", ota.ErrFlashWrite), 0, "7F 31 72", profile.Storage, "keep the report"},
		{"no answer", nil, time.Minute, "7F 31 22", profile.Timeout, "deadline"},
	} {
		for _, request := range []string{"31 01 F002", "38 02 000D 7570646174652E62756E646C65"} {
			t.Run(tt.name+", "+request[:5], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var asked []string
					r := newRig(t, release.Verify, nil)
					r.stop()
					r.box.InHand = func() string { return r.state().UpdateDigest }
					r.config.Withdraw = func(ctx context.Context, digest string) error {
						asked = append(asked, digest)
						select {
						case <-time.After(tt.waits):
						case <-ctx.Done():
							return fmt.Errorf("withdraw: %w", ctx.Err())
						}
						if tt.err != nil {
							return tt.err
						}
						r.set(func(h *api.CheckinRequest) { h.UpdateDigest, h.Status = "", ota.StatusAborted })
						return r.inbox.Report(ctx, ota.Report{ID: "1", Digest: digest, Version: "1.1.0", Result: ota.Aborted, Reason: "aborted by a person"})
					}
					r.start()
					x := r.tester()
					x.push(r, release.Bundle, 4093)
					r.set(func(h *api.CheckinRequest) {
						h.UpdateDigest, h.Status = release.Manifest.Digest, ota.StatusReadyToApply
					})
					want := tt.want
					if request[:2] == "38" {
						want = map[string]string{"71 01 F002 00": "78 02", "7F 31 22": "7F 38 22", "7F 31 72": "7F 38 72"}[want]
					}
					x.want(request, want)
					state := profile.WaitSafe
					if strings.HasPrefix(tt.want, "71") {
						state = profile.Aborted
					}
					if got, result := x.deviceState(), profile.Result(x.read(profile.DIDResult)[0]); got != state || result != tt.result || !strings.Contains(x.reason(), tt.reason) {
						t.Errorf("got %v, %v, %q, want %v, %v, %q", got, result, x.reason(), state, tt.result, tt.reason)
					}
					if len(asked) != 1 || asked[0] != release.Manifest.Digest {
						t.Errorf("the manager was asked for %q, want once for %s", asked, release.Manifest.Digest)
					}
					if state == profile.WaitSafe {
						r.offered(release)
						return
					}
					if _, err := r.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
						t.Errorf("Latest: got %v, want %v", err, ota.ErrNoUpdate)
					}
					x.push(r, release.Bundle, 4093)
					r.offered(release)
				})
			})
		}
	}
}
