package awstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	dev   = "$aws/things/dev-1/jobs/"
	epoch = 1767225600
)

var noon = time.Unix(epoch, 700e6) // the service tells whole seconds

// says is what the core answered: topics below jobs/, and payloads as they are.
func says(messages []Message) []string {
	var out []string
	for _, m := range messages {
		out = append(out, strings.TrimPrefix(m.Topic, dev)+" "+string(m.Payload))
	}
	return out
}

func newCore(t *testing.T, jobs ...Job) *jobCore {
	t.Helper()
	c := newJobCore(nil)
	for _, j := range jobs {
		if j.Things == nil {
			j.Things = []string{"dev-1"}
		}
		if j.Document == "" {
			j.Document = `{"v":"` + j.ID + `"}`
		}
		if _, err := c.create(j, noon); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// ask sends a request and returns what came of it.
func ask(c *jobCore, topic, payload string) []string {
	return says(c.handle(dev+topic, []byte(payload), noon))
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("wrong messages (-want +got):\n%s", d)
	}
}

// Shapes and order as captured from the live service: reserved topics of Jobs.
func TestJobFromCreationToSuccess(t *testing.T) {
	c := newJobCore(nil)
	m, err := c.create(Job{ID: "j1", Things: []string{"dev-1"}, Document: `{"n":12345678901234567890,"v":"2"}`}, noon)
	if err != nil {
		t.Fatal(err)
	}
	want(t, says(m),
		`notify {"timestamp":1767225600,"jobs":{"QUEUED":[{"jobId":"j1","queuedAt":1767225600,"lastUpdatedAt":1767225600,"versionNumber":1,"executionNumber":1}]}}`,
		`notify-next {"execution":{"jobId":"j1","jobDocument":{"n":12345678901234567890,"v":"2"},"status":"QUEUED","queuedAt":1767225600,"lastUpdatedAt":1767225600,"versionNumber":1,"executionNumber":1},"timestamp":1767225600}`)
	want(t, ask(c, "get", `{"clientToken":"t"}`),
		`get/accepted {"inProgressJobs":[],"queuedJobs":[{"jobId":"j1","queuedAt":1767225600,"lastUpdatedAt":1767225600,"versionNumber":1,"executionNumber":1}],"timestamp":1767225600,"clientToken":"t"}`)
	want(t, ask(c, "$next/get", `{"includeJobDocument":false}`),
		`$next/get/accepted {"execution":{"jobId":"j1","thingName":"dev-1","status":"QUEUED","queuedAt":1767225600,"lastUpdatedAt":1767225600,"versionNumber":1,"executionNumber":1},"timestamp":1767225600}`)
	// QUEUED to IN_PROGRESS of the first job notifies nobody
	want(t, ask(c, "start-next", `{"statusDetails":{"a":"b"},"clientToken":"s"}`),
		`start-next/accepted {"execution":{"jobId":"j1","thingName":"dev-1","jobDocument":{"n":12345678901234567890,"v":"2"},"status":"IN_PROGRESS","statusDetails":{"a":"b"},"queuedAt":1767225600,"startedAt":1767225600,"lastUpdatedAt":1767225600,"versionNumber":2,"executionNumber":1},"timestamp":1767225600,"clientToken":"s"}`)
	want(t, ask(c, "j1/update", `{"status":"IN_PROGRESS","expectedVersion":"2","includeJobExecutionState":true,"includeJobDocument":true}`),
		`j1/update/accepted {"executionState":{"status":"IN_PROGRESS","statusDetails":{"a":"b"},"versionNumber":3},"jobDocument":{"n":12345678901234567890,"v":"2"},"timestamp":1767225600}`)
	// accepted, then notify, then notify-next, both as if nothing had ever been
	want(t, ask(c, "j1/update", `{"status":"SUCCEEDED","expectedVersion":3,"clientToken":"d"}`),
		`j1/update/accepted {"timestamp":1767225600,"clientToken":"d"}`,
		`notify {"timestamp":1767225600,"jobs":{}}`,
		`notify-next {"timestamp":1767225600}`)
	want(t, ask(c, "start-next", `{}`), `start-next/accepted {"timestamp":1767225600}`)
	want(t, ask(c, "$next/get", `{"clientToken":"0:dev-1"}`), `$next/get/accepted {"timestamp":1767225600,"clientToken":"0:dev-1"}`)
	if got := c.status("j1"); got != "COMPLETED" {
		t.Errorf("got job status %s, want COMPLETED", got)
	}
}

func TestJobRejections(t *testing.T) {
	long := strings.Repeat("x", 65)
	for _, c := range []struct{ topic, payload, code string }{
		{"get", ``, "InvalidJson"},
		{"get", `[1,2]`, "InvalidJson"},
		{"get", `null`, "InvalidJson"},
		{"get", `"x"`, "InvalidJson"},
		{"get", "{\"clientToken\":\"\xff\"}", "InvalidJson"},
		{"get", `{"clientToken":1}`, "InvalidRequest"},
		{"get", `{"clientToken":"` + long + `"}`, "InvalidRequest"},
		{"nothing", `{}`, "InvalidTopic"},
		{"j1/delete", `{}`, "InvalidTopic"},
		{"j1/x/get", `{}`, "InvalidTopic"},
		{"no-such/get", `{}`, "ResourceNotFound"},
		{"j1/get", `{"executionNumber":2}`, "ResourceNotFound"},
		{"j1/get", `{"includeJobDocument":"yes"}`, "InvalidRequest"},
		{"j%1/get", `{}`, "InvalidRequest"},
		{"over/get", `{}`, "TerminalStateReached"},
		{"$next/update", `{"status":"SUCCEEDED"}`, "InvalidRequest"},
		{"j1/update", `{}`, "InvalidRequest"},
		{"j1/update", `{"status":3}`, "InvalidRequest"},
		{"j1/update", `{"status":"QUEUED"}`, "InvalidRequest"},
		{"j1/update", `{"status":"CANCELED"}`, "InvalidRequest"},
		{"j1/update", `{"status":"TIMED_OUT"}`, "InvalidRequest"},
		{"j1/update", `{"status":"succeeded"}`, "InvalidRequest"},
		{"j1/update", `{"Status":"SUCCEEDED"}`, "InvalidRequest"},
		{"j1/update", `{"status":"FAILED","statusDetails":{"k":1}}`, "InvalidRequest"},
		{"j1/update", `{"status":"FAILED","statusDetails":{"a key":"v"}}`, "InvalidRequest"},
		{"j1/update", `{"status":"FAILED","statusDetails":{"k":"a\nb"}}`, "InvalidRequest"},
		{"j1/update", `{"status":"FAILED","statusDetails":{"k":"` + strings.Repeat("x", 1025) + `"}}`, "InvalidRequest"},
		{"j1/update", `{"status":"FAILED","statusDetails":{"1":"a","2":"a","3":"a","4":"a","5":"a","6":"a","7":"a","8":"a","9":"a","10":"a","11":"a"}}`, "InvalidRequest"},
		{"j1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":0}`, "InvalidRequest"},
		{"j1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":10081}`, "InvalidRequest"},
		{"j1/update", `{"status":"IN_PROGRESS","expectedVersion":"one"}`, "InvalidRequest"},
		{"j1/update", `{"status":"IN_PROGRESS","expectedVersion":1.5}`, "InvalidRequest"},
		{"no-such/update", `{"status":"SUCCEEDED"}`, "ResourceNotFound"},
		{"over/update", `{"status":"IN_PROGRESS"}`, "InvalidStateTransition"},
		{"over/update", `{"status":"SUCCEEDED"}`, "InvalidStateTransition"},
	} {
		t.Run(c.topic+" "+c.payload[:min(40, len(c.payload))], func(t *testing.T) {
			core := newCore(t, Job{ID: "over"}, Job{ID: "j1"})
			ask(core, "over/update", `{"status":"SUCCEEDED"}`)
			m := core.handle(dev+c.topic, []byte(c.payload), noon)
			if len(m) != 1 || m[0].Topic != dev+c.topic+"/rejected" || m[0].Client != answer {
				t.Fatalf("got %v, want one answer on rejected", says(m))
			}
			var got wireRejected
			if err := json.Unmarshal(m[0].Payload, &got); err != nil || got.Code != c.code || got.Timestamp != epoch || got.Message == "" {
				t.Errorf("got %s, want code %s, a message, and timestamp %d", m[0].Payload, c.code, epoch)
			}
			if e := core.latest("dev-1", "j1"); e.Status != Queued || e.Version != 1 {
				t.Errorf("a rejected request changed the execution: %+v", e.Execution)
			}
		})
	}
}

