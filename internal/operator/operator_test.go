package operator_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/operator"
	"github.com/interlock-energy/ota/internal/serve"
)

func TestNew(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  operator.Config
		want string // empty: fine
	}{
		{"https", operator.Config{URL: "https://ota.example.com"}, ""},
		{"below a path", operator.Config{URL: "https://example.com/ota/"}, ""},
		{"plain on this machine", operator.Config{URL: "http://127.0.0.1:8080"}, ""},
		{"plain on this machine, IPv6", operator.Config{URL: "http://[::1]:8080"}, ""},
		{"plain elsewhere", operator.Config{URL: "http://10.0.0.1"}, "everybody on the way could read the token"},
		{"plain, looks like this machine", operator.Config{URL: "http://127.0.0.1.example.com"}, "everybody on the way"},
		{"no scheme", operator.Config{URL: "ota.example.com"}, "want a URL"},
		{"nothing", operator.Config{}, "want a URL"},
		{"other scheme", operator.Config{URL: "ftp://ota.example.com"}, "want a URL"},
		{"user in it", operator.Config{URL: "https://me@ota.example.com"}, "want a URL"},
		{"no certificate", operator.Config{URL: "https://ota.example.com", CA: []byte("x")}, "no certificate in PEM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := operator.New(tt.cfg)
			if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("got %s, want %q", got, tt.want)
			}
		})
	}
}

// client returns a client of a TLS server with this handler.
func client(t *testing.T, h http.HandlerFunc) *operator.Client {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	c, err := operator.New(operator.Config{URL: srv.URL, Token: "secret", CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestErrors(t *testing.T) {
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		code    ota.ErrorCode
		text    string
		hint    string
	}{
		{"server's own words", answer(409, `{"error":"that is taken","hint":"take another"}`), ota.ErrServer, "list groups: that is taken", "take another"},
		{"the same words first", answer(409, `{"error":"list: that is taken"}`), ota.ErrServer, "list groups: that is taken", ""},
		{"all the same words first", answer(409, `{"error":"list groups: that is taken"}`), ota.ErrServer, "list groups: that is taken", ""},
		{"other words", answer(502, "<html>"), ota.ErrServer, "list groups: the server answered 502 Bad Gateway", ""},
		{"not accepted", answer(401, `{"error":"unknown"}`), ota.ErrAuthentication, "list groups: unknown", "give --token-file with the operator.token from the server's data directory"},
		{"not allowed", answer(403, `{"error":"no","hint":"ask"}`), ota.ErrAuthentication, "list groups: no", "ask"},
		{"not verified", answer(422, `{"error":"bad"}`), ota.ErrValidation, "list groups: bad", ""},
		{"no JSON", answer(200, "hello"), ota.ErrServer, "list groups: read the answer: invalid character 'h' looking for beginning of value", ""},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://evil.example.com/", 307) }, ota.ErrServer, "list groups: the server answered 307 Temporary Redirect", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := client(t, tt.handler).Groups(t.Context())
			e, ok := errors.AsType[*operator.Error](err)
			if !ok {
				t.Fatalf("got %T %v, want an *operator.Error", err, err)
			}
			if got := ota.CodeOf(err); got != tt.code {
				t.Errorf("got code %v, want %v", got, tt.code)
			}
			if e.Error() != tt.text {
				t.Errorf("got %q, want %q", e.Error(), tt.text)
			}
			if tt.hint != "" && e.Hint() != tt.hint {
				t.Errorf("got hint %q, want %q", e.Hint(), tt.hint)
			}
		})
	}
}

func TestNotFound(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, `{"error":"no such device"}`, 404) })
	if _, err := c.Device(t.Context(), "bess-01"); !errors.Is(err, operator.ErrNotFound) {
		t.Errorf("got %v, want it to match ErrNotFound", err)
	}
}

func TestUnreachable(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	unknown, err := operator.New(operator.Config{URL: srv.URL, Token: "secret", CA: otherCA(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unknown.Groups(t.Context()); ota.CodeOf(err) != ota.ErrAuthentication {
		t.Errorf("a server of another CA: got %v, want %v", err, ota.ErrAuthentication)
	}
	srv.Close()
	if _, err := unknown.Groups(t.Context()); ota.CodeOf(err) != ota.ErrConnectivity {
		t.Errorf("no server: got %v, want %v", err, ota.ErrConnectivity)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unknown.Groups(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: got %v, want %v", err, context.Canceled)
	}
}

// otherCA returns a CA that has signed nothing here.
func otherCA(t *testing.T) []byte {
	t.Helper()
	ca, err := serve.OpenCA(t.TempDir(), []string{"localhost"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return ca.PEM
}

// A refusal comes before the upload, and an upload has its length and its options.
func TestPublish(t *testing.T) {
	var got []string
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("group") == "closed" {
			http.Error(w, `{"error":"closed"}`, 409)
			return
		}
		b, err := io.ReadAll(r.Body)
		got = append(got, fmt.Sprint(r.Method, " ", r.URL, " ", r.ContentLength, " ", r.Header.Get("Authorization"), " ", len(b), " ", err))
		json.NewEncoder(w).Encode(api.PublishResponse{Known: true})
	})
	out, err := c.Publish(t.Context(), strings.NewReader("bundle"), 6, operator.PublishOptions{Group: "g", Hold: true, Replace: true})
	if err != nil || !out.Known {
		t.Errorf("got %+v, %v", out, err)
	}
	if diff := cmp.Diff([]string{"POST /api/v1/releases?group=g&hold=true&replace=true 6 Bearer secret 6 <nil>"}, got); diff != "" {
		t.Error(diff)
	}
	r := strings.NewReader(strings.Repeat("x", 8<<20))
	if _, err := c.Publish(t.Context(), r, int64(r.Len()), operator.PublishOptions{Group: "closed"}); err == nil || err.Error() != "publish the release: closed" {
		t.Errorf("got %v, want the server's refusal", err)
	}
	if r.Len() != 8<<20 {
		t.Errorf("%d bytes were read for an upload that was refused", 8<<20-r.Len())
	}
}

// Names cannot lead to another path.
func TestNamesInPaths(t *testing.T) {
	var path string
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		path = r.URL.EscapedPath()
		io.WriteString(w, "{}")
	})
	if _, err := c.Device(t.Context(), "../tokens?x"); err != nil {
		t.Fatal(err)
	}
	if want := "/api/v1/devices/..%2Ftokens%3Fx"; path != want {
		t.Errorf("got %s, want %s", path, want)
	}
}
