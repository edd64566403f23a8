package event_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/internal/lambda/event"
)

// seen is what a handler sees of a request.
type seen struct {
	Method, Path, Query, Host, Addr, Body string
	Accept, Cookies                       string
	Twice                                 string
	Length                                int64
	Origin                                event.Origin
}

// witness answers with what it saw.
type witness struct{ seen seen }

func (s *witness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	var cookies []string
	for _, c := range r.Cookies() {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	s.seen = seen{r.Method, r.URL.Path, r.URL.Query().Encode(), r.Host, r.RemoteAddr, string(b), r.Header.Get("Accept"), strings.Join(cookies, " "),
		strings.ReplaceAll(strings.Join(r.Header["X-Twice"], ","), " ", ""), r.ContentLength, event.OriginOf(r.Context())}
	w.WriteHeader(http.StatusNoContent)
}

// The three kinds of events of the same request, in the form that AWS documents,
// are the same request for a handler.
func TestRequest(t *testing.T) {
	for kind, host := range map[event.Kind]string{event.REST: "id.execute-api.us-east-1.amazonaws.com", event.HTTP: "id.execute-api.us-east-1.amazonaws.com",
		event.FunctionURL: "id.lambda-url.us-east-1.on.aws"} {
		t.Run(string(kind), func(t *testing.T) {
			payload, err := os.ReadFile("testdata/" + string(kind) + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var s witness
			if _, err := (event.Adapter{Handler: &s}).Invoke(t.Context(), payload); err != nil {
				t.Fatal(err)
			}
			if s.seen.Origin.RequestID == "" {
				t.Error("the gateway's request id is not known")
			}
			s.seen.Origin.RequestID = ""
			want := seen{"POST", "/firmware/site-7", "component=a%26b&product=bess&product=pcs", host, "192.0.2.1", `{"device":"d1"}`, "application/json",
				"a=1 b=2", "a,b", 15, event.Origin{Kind: kind}}
			if diff := cmp.Diff(want, s.seen); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// The examples in AWS's own Go module are read, too.
func TestExamplesOfAWS(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aws/aws-lambda-go").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "events", "testdata")
	for name, want := range map[string]string{
		"apigw-request.json":                          "POST /hello/world name=me",
		"apigw-v2-request-no-authorizer.json":         "GET / ",
		"apigw-v2-request-iam.json":                   "GET /my/path parameter1=value1&parameter1=value2&parameter2=value",
		"apigw-v2-request-jwt-authorizer.json":        "GET /my/path parameter1=value1&parameter1=value2&parameter2=value",
		"apigw-v2-request-lambda-authorizer.json":     "GET /my/path parameter1=value1&parameter1=value2&parameter2=value",
		"lambda-urls-request.json":                    "POST /my/path parameter1=value1&parameter1=value2&parameter2=value",
		"alb-lambda-target-request-headers-only.json": "error: load balancer",
		"apigw-websocket-request.json":                "error: WebSocket",
		"sqs-event.json":                              "error: no HTTP request",
		"s3-event.json":                               "error: no HTTP request",
	} {
		t.Run(name, func(t *testing.T) {
			payload, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			var s witness
			_, err = (event.Adapter{Handler: &s}).Invoke(t.Context(), payload)
			if text, ok := strings.CutPrefix(want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got %v, want an error with %q", err, text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.seen.Method + " " + s.seen.Path + " " + s.seen.Query; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func rest(path, contextPath, stage string) string {
	return fmt.Sprintf(`{"httpMethod":"GET","path":%q,"requestContext":{"path":%q,"stage":%q}}`, path, contextPath, stage)
}

func httpEvent(path, stage string) string {
	return fmt.Sprintf(`{"version":"2.0","rawPath":%q,"requestContext":{"stage":%q,"http":{"method":"GET"}}}`, path, stage)
}

func TestPath(t *testing.T) {
	for _, tt := range []struct{ name, payload, base, want string }{
		{"REST", rest("/firmware", "/prod/firmware", "prod"), "", "/firmware"},
		{"REST, root", rest("/", "/prod/", "prod"), "", "/"},
		{"REST, a path like the stage", rest("/firmware", "/firmware/firmware", "firmware"), "", "/firmware"},
		{"REST, custom domain", rest("/ota/firmware", "/ota/firmware", "prod"), "/ota", "/firmware"},
		{"REST, custom domain without a mapping", rest("/firmware", "/firmware", "prod"), "/ota", "/firmware"},
		{"HTTP with format 1.0", rest("/prod/firmware", "/prod/firmware", "prod"), "", "/firmware"},
		{"HTTP, default stage", httpEvent("/firmware", "$default"), "", "/firmware"},
		{"HTTP, stage", httpEvent("/prod/firmware", "prod"), "", "/firmware"},
		{"HTTP, stage alone", httpEvent("/prod", "prod"), "", "/"},
		{"HTTP, stage is a part of a word", httpEvent("/production/x", "prod"), "", "/production/x"},
		{"HTTP, base path", httpEvent("/ota", "$default"), "ota/", "/"},
		{"empty", httpEvent("", "$default"), "", "/"},
		{"no slash", httpEvent("firmware", "$default"), "", "/firmware"},
		{"coded", httpEvent("/firmware/site%2D7", "$default"), "", "/firmware/site-7"},
		{"wrongly coded", httpEvent("/firmware/100%", "$default"), "", "/firmware/100%"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s witness
			if _, err := (event.Adapter{Handler: &s, BasePath: tt.base}).Invoke(t.Context(), []byte(tt.payload)); err != nil {
				t.Fatal(err)
			}
			if s.seen.Path != tt.want {
				t.Errorf("path %q, want %q", s.seen.Path, tt.want)
			}
		})
	}
}

// answers are what the three kinds want to have back.
type answers struct {
	StatusCode        int
	Headers           map[string]string
	MultiValueHeaders map[string][]string
	Cookies           []string
	Body              string
	IsBase64Encoded   bool
}

func invoke(t *testing.T, kind event.Kind, h http.HandlerFunc) (answers, []byte) {
	t.Helper()
	payload, err := os.ReadFile("testdata/" + string(kind) + ".json")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := event.Adapter{Handler: h}.Invoke(t.Context(), payload)
	if err != nil {
		t.Fatal(err)
	}
	var a answers
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields() // a REST API answers 502 to names that it does not know
	if err := d.Decode(&a); err != nil {
		t.Fatalf("answer %s: %v", raw, err)
	}
	return a, raw
}

func TestAnswer(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Add("X-Twice", "a")
		w.Header().Add("X-Twice", "b")
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "1"})
		http.SetCookie(w, &http.Cookie{Name: "d", Value: "2"})
		w.WriteHeader(http.StatusEarlyHints) // has no way to the client
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "1")
		w.WriteHeader(http.StatusOK)
		io.WriteString(w, `{"a":"<&>`)
		io.WriteString(w, `é"}`)
	}
	a, _ := invoke(t, event.REST, h)
	want := answers{StatusCode: 418, Body: `{"a":"<&>é"}`,
		MultiValueHeaders: map[string][]string{"Content-Type": {"application/json"}, "X-Twice": {"a", "b"}, "Set-Cookie": {"c=1", "d=2"}}}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Errorf("REST (-want +got):\n%s", diff)
	}
	want = answers{StatusCode: 418, Body: `{"a":"<&>é"}`, Headers: map[string]string{"Content-Type": "application/json", "X-Twice": "a, b"}, Cookies: []string{"c=1", "d=2"}}
	for _, kind := range []event.Kind{event.HTTP, event.FunctionURL} {
		a, _ := invoke(t, kind, h)
		if diff := cmp.Diff(want, a); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
	}
	a, _ = invoke(t, event.HTTP, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte{0xff, 0, 1}) })
	if a.StatusCode != 200 || a.Body != "/wAB" || !a.IsBase64Encoded || a.Headers["Content-Type"] == "" {
		t.Errorf("bytes: %+v, want base64", a)
	}
	a, _ = invoke(t, event.HTTP, func(w http.ResponseWriter, r *http.Request) {})
	if a.StatusCode != 200 || a.Body != "" {
		t.Errorf("nothing: %+v, want an empty 200", a)
	}
	a, _ = invoke(t, event.HTTP, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(304)
		if _, err := w.Write([]byte("x")); err != http.ErrBodyNotAllowed {
			t.Errorf("a body for a 304: %v, want ErrBodyNotAllowed", err)
		}
	})
	if a.StatusCode != 304 || a.Body != "" {
		t.Errorf("304: %+v, want no body", a)
	}
}

// Lambda refuses an answer over 6 MB; the client must see why.
func TestAnswerTooLarge(t *testing.T) {
	for _, tt := range []struct {
		name  string
		body  []byte
		large bool
	}{
		{"fits", bytes.Repeat([]byte("a"), event.MaxAnswer-1000), false},
		{"with its headers too large", bytes.Repeat([]byte("a"), event.MaxAnswer-10), true},
		{"itself too large", bytes.Repeat([]byte("a"), event.MaxAnswer+1), true},
		{"as base64 too large", bytes.Repeat([]byte{0xff}, event.MaxAnswer*4/5), true},
		{"as base64 fits", bytes.Repeat([]byte{0xff}, 4<<20), false},
		{"escaped too large", bytes.Repeat([]byte{1}, event.MaxAnswer/3), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, raw := invoke(t, event.HTTP, func(w http.ResponseWriter, r *http.Request) { w.Write(tt.body) })
			if len(raw) > event.MaxAnswer {
				t.Errorf("an answer of %d bytes, want at most %d", len(raw), event.MaxAnswer)
			}
			if large := a.StatusCode == 500 && strings.Contains(a.Body, "too large"); large != tt.large {
				t.Errorf("status %d and %d bytes, want too large: %v", a.StatusCode, len(a.Body), tt.large)
			}
		})
	}
}

