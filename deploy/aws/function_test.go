package aws_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/internal/lambda"
)

// routes returns the routes of the API, as it has them.
func routes(t *testing.T, tpl template) (keys []string) {
	t.Helper()
	for name, r := range tpl.at("Resources").(map[string]any) {
		m := r.(map[string]any)
		if m["Type"] != "AWS::ApiGatewayV2::Route" {
			continue
		}
		p := m["Properties"].(map[string]any)
		keys = append(keys, p["RouteKey"].(string))
		if got, want := line(p["Target"]), `{"Fn::Sub":"integrations/${ApiIntegration}"}`; got != want {
			t.Errorf("%s: target %s, want %s", name, got, want)
		}
	}
	slices.Sort(keys)
	return keys
}

// The API lets through what the function answers, all of it and nothing else.
func TestRoutes(t *testing.T) {
	var want []string
	for _, pattern := range lambda.Routes() {
		pattern = strings.ReplaceAll(pattern, "{$}", "")
		want = append(want, pattern)
		if path, ok := strings.CutPrefix(pattern, "GET "); ok {
			want = append(want, "HEAD "+path)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, routes(t, load(t, "template.yaml"))); diff != "" {
		t.Errorf("routes (-function +template):\n%s", diff)
	}
}

// The function understands the environment that the template gives it, for every
// combination of choices.
func TestEnvironment(t *testing.T) {
	known := []string{lambda.EnvBucket, lambda.EnvOpen, lambda.EnvPoll, lambda.EnvURLLifetime, lambda.EnvMaxURL, lambda.EnvLogIdle, lambda.EnvSigningARN,
		"SIGNING_KEY_SERIAL"} // which it does not read: a change makes it start anew
	tpl := load(t, "template.yaml")
	vars := tpl.at(fn + "Environment.Variables").(map[string]any)
	if got := slices.Sorted(maps.Keys(vars)); !cmp.Equal(got, slices.Sorted(slices.Values(known))) {
		t.Errorf("variables %q, want %q", got, known)
	}
	for _, c := range []struct {
		name   string
		change map[string]string // parameters
		when   []string          // conditions that hold
		want   string            // in the error; empty: none
	}{
		{"defaults, without the signing user", nil, nil, ""},
		{"open", nil, []string{"HasOpenCheckin"}, ""},
		{"idle devices in the log", nil, []string{"HasLogIdle"}, ""},
		{"prefix", map[string]string{"Prefix": "ota/v2/"}, nil, ""},
		{"bounds", map[string]string{"PollSeconds": "10", "UrlSeconds": "604800", "MaxUrl": "0"}, nil, ""},
		{"other bounds", map[string]string{"PollSeconds": "604800", "UrlSeconds": "60", "MaxUrl": "8192"}, nil, ""},
		{"not a number", map[string]string{"PollSeconds": "often"}, nil, lambda.EnvPoll},
		{"secret with a wrong name", nil, []string{"HasSigningUser"}, "arn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Where AWS's library finds credentials in a function.
			t.Setenv("AWS_REGION", "eu-central-1")
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			env := map[string]string{}
			for name, v := range vars {
				env[name] = value(tpl, v, c.change, c.when)
			}
			_, err := lambda.FromEnvironment(t.Context(), func(name string) string { return env[name] }, nil)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%v\n%v", err, env)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// value is what CloudFormation makes of v: as much of it as is used here.
func value(tpl template, v any, params map[string]string, conditions []string) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(v)
	}
	ref := func(name string) string {
		if name == "Bucket" {
			return "interlock-ota-123456789012"
		}
		if p, ok := params[name]; ok {
			return p
		}
		if def := tpl.at("Parameters." + name + ".Default"); def != nil {
			return fmt.Sprint(def)
		}
		return name
	}
	switch {
	case m["Ref"] != nil:
		return ref(m["Ref"].(string))
	case m["Fn::If"] != nil:
		list := m["Fn::If"].([]any)
		if slices.Contains(conditions, list[0].(string)) {
			return value(tpl, list[1], params, conditions)
		}
		return value(tpl, list[2], params, conditions)
	}
	return inSub.ReplaceAllStringFunc(m["Fn::Sub"].(string), func(s string) string { return ref(s[2 : len(s)-1]) })
}
