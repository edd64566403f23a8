package standing_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/inbox/standing"
)

// TestOf: what is shown of the manager's statuses, for this release and others.
func TestOf(t *testing.T) {
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
	tried := func(result ota.Result, code ota.ErrorCode, runs string) inbox.State {
		st := ended(result, code)
		st.Outcome.Tried, st.Outcome.Version, st.Outcome.Running = true, "1.1.0", runs
		return st
	}
	failed := func(version string, err error) inbox.State {
		return inbox.State{Phase: inbox.Failed, Version: version, Err: err}
	}
	refused := func(err error) inbox.State {
		return inbox.State{Phase: inbox.Requested, Digest: "d1", Version: "1.1.0", Err: fmt.Errorf("x: %w", err)}
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

		state  standing.State
		result standing.Result
		safety standing.Safety
	}{
		"nothing":                        {inbox.State{Phase: inbox.Empty}, ours(ota.StatusTrial), false, standing.Idle, standing.OK, 0},
		"given up by a master":           {inbox.State{Phase: inbox.Empty}, ours(ota.StatusIdle), true, standing.Aborted, standing.OK, 0},
		"opening":                        {inbox.State{Phase: inbox.Opening}, ours(ota.StatusIdle), true, standing.Opening, standing.OK, 0},
		"opening, keys unreadable":       {inbox.State{Phase: inbox.Opening, Err: fmt.Errorf("judge: %w", ota.ErrNotNow)}, ours(ota.StatusIdle), false, standing.Opening, standing.Internal, 0},
		"receiving":                      {inbox.State{Phase: inbox.Receiving}, ours(ota.StatusTrial), false, standing.Receiving, standing.OK, 0},
		"received":                       {inbox.State{Phase: inbox.Received}, ours(ota.StatusIdle), false, standing.Received, standing.OK, 0},
		"verifying":                      {inbox.State{Phase: inbox.Verifying}, ours(ota.StatusIdle), false, standing.Verifying, standing.OK, 0},
		"verifying, disk trouble":        {inbox.State{Phase: inbox.Verifying, Err: ota.ErrFlashWrite}, ours(ota.StatusIdle), false, standing.Verifying, standing.Storage, 0},
		"verified":                       {inbox.State{Phase: inbox.Verified}, ours(ota.StatusComplete), false, standing.Verified, standing.OK, 0},
		"bad signature":                  {failed("", fmt.Errorf("x: %w", ota.ErrValidation)), ours(ota.StatusIdle), false, standing.Failed, standing.BadSignature, 0},
		"bad hash":                       {failed("1.1.0", fmt.Errorf("x: %w", ota.ErrValidation)), ours(ota.StatusIdle), false, standing.Failed, standing.BadHash, 0},
		"another product":                {failed("1.1.0", fmt.Errorf("x: %w", ota.ErrIncompatible)), ours(ota.StatusIdle), false, standing.Failed, standing.Incompatible, 0},
		"an older version":               {failed("0.9.0", fmt.Errorf("x: %w", ota.ErrIncompatible)), ours(ota.StatusIdle), false, standing.Failed, standing.TooOld, 0},
		"an older version, as no update": {failed("0.9.0", fmt.Errorf("x: %w", ota.ErrNoUpdate)), ours(ota.StatusIdle), false, standing.Failed, standing.TooOld, 0},
		"the version that runs":          {failed("1.0.0", fmt.Errorf("x: %w", ota.ErrNoUpdate)), ours(ota.StatusIdle), false, standing.Failed, standing.Incompatible, 0},
		"no space":                       {failed("1.1.0", fmt.Errorf("x: %w", ota.ErrInsufficientSpace)), ours(ota.StatusIdle), false, standing.Failed, standing.NoSpace, 0},
		"failed without a code":          {failed("1.1.0", errors.New("x")), ours(ota.StatusIdle), false, standing.Failed, standing.Internal, 0},

		"requested, not looked at":       {requested, api.CheckinRequest{}, false, standing.WaitSafe, standing.OK, 0},
		"idle":                           {requested, ours(ota.StatusIdle), false, standing.WaitSafe, standing.OK, 0},
		"checking":                       {requested, ours(ota.StatusChecking), false, standing.WaitSafe, standing.OK, 0},
		"available":                      {requested, ours(ota.StatusUpdateAvailable), false, standing.WaitSafe, standing.OK, 0},
		"available, no consent":          {requested, with(ours(ota.StatusUpdateAvailable), 0, "no consent to install yet", ota.CauseConsent), false, standing.WaitSafe, standing.NoWindow, standing.Consent},
		"available, the gate refuses":    {requested, with(ours(ota.StatusUpdateAvailable), ota.ErrBatteryLow, "state of charge", ota.CauseSoCLow), false, standing.WaitSafe, standing.Charge, standing.ChargeLow},
		"available, a bare refusal":      {requested, with(ours(ota.StatusUpdateAvailable), ota.ErrBMSUnsafe, "no"), false, standing.WaitSafe, standing.Internal, standing.Other},
		"available, low without a cause": {requested, with(ours(ota.StatusUpdateAvailable), ota.ErrBatteryLow, "no"), false, standing.WaitSafe, standing.Charge, standing.ChargeLow},
		"downloading":                    {requested, ours(ota.StatusDownloading), false, standing.Installing, standing.OK, 0},
		"verifying the slot":             {requested, ours(ota.StatusVerifying), false, standing.Installing, standing.OK, 0},
		"ready to apply":                 {requested, ours(ota.StatusReadyToApply), false, standing.WaitSafe, standing.OK, 0},
		"ready, out of hours":            {requested, with(ours(ota.StatusReadyToApply), 0, "outside the window", ota.CauseWindow), false, standing.WaitSafe, standing.NoWindow, standing.Dispatch},
		"applying":                       {requested, ours(ota.StatusApplying), false, standing.Installing, standing.OK, 0},
		"rebooting":                      {requested, ours(ota.StatusRebooting), false, standing.RebootPending, standing.OK, 0},
		"trial":                          {requested, ours(ota.StatusTrial), false, standing.Trial, standing.OK, 0},
		"trial, not healthy":             {requested, with(ours(ota.StatusTrial), ota.ErrValidation, "not healthy"), false, standing.Trial, standing.Unhealthy, 0},
		"trial, an error without a code": {requested, with(ours(ota.StatusTrial), ota.ErrInternal, "no battery"), false, standing.Trial, standing.Unhealthy, 0},
		"trial, cannot be marked good":   {requested, with(ours(ota.StatusTrial), ota.ErrFlashWrite, "mark slot B good"), false, standing.Trial, standing.Storage, 0},
		"complete, but not reported":     {requested, ours(ota.StatusComplete), false, standing.Trial, standing.OK, 0},
		"ended, but not reported":        {requested, trial, false, standing.Trial, standing.OK, 0},
		"rolling back":                   {requested, ours(ota.StatusRollingBack), false, standing.RebootPending, standing.WentBack, 0},
		"failed, tried again":            {requested, with(ours(ota.StatusFailed), ota.ErrFlashWrite, "slot"), false, standing.Installing, standing.Storage, 0},
		"aborted, not reported":          {requested, ours(ota.StatusAborted), false, standing.WaitSafe, standing.OK, 0},
		"another update":                 {requested, other, false, standing.WaitSafe, standing.Busy, 0},
		"another update's trial":         {requested, otherTrial, false, standing.WaitSafe, standing.Busy, 0},
		"not taken again":                {refused(ota.ErrIncompatible), skipped, false, standing.Failed, standing.Incompatible, 0},
		"taken again by who may":         {requested, skipped, false, standing.WaitSafe, standing.OK, 0}, // the manager has not looked yet
		"that version runs by now":       {refused(ota.ErrNoUpdate), api.CheckinRequest{}, false, standing.Failed, standing.Incompatible, 0},
		"refused, and in hand":           {refused(ota.ErrNoUpdate), ours(ota.StatusTrial), false, standing.Trial, standing.OK, 0},
		"refused, for it runs":           {refused(ota.ErrNoUpdate), trial, false, standing.Trial, standing.OK, 0},
		"refused for now":                {refused(ota.ErrNotNow), api.CheckinRequest{}, false, standing.WaitSafe, standing.OK, 0},

		"proven":              {ended(ota.Succeeded, 0), ours(ota.StatusIdle), false, standing.Confirmed, standing.OK, 0},
		"rolled back":         {ended(ota.RolledBack, ota.ErrInternal), ours(ota.StatusIdle), false, standing.RolledBack, standing.WentBack, 0},
		"lost":                {ended(ota.Lost, ota.ErrInternal), ours(ota.StatusIdle), false, standing.RolledBack, standing.Internal, 0},
		"stopped":             {ended(ota.Aborted, ota.ErrInternal), ours(ota.StatusIdle), false, standing.Aborted, standing.OK, 0},
		"flash failed":        {ended(ota.Failed, ota.ErrFlashWrite), ours(ota.StatusIdle), false, standing.Failed, standing.Storage, 0},
		"did not start":       {tried(ota.Failed, ota.ErrValidation, "1.0.0"), ours(ota.StatusIdle), false, standing.RolledBack, standing.Unhealthy, 0},
		"did not stay, stays": {tried(ota.Failed, ota.ErrValidation, "1.1.0"), ours(ota.StatusIdle), false, standing.Failed, standing.Unhealthy, 0},
		"tried, flash failed": {tried(ota.Failed, ota.ErrFlashWrite, "1.0.0"), ours(ota.StatusIdle), false, standing.Failed, standing.Storage, 0},
		"never tried":         {ended(ota.Failed, ota.ErrValidation), ours(ota.StatusIdle), false, standing.Failed, standing.BadHash, 0},
		"failed, no code":     {ended(ota.Failed, 0), ours(ota.StatusIdle), false, standing.Failed, standing.Internal, 0},
		"ended, nobody knew":  {inbox.State{Phase: inbox.Ended}, ours(ota.StatusIdle), false, standing.Failed, standing.Internal, 0},
	} {
		t.Run(name, func(t *testing.T) {
			u := standing.Of(c.st, c.device, c.aborted)
			if u.State != c.state || u.Result != c.result || u.Safety != c.safety {
				t.Errorf("got %v, %v, %v, want %v, %v, %v", u.State, u.Result, u.Safety, c.state, c.result, c.safety)
			}
			if u.State == standing.Confirmed && (c.st.Outcome == nil || c.st.Outcome.Result != ota.Succeeded) {
				t.Error("confirmed without a proven success")
			}
		})
	}
	for status := ota.StatusIdle; status <= ota.StatusRollingBack; status++ {
		if u := standing.Of(requested, ours(status), false); u.State >= standing.Confirmed {
			t.Errorf("%v with this release in hand: got %v, which is an end, and nothing was reported", status, u.State)
		}
	}
}

