package broadcast

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/interlock-energy/ota/bus/can"
)

// Profile is a dialect: which frames there are, and what lies where in them.
type Profile struct {
	Name string

	messages  []message
	voltage   [2]float64 // plausible, in V
	keepalive []can.Frame
	addressed bool // the address is part of the identifiers
	modular   bool // modules send for themselves; message 0 says which are active
}

// Names returns the names of all profiles, sorted.
func Names() []string { return slices.Sorted(maps.Keys(profiles)) }

// profiles is the one list of them. Names never change.
var profiles = map[string]func() *Profile{
	"pylon-lv":   pylonLV,
	"sma":        sma,
	"victron":    victron,
	"sol-ark":    solArk,
	"pylon-hv":   pylonHV,
	"growatt-lv": growattLV,
	"original":   original,
}

// Named returns the profile called name.
func Named(name string) (*Profile, error) {
	if profile, ok := profiles[name]; ok {
		return profile(), nil
	}
	return nil, fmt.Errorf("no battery profile %q: there are %s", name, strings.Join(Names(), ", "))
}

// Keepalive returns what a battery of this profile wants to hear so that it talks,
// once per second, nil if nothing. It is data: whoever has a bus decides whether to
// send it. An inverter on the same bus sends it already.
func (p *Profile) Keepalive() []can.Frame { return slices.Clone(p.keepalive) }

// Filters let through all that a decoder with these options knows, for the link.
func (p *Profile) Filters(o Options) can.Filters {
	filters := make(can.Filters, 0, len(p.messages))
	for i := range p.messages {
		m := &p.messages[i]
		mask := uint32(can.MaxStandard)
		if m.extended {
			mask = can.MaxExtended
		}
		filters = append(filters, can.Filter{ID: m.id + p.shift(m, &o), Mask: mask, Extended: m.extended})
	}
	return filters
}
