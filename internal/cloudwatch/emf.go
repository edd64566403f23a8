package cloudwatch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of the embedded metric format (Amazon CloudWatch User Guide,
// "Specification: Embedded metric format", with its JSON schema) and of the
// figures it is made into (CloudWatch API Reference, Dimension and MetricDatum).
const (
	maxMetrics        = 100 // of one directive; there may be several
	maxDimensions     = 30
	maxName           = 255  // characters of a namespace, a dimension's name or a metric's
	maxDimensionValue = 1024 // characters
)

// maxValue is the largest figure that CloudWatch takes, of either sign: 2 to the
// power of 360 (CloudWatch API Reference, MetricDatum).
var maxValue = math.Ldexp(1, 360)

// Unit is one of CloudWatch's units (CloudWatch API Reference, MetricDatum).
type Unit string

// Units of what devices count and measure. CloudWatch has none for volt, ampere
// and degrees: these are None, and the name of the figure says it.
const (
	None           Unit = "None"
	Count          Unit = "Count"
	Percent        Unit = "Percent"
	Seconds        Unit = "Seconds"
	Milliseconds   Unit = "Milliseconds"
	Bytes          Unit = "Bytes"
	BytesPerSecond Unit = "Bytes/Second"
)

var units = map[Unit]bool{
	None: true, Count: true, Percent: true, Seconds: true, Milliseconds: true, Bytes: true, BytesPerSecond: true,
	"Microseconds": true, "Count/Second": true,
	"Kilobytes": true, "Megabytes": true, "Gigabytes": true, "Terabytes": true,
	"Bits": true, "Kilobits": true, "Megabits": true, "Gigabits": true, "Terabits": true,
	"Kilobytes/Second": true, "Megabytes/Second": true, "Gigabytes/Second": true, "Terabytes/Second": true,
	"Bits/Second": true, "Kilobits/Second": true, "Megabits/Second": true, "Gigabits/Second": true, "Terabits/Second": true,
}

// Metrics are figures of one moment.
type Metrics struct {
	Namespace  string      // 1 to 255 characters; not "AWS/...", which is Amazon's
	Dimensions []Dimension // at most 30; each set of values is a series of its own, and is paid for
	Values     []Metric
	Properties map[string]string // to be found in the log, no figures: versions, states
	Time       time.Time         // when the figures were true
}

// Dimension tells the figures of one source from those of others. Both parts are
// ASCII; the name has 1 to 255 characters and does not begin with a colon, the value
// has 1 to 1024.
type Dimension struct{ Name, Value string }

// Metric is one figure.
type Metric struct {
	Name  string // 1 to 255 characters, different from all other names of the line
	Value float64
	Unit  Unit // default None
}

// EMF returns m as one line of CloudWatch's embedded metric format, from which
// CloudWatch makes metrics when it gets the line. More than 100 figures are put
// into several directives of the line. Figures that are none (NaN, infinite, beyond
// 2^360) are left out, because CloudWatch would refuse all with them.
func (m Metrics) EMF() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("write figures: %w", err)
	}
	type definition struct {
		Name string
		Unit Unit
	}
	type directive struct {
		Namespace  string
		Dimensions [][]string
		Metrics    []definition
	}
	keys := []string{}
	root := map[string]any{}
	for name, value := range m.Properties {
		root[name] = value
	}
	for _, d := range m.Dimensions {
		keys = append(keys, d.Name)
		root[d.Name] = d.Value
	}
	directives := []directive{}
	var last []definition
	close := func() {
		if len(last) > 0 {
			directives = append(directives, directive{m.Namespace, [][]string{keys}, last})
			last = nil
		}
	}
	for _, v := range m.Values {
		if math.IsNaN(v.Value) || math.Abs(v.Value) > maxValue {
			continue
		}
		root[v.Name] = v.Value
		if v.Unit == "" {
			v.Unit = None
		}
		if last = append(last, definition{v.Name, v.Unit}); len(last) == maxMetrics {
			close()
		}
	}
	close()
	root["_aws"] = struct {
		Timestamp         int64
		CloudWatchMetrics []directive
	}{m.Time.UnixMilli(), directives}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(root); err != nil {
		return nil, fmt.Errorf("write figures: %w", err)
	}
	return bytes.TrimSpace(text.Bytes()), nil
}

func (m Metrics) check() error {
	switch {
	case !named(m.Namespace, maxName) || strings.HasPrefix(m.Namespace, ":") || strings.HasPrefix(m.Namespace, "AWS/"):
		return fmt.Errorf("namespace %.80q: want 1 to %d characters, and neither a colon nor AWS/ first", m.Namespace, maxName)
	case len(m.Dimensions) > maxDimensions:
		return fmt.Errorf("there are %d dimensions, want at most %d", len(m.Dimensions), maxDimensions)
	case m.Time.IsZero():
		return fmt.Errorf("the time is missing")
	}
	seen := map[string]string{"_aws": "the format"}
	unique := func(name, what string) error {
		if other, ok := seen[name]; ok {
			return fmt.Errorf("%s %q: there is %s of that name", what, name, other)
		}
		seen[name] = "a " + what
		return nil
	}
	for _, d := range m.Dimensions {
		if !named(d.Name, maxName) || !ascii(d.Name) || d.Name[0] == ':' {
			return fmt.Errorf("dimension %.80q: want a name of 1 to %d ASCII characters, and no colon first", d.Name, maxName)
		}
		if !named(d.Value, maxDimensionValue) || !ascii(d.Value) {
			return fmt.Errorf("dimension %s: value %.80q: want 1 to %d ASCII characters", d.Name, d.Value, maxDimensionValue)
		}
		if err := unique(d.Name, "dimension"); err != nil {
			return err
		}
	}
	for _, v := range m.Values {
		if !named(v.Name, maxName) || v.Name[0] == ':' {
			return fmt.Errorf("metric %.80q: want a name of 1 to %d characters, and no colon first", v.Name, maxName)
		}
		if v.Unit != "" && !units[v.Unit] {
			return fmt.Errorf("metric %s: unit %q is none of CloudWatch's", v.Name, v.Unit)
		}
		if err := unique(v.Name, "metric"); err != nil {
			return err
		}
	}
	for name := range m.Properties {
		if err := unique(name, "property"); err != nil {
			return err
		}
	}
	return nil
}

// named tells whether s can be a name: it has a length, is text, and is not blank.
func named(s string, longest int) bool {
	return utf8.ValidString(s) && strings.TrimSpace(s) != "" && utf8.RuneCountInString(s) <= longest &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7e })
}
