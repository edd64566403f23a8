package web

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/fleet"
)

//go:embed static templates
var files embed.FS

// policy: nothing but our own files runs or is shown, so that a device that
// calls itself "<script>" stays a funny name even if a template ever fails to
// escape it.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// oldReading is when a reading is shown in grey: a battery that was full ten
// minutes ago may be empty now.
const oldReading = 10 * time.Minute

const pageSize = 200 // devices on one page, and in one page's live updates

func parseTemplates() (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{"bytes": sizeText, "tone": resultTone}).ParseFS(files, "templates/*.html")
}

// frame is what every page has.
type frame struct {
	Title     string
	Now       time.Time
	Events    string // where the page gets its live parts, empty for none
	Static    bool   // no script and no reload, for printing and pictures
	CanLogOut bool
}

// row is a device as the table shows it.
type row struct {
	api.Device
	Settled                   ota.Status // the last that was not CHECKING, which would blink with every check
	Standing                  fleet.Standing
	Tone                      string // class of the style sheet; the text says the same
	SoC, Temperature, Current string
	Measured                  string // when, if it is known
	Old                       bool   // too long ago to be taken for the present
	Moving                    bool
	Percent                   int
	Seen                      string
}

type tile struct {
	Name, Tone string
	Count      int
}

type releaseRow struct {
	api.Release
	FirstNote string
	Outcomes  []tile
}

// fleetPage is the front page, or a part of it.
type fleetPage struct {
	frame
	Query    fleet.Query
	Summary  fleet.Summary
	Tiles    []tile
	Rows     []row
	Next     string
	Releases []releaseRow
	Groups   []api.Group
}

type devicePage struct {
	frame
	Row     row
	Reports []ota.Report
	Skipped []ota.Skipped
}

func tone(s fleet.Standing) string {
	switch s {
	case fleet.UpToDate:
		return "ok"
	case fleet.Updating:
		return "move"
	case fleet.Waiting:
		return "wait"
	case fleet.Failed, fleet.Stopped:
		return "stop"
	}
	return "silent"
}

func resultTone(r ota.Result) string {
	switch r {
	case ota.Succeeded:
		return "ok"
	case ota.Aborted:
		return "wait"
	}
	return "stop"
}

func (s *Server) row(d api.Device) row {
	standing, settled := s.fleet.Standing(d.Device)
	r := row{Device: d, Settled: settled, Standing: standing, Tone: tone(standing), SoC: "–", Temperature: "–", Current: "–",
		Percent: fleet.Percent(d.Done, d.Total), Seen: "just now"}
	r.Moving = d.Status == ota.StatusDownloading && d.Total > 0
	if since := s.cfg.Now().Sub(d.LastSeen); since >= 2*time.Second {
		r.Seen = fleet.Span(since) + " ago"
	}
	r.Old = standing == fleet.Silent
	var low, high *float64
	for i := len(d.Signals) - 1; i >= 0; i-- { // the first of several instruments counts
		g := &d.Signals[i]
		if !g.At.IsZero() {
			r.Measured = "measured " + g.At.Format("2006-01-02 15:04:05 MST")
			r.Old = r.Old || s.cfg.Now().Sub(g.At) > oldReading
		}
		switch g.Name {
		case "soc":
			r.SoC = fmt.Sprintf("%.1f %%", g.Value)
		case "current":
			r.Current = fmt.Sprintf("%.1f A", g.Value)
		case "temperature_min":
			low = &g.Value
		case "temperature_max", "temperature":
			high = &g.Value
		}
	}
	switch {
	case low != nil && high != nil:
		r.Temperature = fmt.Sprintf("%.1f … %.1f °C", *low, *high)
	case high != nil:
		r.Temperature = fmt.Sprintf("%.1f °C", *high)
	case low != nil:
		r.Temperature = fmt.Sprintf("%.1f °C", *low)
	}
	return r
}

