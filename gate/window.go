package gate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
)

// Hours is a window of time that comes back every week, for example the four
// hours from 22:00 on Saturdays and Sundays in Berlin.
//
// The start is wall-clock time and the length is real time. Where summer time
// begins or ends the window therefore still lasts Length. A start that the
// clocks skip is the moment of the skip; a start that they show twice is the
// first. A window that goes past midnight belongs to the day on which it starts.
type Hours struct {
	Days   []time.Weekday // on which it starts; empty: every day
	Start  time.Duration  // wall-clock time after midnight, 0 to below 24 h, whole minutes
	Length time.Duration  // 1 min to 7 days
	Zone   *time.Location // required, also if it is time.UTC
}

// Validate reports what is wrong with h.
func (h Hours) Validate() error {
	for _, d := range h.Days {
		if d < time.Sunday || d > time.Saturday {
			return fmt.Errorf("window: day %d, want 0 (Sunday) to 6 (Saturday)", int(d))
		}
	}
	if h.Start < 0 || h.Start >= 24*time.Hour || h.Start%time.Minute != 0 {
		return fmt.Errorf("window: start %v after midnight, want whole minutes from 0 to below 24 h", h.Start)
	}
	if h.Length < time.Minute || h.Length > 7*24*time.Hour {
		return fmt.Errorf("window: length %v, want 1 min to 168 h", h.Length)
	}
	if h.Zone == nil {
		return fmt.Errorf("window: the time zone is missing")
	}
	return nil
}

// ParseHours reads the form of configuration files, "days start length zone":
//
//	sat,sun 22:00 4h Europe/Berlin
//	mon-fri 01:30 90m America/Los_Angeles
//	daily 02:00 2h UTC
//
// Days are English, three letters; a range may go over the end of the week. The
// zone is a name of the IANA database, which the program must find on the device
// or carry (import _ "time/tzdata"); "Local" is refused, because it changes with
// the machine. What is parsed is valid.
func ParseHours(s string) (Hours, error) {
	f := strings.Fields(s)
	if len(f) != 4 {
		return Hours{}, fmt.Errorf("window %q has %d words, want 4: days start length zone, as in \"sat,sun 22:00 4h Europe/Berlin\"", s, len(f))
	}
	var h Hours
	var err error
	if h.Days, err = parseDays(f[0]); err != nil {
		return Hours{}, fmt.Errorf("window %q: %w", s, err)
	}
	start, err := time.Parse("15:04", f[1])
	if err != nil {
		return Hours{}, fmt.Errorf("window %q: start %q is not a time of day like 22:00", s, f[1])
	}
	h.Start = time.Duration(start.Hour())*time.Hour + time.Duration(start.Minute())*time.Minute
	if h.Length, err = time.ParseDuration(f[2]); err != nil {
		return Hours{}, fmt.Errorf("window %q: length %q is not a duration like 4h or 90m", s, f[2])
	}
	if f[3] == "Local" {
		return Hours{}, fmt.Errorf("window %q: name the time zone, as in Europe/Berlin or UTC", s)
	}
	if h.Zone, err = time.LoadLocation(f[3]); err != nil {
		return Hours{}, fmt.Errorf("window %q: load the time zone: %w", s, err)
	}
	if err := h.Validate(); err != nil {
		return Hours{}, fmt.Errorf("%w (in %q)", err, s)
	}
	return h, nil
}

func parseDays(s string) ([]time.Weekday, error) {
	if s == "daily" {
		return nil, nil
	}
	var days []time.Weekday
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := parseDay(first)
		if err != nil {
			return nil, err
		}
		b := a
		if isRange {
			if b, err = parseDay(last); err != nil {
				return nil, err
			}
		}
		for d := a; ; d = (d + 1) % 7 {
			if slices.Contains(days, d) {
				return nil, fmt.Errorf("%s is named twice", d)
			}
			days = append(days, d)
			if d == b {
				break
			}
		}
	}
	return days, nil
}

func parseDay(s string) (time.Weekday, error) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(s, d.String()[:3]) {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is not a day; want mon tue wed thu fri sat sun, or daily", s)
}

