package simulate

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota/internal/battery"
)

// spread is between the hottest and the coldest module when only one temperature is
// given, in K: that of package sunspec's test vectors.
const spread = 4.6

// Warmth is the setting of the hottest module's temperature in °C; the coldest is
// 4.6 K below.
func Warmth(hottest float64) battery.Settings {
	coldest := hottest - spread
	return battery.Settings{TemperatureMin: &coldest, TemperatureMax: &hottest}
}

// Command is something that can be said to a running system in a line of text.
type Command struct {
	set   battery.Settings
	on    []string
	off   []string
	clear bool
}

// Commands is the help on what [Parse] understands.
const Commands = `soc 22                 state of charge in %
soh 95                 state of health in %
current 11             A, above 0 discharges, while the converter has no set-point
temperature 46         of the hottest module in °C; the coldest is 4.6 K below
contactors open        or closed
fault NAME...          turns faults on
clear [NAME...]        turns these faults off, or all`

// Parse reads a command of [Commands]. An equals sign may be in the place of a space.
// The command can be carried out if no error is returned.
func Parse(line string) (Command, error) {
	words := strings.Fields(strings.Replace(line, "=", " ", 1))
	if len(words) == 0 {
		return Command{}, fmt.Errorf("read the command: it is empty")
	}
	var c Command
	name, args := words[0], words[1:]
	switch name {
	case "fault", "clear":
		for _, a := range args {
			if err := known(a); err != nil {
				return Command{}, err
			}
		}
		switch {
		case name == "clear":
			c.off, c.clear = args, len(args) == 0
		case len(args) == 0:
			return Command{}, fmt.Errorf("read the command %q: which fault?", line)
		default:
			c.on = args
		}
		return c, nil
	case "contactors":
		if len(args) != 1 || args[0] != "open" && args[0] != "closed" {
			return Command{}, fmt.Errorf("read the command %q: want contactors open, or contactors closed", line)
		}
		open := args[0] == "open"
		c.set.ContactorsOpen = &open
		return c, nil
	}
	if len(args) != 1 {
		return Command{}, fmt.Errorf("read the command %q: want a name and a value, such as soc 22; type help for all", line)
	}
	v, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return Command{}, fmt.Errorf("read the command %q: %q is not a number", line, args[0])
	}
	switch name {
	case "soc":
		c.set.SoC = &v
	case "soh":
		c.set.SoH = &v
	case "current":
		c.set.Current = &v
	case "temperature":
		c.set = Warmth(v)
	default:
		return Command{}, fmt.Errorf("read the command %q: there is no command %s; type help for all", line, name)
	}
	// What the battery would refuse is refused here, before a script is half-way.
	if _, err := battery.New(battery.Config{Start: c.set}); err != nil {
		return Command{}, fmt.Errorf("read the command %q: %w", line, err)
	}
	return c, nil
}

// Do carries a command out.
func (s *System) Do(c Command) error {
	if err := s.Set(c.set); err != nil {
		return err
	}
	if c.clear {
		s.Clear()
	}
	for _, name := range c.on {
		if err := s.Fault(name, true); err != nil {
			return err
		}
	}
	for _, name := range c.off {
		if err := s.Fault(name, false); err != nil {
			return err
		}
	}
	return nil
}

// Step is a command at a time.
type Step struct {
	After time.Duration // since the start
	Do    Command
}

// ParseScript reads steps such as "10s soc=22; 20s fault frozen", in order of time.
func ParseScript(text string) ([]Step, error) {
	var steps []Step
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		when, what, _ := strings.Cut(part, " ")
		after, err := time.ParseDuration(when)
		if err != nil || after < 0 {
			return nil, fmt.Errorf("read the script at %q: want a time since the start and a command, such as 10s soc=22", part)
		}
		if len(steps) > 0 && after < steps[len(steps)-1].After {
			return nil, fmt.Errorf("read the script at %q: it comes after %v, which is later", part, steps[len(steps)-1].After)
		}
		do, err := Parse(what)
		if err != nil {
			return nil, err
		}
		steps = append(steps, Step{after, do})
	}
	return steps, nil
}

// follow carries a script out.
func (s *System) follow(ctx context.Context, script []Step) error {
	begin := time.Now()
	for _, step := range script {
		timer := time.NewTimer(time.Until(begin.Add(step.After)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		if err := s.Do(step.Do); err != nil {
			return err
		}
	}
	return nil
}

// Status is a line for people: what is so, and which faults are on.
func (s *System) Status() string {
	m := s.Measure()
	t := m.Temperatures()
	line := fmt.Sprintf("%5.1f %%  %6.1f A  %5.1f V  %4.1f to %4.1f °C  %s  converter %s, %.1f kW",
		m.SoC, zero(m.Current), m.Voltage, t.Min, t.Max, m.Connection, m.Mode, zero(m.ACPower/1000))
	if m.Controls.Enabled {
		line += ", set-point"
		if m.Reverts > 0 {
			line += fmt.Sprintf(" for %.0f s", math.Ceil(m.Reverts.Seconds()))
		}
	}
	for _, a := range m.Alarms {
		line += "  ALARM " + string(a)
	}
	if active := s.Active(); len(active) > 0 {
		line += "  FAULT " + strings.Join(active, " ")
	}
	return line
}

// zero keeps a minus from standing before a value that is shown as 0.0.
func zero(v float64) float64 {
	if math.Abs(v) < 0.05 {
		return 0
	}
	return v
}
