package cloudwatch_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/interlock-energy/ota/internal/cloudwatch"
)

var update = flag.Bool("update", false, "write the golden files")

var example = cloudwatch.Diagnostics{
	Time: time.Date(2026, 11, 22, 5, 30, 0, 250e6, time.UTC), Device: "bess-7", Agent: "1.4.0", Uptime: 36*time.Hour + 500*time.Millisecond,
	Running: "2.1.0", Slot: "B", Status: "IDLE", Code: "NONE",
	Checks: 36, ChecksFailed: 2, Attempts: 1, Unsent: 1, Bytes: 134217728, Memory: 12 << 20,
	Results: map[string]int64{"updated": 1}, Refusals: map[string]int64{"battery_low": 4, "bms_unsafe": 1},
	Seconds:  map[string]float64{"IDLE": 120000, "DOWNLOADING": 512.5},
	Readings: []cloudwatch.Reading{{"soc", 55.5, "%"}, {"temp_max", 31, "°C"}, {"current", -12.25, "A"}},
	LogsLost: 7, LogsHeld: 4096,
}

// TestDiagnostics compares with a golden file: dashboards and alarms stand on the
// names in it, so they never change.
func TestDiagnostics(t *testing.T) {
	text, err := example.Metrics("").EMF()
	if err != nil {
		t.Fatal(err)
	}
	if err := schema(text); err != nil {
		t.Error(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	const golden = "testdata/diagnostics.json"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	same(t, golden, got.String(), string(want))
}

// TestDiagnosticsOfAnything: names and values that CloudWatch does not take, as
// they may come from other parts of the agent, do not cost the other figures.
func TestDiagnosticsOfAnything(t *testing.T) {
	for _, d := range []cloudwatch.Diagnostics{
		{},
		{Device: "Gerät\n7", Time: time.Now()},
		{Device: strings.Repeat("x", 5000), Readings: []cloudwatch.Reading{{"", math.NaN(), ""}, {"", 1, ""}, {"soc", math.Inf(1), "%"}, {"soc", 2, "%"}}},
		{Device: ":", Results: map[string]int64{"\xff": 1, "\xfe": 2}},
	} {
		if d.Time.IsZero() {
			d.Time = time.Now()
		}
		text, err := d.Metrics("").EMF()
		if err != nil {
			t.Errorf("%+v: %v", d, err)
		} else if err := schema(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestEMF makes figures at random. What EMF writes keeps the schema and holds
// every figure; what it refuses would not have kept it.
func TestEMF(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		switch r.IntN(12) {
		case 0:
			return ""
		case 1:
			return strings.Repeat("n", 250+r.IntN(10))
		case 2:
			return ":x"
		case 3:
			return "é\u2028" + fmt.Sprint(r.IntN(1000))
		case 4:
			return " "
		}
		return fmt.Sprintf("name<%d>", r.IntN(100_000))
	}
	unit := []cloudwatch.Unit{"", "Count", "Bytes/Second", "Percent", "Volt"}
	wrote, refused := 0, 0
	for range 1000 {
		m := cloudwatch.Metrics{Namespace: "Interlock", Time: time.UnixMilli(r.Int64N(1 << 42)), Properties: map[string]string{}}
		if r.IntN(10) == 0 {
			m.Namespace = name()
		}
		tame := r.IntN(2) == 0
		for range r.IntN(5) * r.IntN(9) {
			n := name()
			if tame {
				n = fmt.Sprint("d", len(m.Dimensions))
			}
			m.Dimensions = append(m.Dimensions, cloudwatch.Dimension{Name: n, Value: "v"})
		}
		for range r.IntN(250) {
			n, u := name(), unit[r.IntN(len(unit))]
			if tame {
				n, u = fmt.Sprint("m", len(m.Values)), unit[r.IntN(4)]
			}
			m.Values = append(m.Values, cloudwatch.Metric{Name: n, Value: r.NormFloat64() * 1e6, Unit: u})
		}
		text, err := m.EMF()
		if err != nil {
			refused++
			if tame && len(m.Dimensions) <= 30 && m.Namespace == "Interlock" {
				t.Fatalf("got %v for names that are right", err)
			}
			continue
		}
		wrote++
		if err := schema(text); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		var root map[string]any
		if err := json.Unmarshal(text, &root); err != nil {
			t.Fatal(err)
		}
		for _, v := range m.Values {
			if root[v.Name] != v.Value {
				t.Fatalf("%s: got %v, want %v", v.Name, root[v.Name], v.Value)
			}
		}
	}
	if wrote < 200 || refused < 200 {
		t.Errorf("wrote %d and refused %d, want many of both", wrote, refused)
	}
}

func TestEMFRefuses(t *testing.T) {
	good := func() cloudwatch.Metrics {
		return cloudwatch.Metrics{Namespace: "N", Time: time.Now(), Values: []cloudwatch.Metric{{Name: "a"}}}
	}
	for want, change := range map[string]func(*cloudwatch.Metrics){
		"AWS/ first":      func(m *cloudwatch.Metrics) { m.Namespace = "AWS/EC2" },
		"time is missing": func(m *cloudwatch.Metrics) { m.Time = time.Time{} },
		"31 dimensions":   func(m *cloudwatch.Metrics) { m.Dimensions = make([]cloudwatch.Dimension, 31) },
		"metric \"a\"":    func(m *cloudwatch.Metrics) { m.Values = append(m.Values, m.Values[0]) },
		"property \"a\"":  func(m *cloudwatch.Metrics) { m.Properties = map[string]string{"a": "b"} },
		"a dimension of":  func(m *cloudwatch.Metrics) { m.Dimensions = []cloudwatch.Dimension{{Name: "a", Value: "b"}} },
		"the format of":   func(m *cloudwatch.Metrics) { m.Values[0].Name = "_aws" },
		"none of":         func(m *cloudwatch.Metrics) { m.Values[0].Unit = "Volt" },
		"1024 ASCII":      func(m *cloudwatch.Metrics) { m.Dimensions = []cloudwatch.Dimension{{Name: "d", Value: ""}} },
		"1 to 255 ASCII":  func(m *cloudwatch.Metrics) { m.Dimensions = []cloudwatch.Dimension{{Name: "ö", Value: "x"}} },
	} {
		m := good()
		change(&m)
		if _, err := m.EMF(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := good().EMF(); err != nil {
		t.Error(err)
	}
}

// schema checks a document by the rules of "Specification: Embedded metric format"
// and its JSON schema in the Amazon CloudWatch User Guide, with the 30 dimensions
// that are allowed since 2022.
func schema(text []byte) error {
	var doc struct {
		AWS struct {
			Timestamp         json.Number
			CloudWatchMetrics []struct {
				Namespace  *string
				Dimensions [][]string
				Metrics    []struct{ Name, Unit string }
			}
		} `json:"_aws"`
	}
	var root map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	if err := d.Decode(&root); err != nil {
		return err
	}
	if !utf8.Valid(text) || bytes.ContainsAny(text, "\n") || text[0] != '{' || len(text) > 256<<10 {
		return fmt.Errorf("no single line of JSON")
	}
	if _, err := doc.AWS.Timestamp.Int64(); err != nil {
		return err
	}
	length := func(s string) bool { n := utf8.RuneCountInString(s); return n >= 1 && n <= 255 }
	for _, dir := range doc.AWS.CloudWatchMetrics {
		if dir.Namespace == nil || !length(*dir.Namespace) || len(dir.Dimensions) < 1 || len(dir.Metrics) > 100 {
			return fmt.Errorf("directive %+v", dir)
		}
		for _, set := range dir.Dimensions {
			if len(set) > 30 {
				return fmt.Errorf("%d dimensions", len(set))
			}
			for _, key := range set {
				if v, ok := root[key].(string); !ok || v == "" || !length(key) {
					return fmt.Errorf("dimension %q: target %v", key, root[key])
				}
			}
		}
		for _, m := range dir.Metrics {
			if _, ok := root[m.Name].(json.Number); !ok || !length(m.Name) {
				return fmt.Errorf("metric %q: target %v", m.Name, root[m.Name])
			}
			const units = " Seconds Microseconds Milliseconds Bytes Kilobytes Megabytes Gigabytes Terabytes Bits Kilobits Megabits Gigabits Terabits Percent Count Bytes/Second Kilobytes/Second Megabytes/Second Gigabytes/Second Terabytes/Second Bits/Second Kilobits/Second Megabits/Second Gigabits/Second Terabits/Second Count/Second None "
			if !strings.Contains(units, " "+m.Unit+" ") {
				return fmt.Errorf("metric %q: unit %q", m.Name, m.Unit)
			}
		}
	}
	return nil
}
