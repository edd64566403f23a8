package battery_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/interlock-energy/ota"

	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmshttp"
	"github.com/interlock-energy/ota/internal/battery"
)

func start(t *testing.T, cfg battery.Config) *battery.Battery {
	t.Helper()
	b, err := battery.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func read(t *testing.T, b *battery.Battery) bms.Reading {
	t.Helper()
	r, err := b.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got-want) > within {
		t.Errorf("%s: got %v, want %v give or take %v", what, got, want, within)
	}
}

func TestAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, battery.Config{})
		time.Sleep(24 * time.Hour)
		r := read(t, b)
		if r.Value(bms.SoC) != 60 || r.Value(bms.Current) != 0 || !r.Valid || !r.At.Equal(time.Now()) {
			t.Errorf("got %+v", r)
		}
		near(t, "coldest", r.Value(bms.TemperatureMin), 20.96, 0.01)
		near(t, "hottest", r.Value(bms.TemperatureMax), 23.04, 0.01)
		if err := bms.Decide(r, bms.Default(), nil, time.Now()); err != nil {
			t.Errorf("a battery at rest: %v", err)
		}
	})
}

func TestLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, battery.Config{Start: battery.Settings{Current: new(150.0)}})
		time.Sleep(30 * time.Minute)
		r := read(t, b)
		near(t, "SoC after half an hour at 150 A", r.Value(bms.SoC), 60-75/312.0*100, 1e-6)
		near(t, "hottest after one time constant", r.Value(bms.TemperatureMax), 23.04+12*(1-1/math.E), 1e-6)
		time.Sleep(3 * time.Hour) // it is empty long before
		if r = read(t, b); r.Value(bms.SoC) != 0 || r.Value(bms.Current) != 0 {
			t.Errorf("empty: got %v %%, %v A", r.Value(bms.SoC), r.Value(bms.Current))
		}
		if err := b.Set(battery.Settings{Current: new(-312.0)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		near(t, "SoC after charging", soc(t, b), 50, 1e-6)
		time.Sleep(time.Hour)
		if r = read(t, b); r.Value(bms.SoC) != 100 || r.Value(bms.Current) != 0 {
			t.Errorf("full: got %v %%, %v A", r.Value(bms.SoC), r.Value(bms.Current))
		}
	})
}

// TestStepsDoNotMatter: reading often and reading once give the same battery.
func TestStepsDoNotMatter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		often := start(t, battery.Config{Start: battery.Settings{Current: new(40.0)}})
		once := start(t, battery.Config{Start: battery.Settings{Current: new(40.0)}})
		for range 3600 {
			time.Sleep(time.Second)
			read(t, often)
		}
		a, b := read(t, often), read(t, once)
		near(t, "SoC", a.Value(bms.SoC), b.Value(bms.SoC), 1e-6)
		near(t, "hottest", a.Value(bms.TemperatureMax), b.Value(bms.TemperatureMax), 1e-6)
	})
}

func TestScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, battery.Config{Script: []battery.Step{
			{After: 10 * time.Second, Set: battery.Settings{SoC: new(22.0)}},
			{After: 20 * time.Second, Set: battery.Settings{SoC: new(80.0), TemperatureMax: new(50.0)}},
			{After: 30 * time.Second, Set: battery.Settings{TemperatureMax: new(30.0), Frozen: new(true)}},
			{After: 60 * time.Second, Set: battery.Settings{Frozen: new(false), Absent: new(true)}},
			{After: 70 * time.Second, Set: battery.Settings{Absent: new(false), Valid: new(false)}},
			{After: 80 * time.Second, Set: battery.Settings{Valid: new(true)}},
		}})
		guard, err := bms.New(b.Read, bms.Default())
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for _, tt := range []struct {
			at   time.Duration
			want string // in the refusal; empty: yes
		}{
			{0, ""},
			{9999 * time.Millisecond, ""},
			{10 * time.Second, "state of charge 22.0 %"},
			{20 * time.Second, "highest temperature 50.0 °C"},
			{30 * time.Second, "highest temperature 50.0 °C"}, // frozen as it was
			{35 * time.Second, "highest temperature 50.0 °C"},
			{36 * time.Second, "6s old"},
			{60 * time.Second, "does not answer"},
			{70 * time.Second, "marked as not valid"},
			{80 * time.Second, ""},
		} {
			time.Sleep(time.Until(begin.Add(tt.at)))
			err := guard.Gate(t.Context(), nil, ota.BeforeWrite)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("at %v: got %v, want %q", tt.at, err, tt.want)
			}
		}
	})
	for name, script := range map[string][]battery.Step{
		"order":    {{After: 2 * time.Second}, {After: time.Second}},
		"negative": {{After: -1}},
		"value":    {{Set: battery.Settings{SoC: new(101.0)}}},
		"crossed":  {{Set: battery.Settings{TemperatureMin: new(40.0)}}},
	} {
		if _, err := battery.New(battery.Config{Script: script}); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, battery.Config{Noise: true, Seed: 7})
		b := start(t, battery.Config{Noise: true, Seed: 7})
		c := start(t, battery.Config{Noise: true, Seed: 8})
		same, other := true, true
		for range 100 {
			x, y, z := read(t, a), read(t, b), read(t, c)
			same = same && cmp.Equal(x, y)
			other = other && cmp.Equal(x, z)
			near(t, "hottest", x.Value(bms.TemperatureMax), 23.04, 0.1)
			near(t, "current", x.Value(bms.Current), 0, 0.2)
			if x.Value(bms.TemperatureMin) > x.Value(bms.TemperatureMax) || x.Value(bms.SoC) != 60 {
				t.Errorf("got %+v", x)
			}
		}
		if !same || other {
			t.Errorf("the same seed gives the same: %v; another seed gives the same: %v", same, other)
		}
	})
}

