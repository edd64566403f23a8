package agent

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmshttp"
)

// Battery says where readings come from, and what they must be. Limits that are
// not given are those of Rules.
type Battery struct {
	Reader  string   `yaml:"reader"` // sunspec, can, file, http, or none
	Path    string   `yaml:"path"`   // of the file
	URL     string   `yaml:"url"`    // for http
	Modbus  *Modbus  `yaml:"modbus"` // for sunspec
	SunSpec *SunSpec `yaml:"sunspec"`
	CAN     *CAN     `yaml:"can"`

	Compare []Instrument `yaml:"compare"` // what else measures the same battery, and must agree

	Timeout Duration `yaml:"timeout"` // of one reading; default 1s
	Poll    Duration `yaml:"poll"`    // pause between readings in advance; default: the battery is read when the gate is asked
	Rules   string   `yaml:"rules"`   // specification (default) or recommended

	MinSoC             *float64   `yaml:"min_soc"`
	MaxSoC             *float64   `yaml:"max_soc"`
	MaxTemperature     *float64   `yaml:"max_temperature"`
	MinTemperature     *float64   `yaml:"min_temperature"`
	MaxTemperatureRate *float64   `yaml:"max_temperature_rate"` // K/min
	MaxCurrent         *float64   `yaml:"max_current"`
	MinCell            *float64   `yaml:"min_cell"`       // V
	MaxCell            *float64   `yaml:"max_cell"`       // V
	MaxCellDelta       *float64   `yaml:"max_cell_delta"` // V
	MaxAge             Duration   `yaml:"max_age"`        // default 5s
	Heartbeat          string     `yaml:"heartbeat"`      // required or optional; default: required of sunspec and can
	Standby            *bool      `yaml:"standby"`
	Contactors         string     `yaml:"contactors"` // open, closed, or any (default)
	RemoteControl      *bool      `yaml:"remote_control"`
	RequireAlarms      *bool      `yaml:"require_alarms"`
	IgnoreAlarms       []string   `yaml:"ignore_alarms"`
	MaxUncounted       *float64   `yaml:"max_uncounted"`  // %
	RatedCapacity      *float64   `yaml:"rated_capacity"` // Ah
	Agreement          *Agreement `yaml:"agreement"`
	Keep               *Keep      `yaml:"keep"`
}

// Instrument is one way to read the battery.
type Instrument struct {
	Reader  string   `yaml:"reader"` // sunspec, can, file or http
	Path    string   `yaml:"path"`
	URL     string   `yaml:"url"`
	Modbus  *Modbus  `yaml:"modbus"`
	SunSpec *SunSpec `yaml:"sunspec"`
	CAN     *CAN     `yaml:"can"`
}

// Agreement is by how much two instruments may differ.
type Agreement struct {
	SoC          *float64 `yaml:"soc"`         // %
	Temperature  *float64 `yaml:"temperature"` // K
	Current      *float64 `yaml:"current"`     // A
	CurrentShare *float64 `yaml:"current_share"`
}

// Keep is what is enough once everything was within the limits.
type Keep struct {
	MinSoC         float64 `yaml:"min_soc"`
	MaxSoC         float64 `yaml:"max_soc"`
	MinTemperature float64 `yaml:"min_temperature"`
	MaxTemperature float64 `yaml:"max_temperature"`
	MaxCurrent     float64 `yaml:"max_current"`
	MaxCellDelta   float64 `yaml:"max_cell_delta"`
}

func (b *Battery) instrument() Instrument {
	return Instrument{Reader: b.Reader, Path: b.Path, URL: b.URL, Modbus: b.Modbus, SunSpec: b.SunSpec, CAN: b.CAN}
}

// lacks names a value that every decision needs and that this instrument never tells.
func (in *Instrument) lacks() string {
	if in.Reader != "can" {
		return ""
	}
	d, err := broadcast.New(in.CAN.Profile, broadcast.Options{})
	if err != nil {
		return "" // newCAN has looked
	}
	tells := d.State().Values
	for _, q := range []struct {
		q    broadcast.Quantity
		name string
	}{{broadcast.SoC, "state of charge"}, {broadcast.TemperatureMin, "lowest temperature"}, {broadcast.TemperatureMax, "highest temperature"}, {broadcast.Current, "current"}} {
		if _, ok := tells[q.q]; !ok {
			return q.name
		}
	}
	return ""
}

const batteryReaders = "sunspec, can, file and http"

// newBattery makes the reader of the battery, with all that it is compared with. It
// is nil for a device that says that it has none.
func (a *Agent) newBattery(b *Battery) (bms.Reader, error) {
	switch b.Reader {
	case "none":
		return nil, nil
	case "":
		return nil, errors.New("battery.reader is missing, and without readings nobody knows whether an update is safe; " +
			"set " + strings.Replace(batteryReaders, " and ", " or ", 1) + ", or none for a device that has no battery")
	}
	in := b.instrument()
	read, err := a.newReader(&in)
	if err != nil {
		return nil, fmt.Errorf("battery%w", err)
	}
	if lacks := in.lacks(); lacks != "" {
		return nil, fmt.Errorf("battery.can.profile %s does not tell the %s, without which nothing is ever allowed; use another reader, and this one under compare", in.CAN.Profile, lacks)
	}
	var others []bms.Reader
	for i := range b.Compare {
		other, err := a.newReader(&b.Compare[i])
		if err != nil {
			return nil, fmt.Errorf("battery.compare[%d]%w", i+1, err)
		}
		others = append(others, other)
	}
	read = bms.Compared(read, others...)
	if b.Poll > 0 {
		a.poller = bms.NewPoller(read, time.Duration(b.Poll), time.Duration(orDefault(b.Timeout, Duration(pollTimeout))))
		read = a.poller.Read
	}
	return read, nil
}

