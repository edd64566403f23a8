package simulate

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/interlock-energy/ota/gate/bms"
)

// ServeHTTP answers GET with the reading, as package battery does, but as the
// management system tells it, and PUT or POST with a change of the battery.
func (s *System) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.has(slow) {
		timer := time.NewTimer(slowness)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	if s.has(exception) {
		http.Error(w, "the fault "+exception+" is on", http.StatusInternalServerError)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.battery.ServeHTTP(w, r)
		s.mu.Lock()
		s.changed = true
		s.mu.Unlock()
		return
	}
	reading, err := s.battery.Read(r.Context())
	var body []byte
	if err == nil {
		body, err = json.Marshal(s.tell(reading))
	}
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(body, '\n')) // an error means that nobody reads any more
}

// tell applies the faults to a reading. A management system that is cut off is one
// whose values get old; one that hangs is not noticed by their age.
func (s *System) tell(r bms.Reading) bms.Reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, _ := s.look()
	if s.faults[stale] || s.faults[frozen] {
		t := v.Temperatures()
		r.Set(bms.TemperatureMin, t.Min)
		r.Set(bms.TemperatureMax, t.Max)
	}
	if s.faults[stale] {
		r.At = v.At
	}
	if s.faults[stale] || s.faults[frozen] || s.faults[socStuck] || s.faults[socMissing] {
		r.Set(bms.SoC, v.soc)
	}
	if s.faults[stale] || s.faults[frozen] || s.faults[currentTenth] || s.faults[currentTenfold] || s.faults[signFlip] {
		r.Set(bms.Current, v.current)
	}
	return r
}
