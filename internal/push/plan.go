package push

import (
	"fmt"
	"time"
)

// Plan is how long a transfer takes, computed before it begins.
type Plan struct {
	Bytes int64   `json:"bytes"`
	Line  string  `json:"line"` // "9600 baud", "Modbus TCP, 20 ms there and back"
	Rate  float64 `json:"rate"` // bytes of the file per second that the line allows, at most; 0: not known
}

// When to say something about the time that a transfer takes.
const (
	Slow     = time.Hour     // another way is better
	VerySlow = 4 * time.Hour // the bus is occupied for so long only if a person says so
)

// Time is how long the transfer takes at least; 0: not known.
func (p Plan) Time() time.Duration {
	if p.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(p.Bytes) / p.Rate * float64(time.Second))
}

// String is a sentence for people: "1.2 MiB at 9600 baud: about 27 min (the line allows 780 B/s)".
func (p Plan) String() string {
	if p.Rate <= 0 {
		return fmt.Sprintf("%s over %s", bytes(float64(p.Bytes)), p.Line)
	}
	return fmt.Sprintf("%s over %s: about %s (the line allows %s/s)", bytes(float64(p.Bytes)), p.Line, About(p.Time()), bytes(p.Rate))
}

// Advice says what is better than a transfer of this length; "" if it is short enough.
func (p Plan) Advice() string {
	if p.Time() <= Slow {
		return ""
	}
	return "this line is slow for so much: a USB stick, an SD card or HTTPS brings the same file in minutes, or a release with less in it"
}

// bytes writes a number of bytes for people.
func bytes(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB"} {
		switch {
		case n < 1024 && unit == "B":
			return fmt.Sprintf("%.0f B", n)
		case n < 1024:
			return fmt.Sprintf("%.1f %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f GiB", n)
}

// About writes a duration for people, as exactly as it can be known.
func About(d time.Duration) string {
	switch {
	case d < time.Second:
		return "a second"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second)/time.Second))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Round(time.Minute)/time.Minute))
	}
	return fmt.Sprintf("%.1f h", d.Hours())
}
