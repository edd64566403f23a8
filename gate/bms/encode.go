package bms

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// storedFormat names the form and its version. Its names never change.
const storedFormat = "interlock battery reading 1"

// EncodeReading returns all of r as JSON of at most [MaxReadingSize], for
// [DecodeReading]: for what is kept of a battery over a restart, and as evidence.
// Times lose the monotonic clock and their zone, and empty lists become nil;
// everything else comes back exactly, NaN and infinity too. Text that is not UTF-8,
// and years that have not four digits, are errors.
func EncodeReading(r Reading) ([]byte, error) {
	s, err := store(&r)
	if err != nil {
		return nil, fmt.Errorf("encode the reading of %s: %w", r.who(), err)
	}
	s.Format = storedFormat
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the reading of %s: %w", r.who(), err)
	}
	if len(data) > MaxReadingSize {
		return nil, fmt.Errorf("encode the reading of %s: %d bytes, want at most %d", r.who(), len(data), MaxReadingSize)
	}
	return data, nil
}

// DecodeReading reads what [EncodeReading] wrote, byte for byte, and nothing else:
// unknown, doubled or misspelt fields are errors.
func DecodeReading(data []byte) (Reading, error) {
	if len(data) > MaxReadingSize {
		return Reading{}, fmt.Errorf("decode a reading: %d bytes, want at most %d", len(data), MaxReadingSize)
	}
	var s stored
	if err := json.Unmarshal(data, &s); err != nil {
		return Reading{}, fmt.Errorf("decode a reading: %w", err)
	}
	if s.Format != storedFormat {
		return Reading{}, fmt.Errorf("decode a reading: the format is %.40q, want %q", s.Format, storedFormat)
	}
	r := s.reading()
	again, err := EncodeReading(r)
	if err != nil {
		return Reading{}, fmt.Errorf("decode a reading: %w", err)
	}
	if !bytes.Equal(again, data) { // package json takes SoC for soc, and the last of two
		return Reading{}, fmt.Errorf("decode a reading: it is not as it was written: it reads as %.200s", again)
	}
	return r, nil
}

type stored struct {
	Format     string                  `json:"format,omitempty"` // of the outermost
	Source     string                  `json:"source,omitempty"`
	Valid      bool                    `json:"valid"`
	At         time.Time               `json:"time,omitzero"`
	Signals    map[string]storedSignal `json:"signals,omitempty"`
	Beat       *storedBeat             `json:"beat,omitempty"`
	Positive   string                  `json:"positive,omitempty"`
	Alarms     []string                `json:"alarms,omitempty"`
	NoAlarms   bool                    `json:"no_alarms,omitempty"`
	Warnings   []string                `json:"warnings,omitempty"`
	Mode       string                  `json:"mode,omitempty"`
	Contactors string                  `json:"contactors,omitempty"`
	Control    string                  `json:"control,omitempty"`
	Others     []stored                `json:"others,omitempty"`
}

type storedSignal struct {
	Value storedNumber  `json:"value"`
	At    time.Time     `json:"time,omitzero"`
	Cycle time.Duration `json:"cycle_ns,omitempty"`
}

type storedBeat struct {
	Count  uint64        `json:"count"`
	Within time.Duration `json:"within_ns,omitempty"`
}

// storedNumber is a number or, where JSON has none, its name.
type storedNumber float64

func (n storedNumber) MarshalJSON() ([]byte, error) {
	switch v := float64(n); {
	case math.IsNaN(v):
		return []byte(`"NaN"`), nil
	case math.IsInf(v, 1):
		return []byte(`"+Inf"`), nil
	case math.IsInf(v, -1):
		return []byte(`"-Inf"`), nil
	default:
		return json.Marshal(v)
	}
}

func (n *storedNumber) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case `"NaN"`:
		*n = storedNumber(math.NaN())
	case `"+Inf"`:
		*n = storedNumber(math.Inf(1))
	case `"-Inf"`:
		*n = storedNumber(math.Inf(-1))
	default:
		return json.Unmarshal(data, (*float64)(n))
	}
	return nil
}

func store(r *Reading) (stored, error) {
	s := stored{Source: r.Source, Valid: r.Valid, At: r.At.UTC(), Positive: string(r.Positive), Alarms: r.Alarms, NoAlarms: r.NoAlarms,
		Warnings: r.Warnings, Mode: string(r.Mode), Contactors: string(r.Contactors), Control: string(r.Control)}
	for _, texts := range [][]string{{s.Source, s.Positive, s.Mode, s.Contactors, s.Control}, s.Alarms, s.Warnings} {
		for _, text := range texts {
			if !utf8.ValidString(text) {
				return stored{}, fmt.Errorf("%q is not UTF-8", text)
			}
		}
	}
	for q, signal := range r.Signals {
		if !utf8.ValidString(string(q)) {
			return stored{}, fmt.Errorf("the quantity %q is not UTF-8", q)
		}
		if s.Signals == nil {
			s.Signals = map[string]storedSignal{}
		}
		s.Signals[string(q)] = storedSignal{Value: storedNumber(signal.Value), At: signal.At.UTC(), Cycle: signal.Cycle}
	}
	if r.Beat != nil {
		s.Beat = &storedBeat{r.Beat.Count, r.Beat.Within}
	}
	for i := range r.Others {
		other, err := store(&r.Others[i])
		if err != nil {
			return stored{}, err
		}
		s.Others = append(s.Others, other)
	}
	return s, nil
}

func (s *stored) reading() Reading {
	r := Reading{Source: s.Source, Valid: s.Valid, At: s.At, Positive: Direction(s.Positive), Alarms: s.Alarms, NoAlarms: s.NoAlarms,
		Warnings: s.Warnings, Mode: Mode(s.Mode), Contactors: Contactors(s.Contactors), Control: Control(s.Control)}
	for q, signal := range s.Signals {
		if r.Signals == nil {
			r.Signals = map[Quantity]Signal{}
		}
		r.Signals[Quantity(q)] = Signal{Value: float64(signal.Value), At: signal.At, Cycle: signal.Cycle}
	}
	if s.Beat != nil {
		r.Beat = &Beat{s.Beat.Count, s.Beat.Within}
	}
	for i := range s.Others {
		r.Others = append(r.Others, s.Others[i].reading())
	}
	return r
}