// Captured: {"code":"VersionMismatch","message":"Expected version 99 but found version 1","executionState":{"status":"QUEUED","versionNumber":1}}
func TestJobVersionMismatchIsAsCaptured(t *testing.T) {
	c := newCore(t, Job{ID: "j1"})
	want(t, ask(c, "j1/update", `{"status":"SUCCEEDED","expectedVersion":99,"clientToken":"v"}`),
		`j1/update/rejected {"code":"VersionMismatch","message":"Expected version 99 but found version 1","clientToken":"v","timestamp":1767225600,"executionState":{"status":"QUEUED","versionNumber":1}}`)
}

// What the service itself says must never be taken for a request, or two front
// ends would answer each other for ever.
func TestJobTopicsOfTheServiceAreNotRequests(t *testing.T) {
	c := newCore(t, Job{ID: "j1"})
	for _, topic := range []string{
		"get/accepted", "get/rejected", "notify", "notify-next", "start-next/accepted", "j1/update/accepted", "j1/update/rejected", "x/rejected",
	} {
		if got := ask(c, topic, `{}`); got != nil {
			t.Errorf("%s: got %v, want silence", topic, got)
		}
	}
	for _, topic := range []string{"", "$aws/things/dev-1/shadow/get", "$aws/things//jobs/get", "$aws/things/a/b/jobs/get", "things/dev-1/jobs/get"} {
		if got := c.handle(topic, []byte(`{}`), noon); got != nil {
			t.Errorf("%q: got %v, want silence", topic, says(got))
		}
	}
}

