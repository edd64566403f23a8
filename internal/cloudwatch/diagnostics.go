package cloudwatch

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Namespace is where the figures of devices are in CloudWatch, unless the operator
// chooses another.
const Namespace = "Interlock"

// Diagnostics is what a device tells about itself (report_diagnostics of the OTA
// manager). Counts are since the agent was started. The names of the figures that
// are made of it never change: dashboards and alarms stand on them.
type Diagnostics struct {
	Time   time.Time
	Device string // the dimension
	Agent  string // version of the agent
	Uptime time.Duration

	Running string // version of the firmware
	Slot    string
	Status  string // IDLE and so on
	Code    string // the reason of the status; may be empty

	Checks       int64 // for a release
	ChecksFailed int64
	Attempts     int64            // updates begun
	Results      map[string]int64 // updates that ended, by result
	Unsent       int64            // reports that nobody has confirmed
	Refusals     map[string]int64 // of the gate, by the name of the code
	Bytes        int64            // of images, verified and written
	Seconds      map[string]float64
	Readings     []Reading // of the battery; only those that are known
	Memory       int64     // bytes that the agent has from the system

	LogsLost int64 // lines that a log could not take
	LogsHeld int64 // bytes that wait for CloudWatch
}

// Reading is one value of the battery, such as {"soc", 55, "%"}.
type Reading struct {
	Name  string
	Value float64
	Unit  string // as people write it; only % is one of CloudWatch's
}

// Metrics returns d as figures of a namespace, [Namespace] if it is empty. The
// device is the only dimension: more would multiply the bill. What comes in kinds
// has the kind in its name, such as refusals.battery_low and seconds.IDLE.
func (d Diagnostics) Metrics(namespace string) Metrics {
	if namespace == "" {
		namespace = Namespace
	}
	m := Metrics{
		Namespace: namespace, Time: d.Time, Properties: map[string]string{},
		Dimensions: []Dimension{{"device", printable(d.Device)}},
	}
	for name, value := range map[string]string{"agent": d.Agent, "running": d.Running, "slot": d.Slot, "status": d.Status, "code": d.Code} {
		if value != "" {
			m.Properties[name] = value
		}
	}
	seen := map[string]bool{"device": true, "_aws": true, "clock_was": true, "agent": true, "running": true, "slot": true, "status": true, "code": true}
	add := func(name string, value float64, unit Unit) {
		name = printable(name)
		if !seen[name] { // the first one counts
			seen[name] = true
			m.Values = append(m.Values, Metric{name, value, unit})
		}
	}
	add("uptime", d.Uptime.Seconds(), Seconds)
	add("checks", float64(d.Checks), Count)
	add("checks_failed", float64(d.ChecksFailed), Count)
	add("attempts", float64(d.Attempts), Count)
	add("reports_unsent", float64(d.Unsent), Count)
	add("bytes_done", float64(d.Bytes), Bytes)
	add("memory", float64(d.Memory), Bytes)
	add("log_lines_lost", float64(d.LogsLost), Count)
	add("log_bytes_held", float64(d.LogsHeld), Bytes)
	for _, kind := range sortedKeys(d.Results) {
		add("results."+kind, float64(d.Results[kind]), Count)
	}
	for _, kind := range sortedKeys(d.Refusals) {
		add("refusals."+kind, float64(d.Refusals[kind]), Count)
	}
	for _, kind := range sortedKeys(d.Seconds) {
		add("seconds."+kind, d.Seconds[kind], Seconds)
	}
	for _, r := range d.Readings {
		unit := None
		if r.Unit == "%" {
			unit = Percent
		}
		add("battery."+r.Name, r.Value, unit)
	}
	return m
}

// PutDiagnostics queues the figures of d.
func (w *Writer) PutDiagnostics(namespace string, d Diagnostics) error {
	return w.PutMetrics(d.Metrics(namespace))
}

// printable makes a name of s that CloudWatch takes: ASCII, not empty, not too long.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '_'
		}
		return r
	}, s)
	s = strings.TrimLeft(strings.TrimSpace(s[:min(len(s), maxName)]), ":")
	if s == "" {
		return "unknown"
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