// TestEveryCauseIsNamed: a gate's reason never gets lost, and what is not known is not
// called something else.
func TestEveryCauseIsNamed(t *testing.T) {
	for cause, want := range map[ota.Cause]struct {
		bit    standing.Safety
		result standing.Result
	}{
		ota.CauseSoCLow: {standing.ChargeLow, standing.Charge}, ota.CauseSoCHigh: {standing.ChargeHigh, standing.Charge},
		ota.CauseTemperatureLow: {standing.TemperatureLow, standing.Temperature}, ota.CauseTemperatureHigh: {standing.TemperatureHigh, standing.Temperature},
		ota.CauseCurrent: {standing.CurrentHigh, standing.Current}, ota.CauseCellLow: {standing.Other, standing.Internal},
		ota.CauseCellHigh: {standing.Other, standing.Internal}, ota.CauseCellDelta: {standing.CellDelta, standing.Internal},
		ota.CauseStale: {standing.Stale, standing.StaleData}, ota.CauseDisagreement: {standing.Disagreement, standing.StaleData},
		ota.CauseAlarm: {standing.Alarms, standing.Alarm}, ota.CauseMode: {standing.NotStandby, standing.Mode},
		ota.CauseContactors: {standing.Contactors, standing.Mode}, ota.CauseWindow: {standing.Dispatch, standing.NoWindow},
		ota.CauseDwell: {standing.Other, standing.Busy}, ota.CauseOther: {standing.Other, standing.Internal},
		"something new": {standing.Other, standing.Internal},
	} {
		got := standing.Why(&ota.Refusal{Code: ota.ErrBMSUnsafe, Reason: "r", Causes: []ota.Cause{cause}})
		if got.Safety != want.bit || got.Result != want.result || got.Count != 1 || got.Text != "r" {
			t.Errorf("%s: got %+v, want %v, %v", cause, got, want.bit, want.result)
		}
	}
	all := standing.Why(&ota.Refusal{Code: ota.ErrBMSUnsafe, Causes: []ota.Cause{ota.CauseSoCLow, ota.CauseAlarm, "new"}})
	if want := standing.ChargeLow | standing.Alarms | standing.Other; all.Safety != want || all.Result != standing.Alarm || all.Count != 3 {
		t.Errorf("three causes: got %+v, want bits %v, %v", all, want, standing.Alarm)
	}
	for err, want := range map[error]standing.Result{
		nil: standing.OK, ota.ErrBusy: standing.Busy, errors.New("x"): standing.Internal, ota.ErrNotNow: standing.Internal,
		fmt.Errorf("%w: %w", ota.ErrNotNow, ota.ErrBatteryLow): standing.Charge, ota.ErrConnectivity: standing.Timeout,
	} {
		if got := standing.Why(err); got.Result != want {
			t.Errorf("%v: got %v, want %v", err, got.Result, want)
		}
	}
}

