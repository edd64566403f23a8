package aws_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/source/awsiot"
)

// mayUse reports whether the policy of iot.yaml lets a thing do something with a
// topic. A * of a policy stands for anything, slashes too; + and # are letters
// like others ("AWS IoT Core policy resources").
func mayUse(t *testing.T, tpl template, thing, action, topic string) bool {
	t.Helper()
	return allows(t, tpl, "DevicePolicy", thing, action, topic) || allows(t, tpl, "TopicPolicy", thing, action, topic)
}

func allows(t *testing.T, tpl template, policy, thing, action, topic string) bool {
	t.Helper()
	for _, s := range tpl.at("Resources." + policy + ".Properties.PolicyDocument.Statement").([]any) {
		m := s.(map[string]any)
		if m["Effect"] != "Allow" || m["Action"] != "iot:"+action {
			continue
		}
		for _, on := range each(m["Resource"]) {
			kind := map[string]string{"Publish": "topic/", "Receive": "topic/", "Subscribe": "topicfilter/"}[action]
			pattern, ok := strings.CutPrefix(on, iotARN+kind)
			if !ok {
				t.Fatalf("%s: resource %s", action, on)
			}
			pattern = strings.ReplaceAll(pattern, "${!iot:Connection.Thing.ThingName}", thing)
			pattern = strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")
			if regexp.MustCompile("^" + pattern + "$").MatchString(topic) {
				return true
			}
		}
	}
	return false
}

func TestDevicePolicy(t *testing.T) {
	tpl := load(t, "iot.yaml")
	for _, tt := range []struct {
		action, topic string
		want          bool
	}{
		{"Publish", "$aws/things/ctl-7/jobs/get", true},
		{"Publish", "$aws/things/ctl-7/jobs/start-next", true},
		{"Publish", "$aws/things/ctl-7/jobs/$next/get", true},
		{"Publish", "$aws/things/ctl-7/jobs/AFR_OTA-1/update", true},
		{"Publish", "$aws/things/ctl-7/streams/s-1/describe/cbor", true},
		{"Publish", "$aws/things/ctl-7/streams/s-1/get/json", true},
		{"Subscribe", "$aws/things/ctl-7/jobs/notify-next", true},
		{"Subscribe", "$aws/things/ctl-7/jobs/+/get/accepted", true},
		{"Subscribe", "$aws/things/ctl-7/streams/s-1/data/cbor", true},
		{"Receive", "$aws/things/ctl-7/jobs/notify", true},
		{"Receive", "$aws/things/ctl-7/streams/s-1/rejected/json", true},
		{"Publish", "$aws/things/ctl-8/jobs/1/update", false},
		{"Publish", "$aws/things/ctl-70/jobs/get", false},
		{"Publish", "$aws/things/ctl-7/jobs/notify-next", false}, // what the service says
		{"Publish", "$aws/things/ctl-7/streams/s-1/data/cbor", false},
		{"Publish", "$aws/things/ctl-7/shadow/update", false},
		{"Publish", "bess/ctl-7/reports", false},
		{"Publish", "interlock/ctl-7/reports", true},
		{"Publish", "interlock/ctl-7/status", true},
		{"Publish", "interlock/ctl-7/wake", false},
		{"Subscribe", "interlock/ctl-7/wake", true},
		{"Receive", "interlock/ctl-7/wake", true},
		{"Publish", "interlock/ctl-8/reports", false},
		{"Subscribe", "interlock/+/wake", false},
		{"Subscribe", "$aws/things/+/jobs/notify-next", false},
		{"Subscribe", "#", false},
		{"Receive", "$aws/things/ctl-8/jobs/notify", false},
	} {
		if got := mayUse(t, tpl, "ctl-7", tt.action, tt.topic); got != tt.want {
			t.Errorf("%s %s: allowed %v, want %v", tt.action, tt.topic, got, tt.want)
		}
	}
}

// nowhere is a fake bucket that has nothing.
type nowhere struct{}

func (nowhere) Fetch(context.Context, string, int64, int64) (io.ReadCloser, int64, error) {
	return nil, 0, ota.ErrServer
}

// AWS takes policies of IoT of at most 2,048 characters, white space not counted
// ("AWS IoT Core endpoints and quotas").
func TestDevicePoliciesAreShortEnough(t *testing.T) {
	tpl := load(t, "iot.yaml")
	for _, name := range []string{"DevicePolicy", "TopicPolicy"} {
		text := line(tpl.at("Resources." + name + ".Properties.PolicyDocument"))
		for from, to := range map[string]string{"${AWS::Partition}": "aws-us-gov", "${AWS::Region}": "ap-southeast-7", "${AWS::AccountId}": "123456789012", "${!": "${",
			`{"Fn::GetAtt":["LogRoleAlias","RoleAliasArn"]}`: strings.Repeat("x", 100), `{"Fn::Sub":`: "", "\u003c": "<"} {
			text = strings.ReplaceAll(text, from, to)
		}
		if n := len(strings.Join(strings.Fields(text), "")); n < 400 || n > 2048 {
			t.Errorf("%s has %d characters, want 400 to 2048:\n%s", name, n, text)
		}
	}
}

// The agent's source does nothing that the policy does not allow.
func TestDevicePolicyIsEnoughForTheAgent(t *testing.T) {
	const thing = "ctl-7"
	tpl := load(t, "iot.yaml")
	ca := awstest.NewCA(t)
	jobs := awstest.NewJobs(awstest.JobsOptions{})
	broker := awstest.StartBroker(t, ca, jobs)
	cert := ca.Thing(t, thing)
	s, err := awsiot.New(awsiot.Config{Endpoint: broker.Addr(), Thing: thing, Topic: "interlock/" + thing, CACert: ca.PEM(), ClientCert: cert.Cert, ClientKey: cert.Key,
		Product: "bess", Version: "1.0.0", Dir: t.TempDir(), HTTP: nowhere{}, Log: slog.New(slog.DiscardHandler),
		Verify: func([]byte) (*ota.Manifest, error) { return nil, ota.ErrValidation }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	// A job that no device can do: it is found, started and rejected.
	if err := jobs.Create(awstest.Job{ID: "job-1", Things: []string{thing}, Document: `{"interlock":{}}`}); err != nil {
		t.Fatal(err)
	}
	for rejected := false; !rejected; {
		if _, err := s.Latest(ctx); err == nil {
			t.Error("a job that no device can do has a release")
		}
		within, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err := jobs.Wait(within, thing, "job-1", awstest.Rejected)
		cancel()
		rejected = err == nil
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	used := 0
	for _, p := range broker.Log() {
		if p.Client != thing {
			continue
		}
		action := "Receive"
		if p.Direction == awstest.ToBroker {
			action = "Publish"
			used++
		}
		if !mayUse(t, tpl, thing, action, p.Topic) {
			t.Errorf("the agent needs, and may not: %s %s", action, p.Topic)
		}
	}
	if used < 2 {
		t.Errorf("%d messages of the agent, want its questions and its answer", used)
	}
}
