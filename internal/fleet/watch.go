package fleet

import "github.com/interlock-energy/ota"

// A Change says what has changed. Look the rest up.
type Change struct {
	Kind   string      // "device", "report", "release", "group", as in api.Event
	Device string      // id, for device and report
	Report *ota.Report // for report
	Digest string      // for release
	Group  string      // for group
}

// Watch returns a channel that receives changes from now on, and a function
// that ends it. The channel holds a thousand; one who does not keep up misses
// changes rather than holding up devices.
func (f *Fleet) Watch() (<-chan Change, func()) {
	c := make(chan Change, 1000)
	f.mu.Lock()
	f.watchers[c] = true
	f.mu.Unlock()
	return c, func() {
		f.mu.Lock()
		delete(f.watchers, c)
		f.mu.Unlock()
	}
}

// tell passes a change on to those who watch.
func (f *Fleet) tell(c Change) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for w := range f.watchers {
		select {
		case w <- c:
		default:
		}
	}
}
