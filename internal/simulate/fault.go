package simulate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota/internal/battery"
)

// Fault is something that can be wrong with the simulated system. Faults can be
// combined. What a bus does not mention here, it goes on saying correctly.
type Fault struct {
	Name    string
	SunSpec string // what is seen over Modbus, TCP and RTU
	CAN     string // what is seen on the CAN bus
}

// Names of the faults. They never change.
const (
	stale          = "stale"
	frozen         = "frozen"
	currentTenth   = "current-tenth"
	currentTenfold = "current-tenfold"
	signFlip       = "sign-flip"
	socStuck       = "soc-stuck"
	socMissing     = "soc-missing"
	overTemp       = "over-temperature"
	contactorOpen  = "contactor-open"
	imbalance      = "imbalance"
	alarm          = "alarm"
	silent         = "silent"
	halfMap        = "half-map"
	halfMapFirst   = "half-map-first"
	exception      = "exception"
	slow           = "slow"
)

// slowness is how long an answer takes with the fault slow.
const slowness = 3 * time.Second

// weakBy is how far one cell is below the others with the fault imbalance, in mV:
// the warning comes at 60 mV, of which the cells' usual spread is 24.
const weakBy = 80.0

var faults = []Fault{
	{stale, "802 to 805 stand still, Hb too: the management system is cut off. 701 to 715 go on", "no frames"},
	{frozen, "802 to 805 stand still, Hb too: the management system hangs. 701 to 715 go on", "the same frames again and again"},
	{currentTenth, "the battery's A (802, 803, 804) is a tenth; 802 W, 713, 714 and 701 are right", "the current is a tenth"},
	{currentTenfold, "the battery's A (802, 803, 804) is ten times too much; 802 W, 713, 714 and 701 are right", "the current is ten times too much"},
	{signFlip, "the battery's A (802, 803, 804) has the other sign; 802 W, 713, 714 and 701 are right", "the current has the other sign"},
	{socStuck, "the battery's SoC (802, 803, 804, 805) stays as it is, Hb goes on; 713, which the converter counts, is right", "the SoC stays as it is"},
	{socMissing, "every SoC (802, 803, 804, 805, 713) is not implemented: FFFF", "FFFF in frames that have this mark; without one the frame is not sent"},
	{overTemp, "module 4 heats up by 1 K/s to 58 °C; from 50 °C OVER_TEMP_WARNING, from 55 °C OVER_TEMP_ALARM", "the temperature rises, and the alarm comes"},
	{contactorOpen, "802 State DISCONNECTED and CONTACTOR_ERROR, 803 StrSt without CONTACTOR_STATUS, StrConFail CONTACTOR_FAILURE; V stays, no current flows, 701 InvSt OFF", "no current, charging and discharging are forbidden, and an alarm"},
	{imbalance, "one cell of module 7 is 80 mV below the others: CellVMin, VOLTAGE_IMBALANCE_WARNING", "the lowest cell, and a warning, in profiles that have them"},
	{alarm, "OTHER_ALARM", "an alarm of general kind"},
	{silent, "connections are accepted, and nothing is answered; commands still work", "no frames, no answers to commands of SLCAN"},
	{halfMap, "exception 2 from the middle of model 802 on", "nothing"},
	{halfMapFirst, "half-map until the marker at the beginning of the map is read for the second time", "nothing"},
	{exception, "exception 4 to everything", "nothing"},
	{slow, "every answer comes after 3 s", "nothing"},
}

// Faults lists the faults and what each of them does.
func Faults() []Fault { return slices.Clone(faults) }

func known(name string) error {
	var names []string
	for _, f := range faults {
		if f.Name == name {
			return nil
		}
		names = append(names, f.Name)
	}
	return fmt.Errorf("set the fault %q: there is no such fault; there are %s", name, strings.Join(names, ", "))
}

// Fault turns a fault of [Faults] on or off.
func (s *System) Fault(name string, on bool) error {
	if err := known(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A battery that hangs says what it said last, and not what it would say by the
	// time that somebody asks.
	s.observe(s.battery.Measure())
	if s.faults[name] == on {
		return nil
	}
	var to battery.Settings
	weak := 0.0
	if on {
		weak = weakBy
	}
	switch name {
	case overTemp:
		to.Overheating = &on
	case contactorOpen:
		to.ContactorFault = &on
	case imbalance:
		to.Imbalance = &weak
	case alarm:
		to.OtherAlarm = &on
	case socStuck:
		s.stuckSoC = s.seen.SoC
	case halfMapFirst:
		s.scans = 0
	}
	if err := s.battery.Set(to); err != nil {
		return err
	}
	s.faults[name] = on
	s.changed = true
	return nil
}

// Clear turns all faults off.
func (s *System) Clear() {
	for _, name := range s.Active() {
		s.Fault(name, false) // the name is known, and nothing that is turned off is refused
	}
}

// Active lists the faults that are on, in the order of [Faults].
func (s *System) Active() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, f := range faults {
		if s.faults[f.Name] {
			names = append(names, f.Name)
		}
	}
	return names
}

func (s *System) has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[name]
}