// pollTimeout is for one reading in advance: nobody waits for it.
const pollTimeout = 10 * time.Second

// check refuses what nobody would look at: whoever wrote a limit believes in it.
func (b *Battery) check() error {
	if b.Reader == "none" {
		given := *b
		given.Reader = ""
		v := reflect.ValueOf(given)
		for i := range v.NumField() {
			if !v.Field(i).IsZero() {
				return fmt.Errorf("battery.%s is given, and with battery.reader none nothing looks at it; remove one of them", v.Type().Field(i).Tag.Get("yaml"))
			}
		}
		return nil
	}
	if b.Poll == 0 && time.Duration(b.Timeout) > time.Second {
		return fmt.Errorf("battery.timeout is %v, and at the restart an answer must not be older than 1s; set battery.poll, which reads in advance", b.Timeout)
	}
	in := b.instrument()
	if err := in.check(); err != nil {
		return fmt.Errorf("battery%w", err)
	}
	for i := range b.Compare {
		if err := b.Compare[i].check(); err != nil {
			return fmt.Errorf("battery.compare[%d]%w", i+1, err)
		}
		if reflect.DeepEqual(b.Compare[i], in) || slices.ContainsFunc(b.Compare[:i], func(o Instrument) bool { return reflect.DeepEqual(o, b.Compare[i]) }) {
			return fmt.Errorf("battery.compare[%d] is an instrument that is there already, and it agrees with itself whatever it says; name another, or remove it", i+1)
		}
	}
	for _, c := range []struct{ key, value, known string }{
		{"rules", b.Rules, "specification recommended"},
		{"heartbeat", b.Heartbeat, "required optional"},
		{"contactors", b.Contactors, "open closed any"},
	} {
		if c.value != "" && !slices.Contains(strings.Fields(c.known), c.value) {
			return fmt.Errorf("battery.%s is %q, want one of: %s", c.key, c.value, c.known)
		}
	}
	return nil
}

func (in *Instrument) check() error {
	if !slices.Contains([]string{"file", "http", "sunspec", "can"}, in.Reader) {
		return nil // newReader says what is wrong
	}
	for _, f := range []struct {
		key    string
		given  bool
		reader string
	}{
		{"path", in.Path != "", "file"},
		{"url", in.URL != "", "http"},
		{"modbus", in.Modbus != nil, "sunspec"},
		{"sunspec", in.SunSpec != nil, "sunspec"},
		{"can", in.CAN != nil, "can"},
	} {
		if f.given && f.reader != in.Reader {
			return fmt.Errorf(".%s is given, and with reader %s nothing looks at it; remove one of them", f.key, in.Reader)
		}
	}
	return nil
}

// newReader makes the reader of one instrument. Errors begin with the key, after a point.
func (a *Agent) newReader(in *Instrument) (bms.Reader, error) {
	switch in.Reader {
	case "file":
		if in.Path == "" {
			return nil, errors.New(".path is missing: the file with the readings")
		}
		return bms.FromFile(in.Path), nil
	case "http":
		if _, err := webURL(in.URL); err != nil {
			return nil, fmt.Errorf(".url: %w", err)
		}
		return bmshttp.New(in.URL, nil)
	case "sunspec":
		return a.newSunSpec(in)
	case "can":
		return a.newCAN(in)
	}
	return nil, fmt.Errorf(".reader %q is not known; known are %s", in.Reader, batteryReaders)
}

// thresholds are what the configuration demands of the battery.
func thresholds(b *Battery) bms.Thresholds {
	t := bms.Default()
	if b.Rules == "recommended" {
		t = bms.Recommended()
	}
	for _, v := range []struct {
		given *float64
		to    *float64
	}{
		{b.MinSoC, &t.MinSoC}, {b.MaxSoC, &t.MaxSoC}, {b.MaxTemperature, &t.MaxTemperature}, {b.MinTemperature, &t.MinTemperature},
		{b.MaxTemperatureRate, &t.MaxTemperatureRate}, {b.MaxCurrent, &t.MaxCurrent}, {b.MinCell, &t.MinCell}, {b.MaxCell, &t.MaxCell},
		{b.MaxCellDelta, &t.MaxCellDelta}, {b.MaxUncounted, &t.MaxUncounted}, {b.RatedCapacity, &t.RatedCapacity},
	} {
		*v.to = valueOr(v.given, *v.to)
	}
	if g := b.Agreement; g != nil {
		t.Agreement = bms.Agreement{SoC: valueOr(g.SoC, t.Agreement.SoC), Temperature: valueOr(g.Temperature, t.Agreement.Temperature),
			Current: valueOr(g.Current, t.Agreement.Current), CurrentShare: valueOr(g.CurrentShare, t.Agreement.CurrentShare)}
	}
	if b.Keep != nil {
		t.Keep = bms.Keep(*b.Keep)
	}
	t.MaxAge = time.Duration(orDefault(b.MaxAge, Duration(t.MaxAge)))
	t.Standby, t.RemoteControl = valueOr(b.Standby, t.Standby), valueOr(b.RemoteControl, t.RemoteControl)
	t.RequireAlarms = valueOr(b.RequireAlarms, t.RequireAlarms)
	t.IgnoreAlarms = slices.Clone(b.IgnoreAlarms)
	switch b.Contactors {
	case "open":
		t.Contactors = bms.ContactorsOpen
	case "closed":
		t.Contactors = bms.ContactorsClosed
	}
	t.MinOthers = len(b.Compare)
	t.RequireBeat = b.Heartbeat == "required" || b.Heartbeat == "" && (t.RequireBeat || b.Reader == "sunspec" || b.Reader == "can")
	return t
}
