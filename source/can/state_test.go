package can

import (
	"fmt"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/can/profile"
)

// Every status of the manager, for this release and for another, and every end.
func TestLook(t *testing.T) {
	const ours = "aa"
	requested := inbox.State{Phase: inbox.Requested, Digest: ours}
	head := func(s ota.Status, digest string, change ...func(*api.CheckinRequest)) api.CheckinRequest {
		h := api.CheckinRequest{Head: api.Head{Status: s, UpdateDigest: digest}}
		for _, c := range change {
			c(&h)
		}
		return h
	}
	waits := func(h *api.CheckinRequest) {
		h.Code, h.Reason, h.Causes = ota.ErrBMSUnsafe, "too hot", []ota.Cause{ota.CauseTemperatureHigh}
	}
	for _, tt := range []struct {
		name   string
		box    inbox.State
		head   api.CheckinRequest
		state  profile.State
		result profile.Result
	}{
		{"nothing", inbox.State{Phase: inbox.Empty}, head(0, ""), profile.Idle, 0},
		{"nothing here, another source installs", inbox.State{Phase: inbox.Empty}, head(ota.StatusDownloading, "bb"), profile.Idle, 0},
		{"opening", inbox.State{Phase: inbox.Opening}, head(0, ""), profile.Opening, 0},
		{"receiving", inbox.State{Phase: inbox.Receiving}, head(0, ""), profile.Receiving, 0},
		{"received", inbox.State{Phase: inbox.Received}, head(0, ""), profile.Received, 0},
		{"verifying", inbox.State{Phase: inbox.Verifying}, head(0, ""), profile.Verifying, 0},
		{"verified", inbox.State{Phase: inbox.Verified}, head(0, ""), profile.Verified, 0},
		{"no signature", inbox.State{Phase: inbox.Failed, Err: ota.ErrValidation}, head(0, ""), profile.Failed, profile.BadSignature},
		{"wrong hash", inbox.State{Phase: inbox.Failed, Version: "1", Err: ota.ErrValidation}, head(0, ""), profile.Failed, profile.BadHash},
		{"incompatible", inbox.State{Phase: inbox.Failed, Err: ota.ErrIncompatible}, head(0, ""), profile.Failed, profile.Incompatible},
		{"disk full", inbox.State{Phase: inbox.Failed, Err: ota.ErrInsufficientSpace}, head(0, ""), profile.Failed, profile.NoSpace},
		{"disk bad", inbox.State{Phase: inbox.Failed, Err: ota.ErrFlashWrite}, head(0, ""), profile.Failed, profile.Storage},

		{"idle", requested, head(ota.StatusIdle, ours), profile.WaitSafe, 0},
		{"checking", requested, head(ota.StatusChecking, ours), profile.WaitSafe, 0},
		{"waits for the gate", requested, head(ota.StatusUpdateAvailable, ours, waits), profile.WaitSafe, profile.Temperature},
		{"downloading", requested, head(ota.StatusDownloading, ours), profile.Installing, 0},
		{"verifying slot", requested, head(ota.StatusVerifying, ours), profile.Installing, 0},
		{"waits for the restart", requested, head(ota.StatusReadyToApply, ours, waits), profile.WaitSafe, profile.Temperature},
		{"applying", requested, head(ota.StatusApplying, ours), profile.Installing, 0},
		{"complete, not reported", requested, head(ota.StatusComplete, ours), profile.Trial, 0},
		{"rebooting", requested, head(ota.StatusRebooting, ours), profile.RebootPending, 0},
		{"trial", requested, head(ota.StatusTrial, ours), profile.Trial, 0},
		{"rolling back", requested, head(ota.StatusRollingBack, ours), profile.Trial, profile.Unhealthy},
		{"failed", requested, head(ota.StatusFailed, ours, func(h *api.CheckinRequest) { h.Code = ota.ErrFlashWrite }), profile.Failed, profile.Storage},
		{"aborted", requested, head(ota.StatusAborted, ours), profile.Aborted, 0},
		{"battery low", requested, head(ota.StatusUpdateAvailable, ours, func(h *api.CheckinRequest) { h.Code = ota.ErrBatteryLow }), profile.WaitSafe, profile.SoC},

		{"not taken up", requested, head(ota.StatusIdle, ""), profile.WaitSafe, 0},
		{"another in hand", requested, head(ota.StatusDownloading, "bb"), profile.WaitSafe, profile.Busy},
		{"another failed", requested, head(ota.StatusFailed, "bb", waits), profile.WaitSafe, profile.Busy},
		{"skipped", requested, head(ota.StatusIdle, "", func(h *api.CheckinRequest) {
			h.Skipped = []ota.Skipped{{Digest: ours, Reason: "failed here"}}
		}), profile.Failed, profile.Incompatible},
		{"runs, not reported", requested, head(ota.StatusComplete, "", func(h *api.CheckinRequest) { h.Digest = ours }), profile.Trial, 0},

		{"succeeded", endedWith(ota.Succeeded, 0), head(0, ""), profile.Confirmed, 0},
		{"failed", endedWith(ota.Failed, ota.ErrFlashWrite), head(0, ""), profile.Failed, profile.Storage},
		{"failed for no reason", endedWith(ota.Failed, 0), head(0, ""), profile.Failed, profile.InternalTrouble},
		{"rolled back", endedWith(ota.RolledBack, ota.ErrInternal), head(0, ""), profile.RolledBack, profile.WasRolledBack},
		{"lost", endedWith(ota.Lost, ota.ErrInternal), head(0, ""), profile.RolledBack, profile.WasRolledBack},
		{"given up", endedWith(ota.Aborted, ota.ErrInternal), head(0, ""), profile.Aborted, profile.InternalTrouble},
		{"not written down", inbox.State{Phase: inbox.Ended}, head(0, ""), profile.Failed, profile.InternalTrouble},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := look(tt.box, tt.head)
			if got.state != tt.state || got.result != tt.result {
				t.Errorf("got %v, %v (%s), want %v, %v", got.state, got.result, got.reason, tt.state, tt.result)
			}
			if got.result != profile.OK && got.result != profile.SoC && got.state == profile.WaitSafe && got.reason == "" {
				t.Error("no reason")
			}
		})
	}
}