// Every status a device may find its execution in, and every status it may ask for.
func TestJobStatusMachine(t *testing.T) {
	reach := map[Status]func(*jobCore){
		Queued:     func(*jobCore) {},
		InProgress: func(c *jobCore) { ask(c, "start-next", `{}`) },
		Succeeded:  func(c *jobCore) { ask(c, "j1/update", `{"status":"SUCCEEDED"}`) },
		Failed:     func(c *jobCore) { ask(c, "j1/update", `{"status":"FAILED"}`) },
		Rejected:   func(c *jobCore) { ask(c, "j1/update", `{"status":"REJECTED"}`) },
		TimedOut:   func(c *jobCore) { ask(c, "start-next", `{"stepTimeoutInMinutes":1}`); c.expire(noon.Add(time.Minute)) },
		Removed:    func(c *jobCore) { _, _ = c.end("dev-1", "j1", Removed, true, noon) },
		Canceled:   func(c *jobCore) { _, _ = c.cancel("j1", true, noon) },
	}
	rows := 0
	for _, from := range slices.Sorted(maps.Keys(reach)) {
		for _, to := range slices.Sorted(maps.Keys(reach)) {
			rows++
			c := newCore(t, Job{ID: "j1"})
			reach[from](c)
			e := c.latest("dev-1", "j1")
			if e.Status != from {
				t.Fatalf("did not reach %s: %+v", from, e.Execution)
			}
			version := e.Version
			got := ask(c, "j1/update", fmt.Sprintf(`{"status":%q}`, to))
			legal := !from.Terminal() && slices.Contains([]Status{InProgress, Succeeded, Failed, Rejected}, to)
			if accepted := strings.HasPrefix(got[0], "j1/update/accepted"); accepted != legal {
				t.Errorf("%s to %s: accepted %t, want %t: %s", from, to, accepted, legal, got[0])
			}
			is, change := from, 0
			if legal {
				is, change = to, 1
			}
			if e.Status != is || e.Version != version+change {
				t.Errorf("%s to %s: got %s version %d, want %s version %d", from, to, e.Status, e.Version, is, version+change)
			}
			// what leaves the pending set is announced, what stays is not
			if announced, leaves := len(got) == 3, legal && to.Terminal(); announced != leaves || len(got) == 2 {
				t.Errorf("%s to %s: got %v, want notifications: %t", from, to, got, leaves)
			}
		}
	}
	t.Logf("%d transitions", rows)
}

