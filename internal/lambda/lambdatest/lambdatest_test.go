package lambdatest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/internal/lambda/event"
	"github.com/interlock-energy/ota/internal/lambda/lambdatest"
)

// The test's own binary is the function, with AWS's runtime client in it.
func TestMain(m *testing.M) {
	switch os.Getenv("ROLE") {
	case "":
		os.Exit(m.Run())
	case "exits":
		os.Exit(3)
	case "cannot start":
		body := strings.NewReader(`{"errorMessage":"no bucket","errorType":"Test.Configuration"}`)
		if _, err := http.Post("http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+"/2018-06-01/runtime/init/error", "application/json", body); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	case "raw":
		lambda.Start(raw{})
	default:
		lambda.Start(event.Adapter{Handler: http.HandlerFunc(handle)})
	}
}

// raw answers an event with what the event's body says.
type raw struct{}

func (raw) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	var e struct{ Body string }
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, err
	}
	switch text, _ := strings.CutPrefix(e.Body, "error "); {
	case text != e.Body:
		return nil, errors.New(text)
	case e.Body == "large":
		return bytes.Repeat([]byte("x"), event.MaxAnswer+1), nil
	}
	return []byte(e.Body), nil
}

func handle(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/dies":
		os.Exit(7)
	case "/hangs":
		select {}
	case "/echo":
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("WWW-Authenticate", "Basic")
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Add("X-Two", "1")
		w.Header().Add("X-Two", "2")
		w.Write(b)
	default:
		d, _ := r.Context().Deadline()
		fmt.Fprintf(w, "%s %s %s %s %q pid %v", r.Method, r.URL.Path, r.URL.Query().Encode(), r.Header.Get("X-In"), r.Header.Get("Cookie"), time.Until(d) > 0)
	}
}

func start(t *testing.T, role string, change ...func(*lambdatest.Options)) *lambdatest.Function {
	t.Helper()
	o := lambdatest.Options{Binary: os.Args[0], Env: []string{"ROLE=" + role}}
	for _, c := range change {
		c(&o)
	}
	f, err := lambdatest.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func ask(t *testing.T, f *lambdatest.Function, method, url string, body []byte, headers ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	res, err := f.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, b
}

var kinds = []event.Kind{event.REST, event.HTTP, event.FunctionURL}

func TestGateways(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*lambdatest.Options)
		binary map[event.Kind]bool // bytes come through
	}{
		{"plain", func(o *lambdatest.Options) {}, map[event.Kind]bool{event.HTTP: true, event.FunctionURL: true}},
		{"stage and binary types", func(o *lambdatest.Options) { o.HTTPStage, o.BinaryTypes = "live", true },
			map[event.Kind]bool{event.REST: true, event.HTTP: true, event.FunctionURL: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, "http", tt.change)
			for _, kind := range kinds {
				_, got := ask(t, f, "PUT", f.URL(kind)+"/a/b%20c?x=1&x=2&y=%26", nil, "X-In: 1", "Cookie: k=v; l=w")
				if want := `PUT /a/b c x=1&x=2&y=%26 1 "k=v; l=w" pid true`; string(got) != want {
					t.Errorf("%s: the function saw %s, want %s", kind, got, want)
				}
				_, got = ask(t, f, "GET", f.URL(kind), nil)
				if want := `GET /   "" pid true`; string(got) != want {
					t.Errorf("%s: at its root the function saw %s, want %s", kind, got, want)
				}
				blob := []byte{0xff, 0, 1, 2, 0xfe}
				res, got := ask(t, f, "POST", f.URL(kind)+"/echo", blob)
				if same := bytes.Equal(got, blob); same != tt.binary[kind] {
					t.Errorf("%s: bytes came back %v, want %v", kind, same, tt.binary[kind])
				}
				if diff := cmp.Diff([]string{"a=1", "b=2"}, res.Header["Set-Cookie"]); diff != "" {
					t.Errorf("%s: cookies (-want +got):\n%s", kind, diff)
				}
				if got := strings.Join(res.Header["X-Two"], ", "); got != "1, 2" {
					t.Errorf("%s: X-Two is %q, want both", kind, got)
				}
				name := "Www-Authenticate"
				if kind == event.REST {
					name = "X-Amzn-Remapped-Www-Authenticate"
				}
				if res.Header.Get(name) != "Basic" {
					t.Errorf("%s: %v, want the challenge as %s", kind, res.Header, name)
				}
			}
			if res, _ := ask(t, f, "GET", strings.TrimSuffix(f.URL(event.REST), "/prod")+"/other/firmware", nil); res.StatusCode != 403 {
				t.Errorf("a stage that is not there: %d, want 403", res.StatusCode)
			}
			if got := f.Starts(); got != 1 {
				t.Errorf("%d cold starts, want 1: requests came one by one", got)
			}
			if f.InitTime() <= 0 {
				t.Error("the cold start took no time")
			}
		})
	}
}

