package bms_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate/bms"
)

const goodJSON = `{"soc":62.5,"temperature_min":21,"temperature_max":24.5,"current":-1.2,"time":"2026-03-01T12:00:00Z","valid":true}`

func TestParseReading(t *testing.T) {
	nan := math.NaN()
	want := good()
	want.Source = ""
	with := func(f func(*bms.Reading)) bms.Reading { r := want; f(&r); return r }
	edit := func(old, new string) string {
		if !strings.Contains(goodJSON, old) {
			t.Fatalf("%q is not in the good reading", old)
		}
		return strings.Replace(goodJSON, old, new, 1)
	}
	for name, tt := range map[string]struct {
		in   string
		want bms.Reading
		err  string
	}{
		"good":               {in: goodJSON, want: want},
		"spaces and newline": {in: " \n" + goodJSON + "\n ", want: want},
		"unix seconds":       {in: edit(`"2026-03-01T12:00:00Z"`, `1772366400`), want: want},
		"unix fraction":      {in: edit(`"2026-03-01T12:00:00Z"`, `1772366400.25`), want: with(func(r *bms.Reading) { r.At = now.Add(250 * time.Millisecond) })},
		"another zone":       {in: edit(`12:00:00Z`, `13:00:00+01:00`), want: want},
		"no time":            {in: edit(`"time":"2026-03-01T12:00:00Z",`, ``), want: with(func(r *bms.Reading) { r.At = time.Time{} })},
		"not available":      {in: edit(`21,`, `null,`), want: with(func(r *bms.Reading) { r.Set(bms.TemperatureMin, nan) })},
		"marked not valid":   {in: edit(`true`, `false`), want: with(func(r *bms.Reading) { r.Valid = false })},
		"unknown names":      {in: edit(`{`, `{"soh":99,"cells":[{"v":3.3}],"soh":98,`), want: want},

		"misspelt":             {in: edit(`"soc"`, `"soC"`), err: "soc missing"},
		"misspelt valid":       {in: edit(`"valid"`, `"vaild"`), err: "valid missing"},
		"empty object":         {in: `{}`, err: "soc, temperature_min, temperature_max, current, valid missing"},
		"twice":                {in: edit(`{`, `{"soc":80,`), err: "soc is there twice"},
		"twice, escaped":       {in: edit(`{`, `{"\u0073oc":80,`), err: "soc is there twice"},
		"another case as well": {in: edit(`{`, `{"SOC":5,`), want: want},
		"number as text":       {in: edit(`62.5`, `"62.5"`), err: `soc is "62.5", want a number or null`},
		"NaN":                  {in: edit(`62.5`, `NaN`), err: "invalid character"},
		"too large a number":   {in: edit(`62.5`, `1e400`), err: "soc is 1e400"},
		"valid as number":      {in: edit(`true`, `1`), err: "valid is 1, want true or false"},
		"valid null":           {in: edit(`true`, `null`), err: "valid is null, want true or false"},
		"time in milliseconds": {in: edit(`"2026-03-01T12:00:00Z"`, `1772366400000`), err: "want RFC 3339 or seconds since 1970"},
		"time before 1970":     {in: edit(`2026`, `1926`), err: "want one from 1970 to 5138"},
		"time far ahead":       {in: edit(`2026`, `9999`), err: "want one from 1970 to 5138"},
		"time null":            {in: edit(`"2026-03-01T12:00:00Z"`, `null`), err: "time is null"},
		"time empty":           {in: edit(`"2026-03-01T12:00:00Z"`, `""`), err: `time is ""`},
		"time without zone":    {in: edit(`12:00:00Z`, `12:00:00`), err: "want a form like"},
		"empty":                {in: ``, err: "ends too early"},
		"half":                 {in: goodJSON[:40], err: "ends too early"},
		"all but the brace":    {in: goodJSON[:len(goodJSON)-1], err: "ends too early"},
		"rest of an old one":   {in: goodJSON + `rue}`, err: "something follows the object"},
		"two":                  {in: goodJSON + goodJSON, err: "something follows the object"},
		"list":                 {in: `[` + goodJSON + `]`, err: "want an object"},
		"number":               {in: `5`, err: "want an object"},
		"zeros":                {in: strings.Repeat("\x00", 100), err: "invalid character"},
		"too long":             {in: strings.Repeat(" ", bms.MaxReadingSize) + goodJSON, err: "want at most 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := bms.ParseReading([]byte(tt.in))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want %q", err, tt.err)
				}
				if got.Signals != nil {
					t.Errorf("got %+v beside the error, want nothing", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateNaNs()); diff != "" {
				t.Errorf("reading (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadingJSON(t *testing.T) {
	r := good()
	r.Source = ""
	r.Set(bms.Current, math.NaN())
	r.Set(bms.SoC, math.Inf(1))
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := bms.ParseReading(b)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	r.Set(bms.SoC, math.NaN())
	if diff := cmp.Diff(r, got, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("there and back (-want +got):\n%s", diff)
	}
}

func TestFromFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bms.json")
	read := bms.FromFile(path)
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refuses := func(name, want string) {
		t.Helper()
		if r, err := read(t.Context()); err == nil || !strings.Contains(err.Error(), want) || r.Signals != nil {
			t.Errorf("%s: got %v, %v, want an error with %q", name, r, err, want)
		}
	}
	refuses("missing", "no such file")

	write(goodJSON)
	r, err := read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !r.At.Equal(now) || r.Source != path || r.Value(bms.SoC) != 62.5 {
		t.Errorf("got %+v", r)
	}

	write(strings.Replace(goodJSON, `"time":"2026-03-01T12:00:00Z",`, "", 1))
	changed := time.Now().Add(-7 * time.Second).Truncate(time.Millisecond)
	if err := os.Chtimes(path, changed, changed); err != nil {
		t.Fatal(err)
	}
	if r, err = read(t.Context()); err != nil || !r.At.Equal(changed) {
		t.Errorf("without a time: got %v, %v, want the file's %v", r.At, err, changed)
	}
	if err := bms.Decide(r, bms.Default(), nil, time.Now()); ota.CodeOf(err) != ota.ErrBMSUnsafe {
		t.Errorf("file left behind 7 s ago: got %v, want BMS_UNSAFE", err)
	}

	for n := range len(goodJSON) { // a writer that has come this far
		write(goodJSON[:n])
		refuses("first bytes", "ends too early")
	}
	write(goodJSON + strings.Repeat(" ", bms.MaxReadingSize))
	refuses("endless", "want at most 65536")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	refuses("directory", "not a regular file")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil { // opening it would wait for a writer
		t.Fatal(err)
	}
	refuses("named pipe", "not a regular file")
}

func FuzzReading(f *testing.F) {
	for _, s := range []string{goodJSON, goodJSON[:40], `{}`, `[`, `{"soc":null}`, goodJSON + "x", `{"soc":1,"soc":2}`,
		strings.Replace(goodJSON, "62.5", "1e308", 1), strings.Replace(goodJSON, `"2026-03-01T12:00:00Z"`, "1772366400.25", 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := bms.ParseReading(data)
		if err != nil {
			if r.Signals != nil {
				t.Fatalf("got %+v beside the error %v", r, err)
			}
			return
		}
		// What is taken says what package json, which is more lenient, reads too.
		var loose map[string]any
		if err := json.Unmarshal(data, &loose); err != nil {
			t.Fatalf("took what is not JSON: %v", err)
		}
		if v, ok := loose["soc"].(float64); ok && v != r.Value(bms.SoC) || !ok && !math.IsNaN(r.Value(bms.SoC)) {
			t.Fatalf("soc: got %v from %v", r.Value(bms.SoC), loose["soc"])
		}
		if loose["valid"] != r.Valid {
			t.Fatalf("valid: got %v from %v", r.Valid, loose["valid"])
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := bms.ParseReading(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if diff := cmp.Diff(r, again, cmpopts.EquateNaNs()); diff != "" {
			t.Fatalf("there and back:\n%s", diff)
		}
		bms.Decide(r, bms.Default(), nil, now)
	})
}