// String returns h in the form that [ParseHours] reads.
func (h Hours) String() string {
	days := "daily"
	if len(h.Days) > 0 {
		var names []string
		for _, d := range h.Days {
			names = append(names, strings.ToLower(d.String()[:3]))
		}
		days = strings.Join(names, ",")
	}
	length := h.Length.String() // in full, like 4h0m0s
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(length, zero) {
			length = length[:len(length)-2]
		}
	}
	return fmt.Sprintf("%s %02d:%02d %s %s", days, int(h.Start.Hours()), int(h.Start.Minutes())%60, length, h.Zone)
}

// MarshalText implements [encoding.TextMarshaler].
func (h Hours) MarshalText() ([]byte, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	return []byte(h.String()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler] with [ParseHours].
func (h *Hours) UnmarshalText(b []byte) error {
	p, err := ParseHours(string(b))
	if err == nil {
		*h = p
	}
	return err
}

// Open reports whether the window is open at now. The first moment belongs to
// it, the last does not. h must be valid.
func (h Hours) Open(now time.Time) bool {
	// A window that is open now began at most Length ago. One day more on both
	// sides covers zones that skip or repeat a day.
	y, m, d := now.In(h.Zone).Date()
	for back := -1; back <= int(h.Length/(24*time.Hour))+2; back++ {
		if start, ok := h.startOn(y, m, d-back); ok && !now.Before(start) && now.Sub(start) < h.Length {
			return true
		}
	}
	return false
}

// Next returns when the window opens next after now. h must be valid.
func (h Hours) Next(now time.Time) time.Time {
	var next time.Time
	y, m, d := now.In(h.Zone).Date()
	for ahead := -1; ahead <= 9; ahead++ {
		if start, ok := h.startOn(y, m, d+ahead); ok && start.After(now) && (next.IsZero() || start.Before(next)) {
			next = start
		}
	}
	return next
}

// startOn returns when the window of this day starts, if the day has one.
func (h Hours) startOn(y int, m time.Month, d int) (time.Time, bool) {
	wall := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Add(h.Start) // the wall clock, as if it were UTC
	if len(h.Days) > 0 && !slices.Contains(h.Days, wall.Weekday()) {
		return time.Time{}, false
	}
	// The offset in force is that of the day before or of the day after. The
	// larger one gives the earlier moment.
	_, a := wall.Add(-24 * time.Hour).In(h.Zone).Zone()
	_, b := wall.Add(24 * time.Hour).In(h.Zone).Zone()
	first := wall.Add(-time.Duration(max(a, b)) * time.Second).In(h.Zone)
	second := wall.Add(-time.Duration(min(a, b)) * time.Second).In(h.Zone)
	for _, t := range []time.Time{first, second} {
		if _, offset := t.Zone(); t.Add(time.Duration(offset) * time.Second).Equal(wall) {
			return t, true
		}
	}
	if _, skip := first.ZoneBounds(); !skip.IsZero() {
		return skip, true
	}
	return second, true
}

// Window returns a gate that is open while one of hours is. Outside of them it
// refuses with [ota.ErrNone] and says when the next one opens. No hours, or
// hours that are not valid, are an error.
//
// It needs a clock that is right: one that is behind the release's own signed
// time is not, and the gate refuses.
func Window(hours ...Hours) (ota.Gate, error) {
	if len(hours) == 0 {
		return nil, fmt.Errorf("window: no hours are given, so it would never open")
	}
	hours = slices.Clone(hours)
	for i, h := range hours {
		if err := h.Validate(); err != nil {
			return nil, err
		}
		hours[i].Days = slices.Clone(h.Days)
	}
	return func(_ context.Context, m *ota.Manifest, _ ota.Moment) error {
		if r := decideWindow(hours, m, time.Now()); r != nil {
			return r
		}
		return nil
	}, nil
}

func decideWindow(hours []Hours, m *ota.Manifest, now time.Time) *ota.Refusal {
	if m != nil && now.Before(m.Created) {
		return &ota.Refusal{Causes: []ota.Cause{ota.CauseWindow}, Reason: fmt.Sprintf("the clock says %s, before release %s was made on %s, so the update window cannot be told",
			now.UTC().Format(time.RFC3339), m.Version, m.Created.UTC().Format(time.RFC3339))}
	}
	var next time.Time
	for _, h := range hours {
		if h.Open(now) {
			return nil
		}
		if n := h.Next(now); next.IsZero() || n.Before(next) {
			next = n
		}
	}
	return &ota.Refusal{Causes: []ota.Cause{ota.CauseWindow}, Ready: next, Reason: "outside the update window, which opens " + next.Format("Mon 2006-01-02 15:04 MST")}
}