// What is said instead of an answer, and what clients see of it.
func TestFailures(t *testing.T) {
	f := start(t, "http", func(o *lambdatest.Options) { o.Timeout = 2 * time.Second })
	status := map[event.Kind]int{event.REST: 502, event.HTTP: 500, event.FunctionURL: 502}
	for _, kind := range kinds {
		for _, path := range []string{"/dies", "/hangs"} {
			before := f.Starts()
			if res, b := ask(t, f, "GET", f.URL(kind)+path, nil); res.StatusCode != status[kind] {
				t.Errorf("%s%s: %d %s, want %d", kind, path, res.StatusCode, b, status[kind])
			}
			if res, _ := ask(t, f, "GET", f.URL(kind)+"/x", nil); res.StatusCode != 200 {
				t.Errorf("%s after %s: %d, want a new process that answers", kind, path, res.StatusCode)
			}
			if got := f.Starts() - before; got < 1 {
				t.Errorf("%s%s: no new process", kind, path)
			}
		}
	}
	f.Kill()
	if res, _ := ask(t, f, "GET", f.URL(event.HTTP)+"/x", nil); res.StatusCode != 200 {
		t.Errorf("after a kill: %d, want 200", res.StatusCode)
	}
	if res, _ := ask(t, f, "POST", f.URL(event.HTTP)+"/echo", make([]byte, 5<<20)); res.StatusCode != 413 {
		t.Errorf("a body of 5 MB, which is more than 6 MB in an event: %d, want 413", res.StatusCode)
	}

	r := start(t, "raw")
	for _, tt := range []struct{ body, wantType, wantText string }{
		{"error no luck", "errorString", "no luck"},
		{"large", "Function.ResponseSizeTooLarge", "exceeded maximum"},
	} {
		payload, err := json.Marshal(map[string]string{"body": tt.body})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Invoke(t.Context(), payload)
		fe, ok := errors.AsType[*lambdatest.FunctionError](err)
		if !ok || fe.Type != tt.wantType || !strings.Contains(fe.Message, tt.wantText) {
			t.Errorf("%s: %v, want %s", tt.body, err, tt.wantType)
		}
	}
	// An HTTP API takes what has no statusCode for the body; a REST API refuses it.
	if res, b := ask(t, r, "POST", r.URL(event.HTTP), []byte(`{"a":1}`), "Content-Type: application/json"); res.StatusCode != 200 || string(b) != `{"a":1}` {
		t.Errorf("no statusCode, HTTP API: %d %s, want the JSON itself", res.StatusCode, b)
	}
	if res, _ := ask(t, r, "POST", r.URL(event.REST), []byte(`{"a":1}`), "Content-Type: application/json"); res.StatusCode != 502 {
		t.Errorf("no statusCode, REST API: %d, want 502", res.StatusCode)
	}

	for role, want := range map[string]string{"exits": "exit status 3", "cannot start": "no bucket"} {
		f := start(t, role)
		if err := f.Warm(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", role, err, want)
		}
		if res, _ := ask(t, f, "GET", f.URL(event.HTTP), nil); res.StatusCode != 500 {
			t.Errorf("%s: %d, want 500", role, res.StatusCode)
		}
	}
	if _, err := lambdatest.Start(t.Context(), lambdatest.Options{Binary: "/nowhere"}); err == nil {
		t.Error("a binary that is not there was taken")
	}
}

// An environment handles one event at a time; more need more of them, up to the bound.
func TestConcurrency(t *testing.T) {
	f := start(t, "http", func(o *lambdatest.Options) { o.Concurrency = 3 })
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("%s/%d", f.URL(event.HTTP), i), nil)
			if err != nil {
				t.Error(err)
				return
			}
			res, err := f.Client().Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if b, _ := io.ReadAll(res.Body); !strings.Contains(string(b), fmt.Sprintf("GET /%d ", i)) {
				t.Errorf("request %d got %s", i, b)
			}
		})
	}
	wg.Wait()
	if got := f.Starts(); got < 1 || got > 3 {
		t.Errorf("%d processes, want 1 to 3", got)
	}
}