func topics(lines []string) (of []string) {
	for _, l := range lines {
		topic, _, _ := strings.Cut(l, " ")
		of = append(of, topic)
	}
	return of
}

func TestJobOrderAndNotificationsOfSeveralJobs(t *testing.T) {
	c := newCore(t, Job{ID: "j1"})
	m, _ := c.create(Job{ID: "j2", Things: []string{"dev-1", "dev-2"}, Document: `{}`}, noon)
	want(t, topics(says(m)), "notify", "$aws/things/dev-2/jobs/notify", "$aws/things/dev-2/jobs/notify-next")
	// the second is started first: nothing joins or leaves, but it comes first now
	got := ask(c, "j2/update", `{"status":"IN_PROGRESS"}`)
	want(t, topics(got), "j2/update/accepted", "notify-next")
	if !strings.Contains(got[1], `"jobId":"j2"`) {
		t.Errorf("got %s, want j2 as the next", got[1])
	}
	// start-next gives what is in progress again, unchanged
	if got := ask(c, "start-next", `{"statusDetails":{"a":"b"}}`); !strings.Contains(got[0], `"jobId":"j2"`) || !strings.Contains(got[0], `"versionNumber":2`) || strings.Contains(got[0], "statusDetails") {
		t.Errorf("got %v, want j2 as it was", got)
	}
	got = ask(c, "j2/update", `{"status":"FAILED"}`)
	want(t, topics(got), "j2/update/accepted", "notify", "notify-next")
	if !strings.Contains(got[2], `"jobId":"j1"`) {
		t.Errorf("got %s, want j1 as the next", got[2])
	}
	if got := c.status("j2"); got != "IN_PROGRESS" {
		t.Errorf("j2 is not over on dev-2: got %s", got)
	}
}

func TestJobCancelDeleteWindow(t *testing.T) {
	c := newCore(t, Job{ID: "j1", Things: []string{"dev-1", "dev-2"}}, Job{ID: "j2"})
	ask(c, "start-next", `{}`)
	m, err := c.cancel("j1", false, noon)
	if err != nil {
		t.Fatal(err)
	}
	want(t, topics(says(m)), "$aws/things/dev-2/jobs/notify", "$aws/things/dev-2/jobs/notify-next")
	if got := c.latest("dev-1", "j1").Status; got != InProgress {
		t.Errorf("cancelled without force: got %s, want IN_PROGRESS", got)
	}
	if _, err := c.remove("j1", false, noon); err == nil {
		t.Error("deleted a job in progress without force")
	}
	m, err = c.cancel("j1", true, noon)
	if err != nil {
		t.Fatal(err)
	}
	want(t, topics(says(m)), "notify", "notify-next")
	if got := ask(c, "j1/update", `{"status":"SUCCEEDED"}`); !strings.Contains(got[0], `"executionState":{"status":"CANCELED","versionNumber":3}`) {
		t.Errorf("got %v, want the state CANCELED", got)
	}
	if m, err = c.remove("j1", false, noon); err != nil || len(m) != 0 {
		t.Errorf("delete a cancelled job: %v, %v", says(m), err)
	}
	if got := ask(c, "j1/update", `{"status":"SUCCEEDED"}`); !strings.Contains(got[0], "ResourceNotFound") {
		t.Errorf("got %v, want ResourceNotFound", got)
	}
	m, _ = c.window("j2", false, noon)
	want(t, says(m), `notify {"timestamp":1767225600,"jobs":{}}`, `notify-next {"timestamp":1767225600}`)
	if got := ask(c, "start-next", `{}`); strings.Contains(got[0], "execution") {
		t.Errorf("got %v outside the window", got)
	}
	m, _ = c.window("j2", true, noon)
	want(t, topics(says(m)), "notify", "notify-next")
}

