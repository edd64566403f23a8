package modbus

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// TestDerive: what is shown of the manager's statuses, for this release and others.
func TestDerive(t *testing.T) {
	requested := inbox.State{Phase: inbox.Requested, Digest: "d1", Version: "1.1.0", Offer: inbox.Offer{Size: 1000}}
	ours := func(status ota.Status) api.CheckinRequest {
		return api.CheckinRequest{Head: api.Head{Version: "1.0.0", Status: status, UpdateDigest: "d1", Done: 250, Total: 1000}}
	}
	with := func(r api.CheckinRequest, code ota.ErrorCode, reason string, causes ...ota.Cause) api.CheckinRequest {
		r.Code, r.Reason, r.Causes = code, reason, causes
		return r
	}
	ended := func(result ota.Result, code ota.ErrorCode) inbox.State {
		return inbox.State{Phase: inbox.Ended, Digest: "d1", Outcome: &ota.Report{Digest: "d1", Result: result, Code: code, Reason: "because"}}
	}
	failed := func(version string, err error) inbox.State {
		return inbox.State{Phase: inbox.Failed, Version: version, Err: err}
	}
	trial := ours(ota.StatusIdle)
	trial.UpdateDigest, trial.Digest = "", "d1"
	skipped := api.CheckinRequest{Skipped: []ota.Skipped{{Digest: "d1", Version: "1.1.0", Reason: "failed here: no"}}}
	other := ours(ota.StatusDownloading)
	other.UpdateDigest = "d2"
	otherTrial := ours(ota.StatusTrial)
	otherTrial.UpdateDigest = "d2"
	for name, c := range map[string]struct {
		st      inbox.State
		device  api.CheckinRequest
		aborted bool

		state  profile.State
		result profile.Result
		safety profile.Safety
	}{
		"nothing":                        {inbox.State{Phase: inbox.Empty}, ours(ota.StatusTrial), false, profile.Idle, profile.OK, 0},
		"given up by a master":           {inbox.State{Phase: inbox.Empty}, ours(ota.StatusIdle), true, profile.Aborted, profile.OK, 0},
		"opening":                        {inbox.State{Phase: inbox.Opening}, ours(ota.StatusIdle), true, profile.Opening, profile.OK, 0},
		"opening, keys unreadable":       {inbox.State{Phase: inbox.Opening, Err: fmt.Errorf("judge: %w", ota.ErrNotNow)}, ours(ota.StatusIdle), false, profile.Opening, profile.Internal, 0},
		"receiving":                      {inbox.State{Phase: inbox.Receiving}, ours(ota.StatusTrial), false, profile.Receiving, profile.OK, 0},
		"received":                       {inbox.State{Phase: inbox.Received}, ours(ota.StatusIdle), false, profile.Received, profile.OK, 0},
		"verifying":                      {inbox.State{Phase: inbox.Verifying}, ours(ota.StatusIdle), false, profile.Verifying, profile.OK, 0},
		"verifying, disk trouble":        {inbox.State{Phase: inbox.Verifying, Err: ota.ErrFlashWrite}, ours(ota.StatusIdle), false, profile.Verifying, profile.Storage, 0},
		"verified":                       {inbox.State{Phase: inbox.Verified}, ours(ota.StatusComplete), false, profile.Verified, profile.OK, 0},
		"bad signature":                  {failed("", fmt.Errorf("x: %w", ota.ErrValidation)), ours(ota.StatusIdle), false, profile.Failed, profile.BadSignature, 0},
		"bad hash":                       {failed("1.1.0", fmt.Errorf("x: %w", ota.ErrValidation)), ours(ota.StatusIdle), false, profile.Failed, profile.BadHash, 0},
		"another product":                {failed("1.1.0", fmt.Errorf("x: %w", ota.ErrIncompatible)), ours(ota.StatusIdle), false, profile.Failed, profile.Incompatible, 0},
		"an older version":               {failed("0.9.0", fmt.Errorf("x: %w", ota.ErrIncompatible)), ours(ota.StatusIdle), false, profile.Failed, profile.TooOld, 0},
		"an older version, as no update": {failed("0.9.0", fmt.Errorf("x: %w", ota.ErrNoUpdate)), ours(ota.StatusIdle), false, profile.Failed, profile.TooOld, 0},
		"the version that runs":          {failed("1.0.0", fmt.Errorf("x: %w", ota.ErrNoUpdate)), ours(ota.StatusIdle), false, profile.Failed, profile.Incompatible, 0},
		"no space":                       {failed("1.1.0", fmt.Errorf("x: %w", ota.ErrInsufficientSpace)), ours(ota.StatusIdle), false, profile.Failed, profile.NoSpace, 0},
		"failed without a code":          {failed("1.1.0", errors.New("x")), ours(ota.StatusIdle), false, profile.Failed, profile.Internal, 0},

		"requested, not looked at":       {requested, api.CheckinRequest{}, false, profile.WaitSafe, profile.OK, 0},
		"idle":                           {requested, ours(ota.StatusIdle), false, profile.WaitSafe, profile.OK, 0},
		"checking":                       {requested, ours(ota.StatusChecking), false, profile.WaitSafe, profile.OK, 0},
		"available":                      {requested, ours(ota.StatusUpdateAvailable), false, profile.WaitSafe, profile.OK, 0},
		"available, no consent":          {requested, with(ours(ota.StatusUpdateAvailable), 0, "no consent to install yet"), false, profile.WaitSafe, profile.NoWindow, profile.Consent},
		"available, the gate refuses":    {requested, with(ours(ota.StatusUpdateAvailable), ota.ErrBatteryLow, "state of charge", ota.CauseSoCLow), false, profile.WaitSafe, profile.LowCharge, profile.ChargeLow},
		"available, a bare refusal":      {requested, with(ours(ota.StatusUpdateAvailable), ota.ErrBMSUnsafe, "no"), false, profile.WaitSafe, profile.Internal, profile.Other},
		"available, low without a cause": {requested, with(ours(ota.StatusUpdateAvailable), ota.ErrBatteryLow, "no"), false, profile.WaitSafe, profile.LowCharge, profile.ChargeLow},
		"downloading":                    {requested, ours(ota.StatusDownloading), false, profile.Installing, profile.OK, 0},
		"verifying the slot":             {requested, ours(ota.StatusVerifying), false, profile.Installing, profile.OK, 0},
		"ready to apply":                 {requested, ours(ota.StatusReadyToApply), false, profile.WaitSafe, profile.OK, 0},
		"ready, out of hours":            {requested, with(ours(ota.StatusReadyToApply), 0, "outside the window", ota.CauseWindow), false, profile.WaitSafe, profile.NoWindow, profile.Dispatch},
		"applying":                       {requested, ours(ota.StatusApplying), false, profile.Installing, profile.OK, 0},
		"rebooting":                      {requested, ours(ota.StatusRebooting), false, profile.RebootPending, profile.OK, 0},
		"trial":                          {requested, ours(ota.StatusTrial), false, profile.Trial, profile.OK, 0},
		"complete, but not reported":     {requested, ours(ota.StatusComplete), false, profile.Trial, profile.OK, 0},
		"ended, but not reported":        {requested, trial, false, profile.Trial, profile.OK, 0},
		"rolling back":                   {requested, ours(ota.StatusRollingBack), false, profile.RebootPending, profile.WentBack, 0},
		"failed, tried again":            {requested, with(ours(ota.StatusFailed), ota.ErrFlashWrite, "slot"), false, profile.Installing, profile.Storage, 0},
		"aborted, not reported":          {requested, ours(ota.StatusAborted), false, profile.WaitSafe, profile.OK, 0},
		"another update":                 {requested, other, false, profile.WaitSafe, profile.Busy, 0},
		"another update's trial":         {requested, otherTrial, false, profile.WaitSafe, profile.Busy, 0},
		"not taken again":                {requested, skipped, false, profile.Failed, profile.Incompatible, 0},

		"proven":             {ended(ota.Succeeded, 0), ours(ota.StatusIdle), false, profile.Confirmed, profile.OK, 0},
		"rolled back":        {ended(ota.RolledBack, ota.ErrInternal), ours(ota.StatusIdle), false, profile.RolledBack, profile.WentBack, 0},
		"lost":               {ended(ota.Lost, ota.ErrInternal), ours(ota.StatusIdle), false, profile.RolledBack, profile.Internal, 0},
		"stopped":            {ended(ota.Aborted, ota.ErrInternal), ours(ota.StatusIdle), false, profile.Aborted, profile.OK, 0},
		"flash failed":       {ended(ota.Failed, ota.ErrFlashWrite), ours(ota.StatusIdle), false, profile.Failed, profile.Storage, 0},
		"failed, no code":    {ended(ota.Failed, 0), ours(ota.StatusIdle), false, profile.Failed, profile.Internal, 0},
		"ended, nobody knew": {inbox.State{Phase: inbox.Ended}, ours(ota.StatusIdle), false, profile.Failed, profile.Internal, 0},
	} {
		t.Run(name, func(t *testing.T) {
			u := derive(c.st, c.device, c.aborted)
			if u.State != c.state || u.Result != c.result || u.Safety != c.safety {
				t.Errorf("got %v, %v, %v, want %v, %v, %v", u.State, u.Result, u.Safety.Names(), c.state, c.result, c.safety.Names())
			}
			if u.State == profile.Confirmed && (c.st.Outcome == nil || c.st.Outcome.Result != ota.Succeeded) {
				t.Error("confirmed without a proven success")
			}
		})
	}
	for status := ota.StatusIdle; status <= ota.StatusRollingBack; status++ {
		if u := derive(requested, ours(status), false); u.State.Over() {
			t.Errorf("%v with this release in hand: got %v, which is an end, and nothing was reported", status, u.State)
		}
	}
}

