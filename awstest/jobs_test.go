package awstest

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Both timers, with nobody waiting: the in-progress timer is fixed at the start, the
// step timer starts again only when an update says so, and never reaches beyond it.
func TestJobTimers(t *testing.T) {
	const m = time.Minute
	type event struct {
		at      time.Duration
		topic   string
		payload string
	}
	for name, c := range map[string]struct {
		timeout time.Duration
		events  []event
		ends    time.Duration // 0: never
	}{
		"queued: nothing runs":         {timeout: 5 * m},
		"in progress":                  {5 * m, []event{{2 * m, "start-next", `{}`}}, 7 * m},
		"updates do not extend it":     {5 * m, []event{{0, "start-next", `{}`}, {4 * m, "j/update", `{"status":"IN_PROGRESS"}`}}, 5 * m},
		"step":                         {0, []event{{0, "start-next", `{"stepTimeoutInMinutes":3}`}}, 3 * m},
		"step, said again":             {0, []event{{0, "start-next", `{"stepTimeoutInMinutes":3}`}, {2 * m, "j/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":4}`}}, 6 * m},
		"step, not said again":         {0, []event{{0, "start-next", `{"stepTimeoutInMinutes":3}`}, {2 * m, "j/update", `{"status":"IN_PROGRESS"}`}}, 3 * m},
		"step, dropped":                {0, []event{{0, "start-next", `{"stepTimeoutInMinutes":3}`}, {2 * m, "j/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":-1}`}}, 0},
		"step within in progress":      {5 * m, []event{{0, "start-next", `{"stepTimeoutInMinutes":3}`}}, 3 * m},
		"step beyond in progress":      {5 * m, []event{{0, "start-next", `{}`}, {4 * m, "j/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":9}`}}, 5 * m},
		"step of a job in progress":    {0, []event{{0, "j/update", `{"status":"IN_PROGRESS"}`}, {2 * m, "start-next", `{"stepTimeoutInMinutes":1}`}}, 3 * m},
		"over in time":                 {5 * m, []event{{0, "start-next", `{}`}, {5*m - time.Second, "j/update", `{"status":"SUCCEEDED"}`}}, 0},
		"a refused update is no event": {0, []event{{0, "start-next", `{"stepTimeoutInMinutes":3}`}, {2 * m, "j/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":4,"expectedVersion":9}`}}, 3 * m},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				jobs := NewJobs(JobsOptions{})
				var mu sync.Mutex
				said := map[string]int{}
				jobs.Attach(func(m Message) { mu.Lock(); said[m.Topic]++; mu.Unlock() })
				if err := jobs.Create(Job{ID: "j", Things: []string{"d"}, Document: `{}`, InProgressTimeout: c.timeout}); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				for _, e := range c.events {
					<-time.After(e.at - time.Since(start))
					jobs.Receive("d", "$aws/things/d/jobs/"+e.topic, []byte(e.payload))
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				_, err := jobs.Wait(ctx, "d", "j", TimedOut)
				if ended := err == nil; ended != (c.ends > 0) {
					t.Fatalf("got %v, want an end: %t", err, c.ends > 0)
				}
				if got := time.Since(start); c.ends > 0 && got != c.ends {
					t.Errorf("timed out after %v, want %v", got, c.ends)
				}
				mu.Lock()
				defer mu.Unlock()
				if n := said["$aws/things/d/jobs/notify"]; c.ends > 0 && n != 2 {
					t.Errorf("got %d notifications, want 2: created, timed out", n)
				}
			})
		})
	}
}

func TestJobTimedOutIsRetriedAndTellsTheTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		jobs := NewJobs(JobsOptions{})
		said := make(chan Message, 100)
		jobs.Attach(func(m Message) { said <- m })
		err := jobs.Create(Job{ID: "j", Things: []string{"d"}, Document: `{}`, InProgressTimeout: 2 * time.Minute, Retry: map[Status]int{TimedOut: 1}})
		if err != nil {
			t.Fatal(err)
		}
		jobs.Receive("d", "$aws/things/d/jobs/start-next", []byte(`{}`))
		var last Message
		for len(said) > 0 {
			last = <-said
		}
		if last.Client != "d" || !contains(last.Payload, `"approximateSecondsBeforeTimedOut":120`) {
			t.Errorf("got %s to %q", last.Payload, last.Client)
		}
		<-time.After(3 * time.Minute)
		all := jobs.Executions("d", "j")
		if len(all) != 2 || all[0].Status != TimedOut || all[1].Status != Queued || all[1].Number != 2 {
			t.Errorf("got %+v, want one timed out and one queued", all)
		}
		// an update that comes too late changes nothing of what has timed out
		jobs.Receive("d", "$aws/things/d/jobs/j/update", []byte(`{"status":"SUCCEEDED","executionNumber":1}`))
		if got := jobs.Executions("d", "j")[0].Status; got != TimedOut {
			t.Errorf("got %s, want TIMED_OUT", got)
		}
		updates := jobs.Updates("d", "j")
		if len(updates) != 2 || updates[0].Status != InProgress || updates[1].Code != "InvalidStateTransition" {
			t.Errorf("got history %+v", updates)
		}
	})
}

func TestJobHistoryHasWhatWasRefused(t *testing.T) {
	jobs := NewJobs(JobsOptions{})
	if err := jobs.Create(Job{ID: "j", Things: []string{"d"}, Document: `{}`}); err != nil {
		t.Fatal(err)
	}
	for _, payload := range []string{`{"status":"SUCCEEDED","expectedVersion":5}`, `{"status":"SUCCEEDED","statusDetails":{"a":"b"}}`, `{"status":"SUCCEEDED"}`, `no JSON`} {
		jobs.Receive("d", "$aws/things/d/jobs/j/update", []byte(payload))
	}
	var got []string
	for _, u := range jobs.Updates("d", "j") {
		got = append(got, string(u.Status)+" "+u.Code)
	}
	want(t, got, "SUCCEEDED VersionMismatch", "SUCCEEDED ", "SUCCEEDED InvalidStateTransition", " InvalidJson")
	ctx, cancel := context.WithCancel(t.Context())
	if e, err := jobs.Wait(ctx, "d", "j"); err != nil || e.StatusDetails["a"] != "b" || e.Version != 2 {
		t.Errorf("got %+v, %v", e, err)
	}
	cancel()
	if _, err := jobs.Wait(ctx, "d", "j", Failed); err == nil || !contains([]byte(err.Error()), "SUCCEEDED") {
		t.Errorf("got %v, want an error that says how far it got", err)
	}
}

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }
