package http_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	planthttp "github.com/interlock-energy/ota/plant/http"
)

// controller is a server that answers what a test says: a fake.
type controller struct {
	mu      sync.Mutex
	answers []int // statuses, in order; the last one stays
	asked   []string
	block   chan struct{} // if not nil, answers wait for it
}

func (c *controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.URL.Path, r.Header.Get("Authorization"), body)))
	if c.block != nil {
		select {
		case <-c.block:
		case <-r.Context().Done():
			return
		}
	}
	status := c.answers[0]
	if len(c.answers) > 1 {
		c.answers = c.answers[1:]
	}
	if status == http.StatusFound {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(status)
	if status != http.StatusNoContent {
		fmt.Fprint(w, "the contactor \x1bis stuck\n")
	}
}

func serve(t *testing.T, answers ...int) (*controller, planthttp.Config) {
	c := &controller{answers: answers}
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return c, planthttp.Config{Quiesce: s.URL + "/quiesce", Resume: s.URL + "/resume", Device: "bess-17", Poll: time.Millisecond,
		Release: func() string { return "2.1.0" }}
}

func open(t *testing.T, cfg planthttp.Config) *planthttp.Controller {
	t.Helper()
	c, err := planthttp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func refuses(t *testing.T, err error, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestDone(t *testing.T) {
	const body = `{"action":"quiesce","device":"bess-17","release":"2.1.0"}`
	for _, answers := range [][]int{{200}, {201}, {204}, {202, 200}, {202, 202, 202, 200}} {
		c, cfg := serve(t, answers...)
		cfg.Token = "secret"
		if err := open(t, cfg).Quiesce(t.Context()); err != nil {
			t.Errorf("%v: %v", answers, err)
		}
		want := []string{"POST /quiesce Bearer secret " + body}
		for range len(answers) - 1 {
			want = append(want, "GET /quiesce Bearer secret")
		}
		if got := strings.Join(c.asked, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("%v: was asked\n%s\nwant\n%s", answers, got, strings.Join(want, "\n"))
		}
	}
	c, cfg := serve(t, 200)
	cfg.Release = nil
	if err := open(t, cfg).Resume(t.Context()); err != nil || c.asked[0] != `POST /resume  {"action":"resume","device":"bess-17"}` {
		t.Errorf("got %v, asked %q", err, c.asked)
	}
}

func TestNotDone(t *testing.T) {
	for _, test := range []struct {
		answers []int
		want    string
		asked   int
	}{
		{[]int{409}, "got 409 Conflict, want 200 or 202: the contactor  is stuck", 1},
		{[]int{500}, "got 500", 1},
		{[]int{302, 200}, "it redirects to ", 1},
		{[]int{202, 500}, "GET ", 2},
		{[]int{202, 204}, "got 204 No Content, want 200 or 202", 2},
		{[]int{202, 404}, "got 404", 2},
	} {
		c, cfg := serve(t, test.answers...)
		refuses(t, open(t, cfg).Quiesce(t.Context()), "quiesce over HTTP: ", test.want)
		if len(c.asked) != test.asked {
			t.Errorf("%v: was asked %q, want %d times", test.answers, c.asked, test.asked)
		}
	}
}

// TestLate: a controller that never ends, and one that never answers.
func TestLate(t *testing.T) {
	_, cfg := serve(t, 202)
	cfg.Timeout = 50 * time.Millisecond
	refuses(t, open(t, cfg).Quiesce(t.Context()), "not done within 50ms", "it said that it has begun")
	c, cfg := serve(t, 200)
	c.block = make(chan struct{})
	cfg.Timeout = 50 * time.Millisecond
	refuses(t, open(t, cfg).Resume(t.Context()), "resume over HTTP: ", "not done within 50ms")
	close(c.block)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the agent ends"))
	refuses(t, open(t, cfg).Resume(ctx), "the agent ends")
}

// TestNoProxy: what stops a plant goes straight to it.
func TestNoProxy(t *testing.T) {
	proxy, _ := serve(t, 200)
	s := httptest.NewServer(proxy)
	defer s.Close()
	t.Setenv("HTTP_PROXY", s.URL)
	t.Setenv("http_proxy", s.URL)
	err := open(t, planthttp.Config{Quiesce: "http://plant.invalid/quiesce", Resume: "http://plant.invalid/resume", Timeout: 5 * time.Second}).Quiesce(t.Context())
	if err == nil || len(proxy.asked) != 0 {
		t.Errorf("got %v, and the proxy was asked %q", err, proxy.asked)
	}
}

// TestTLS believes only whom it is told to.
func TestTLS(t *testing.T) {
	c := &controller{answers: []int{200}}
	s := httptest.NewUnstartedServer(c)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of the handshake that is refused
	s.StartTLS()
	defer s.Close()
	cfg := planthttp.Config{Quiesce: s.URL, Resume: s.URL, Token: "secret"}
	refuses(t, open(t, cfg).Quiesce(t.Context()), "certificate")
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	cfg.TLS = &tls.Config{RootCAs: pool}
	if err := open(t, cfg).Quiesce(t.Context()); err != nil || len(c.asked) != 1 {
		t.Errorf("got %v, asked %q", err, c.asked)
	}
}

func TestConfig(t *testing.T) {
	const good = "https://plant.example/quiesce"
	for want, cfg := range map[string]planthttp.Config{
		"want http://host/path":   {Quiesce: "ftp://plant/quiesce", Resume: good},
		`address ""`:              {Quiesce: good},
		"carries a password":      {Quiesce: "https://a:b@plant/quiesce", Resume: good},
		"in the clear; use https": {Quiesce: "http://plant.example/quiesce", Resume: good, Token: "secret"},
		"timeout -1ns":            {Quiesce: good, Resume: good, Timeout: -1},
	} {
		_, err := planthttp.New(cfg)
		refuses(t, err, "configure the quiescing over HTTP: ", want)
	}
	if _, err := planthttp.New(planthttp.Config{Quiesce: "http://127.0.0.1:8080/q", Resume: "http://localhost/r", Token: "secret"}); err != nil {
		t.Error(err)
	}
}
