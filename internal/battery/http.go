package battery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
)

const maxSettings = 4 << 10 // bytes

// ServeHTTP answers GET with the reading, in the form of bms.ParseReading, and
// PUT or POST of [Settings] as JSON with the reading after it. A POST must say
// that it is application/json: that keeps forms on web pages from changing the
// battery behind the user's back. While the reading is absent, GET is status 503.
func (b *Battery) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPut, http.MethodPost:
		if status, err := b.change(r); err != nil {
			http.Error(w, err.Error(), status)
			return
		}
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, POST")
		http.Error(w, "use GET to read, or PUT to change", http.StatusMethodNotAllowed)
		return
	}
	reading, err := b.Read(r.Context())
	var body []byte
	if err == nil {
		body, err = json.Marshal(reading)
	}
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		status := http.StatusServiceUnavailable
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			status = http.StatusAccepted // the change was made: it is absent now
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(body, '\n')) // an error means that nobody reads any more
}

func (b *Battery) change(r *http.Request) (status int, err error) {
	if r.Method == http.MethodPost {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			return http.StatusUnsupportedMediaType, fmt.Errorf("set the battery: use PUT, or POST with Content-Type: application/json")
		}
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxSettings+1))
	if err != nil {
		return http.StatusBadRequest, fmt.Errorf("set the battery: %w", err)
	}
	if len(data) > maxSettings {
		return http.StatusRequestEntityTooLarge, fmt.Errorf("set the battery: more than %d bytes", maxSettings)
	}
	s, err := parseSettings(data)
	if err == nil {
		err = b.Set(s)
	}
	return http.StatusBadRequest, err
}

func parseSettings(data []byte) (Settings, error) {
	var s Settings
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // a misspelt name would change nothing, silently
	if err := dec.Decode(&s); err != nil {
		return Settings{}, fmt.Errorf("set the battery: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Settings{}, fmt.Errorf("set the battery: something follows the object")
	}
	return s, nil
}