func TestJobRetries(t *testing.T) {
	c := newCore(t, Job{ID: "j1", Retry: map[Status]int{Failed: 2}})
	for n := 1; n <= 3; n++ {
		e := c.latest("dev-1", "j1")
		if e.Number != n || e.Status != Queued || e.Version != 1 {
			t.Fatalf("got %+v, want execution %d, QUEUED", e.Execution, n)
		}
		ask(c, "start-next", `{}`)
		got := ask(c, "j1/update", fmt.Sprintf(`{"status":"FAILED","executionNumber":%d}`, n))
		want(t, topics(got), "j1/update/accepted", "notify", "notify-next")
		if again := strings.Contains(got[2], fmt.Sprintf(`"executionNumber":%d`, n+1)); again != (n < 3) {
			t.Errorf("after execution %d: got %s", n, got[2])
		}
	}
	if got := ask(c, "j1/update", `{"status":"SUCCEEDED","executionNumber":1}`); !strings.Contains(got[0], "InvalidStateTransition") {
		t.Errorf("update of an old execution: got %v", got)
	}
	c = newCore(t, Job{ID: "j1", Retry: map[Status]int{Failed: 9, TimedOut: 1}})
	if ask(c, "j1/update", `{"status":"REJECTED"}`); len(c.of("dev-1", "j1")) != 1 {
		t.Error("a rejected execution was retried")
	}
	c = newCore(t, Job{ID: "j1", Retry: map[Status]int{Failed: 9}})
	ask(c, "start-next", `{}`)
	if _, err := c.cancel("j1", false, noon); err != nil {
		t.Fatal(err)
	}
	if ask(c, "j1/update", `{"status":"FAILED"}`); len(c.of("dev-1", "j1")) != 1 {
		t.Error("an execution of a cancelled job was retried")
	}
}

func TestJobCreateRefuses(t *testing.T) {
	c := newCore(t, Job{ID: "known"})
	good := Job{ID: "j", Things: []string{"dev-1"}, Document: `{}`}
	for name, change := range map[string]func(*Job){
		"an id with a dot":       func(j *Job) { j.ID = "a.b" },
		"a long id":              func(j *Job) { j.ID = strings.Repeat("x", 65) },
		"a known id":             func(j *Job) { j.ID = "known" },
		"no thing":               func(j *Job) { j.Things = nil },
		"a thing with a slash":   func(j *Job) { j.Things = []string{"a/b"} },
		"a thing twice":          func(j *Job) { j.Things = []string{"a", "a"} },
		"a document of 32769":    func(j *Job) { j.Document = `{"a":"` + strings.Repeat("x", 32769-8) + `"}` },
		"a list":                 func(j *Job) { j.Document = `[]` },
		"null":                   func(j *Job) { j.Document = `null` },
		"two documents":          func(j *Job) { j.Document = `{}{}` },
		"90 seconds":             func(j *Job) { j.InProgressTimeout = 90 * time.Second },
		"more than a week":       func(j *Job) { j.InProgressTimeout = 10081 * time.Minute },
		"retry of REJECTED":      func(j *Job) { j.Retry = map[Status]int{Rejected: 1} },
		"11 retries in all":      func(j *Job) { j.Retry = map[Status]int{Failed: 6, TimedOut: 5} },
		"a negative retry count": func(j *Job) { j.Retry = map[Status]int{Failed: -1} },
	} {
		j := good
		change(&j)
		if m, err := c.create(j, noon); err == nil || m != nil {
			t.Errorf("%s: got %v, want an error", name, says(m))
		}
	}
	good.Document = `{"a":"` + strings.Repeat("x", 32768-8) + `"}`
	if _, err := c.create(good, noon); err != nil {
		t.Errorf("a document of exactly 32768 bytes: %v", err)
	}
}

