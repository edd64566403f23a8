package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/fleet"
)

const (
	gatherTime = 500 * time.Millisecond // changes within it become one update of a page
	renewTime  = 10 * time.Second       // ages ("5 s ago", "not seen for") are brought up to date, and show that we live
	eventTime  = 10 * time.Second       // a listener that does not take an event within it is dropped
)

// stream is one listener.
type stream struct {
	w http.ResponseWriter
	c *http.ResponseController
}

// listen takes a place among the listeners and begins the stream. The caller
// must call done.
func (s *Server) listen(w http.ResponseWriter, r *http.Request) (st *stream, done func(), err error) {
	if r.Method != http.MethodGet { // HEAD, which would hold a place and never get anything
		return nil, nil, fail(http.StatusMethodNotAllowed, r.Method+" is not possible here", "")
	}
	select {
	case s.listeners <- struct{}{}:
	default:
		return nil, nil, &httpError{status: http.StatusServiceUnavailable, text: fmt.Sprintf("%d listeners are connected, which is the limit", s.cfg.Listeners),
			hint: "close another page, or poll", retryAfter: "30"}
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	st = &stream{w, http.NewResponseController(w)}
	_ = st.c.SetReadDeadline(time.Time{})
	return st, func() { <-s.listeners }, nil
}

// write sends text as it is, at once.
func (st *stream) write(text []byte) error {
	_ = st.c.SetWriteDeadline(time.Now().Add(eventTime))
	if _, err := st.w.Write(text); err != nil {
		return err
	}
	return st.c.Flush()
}

// send sends v as an event; JSON has no line breaks but the encoder's last.
func (st *stream) send(event string, v any) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\ndata: ", event)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // it is not put into a page as it is, and would be half as long again
	if err := e.Encode(v); err != nil {
		return err
	}
	b.WriteByte('\n')
	return st.write(b.Bytes())
}

// events is the operators' stream of api.Event.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	changes, end := s.fleet.Watch()
	defer end()
	st, done, err := s.listen(w, r)
	if err != nil {
		return err
	}
	defer done()
	if st.write([]byte(": interlock\n\n")) != nil {
		return nil
	}
	beat := time.NewTicker(renewTime)
	defer beat.Stop()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-s.closing:
			return nil
		case <-beat.C:
			if !s.isOperator(r) || st.write([]byte(": alive\n\n")) != nil {
				return nil
			}
		case c := <-changes:
			if !s.isOperator(r) { // a token that was revoked ends its streams, too
				return nil
			}
			if e, ok := s.event(c); ok && st.send(e.Kind, e) != nil {
				return nil
			}
		}
	}
}

// event looks up what c is about. It is not ok if that is gone again.
func (s *Server) event(c fleet.Change) (e api.Event, ok bool) {
	e.Kind = c.Kind
	switch c.Kind {
	case "device", "report":
		d, err := s.fleet.Describe(c.Device)
		e.Device, e.Report = &d, c.Report
		return e, err == nil
	case "release":
		r, err := s.fleet.Release(c.Digest)
		e.Release = &r
		return e, err == nil
	case "group":
		g, err := s.fleet.Group(c.Group)
		e.Group = &g
		return e, err == nil
	}
	return e, false
}

// part is a piece of a page.
type part struct {
	ID   string `json:"id"`
	HTML string `json:"html"`
}

// live keeps a page up to date: it sends the parts that have changed.
func (s *Server) live(w http.ResponseWriter, r *http.Request) error {
	changes, end := s.fleet.Watch()
	defer end()
	st, done, err := s.listen(w, r)
	if err != nil {
		return err
	}
	defer done()
	if st.write([]byte("retry: 3000\n\n")) != nil {
		return nil
	}
	page := s.livePage(r)
	sent := map[string]string{} // HTML by part, so that what looks the same is not sent
	renew := time.NewTicker(renewTime)
	defer renew.Stop()
	gather := time.NewTicker(gatherTime)
	defer gather.Stop()
	due := true
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-s.closing:
			return nil
		case <-changes:
			due = true
			continue
		case <-renew.C:
			due = true
			if st.write([]byte(": alive\n\n")) != nil {
				return nil
			}
			continue
		case <-gather.C:
		}
		if !due {
			continue
		}
		if !s.cfg.OpenDashboard && !s.loggedIn(r) { // logged out by time, or the token was revoked
			return nil
		}
		due = false
		parts, err := page()
		if err != nil {
			return nil // the device is not there; the browser asks again, and is told
		}
		for _, p := range parts {
			if sent[p.ID] == p.HTML {
				continue
			}
			sent[p.ID] = p.HTML
			if st.send("part", p) != nil {
				return nil
			}
		}
	}
}

// livePage returns a function that renders all parts of the page that r is for.
func (s *Server) livePage(r *http.Request) func() ([]part, error) {
	q := r.URL.Query()
	if id := q.Get("device"); id != "" {
		return func() ([]part, error) {
			p, err := s.detail(r, id)
			if err != nil {
				return nil, err
			}
			return s.parts(p, "detail")
		}
	}
	var shown []string // ids of the rows that the page has
	return func() ([]part, error) {
		p := s.fleetPage(q)
		ids := make([]string, len(p.Rows))
		for i := range p.Rows {
			ids[i] = p.Rows[i].Device.Device
		}
		if !slices.Equal(ids, shown) { // rows came or went: the whole table
			shown = ids
			return s.parts(p, "summary", "devices", "releases", "groups")
		}
		parts, err := s.parts(p, "summary", "releases", "groups")
		for _, row := range p.Rows {
			if err != nil {
				break
			}
			var b bytes.Buffer
			err = s.pages.ExecuteTemplate(&b, "row", row)
			parts = append(parts, part{"d-" + row.Device.Device, b.String()})
		}
		return parts, err
	}
}

// parts renders templates, each of which makes the element with its own name as id.
func (s *Server) parts(data any, names ...string) ([]part, error) {
	var out []part
	for _, name := range names {
		var b bytes.Buffer
		if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
			return nil, fmt.Errorf("render %s: %w", name, err)
		}
		out = append(out, part{name, b.String()})
	}
	return out, nil
}
