package bms_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/interlock-energy/ota/gate/bms"
)

const encodedFull = `{"format":"interlock battery reading 1","source":"test","valid":true,"time":"2026-03-01T12:00:00Z","signals":{"capacity":{"value":314},` +
	`"cell_max":{"value":3.33},"cell_min":{"value":3.31},"current":{"value":-1.2},"soc":{"value":62.5},"soh":{"value":98},"temperature_max":{"value":24.5},` +
	`"temperature_min":{"value":"NaN","time":"2026-03-01T11:59:59.9Z","cycle_ns":100000000},"voltage":{"value":691}},"beat":{"count":4711,"within_ns":2000000000},` +
	`"positive":"discharging","alarms":["door"],"mode":"standby","contactors":"closed","control":"remote","others":[{"source":"meter","valid":true,` +
	`"time":"2026-03-01T12:00:00Z","signals":{"current":{"value":-1.2}},"positive":"discharging","no_alarms":true}]}`

// TestEncodeReading keeps the form: readings of this version must be readable for ever.
func TestEncodeReading(t *testing.T) {
	r := full()
	r.Alarms, r.Beat.Within = []string{"door"}, 2*time.Second
	r.Set(bms.TemperatureMin, math.NaN())
	r.Signals[bms.TemperatureMin] = bms.Signal{Value: math.NaN(), At: now.Add(-100 * time.Millisecond), Cycle: 100 * time.Millisecond}
	got, err := bms.EncodeReading(r)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != encodedFull {
		t.Errorf("\n got %s\nwant %s", got, encodedFull)
	}
	back, err := bms.DecodeReading([]byte(encodedFull))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("there and back (-want +got):\n%s", diff)
	}
	if b, err := json.Marshal(struct{ Before json.RawMessage }{got}); err != nil || !bytes.Contains(b, got) {
		t.Errorf("inside of other JSON it is not the same bytes: %s, %v", b, err)
	}
}

// TestEncodeReadingExactly: what a random reading was, it is again.
func TestEncodeReadingExactly(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	numbers := []float64{0, math.Copysign(0, -1), math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, 0.1, 1e21, 62.5}
	texts := []string{"", "a", "<&>", "ä\u2028\x00\"\\", "127.0.0.1:502 unit 1"}
	zones := []*time.Location{time.UTC, time.FixedZone("", 3600)}
	at := func() time.Time {
		if rng.IntN(4) == 0 {
			return time.Time{}
		}
		return time.Unix(rng.Int64N(4e9), rng.Int64N(1e9)).In(zones[rng.IntN(2)])
	}
	text := func() string { return texts[rng.IntN(len(texts))] }
	list := func() (out []string) {
		for range rng.IntN(3) {
			out = append(out, text())
		}
		return out
	}
	var random func(depth int) bms.Reading
	random = func(depth int) bms.Reading {
		r := bms.Reading{Source: text(), Valid: rng.IntN(2) == 0, At: at(), Positive: bms.Direction(text()), Alarms: list(), NoAlarms: rng.IntN(2) == 0,
			Warnings: list(), Mode: bms.Mode(text()), Contactors: bms.Contactors(text()), Control: bms.Control(text())}
		for range rng.IntN(4) {
			if r.Signals == nil {
				r.Signals = map[bms.Quantity]bms.Signal{}
			}
			v := numbers[rng.IntN(len(numbers))]
			if rng.IntN(2) == 0 {
				v = rng.NormFloat64() * math.Exp(rng.NormFloat64()*20)
			}
			r.Signals[bms.Quantity(text())] = bms.Signal{Value: v, At: at(), Cycle: time.Duration(rng.Int64() >> rng.IntN(64))}
		}
		if rng.IntN(2) == 0 {
			r.Beat = &bms.Beat{Count: rng.Uint64() >> rng.IntN(64), Within: time.Duration(-rng.Int64N(1e12))}
		}
		for range rng.IntN(3) * depth {
			r.Others = append(r.Others, random(depth-1))
		}
		return r
	}
	for range 1_000 {
		r := random(2)
		data, err := bms.EncodeReading(r)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		got, err := bms.DecodeReading(data)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if diff := cmp.Diff(r, got, cmpopts.EquateNaNs()); diff != "" {
			t.Fatalf("there and back (-want +got):\n%s", diff)
		}
		if zero := math.Float64bits(r.Value("a")) == 1<<63; zero != (math.Float64bits(got.Value("a")) == 1<<63) {
			t.Fatalf("-0 lost its sign: %s", data)
		}
	}
}