func TestHeadHasNoBody(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "123456")
		io.WriteString(w, "body")
	}
	raw, err := event.Adapter{Handler: http.HandlerFunc(h)}.Invoke(t.Context(), []byte(`{"version":"2.0","rawPath":"/","requestContext":{"http":{"method":"HEAD"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"statusCode":200,"headers":{"Content-Length":"123456"},"body":"","isBase64Encoded":false}`; string(raw) != want {
		t.Errorf("got %s, want %s", raw, want)
	}
}

func TestBadEvents(t *testing.T) {
	for _, tt := range []struct{ name, payload, want string }{
		{"no JSON", `x`, "read the event"},
		{"empty", ``, "read the event"},
		{"null", `null`, "no HTTP request"},
		{"a test event of the console", `{"key1":"value1"}`, "no HTTP request"},
		{"a method that is none", `{"httpMethod":"G E T","path":"/"}`, "rest event"},
		{"base64", `{"httpMethod":"POST","path":"/","body":"%%%","isBase64Encoded":true}`, "body"},
		{"wrong types", `{"httpMethod":1}`, "read the event"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := event.Adapter{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a handler was called") })}
			if _, err := a.Invoke(context.Background(), []byte(tt.payload)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// Whatever comes, there is an error or a request that a mux can take, and an
// answer that is JSON.
func FuzzInvoke(f *testing.F) {
	for _, kind := range []event.Kind{event.REST, event.HTTP, event.FunctionURL} {
		payload, err := os.ReadFile("testdata/" + string(kind) + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Add([]byte(rest("//x/../y", "", "")))
	f.Add([]byte(httpEvent("%zz?#\\", "a/b")))
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
		fmt.Fprint(w, r.URL.Query(), r.Cookies(), r.Host, r.Header)
	})
	f.Fuzz(func(t *testing.T, payload []byte) {
		raw, err := event.Adapter{Handler: mux}.Invoke(t.Context(), payload)
		if err == nil && !json.Valid(raw) {
			t.Errorf("the answer is no JSON: %q", raw)
		}
	})
}
