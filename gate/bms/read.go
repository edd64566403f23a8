package bms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// MaxReadingSize is the greatest size of a reading as JSON, in bytes.
const MaxReadingSize = 64 << 10

// ParseReading reads the JSON form of a reading:
//
//	{"soc": 62.5, "temperature_min": 21, "temperature_max": 24.5, "current": -1.2,
//	 "time": "2026-03-01T12:00:00.25Z", "valid": true}
//
// Units are those of [Reading]. The time is RFC 3339 or a number of seconds
// since 1970; without one, At is zero, and it is for the caller to know better.
// A null stands for a number that is not available. All other fields must be
// there: a misspelt name must not pass for a harmless value. Names are compared
// exactly, a known name twice is an error, and unknown names are ignored.
func ParseReading(data []byte) (Reading, error) {
	bad := func(format string, a ...any) (Reading, error) {
		return Reading{}, fmt.Errorf("parse the reading: "+format, a...)
	}
	if len(data) > MaxReadingSize {
		return bad("%d bytes, want at most %d", len(data), MaxReadingSize)
	}
	fields, err := objectFields(data)
	if err != nil {
		return bad("%w", err)
	}
	r := Reading{NoAlarms: true} // the form has no place for them
	var missing []string
	for _, q := range []Quantity{SoC, TemperatureMin, TemperatureMax, Current} {
		raw, ok := fields[string(q)]
		if !ok {
			missing = append(missing, string(q))
			continue
		}
		v := new(float64)
		if err := json.Unmarshal(raw, &v); err != nil {
			return bad("%s is %.40s, want a number or null", q, raw)
		}
		if v == nil {
			r.Set(q, math.NaN())
		} else {
			r.Set(q, *v)
		}
	}
	var valid *bool
	if raw, ok := fields["valid"]; !ok {
		missing = append(missing, "valid")
	} else if err := json.Unmarshal(raw, &valid); err != nil || valid == nil {
		return bad("valid is %.40s, want true or false", raw)
	} else {
		r.Valid = *valid
	}
	if len(missing) > 0 {
		return bad("%s missing", strings.Join(missing, ", "))
	}
	if raw, ok := fields["time"]; ok {
		if r.At, err = parseTime(raw); err != nil {
			return bad("%w", err)
		}
	}
	return r, nil
}

// objectFields returns the fields of one JSON object, the known ones by their
// exact name. Package json would take SoC for soc and the last of two.
func objectFields(data []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil {
		return nil, cut(err)
	} else if t != json.Delim('{') {
		return nil, fmt.Errorf("got %v, want an object", t)
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, cut(err)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, cut(err)
		}
		switch name := name.(string); name {
		case "soc", "temperature_min", "temperature_max", "current", "time", "valid":
			if _, twice := fields[name]; twice {
				return nil, fmt.Errorf("%s is there twice", name)
			}
			fields[name] = raw
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return nil, cut(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the object")
	}
	return fields, nil
}

// cut says what an early end most often means.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends too early; write a new file and rename it over the old one")
	}
	return err
}

// latestTime is in the year 5138. Milliseconds, taken for seconds, are beyond it.
const latestTime = 100_000_000_000

func parseTime(raw json.RawMessage) (time.Time, error) {
	var s string
	if json.Unmarshal(raw, &s) == nil && s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return time.Time{}, fmt.Errorf("time is %.40q, want a form like 2026-03-01T12:00:00Z", s)
		}
		if u := t.Unix(); u <= 0 || u >= latestTime {
			return time.Time{}, fmt.Errorf("time is %.40q, want one from 1970 to 5138", s)
		}
		return t, nil
	}
	v := math.NaN()
	if json.Unmarshal(raw, &v) != nil || !(v > 0 && v < latestTime) {
		return time.Time{}, fmt.Errorf("time is %.40s, want RFC 3339 or seconds since 1970", raw)
	}
	whole, fraction := math.Modf(v)
	return time.Unix(int64(whole), int64(fraction*1e9)), nil
}

// MarshalJSON returns the form that [ParseReading] reads. Values that are not
// numbers become null.
func (r Reading) MarshalJSON() ([]byte, error) {
	number := func(q Quantity) *float64 {
		v := r.Value(q)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil
		}
		return &v
	}
	return json.Marshal(struct {
		SoC            *float64  `json:"soc"`
		TemperatureMin *float64  `json:"temperature_min"`
		TemperatureMax *float64  `json:"temperature_max"`
		Current        *float64  `json:"current"`
		Time           time.Time `json:"time,omitzero"`
		Valid          bool      `json:"valid"`
	}{number(SoC), number(TemperatureMin), number(TemperatureMax), number(Current), sendable(r.At), r.Valid})
}

// FromFile returns a reader of the file at path, in the form of [ParseReading].
// A reading without a time is as old as the file's last change. Who writes the
// file should write another one and rename it: one that changes while it is read
// is an error, and so is everything but a regular file.
func FromFile(path string) Reader {
	return func(context.Context) (Reading, error) {
		data, changed, err := readFile(path)
		if err != nil {
			return Reading{}, err
		}
		r, err := ParseReading(data)
		if err != nil {
			return Reading{}, fmt.Errorf("%s: %w", path, err)
		}
		if r.At.IsZero() {
			r.At = changed
		}
		r.Source = path
		return r, nil
	}
}

func readFile(path string) (data []byte, changed time.Time, err error) {
	info, err := os.Stat(path) // before opening, because opening a named pipe would wait
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, time.Time{}, fmt.Errorf("open %s: it is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if data, err = io.ReadAll(io.LimitReader(f, MaxReadingSize+1)); err != nil {
		return nil, time.Time{}, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		return nil, time.Time{}, fmt.Errorf("read %s: it was changed meanwhile", path)
	}
	return data, after.ModTime(), nil
}
