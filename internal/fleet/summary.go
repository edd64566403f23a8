package fleet

import "github.com/interlock-energy/ota"

// Summary counts devices.
type Summary struct {
	Devices  int
	Standing map[Standing]int
	// Outcomes counts, for each release by digest, how it ended on how many
	// devices, by their newest report.
	Outcomes map[string]map[ota.Result]int
}

// Summary counts the devices of all groups.
func (f *Fleet) Summary() Summary {
	now := f.cfg.Now()
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := Summary{Devices: len(f.devices), Standing: map[Standing]int{}, Outcomes: map[string]map[ota.Result]int{}}
	for _, d := range f.devices {
		view, r := f.view(d)
		out.Standing[Stand(view, r, now)]++
		for i := range d.outcomes {
			o := &d.outcomes[i]
			if out.Outcomes[o.Digest] == nil {
				out.Outcomes[o.Digest] = map[ota.Result]int{}
			}
			out.Outcomes[o.Digest][o.Result]++
		}
	}
	return out
}

// Standing returns where a device stands, and its last status that was not
// CHECKING: a check takes no time, and what was before it tells more. A device
// that is not known stands at "".
func (f *Fleet) Standing(id string) (Standing, ota.Status) {
	now := f.cfg.Now()
	f.mu.RLock()
	defer f.mu.RUnlock()
	d := f.devices[id]
	if d == nil {
		return "", ota.StatusIdle
	}
	view, r := f.view(d)
	return Stand(view, r, now), d.settled
}