func TestJobPresignsWheneverTheDeviceAsks(t *testing.T) {
	calls := 0
	c := newJobCore(func(thing, url string) (string, error) {
		calls++
		if url == "s3://gone" {
			return "", errors.New("no such object")
		}
		return fmt.Sprintf("https://signed/%d?%s&%s", calls, thing, url), nil
	})
	doc := `{"files":[{"url":"${aws:iot:s3-presigned-url-v2:https://s3/b/k}"}]}`
	if _, err := c.create(Job{ID: "j1", Things: []string{"dev-1"}, Document: doc}, noon); err != nil {
		t.Fatal(err)
	}
	first, second := ask(c, "$next/get", `{}`), ask(c, "j1/get", `{}`)
	for i, got := range [][]string{first, second} {
		if url := fmt.Sprintf(`"url":"https://signed/%d?dev-1\u0026https://s3/b/k"`, i+2); !strings.Contains(got[0], url) {
			t.Errorf("got %v, want %s", got, url)
		}
	}
	if _, err := c.create(Job{ID: "j2", Things: []string{"dev-1"}, Document: `{"u":"${aws:iot:s3-presigned-url:s3://gone}"}`}, noon); err != nil {
		t.Fatal(err)
	}
	if got := ask(c, "j2/get", `{}`); !strings.Contains(got[0], "InternalError") {
		t.Errorf("got %v, want InternalError", got)
	}
}

func TestJobListsAtMostTenOfEach(t *testing.T) {
	c := newJobCore(nil)
	for i := range 25 {
		if _, err := c.create(Job{ID: fmt.Sprint("j", i), Things: []string{"dev-1"}, Document: `{}`}, noon); err != nil {
			t.Fatal(err)
		}
	}
	var got wireLists
	if err := json.Unmarshal(c.handle(dev+"get", []byte(`{}`), noon)[0].Payload, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Queued) != 10 || got.Queued[0].JobID != "j0" || got.Queued[9].JobID != "j9" {
		t.Errorf("got %d jobs, want the 10 oldest: %v", len(got.Queued), got.Queued)
	}
}

func FuzzJobRequest(f *testing.F) {
	f.Add("j1/update", []byte(`{"status":"SUCCEEDED","expectedVersion":"1","statusDetails":{"a":"b"},"clientToken":"x"}`))
	f.Add("$next/get", []byte(`{"includeJobDocument":false,"executionNumber":1}`))
	f.Add("start-next", []byte(`{"stepTimeoutInMinutes":-1}`))
	f.Add("get", []byte(`[1,2]`))
	f.Add("get/accepted", []byte(`{}`))
	f.Add("j1/x/update", []byte("\xff"))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		c := newCore(t, Job{ID: "j1", Retry: map[Status]int{Failed: 1}}, Job{ID: "j2"})
		messages := c.handle(dev+topic, payload, noon)
		_, isRequest := parseTopic(dev + topic)
		if isRequest != (len(messages) > 0) {
			t.Fatalf("%q is a request: %t, and got %v", topic, isRequest, says(messages))
		}
		for i, m := range messages {
			var v map[string]any
			if json.Unmarshal(m.Payload, &v) != nil {
				t.Fatalf("said what is not JSON: %s", m.Payload)
			}
			if i == 0 && m.Topic != dev+topic+"/accepted" && m.Topic != dev+topic+"/rejected" {
				t.Fatalf("answered %q on %q", topic, m.Topic)
			}
			if _, again := parseTopic(m.Topic); again {
				t.Fatalf("its own message on %q would be taken for a request", m.Topic)
			}
		}
	})
}
