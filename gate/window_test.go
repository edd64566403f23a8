package gate_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // so that the tests do not depend on the machine's zones

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/gate"
)

func hours(t *testing.T, s string) gate.Hours {
	t.Helper()
	h, err := gate.ParseHours(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHours gives, for each window, moments around its edges in UTC.
func TestHours(t *testing.T) {
	for _, tt := range []struct {
		window string
		now    string
		open   bool
		next   string
	}{
		{"mon-fri 09:00 8h UTC", "2026-03-02T08:59:59Z", false, "2026-03-02T09:00:00Z"}, // a Monday
		{"mon-fri 09:00 8h UTC", "2026-03-02T09:00:00Z", true, "2026-03-03T09:00:00Z"},
		{"mon-fri 09:00 8h UTC", "2026-03-02T16:59:59.999999999Z", true, "2026-03-03T09:00:00Z"},
		{"mon-fri 09:00 8h UTC", "2026-03-02T17:00:00Z", false, "2026-03-03T09:00:00Z"},
		{"mon-fri 09:00 8h UTC", "2026-03-06T17:00:00Z", false, "2026-03-09T09:00:00Z"}, // over the weekend
		{"sat 22:00 4h UTC", "2026-03-07T23:00:00Z", true, "2026-03-14T22:00:00Z"},
		{"sat 22:00 4h UTC", "2026-03-08T01:59:59Z", true, "2026-03-14T22:00:00Z"}, // Sunday, past midnight
		{"sat 22:00 4h UTC", "2026-03-08T02:00:00Z", false, "2026-03-14T22:00:00Z"},
		{"sat 22:00 4h UTC", "2026-03-07T01:00:00Z", false, "2026-03-07T22:00:00Z"}, // Friday's night is not Saturday's
		{"sun 00:00 168h UTC", "2026-03-04T12:00:00Z", true, "2026-03-08T00:00:00Z"},
		{"sun 00:00 168h UTC", "2026-03-07T23:59:59Z", true, "2026-03-08T00:00:00Z"},
		{"fri-mon 02:00 1h UTC", "2026-03-02T02:30:00Z", true, "2026-03-06T02:00:00Z"},
		{"daily 00:00 1m UTC", "2026-03-02T00:00:59Z", true, "2026-03-03T00:00:00Z"},

		// The zone decides the day: Sunday 00:30 in Auckland is Saturday in UTC.
		{"sun 00:30 1h Pacific/Auckland", "2026-06-06T12:30:00Z", true, "2026-06-13T12:30:00Z"},
		{"sat 20:00 1h America/Los_Angeles", "2026-01-04T04:59:59Z", true, "2026-01-11T04:00:00Z"},

		// Berlin, 29 March 2026: 02:00 CET becomes 03:00 CEST at 01:00 UTC.
		{"daily 01:00 4h Europe/Berlin", "2026-03-29T03:59:59Z", true, "2026-03-29T23:00:00Z"}, // four real hours, to 06:00 CEST
		{"daily 01:00 4h Europe/Berlin", "2026-03-29T04:00:00Z", false, "2026-03-29T23:00:00Z"},
		{"daily 02:30 1h Europe/Berlin", "2026-03-29T00:59:59Z", false, "2026-03-29T01:00:00Z"}, // 02:30 is skipped: it starts at the skip
		{"daily 02:30 1h Europe/Berlin", "2026-03-29T01:00:00Z", true, "2026-03-30T00:30:00Z"},
		{"daily 02:30 1h Europe/Berlin", "2026-03-29T02:00:00Z", false, "2026-03-30T00:30:00Z"},
		{"daily 03:00 1h Europe/Berlin", "2026-03-29T01:00:00Z", true, "2026-03-30T01:00:00Z"},

		// Berlin, 25 October 2026: 03:00 CEST becomes 02:00 CET at 01:00 UTC.
		{"daily 02:30 1h Europe/Berlin", "2026-10-25T00:29:59Z", false, "2026-10-25T00:30:00Z"},
		{"daily 02:30 1h Europe/Berlin", "2026-10-25T00:30:00Z", true, "2026-10-26T01:30:00Z"}, // the first of the two 02:30
		{"daily 02:30 1h Europe/Berlin", "2026-10-25T01:29:59Z", true, "2026-10-26T01:30:00Z"},
		{"daily 02:30 1h Europe/Berlin", "2026-10-25T01:30:00Z", false, "2026-10-26T01:30:00Z"}, // not again at the second
		{"daily 01:00 4h Europe/Berlin", "2026-10-25T02:59:59Z", true, "2026-10-26T00:00:00Z"},
		{"daily 01:00 4h Europe/Berlin", "2026-10-25T03:00:00Z", false, "2026-10-26T00:00:00Z"},

		// Lord Howe: half an hour, 4 October 2026, 02:00 becomes 02:30.
		{"daily 02:15 1h Australia/Lord_Howe", "2026-10-03T15:29:59Z", false, "2026-10-03T15:30:00Z"},
		{"daily 02:15 1h Australia/Lord_Howe", "2026-10-03T15:30:00Z", true, "2026-10-04T15:15:00Z"},

		// Samoa had no 30 December 2011: that window starts when the day is skipped.
		{"fri 10:00 1h Pacific/Apia", "2011-12-30T10:00:00Z", true, "2012-01-05T20:00:00Z"},
	} {
		t.Run(tt.window+" at "+tt.now, func(t *testing.T) {
			h := hours(t, tt.window)
			now, err := time.Parse(time.RFC3339Nano, tt.now)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.Open(now); got != tt.open {
				t.Errorf("open: got %v, want %v", got, tt.open)
			}
			if got := h.Next(now).UTC().Format(time.RFC3339); got != tt.next {
				t.Errorf("next: got %v, want %v", got, tt.next)
			}
		})
	}
}

// TestHoursAllYear walks through a year in zones with and without summer
// time: a daily window opens once a day and is open exactly as long as it says.
func TestHoursAllYear(t *testing.T) {
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"} {
		h := hours(t, "daily 02:30 90m "+zone)
		now := time.Date(2026, 1, 1, 12, 0, 0, 0, h.Zone)
		end := time.Date(2027, 1, 1, 12, 0, 0, 0, h.Zone)
		open, starts, was := 0, 0, false
		for ; now.Before(end); now = now.Add(15 * time.Minute) {
			is := h.Open(now)
			if is {
				open++
			}
			if is && !was {
				starts++
			}
			was = is
		}
		if starts != 365 || open != 365*6 {
			t.Errorf("%s: got %d starts and %d quarters of an hour, want 365 and %d", zone, starts, open, 365*6)
		}
	}
}

func TestParseHours(t *testing.T) {
	for _, tt := range []struct{ in, want, err string }{
		{in: "sat,sun 22:00 4h Europe/Berlin", want: "sat,sun 22:00 4h Europe/Berlin"},
		{in: "  MON-wed  01:30  90m  UTC ", want: "mon,tue,wed 01:30 1h30m UTC"},
		{in: "sat-mon 00:00 24h0m0s UTC", want: "sat,sun,mon 00:00 24h UTC"},
		{in: "daily 23:59 1m America/Los_Angeles", want: "daily 23:59 1m America/Los_Angeles"},
		{in: "", err: "0 words, want 4"},
		{in: "sat 22:00 4h", err: "3 words, want 4"},
		{in: "saturday 22:00 4h UTC", err: `"saturday" is not a day`},
		{in: "sat,, 22:00 4h UTC", err: `"" is not a day`},
		{in: "sat-fri,mon 22:00 4h UTC", err: "Monday is named twice"},
		{in: "sat 24:00 4h UTC", err: "not a time of day"},
		{in: "sat 2200 4h UTC", err: "not a time of day"},
		{in: "sat 22:00 4 UTC", err: "not a duration"},
		{in: "sat 22:00 -4h UTC", err: "want 1 min to 168 h"},
		{in: "sat 22:00 30s UTC", err: "want 1 min to 168 h"},
		{in: "sat 22:00 169h UTC", err: "want 1 min to 168 h"},
		{in: "sat 22:00 4h Local", err: "name the time zone"},
		{in: "sat 22:00 4h Mars/Olympus", err: "load the time zone"},
	} {
		h, err := gate.ParseHours(tt.in)
		switch {
		case tt.err == "" && err != nil:
			t.Errorf("%q: %v", tt.in, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: got error %v, want %q", tt.in, err, tt.err)
		case tt.err == "" && h.String() != tt.want:
			t.Errorf("%q: got %q, want %q", tt.in, h, tt.want)
		}
	}
}

func TestHoursText(t *testing.T) {
	var got struct{ W []gate.Hours }
	if err := json.Unmarshal([]byte(`{"W":["sat 22:00 4h Europe/Berlin"]}`), &got); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"W":["sat 22:00 4h Europe/Berlin"]}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	if _, err := json.Marshal(gate.Hours{}); err == nil {
		t.Error("an invalid window was written")
	}
}

func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble's time begins on Saturday, 2000-01-01 00:00 UTC
		night := hours(t, "sat 22:00 4h UTC")
		noon := hours(t, "daily 12:00 1h Europe/Berlin")
		g, err := gate.Window(night, noon)
		if err != nil {
			t.Fatal(err)
		}
		r := refused(t, put(g))
		if want := "outside the update window, which opens Sat 2000-01-01 12:00 CET"; r.Reason != want || r.Code != ota.ErrNone {
			t.Errorf("got %v %q, want %q", r.Code, r.Reason, want)
		}
		time.Sleep(11 * time.Hour)
		if err := put(g); err != nil {
			t.Errorf("at noon: got %v, want yes", err)
		}
		r = refused(t, g(t.Context(), &ota.Manifest{Version: "1.2.0", Created: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}, ota.BeforeWrite))
		if want := "the clock says 2000-01-01T11:00:00Z, before release 1.2.0 was made on 2026-03-01T00:00:00Z, so the update window cannot be told"; r.Reason != want || !r.Ready.IsZero() {
			t.Errorf("clock at the beginning of time: got %q, over at %v, want %q, and no word of its end", r.Reason, r.Ready, want)
		}
		time.Sleep(time.Hour)
		if r := refused(t, put(g)); r.Reason != "outside the update window, which opens Sat 2000-01-01 22:00 UTC" || time.Until(r.Ready) != 10*time.Hour {
			t.Errorf("got %q, over in %v, want it over in 10 h", r.Reason, time.Until(r.Ready))
		}
	})
	for name, hs := range map[string][]gate.Hours{
		"none":       nil,
		"zero":       {{}},
		"no zone":    {{Length: time.Hour}},
		"bad day":    {{Days: []time.Weekday{7}, Length: time.Hour, Zone: time.UTC}},
		"bad start":  {{Start: 24 * time.Hour, Length: time.Hour, Zone: time.UTC}},
		"second one": {{Length: time.Hour, Zone: time.UTC}, {Length: -1, Zone: time.UTC}},
	} {
		if g, err := gate.Window(hs...); err == nil || g != nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func ExampleParseHours() {
	h, err := gate.ParseHours("sat,sun 22:00 4h Europe/Berlin")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(h.Open(time.Date(2026, 3, 8, 0, 30, 0, 0, time.UTC))) // Sunday, 01:30 in Berlin
	// Output: true
}