func TestEncodeReadingRefuses(t *testing.T) {
	for name, change := range map[string]func(*bms.Reading){
		"source":           func(r *bms.Reading) { r.Source = "\xff" },
		"alarm":            func(r *bms.Reading) { r.Alarms = []string{"ok", "\xc3"} },
		"quantity":         func(r *bms.Reading) { r.Signals = map[bms.Quantity]bms.Signal{"\xff": {}} },
		"other":            func(r *bms.Reading) { r.Others[0].Source = "\xff" },
		"year 10000":       func(r *bms.Reading) { r.At = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"too long, by far": func(r *bms.Reading) { r.Warnings = []string{strings.Repeat("x", bms.MaxReadingSize)} },
	} {
		r := full()
		change(&r)
		if got, err := bms.EncodeReading(r); err == nil || got != nil {
			t.Errorf("%s: got %.100s, %v, want an error", name, got, err)
		}
	}
}

func TestDecodeReadingRefuses(t *testing.T) {
	edit := func(old, new string) string {
		if !strings.Contains(encodedFull, old) {
			t.Fatalf("%q is not there", old)
		}
		return strings.Replace(encodedFull, old, new, 1)
	}
	for name, in := range map[string]string{
		"empty":           "",
		"null":            "null",
		"object":          "{}",
		"another version": edit("reading 1", "reading 2"),
		"unknown field":   edit(`"valid"`, `"extra":1,"valid"`),
		"misspelt":        edit(`"alarms"`, `"alarm"`),
		"another case":    edit(`"valid"`, `"Valid"`),
		"twice":           edit(`"valid":true`, `"valid":true,"valid":true`),
		"a text":          edit(`62.5`, `"62.5"`),
		"an infinity":     edit(`62.5`, `"Inf"`),
		"too large":       edit(`62.5`, `1e400`),
		"null value":      edit(`62.5`, `null`),
		"another zone":    edit(`12:00:00Z`, `13:00:00+01:00`),
		"spaces":          " " + encodedFull,
		"more":            encodedFull + "\n",
		"two":             encodedFull + encodedFull,
		"an empty list":   edit(`["door"]`, `[]`),
		"too long":        strings.Repeat(" ", bms.MaxReadingSize) + encodedFull,
		"deep":            edit(`"source":"meter",`, `"others":`+strings.Repeat(`[{"valid":true,"others":`, 2000)),
	} {
		if r, err := bms.DecodeReading([]byte(in)); err == nil || r.Signals != nil {
			t.Errorf("%s: got %+v, want an error", name, r)
		}
	}
	for n := range len(encodedFull) {
		if _, err := bms.DecodeReading([]byte(encodedFull[:n])); err == nil {
			t.Errorf("the first %d bytes were taken", n)
		}
	}
}

func FuzzDecodeReading(f *testing.F) {
	for _, s := range []string{encodedFull, encodedFull[:50], `{"format":"interlock battery reading 1","valid":false}`, `{}`, `[`,
		strings.Replace(encodedFull, "62.5", `"-Inf"`, 1), strings.Replace(encodedFull, "4711", "18446744073709551615", 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := bms.DecodeReading(data)
		if err != nil {
			if r.Signals != nil || r.Others != nil {
				t.Fatalf("got %+v beside the error %v", r, err)
			}
			return
		}
		again, err := bms.EncodeReading(r)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("there and back: %s, %v", again, err)
		}
		// Whatever it holds, a decision about it can be made and told.
		if err := bms.Decide(r, bms.Recommended(), nil, now); err != nil {
			if _, err := json.Marshal(fmt.Sprint(err)); err != nil {
				t.Fatal(err)
			}
		}
		bms.Compare(r, r, bms.DefaultTolerance(), now, time.Second)
	})
}