// TestCourse: the numbers of an update are those of this release and no other, and what is
// not known is 0.
func TestCourse(t *testing.T) {
	type numbers struct {
		try          uint16
		left         uint32
		done, failed standing.Images
	}
	requested := inbox.State{Phase: inbox.Requested, Digest: "d1", Version: "1.1.0", Images: 3, Offer: inbox.Offer{Size: 1000}}
	with := func(status ota.Status, c ota.Course) api.CheckinRequest {
		return api.CheckinRequest{Head: api.Head{Version: "1.0.0", Status: status, UpdateDigest: "d1", Done: 250, Total: 1000, Course: c}}
	}
	other := with(ota.StatusTrial, ota.Course{Try: 2, SecondsLeft: 9, ImagesDone: 3, FailedImage: 1})
	other.UpdateDigest = "d2"
	over := api.CheckinRequest{Head: api.Head{Digest: "d1"}}
	ended := func(result ota.Result, images, failed int) inbox.State {
		return inbox.State{Phase: inbox.Ended, Digest: "d1", Images: images, Outcome: &ota.Report{Digest: "d1", Result: result, FailedImage: failed}}
	}
	const all = standing.Images(1<<32 - 1)
	for name, c := range map[string]struct {
		st     inbox.State
		device api.CheckinRequest
		want   numbers
	}{
		"nothing":                 {inbox.State{}, other, numbers{}},
		"received":                {inbox.State{Phase: inbox.Received, Digest: "d1", Images: 3}, with(ota.StatusTrial, ota.Course{Try: 1}), numbers{}},
		"verified":                {inbox.State{Phase: inbox.Verified, Digest: "d1", Images: 3}, over, numbers{}},
		"another update":          {requested, other, numbers{}},
		"not looked at":           {requested, api.CheckinRequest{}, numbers{}},
		"nothing known":           {requested, with(ota.StatusUpdateAvailable, ota.Course{}), numbers{}},
		"dwell":                   {requested, with(ota.StatusUpdateAvailable, ota.Course{Try: 1, SecondsLeft: 18}), numbers{try: 1, left: 18}},
		"the second image":        {requested, with(ota.StatusDownloading, ota.Course{Try: 1, SecondsLeft: 70000, ImagesDone: 1}), numbers{1, 70000, 1, 0}},
		"failed, tried again":     {requested, with(ota.StatusFailed, ota.Course{Try: 1, ImagesDone: 1, FailedImage: 2}), numbers{1, 0, 1, 2}},
		"trial, the second":       {requested, with(ota.StatusTrial, ota.Course{Try: 2, SecondsLeft: 42, ImagesDone: 3}), numbers{2, 42, 7, 0}},
		"more than fit":           {requested, with(ota.StatusTrial, ota.Course{Try: 70000, SecondsLeft: 1 << 40, ImagesDone: 64, FailedImage: 64}), numbers{65535, 1<<32 - 1, all, 0}},
		"the last with a bit":     {requested, with(ota.StatusFailed, ota.Course{Try: 1, ImagesDone: 31, FailedImage: 32}), numbers{1, 0, all >> 1, 1 << 31}},
		"the first without one":   {requested, with(ota.StatusFailed, ota.Course{Try: 1, ImagesDone: 32, FailedImage: 33}), numbers{1, 0, all, 0}},
		"numbers that cannot be":  {requested, with(ota.StatusFailed, ota.Course{Try: -1, SecondsLeft: -1, ImagesDone: -1, FailedImage: -1}), numbers{}},
		"ended, not reported":     {requested, over, numbers{done: 7}},
		"proven":                  {ended(ota.Succeeded, 3, 0), over, numbers{done: 7}},
		"proven, by an old inbox": {ended(ota.Succeeded, 0, 0), over, numbers{}},
		"failed at the third":     {ended(ota.Failed, 3, 3), over, numbers{done: 3, failed: 4}},
		"failed at the first":     {ended(ota.Failed, 3, 1), over, numbers{failed: 1}},
		"failed, not at an image": {ended(ota.Failed, 3, 0), over, numbers{}},
		"rolled back":             {ended(ota.RolledBack, 3, 0), over, numbers{}},
		"aborted":                 {ended(ota.Aborted, 3, 0), over, numbers{}},
	} {
		u := standing.Of(c.st, c.device, false)
		if got := (numbers{u.Try, u.Left, u.Done, u.Failed}); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}