func TestSetAllOrNothing(t *testing.T) {
	b := start(t, battery.Config{})
	for name, s := range map[string]battery.Settings{
		"second value": {SoC: new(10.0), Current: new(1001.0)},
		"NaN":          {SoC: new(10.0), TemperatureMax: new(math.NaN())},
		"crossed":      {SoC: new(10.0), TemperatureMin: new(30.0)},
	} {
		if err := b.Set(s); err == nil {
			t.Errorf("%s: got no error", name)
		}
		if got := soc(t, b); got != 60 {
			t.Errorf("%s: SoC is %v, want it unchanged", name, got)
		}
	}
	if err := b.Set(battery.Settings{TemperatureMin: new(30.0), TemperatureMax: new(31.0)}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestHTTP(t *testing.T) {
	b := start(t, battery.Config{})
	s := httptest.NewServer(b)
	defer s.Close()
	for _, tt := range []struct {
		method, kind, body string
		status             int
		want               string
	}{
		{"GET", "", "", 200, `{"soc":60,"temperature_min":20.96`},
		{"PUT", "", `{"soc":22}`, 200, `{"soc":22,`},
		{"POST", "application/json; charset=utf-8", `{"soc":80,"current":0}`, 200, `{"soc":80,`},
		{"POST", "application/x-www-form-urlencoded", `{"soc":10}`, 415, "use PUT"},
		{"PUT", "", `{"SOCC":10}`, 400, "unknown field"},
		{"PUT", "", `{"soc":101}`, 400, "soc 101, want 0 to 100"},
		{"PUT", "", `{"soc":10} x`, 400, "something follows"},
		{"PUT", "", `{"soc":1`, 400, "unexpected EOF"},
		{"PUT", "", strings.Repeat(" ", 5000), 413, "more than 4096"},
		{"DELETE", "", "", 405, "use GET"},
		{"GET", "", "", 200, `{"soc":80,`}, // none of the errors changed it
		{"PUT", "", `{"absent":true}`, 202, "does not answer"},
		{"GET", "", "", 503, "does not answer"},
		{"PUT", "", `{"absent":false,"valid":false}`, 200, `"valid":false`},
	} {
		req, err := http.NewRequest(tt.method, s.URL, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", tt.kind)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.want) {
			t.Errorf("%s %s: got %d %q, want %d %q", tt.method, tt.body, resp.StatusCode, body, tt.status, tt.want)
		}
	}
}

func TestConcurrent(t *testing.T) {
	b := start(t, battery.Config{Noise: true})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				if err := b.Set(battery.Settings{SoC: new(float64(i))}); err != nil {
					t.Error(err)
				}
				if _, err := b.Read(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func ExampleBattery() {
	b, err := battery.New(battery.Config{Start: battery.Settings{SoC: new(22.0)}})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := httptest.NewServer(b) // as a controller would see it
	defer s.Close()
	over, err := bmshttp.New(s.URL, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	guard, err := bms.New(over, bms.Default())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(guard.Gate(context.Background(), nil, ota.BeforeWrite))
	// Output: not now: state of charge 22.0 %, want at least 30 %
}

func soc(t *testing.T, b *battery.Battery) float64 {
	t.Helper()
	r := read(t, b)
	return r.Value(bms.SoC)
}