func endedWith(r ota.Result, c ota.ErrorCode) inbox.State {
	return inbox.State{Phase: inbox.Ended, Outcome: &ota.Report{Result: r, Code: c, Reason: "so"}}
}

// The pause keeps the share for every setting, worst-case frames assumed.
func TestPause(t *testing.T) {
	for _, bitrate := range []int{125_000, 250_000, 500_000, 1_000_000} {
		for _, share := range []int{5, 25, 50, 75, 100} {
			for _, block := range []int{2, 8, 16, 255} {
				for _, id := range []uint32{0, 0x7E0} {
					cfg := Config{Bitrate: bitrate, Share: share, BlockSize: block, STmin: -1, ID: id}
					if id == 0 {
						cfg.ID = 0x18DA10F1
					}
					busy := float64(block+1) * cfg.frame().Seconds()
					got := busy / (busy + float64(block-1)*cfg.pause().Seconds())
					if got > float64(share)/100+1e-9 && cfg.pause() < longestSTmin {
						t.Errorf("%d bit/s, blocks of %d, pause %v: %.3f of the bus, want %d %%", bitrate, block, cfg.pause(), got, share)
					}
				}
			}
		}
	}
	for p, want := range map[int]byte{0: 0, 100: 0xF1, 900: 0xF9, 1000: 1, 127_000: 127} {
		if got := stmin(time.Duration(p) * time.Microsecond); got != want {
			t.Errorf("%d µs: %s, want %s", p, fmt.Sprintf("%02X", got), fmt.Sprintf("%02X", want))
		}
	}
}