// fleetPage gathers the front page for the query in q.
func (s *Server) fleetPage(q url.Values) fleetPage {
	p := fleetPage{Query: fleet.Query{Group: q.Get("group"), Search: q.Get("q"), After: q.Get("after"), Limit: pageSize}}
	list, more := s.fleet.Devices(p.Query)
	for _, d := range list {
		p.Rows = append(p.Rows, s.row(d))
	}
	if more {
		next := url.Values{"group": {p.Query.Group}, "q": {p.Query.Search}, "after": {list[len(list)-1].Device}}
		p.Next = "/?" + next.Encode()
	}
	p.Summary, p.Groups = s.summary.of(s.fleet), s.fleet.Groups()
	for _, st := range []fleet.Standing{fleet.UpToDate, fleet.Updating, fleet.Waiting, fleet.Failed, fleet.Stopped, fleet.Silent, fleet.NoRelease} {
		if n := p.Summary.Standing[st]; n > 0 || st != fleet.Stopped && st != fleet.Silent && st != fleet.NoRelease {
			p.Tiles = append(p.Tiles, tile{string(st), tone(st), n})
		}
	}
	for _, r := range s.fleet.Releases() {
		v := releaseRow{Release: r}
		v.FirstNote, _, _ = strings.Cut(strings.TrimSpace(r.Notes), "\n")
		for _, result := range []ota.Result{ota.Succeeded, ota.Failed, ota.RolledBack, ota.Lost, ota.Aborted} {
			if n := p.Summary.Outcomes[r.Digest][result]; n > 0 {
				v.Outcomes = append(v.Outcomes, tile{string(result), resultTone(result), n})
			}
		}
		p.Releases = append(p.Releases, v)
	}
	return p
}

// summaries keeps the last summary for twenty times as long as it took, so that
// all live pages together spend a twentieth of a core on it at most. For small
// fleets that is no time at all.
type summaries struct {
	mu    sync.Mutex
	last  fleet.Summary
	until time.Time
}

func (c *summaries) of(f *fleet.Fleet) fleet.Summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := time.Now()
	if start.Before(c.until) {
		return c.last
	}
	c.last = f.Summary()
	c.until = time.Now().Add(20 * time.Since(start))
	return c.last
}

func (s *Server) frame(r *http.Request, title, events string) frame {
	return frame{Title: title, Now: s.cfg.Now(), Events: events, Static: r.URL.Query().Has("static"), CanLogOut: s.loggedIn(r)}
}

func (s *Server) dashboard(w http.ResponseWriter, r *http.Request) error {
	p := s.fleetPage(r.URL.Query())
	p.frame = s.frame(r, "Fleet", "/events?"+url.Values{"group": {p.Query.Group}, "q": {p.Query.Search}, "after": {p.Query.After}}.Encode())
	return s.show(w, http.StatusOK, "fleet", p)
}

func (s *Server) detail(r *http.Request, id string) (devicePage, error) {
	d, err := s.fleet.Device(r.Context(), id)
	if err != nil {
		return devicePage{}, err
	}
	p := devicePage{Row: s.row(d.Device), Reports: d.Reports, Skipped: slices.Clone(d.Skipped)}
	slices.Reverse(p.Skipped) // newest first
	return p, nil
}

func (s *Server) devicePage(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	p, err := s.detail(r, id)
	if err != nil {
		return err
	}
	p.frame = s.frame(r, id, "/events?"+url.Values{"device": {id}}.Encode())
	return s.show(w, http.StatusOK, "device", p)
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) error {
	return s.showLogin(w, http.StatusOK, "")
}

func (s *Server) showLogin(w http.ResponseWriter, status int, message string) error {
	w.Header().Set("Content-Security-Policy", policy)
	return s.show(w, status, "login", struct {
		frame
		Message string
	}{frame{Title: "Log in", Now: s.cfg.Now()}, message})
}

// show renders a page whole before it sends any of it.
func (s *Server) show(w http.ResponseWriter, status int, name string, data any) error {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
		return fmt.Errorf("render the page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, err := b.WriteTo(w)
	return ignoreGone(err)
}

func (s *Server) static(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "max-age=300")
	http.ServeFileFS(w, r, files, "static/"+r.PathValue("file"))
	return nil
}

// sizeText writes a number of bytes for people.
func sizeText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}
