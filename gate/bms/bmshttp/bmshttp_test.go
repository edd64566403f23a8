package bmshttp_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmshttp"
)

const reading = `{"soc":62.5,"temperature_min":21,"temperature_max":24.5,"current":-1.2,%s"valid":true}`

func TestReader(t *testing.T) {
	fresh := fmt.Sprintf(reading, `"time":"`+time.Now().UTC().Format(time.RFC3339Nano)+`",`)
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string // of the error; empty: none
	}{
		"good":      {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, fresh) }, ""},
		"not found": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404); io.WriteString(w, fresh) }, "status 404 Not Found, want 200"},
		"created":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(201); io.WriteString(w, fresh) }, "status 201"},
		"redirect":  {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", 302) }, "status 302"},
		"empty":     {func(w http.ResponseWriter, r *http.Request) {}, "ends too early"},
		"page":      {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") }, "invalid character"},
		"cut short": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "500")
			io.WriteString(w, fresh)
		}, "unexpected EOF"},
		"endless":    {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat(" ", 1<<20)) }, "want at most 65536"},
		"broken off": {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			mux.HandleFunc("/bms", tt.handler)
			mux.HandleFunc("/other", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, fresh) })
			s := httptest.NewServer(mux)
			defer s.Close()
			read, err := bmshttp.New(s.URL+"/bms", nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := read(t.Context())
			if tt.want == "" {
				if err != nil || r.Value(bms.SoC) != 62.5 || r.Source != s.URL+"/bms" {
					t.Errorf("got %+v, %v", r, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || r.Signals != nil {
				t.Errorf("got %v, %v, want an error with %q", r, err, tt.want)
			}
		})
	}
}

// TestReaderWithoutTime: a copy in a cache would look fresh for ever.
func TestReaderWithoutTime(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, reading, "") }))
	defer s.Close()
	read, err := bmshttp.New(s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := bms.New(read, bms.Default())
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Gate(t.Context(), nil, ota.BeforeWrite); ota.CodeOf(err) != ota.ErrBMSUnsafe || !strings.Contains(err.Error(), "has no time") {
		t.Errorf("got %v, want BMS_UNSAFE for want of a time", err)
	}
}

func TestReaderHangs(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{}}
	read, err := bmshttp.New(s.URL, client)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := read(ctx); err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("got %v, want a deadline", err)
	}
	if client.CheckRedirect != nil {
		t.Error("the caller's client was changed")
	}
}

func TestNew(t *testing.T) {
	for _, address := range []string{"", "bms", "ftp://bms/", "http://", "http://user:secret@", "://", "http://[::1"} {
		_, err := bmshttp.New(address, nil)
		if err == nil {
			t.Errorf("%q: got no error", address)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error has the password: %v", address, err)
		}
	}
	read, err := bmshttp.New("http://user:secret@127.0.0.1:1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(t.Context()); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v, want an error without the password", err)
	}
}

func ExampleNew() {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, reading, fmt.Sprintf(`"time":%d,`, time.Now().Unix()))
	}))
	defer s.Close()

	read, err := bmshttp.New(s.URL, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	r, err := read(context.Background())
	fmt.Println(r.Value(bms.SoC), r.Valid, err)
	// Output: 62.5 true <nil>
}