// TestEveryCauseIsNamed: a gate's reason never gets lost, and what is not known is not
// called something else.
func TestEveryCauseIsNamed(t *testing.T) {
	for cause, want := range map[ota.Cause]struct {
		bit    profile.Safety
		result profile.Result
	}{
		ota.CauseSoCLow: {profile.ChargeLow, profile.LowCharge}, ota.CauseSoCHigh: {profile.ChargeHigh, profile.LowCharge},
		ota.CauseTemperatureLow: {profile.TemperatureLow, profile.Temperature}, ota.CauseTemperatureHigh: {profile.TemperatureHigh, profile.Temperature},
		ota.CauseCurrent: {profile.CurrentHigh, profile.Current}, ota.CauseCellLow: {profile.Other, profile.Internal},
		ota.CauseCellHigh: {profile.Other, profile.Internal}, ota.CauseCellDelta: {profile.CellDelta, profile.Internal},
		ota.CauseStale: {profile.Stale, profile.StaleData}, ota.CauseDisagreement: {profile.Disagreement, profile.StaleData},
		ota.CauseAlarm: {profile.Alarms, profile.Alarm}, ota.CauseMode: {profile.NotStandby, profile.Mode},
		ota.CauseContactors: {profile.Contactor, profile.Mode}, ota.CauseWindow: {profile.Dispatch, profile.NoWindow},
		ota.CauseDwell: {profile.Other, profile.Busy}, ota.CauseOther: {profile.Other, profile.Internal},
		"something new": {profile.Other, profile.Internal},
	} {
		got := why(&ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "r", Causes: []ota.Cause{cause}})
		if got.safety != want.bit || got.result != want.result || got.reasons != 1 || got.text != "r" {
			t.Errorf("%s: got %+v, want %v, %v", cause, got, want.bit.Names(), want.result)
		}
	}
	all := why(&ota.Refusal{Code: ota.ErrBMSUnsafe, Causes: []ota.Cause{ota.CauseSoCLow, ota.CauseAlarm, "new"}})
	if want := profile.ChargeLow | profile.Alarms | profile.Other; all.safety != want || all.result != profile.Alarm || all.reasons != 3 {
		t.Errorf("three causes: got %+v, want bits %v, %v", all, want.Names(), profile.Alarm)
	}
	for err, want := range map[error]profile.Result{
		nil: profile.OK, ota.ErrBusy: profile.Busy, errors.New("x"): profile.Internal, ota.ErrNotNow: profile.Internal,
		fmt.Errorf("%w: %w", ota.ErrNotNow, ota.ErrBatteryLow): profile.LowCharge, ota.ErrConnectivity: profile.Timeout,
	} {
		if got := why(err); got.result != want {
			t.Errorf("%v: got %v, want %v", err, got.result, want)
		}
	}
}

// TestBucket: five at once, and then one every two seconds.
func TestBucket(t *testing.T) {
	b := bucket{every: 2 * time.Second, burst: 5}
	now := time.Unix(1000, 0)
	take := func(want time.Duration) {
		t.Helper()
		if got := b.take(now); got != want {
			t.Fatalf("at %v: got %v, want %v", now.Unix(), got, want)
		}
	}
	for range 5 {
		take(0)
	}
	take(2 * time.Second)
	now = now.Add(2*time.Second - time.Millisecond)
	take(time.Millisecond)
	now = now.Add(time.Millisecond)
	take(0)
	take(2 * time.Second)
	now = now.Add(7 * time.Second) // three and a half more
	for range 3 {
		take(0)
	}
	take(time.Second)
	now = now.Add(time.Hour)
	for range 5 {
		take(0)
	}
	take(2 * time.Second)
	now = now.Add(-2 * time.Hour) // a clock that is set back refuses nobody for hours
	take(0)
}
