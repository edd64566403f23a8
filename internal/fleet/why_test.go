package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/fleet"
)

func TestWhy(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	release := &fleet.Release{Manifest: &ota.Manifest{Product: "bess", Version: "2.1.0", Digest: "d21", MinVersion: "1.5.0",
		Hardware: []string{"rev2", "rev3"}, SecurityVersion: 4}}
	// device is one that could take the release, changed by change.
	device := func(change func(*fleet.Device)) fleet.Device {
		d := fleet.Device{Head: api.Head{Device: "rack-7", Product: "bess", Hardware: "rev2", Version: "2.0.0", SecurityVersion: 4},
			Group: "default", LastSeen: now.Add(-time.Minute), Poll: 5 * time.Minute}
		change(&d)
		return d
	}
	inHand := func(s ota.Status, reason string) fleet.Device {
		return device(func(d *fleet.Device) {
			d.Status, d.Reason, d.UpdateVersion, d.UpdateDigest, d.Done, d.Total = s, reason, "2.1.0", "d21", 42, 100
		})
	}
	ended := func(result ota.Result, reason string) fleet.Device {
		return device(func(d *fleet.Device) {
			d.Outcome = &ota.Report{Digest: "d21", Result: result, Reason: reason, Code: ota.ErrValidation}
		})
	}
	for _, tt := range []struct {
		name    string
		device  fleet.Device
		release *fleet.Release
		waiting bool
		want    string
		stand   fleet.Standing
	}{
		{"no release", device(func(d *fleet.Device) {}), nil, false, "no release for bess in group default", fleet.NoRelease},
		{"reports only", device(func(d *fleet.Device) { d.Product = "" }), nil, false, "has not checked in yet", fleet.NoRelease},
		{"other product", device(func(d *fleet.Device) { d.Product = "pcs" }), release, false, "other product: the device is pcs, the release for bess", fleet.Stopped},
		{"same digest", device(func(d *fleet.Device) { d.Version, d.Digest = "2.1.0", "d21" }), release, false, "up to date", fleet.UpToDate},
		{"same version, digest unknown", device(func(d *fleet.Device) { d.Version = "2.1.0" }), release, false, "up to date", fleet.UpToDate},
		{"same version, other digest", device(func(d *fleet.Device) { d.Version, d.Digest = "2.1.0", "old" }), release, true, "waits for its next check", fleet.Waiting},
		{"next check", device(func(d *fleet.Device) {}), release, true, "waits for its next check", fleet.Waiting},
		{"gate", inHand(ota.StatusUpdateAvailable, "state of charge 22.0 %, want at least 30 %"), release, true, "waits: state of charge 22.0 %, want at least 30 %", fleet.Waiting},
		{"gate, code only", device(func(d *fleet.Device) {
			d.Status, d.Code, d.UpdateDigest = ota.StatusUpdateAvailable, ota.ErrBMSUnsafe, "d21"
		}), release, true, "waits: BMS reports unsafe condition", fleet.Waiting},
		{"found", inHand(ota.StatusUpdateAvailable, ""), release, true, "has found the release", fleet.Waiting},
		{"downloading", inHand(ota.StatusDownloading, ""), release, true, "downloading 42 %", fleet.Updating},
		{"verifying", inHand(ota.StatusVerifying, ""), release, true, "verifying what was written", fleet.Updating},
		{"ready", inHand(ota.StatusReadyToApply, ""), release, true, "written and verified", fleet.Waiting},
		{"ready, gate", inHand(ota.StatusReadyToApply, "current 146 A"), release, true, "written; waits: current 146 A", fleet.Waiting},
		{"rebooting", inHand(ota.StatusRebooting, ""), release, true, "restarting into 2.1.0", fleet.Updating},
		{"trial is not up to date", device(func(d *fleet.Device) { d.Status, d.Version, d.Digest = ota.StatusTrial, "2.1.0", "d21" }), release, true,
			"on trial: 2.1.0 must prove itself healthy", fleet.Updating},
		{"rolling back", inHand(ota.StatusRollingBack, "not healthy"), release, true, "rolling back: not healthy", fleet.Updating},
		{"busy with another release", device(func(d *fleet.Device) {
			d.Status, d.UpdateVersion, d.UpdateDigest = ota.StatusDownloading, "3.0.0", "d30"
		}), release,
			true, "waits for its next check", fleet.Waiting},
		{"failed", ended(ota.Failed, "no space"), release, false, "failed here: no space", fleet.Failed},
		{"failed, code only", ended(ota.Failed, ""), release, false, "failed here: signature/checksum validation failed", fleet.Failed},
		{"rolled back", ended(ota.RolledBack, "not healthy"), release, false, "failed here: rolled back: not healthy", fleet.Failed},
		{"lost", ended(ota.Lost, "power cut?"), release, false, "lost here, the old firmware came back: power cut?", fleet.Stopped},
		{"aborted", ended(ota.Aborted, "by hand"), release, false, "stopped on the device: by hand", fleet.Stopped},
		{"succeeded once", ended(ota.Succeeded, ""), release, true, "2.1.0 was installed here, but the device runs 2.0.0 again", fleet.Waiting},
		{"skipped", device(func(d *fleet.Device) { d.Skipped = []ota.Skipped{{Digest: "d21", Reason: "operator"}} }), release, false,
			"skipped by the device: operator", fleet.Stopped},
		{"failed and tries again", device(func(d *fleet.Device) { d.Status, d.Reason = ota.StatusFailed, "no network" }), release, true,
			"failed here, tried again: no network", fleet.Waiting},
		{"other hardware", device(func(d *fleet.Device) { d.Hardware = "rev1" }), release, false, `other hardware: the device is "rev1", the release for rev2, rev3`, fleet.Stopped},
		{"security version", device(func(d *fleet.Device) { d.SecurityVersion = 5 }), release, false, "the device's security version is 5, the release's only 4", fleet.Stopped},
		{"expired", device(func(d *fleet.Device) {}), &fleet.Release{Manifest: &ota.Manifest{Product: "bess", Version: "2.1.0", Digest: "d21",
			Expires: now.Add(-time.Hour)}}, false, "the release expired on 2026-03-01 11:00 UTC", fleet.Stopped},
		{"too old", device(func(d *fleet.Device) { d.Version = "1.4.9" }), release, false, "runs 1.4.9, the release wants at least 1.5.0 first", fleet.Stopped},
		{"newer", device(func(d *fleet.Device) { d.Version = "2.2.0" }), release, false, "runs 2.2.0, which is newer than 2.1.0", fleet.Stopped},
		{"odd version", device(func(d *fleet.Device) { d.Version = "factory" }), release, true, "waits for its next check", fleet.Waiting},
		{"not seen, waiting", device(func(d *fleet.Device) { d.LastSeen = now.Add(-3 * time.Hour) }), release, true,
			"not seen for 3 h; last: waits for its next check", fleet.Silent},
		{"not seen, up to date", device(func(d *fleet.Device) { d.LastSeen, d.Digest = now.Add(-72*time.Hour), "d21" }), release, false,
			"up to date; not seen for 3 d", fleet.Silent},
		{"three polls and a minute", device(func(d *fleet.Device) { d.LastSeen = now.Add(-16 * time.Minute) }), release, true, "waits for its next check", fleet.Waiting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			waiting, got := fleet.Why(tt.device, tt.release, now)
			if got != tt.want || waiting != tt.waiting {
				t.Errorf("Why = %v, %q; want %v, %q", waiting, got, tt.waiting, tt.want)
			}
			if got := fleet.Stand(tt.device, tt.release, now); got != tt.stand {
				t.Errorf("Stand = %q, want %q", got, tt.stand)
			}
		})
	}
}

func TestPercentIsHundredOnlyForAll(t *testing.T) {
	for _, tt := range []struct {
		done, total int64
		want        int
	}{
		{0, 0, 0}, {5, 0, 0}, {-5, 10, 0}, {1, 3, 33}, {999_999, 1_000_000, 99}, {1<<62 - 1, 1 << 62, 99}, {10, 10, 100}, {11, 10, 100},
	} {
		if got := fleet.Percent(tt.done, tt.total); got != tt.want {
			t.Errorf("Percent(%d, %d) = %d, want %d", tt.done, tt.total, got, tt.want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Second: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min", 59 * time.Minute: "59 min",
		time.Hour: "1 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 d"} {
		if got := fleet.Span(d); got != want {
			t.Errorf("Span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestWhyNamesWhatIsMissingWithoutHardware(t *testing.T) {
	r := &fleet.Release{Manifest: &ota.Manifest{Product: "bess", Version: "2.0.0", Hardware: []string{"rev2"}}}
	_, got := fleet.Why(fleet.Device{Head: api.Head{Product: "bess", Version: "1.0.0"}}, r, time.Time{})
	if !strings.Contains(got, `the device is ""`) {
		t.Errorf("Why = %q, want it to say that the device named no hardware", got)
	}
}
