package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/plant"
)

// configured makes an agent of the good configuration with some lines replaced.
func configured(t *testing.T, lines ...string) (*Agent, error) {
	t.Helper()
	dir := t.TempDir()
	_, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	text := good
	for _, l := range lines {
		text = with(text, l)
	}
	for name, b := range map[string][]byte{"key.pem": public, "device.yaml": []byte(text)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := Load(filepath.Join(dir, "device.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg)
	if err == nil {
		t.Cleanup(a.Close)
	}
	return a, err
}

// TestDeadMan: going without one has to be said, and only that.
func TestDeadMan(t *testing.T) {
	for _, tt := range []struct{ quiesce, want string }{
		{"", ""},
		{"dead_man: 20m", ""},
		{"no_dead_man: true", ""},
		{"no_dead_man: true, dead_man: 20m", "der.dead_man and der.no_dead_man are both given"},
		{`control: "715"`, "accept that with no_dead_man: true"},
		{`control: "802"`, "accept that with no_dead_man: true"},
		{`control: "715", no_dead_man: true`, ""},
	} {
		switch _, err := configured(t, "quiesce: [{der: {modbus: {address: 'plant:502'}, "+tt.quiesce+"}}]"); {
		case tt.want == "" && err != nil:
			t.Errorf("%q: %v", tt.quiesce, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q: got %v, want %q", tt.quiesce, err, tt.want)
		}
	}
}

// TestIdlePlantOnly: rules that want the plant at rest before it is brought to rest are
// pointed out, unless somebody has said so in words.
func TestIdlePlantOnly(t *testing.T) {
	const quiesce = "quiesce: [{der: {modbus: {address: 'plant:502'}}}]"
	for _, tt := range []struct {
		lines []string
		want  bool
	}{
		{[]string{quiesce, "battery: {reader: file, path: x, rules: recommended}"}, true},
		{[]string{quiesce, "battery: {reader: file, path: x, rules: recommended, standby: false}"}, false},
		{[]string{quiesce, "battery: {reader: file, path: x, rules: recommended, standby: true}"}, false},
		{[]string{quiesce}, false},
		{[]string{"battery: {reader: file, path: x, rules: recommended}"}, false},
	} {
		a, err := configured(t, tt.lines...)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(a.Warnings(), func(w string) bool { return strings.Contains(w, "a plant at work is never updated") })
		if got != tt.want {
			t.Errorf("%q: got a warning: %v, want %v", tt.lines, got, tt.want)
		}
	}
}

// TestRestAtEveryCheck: quiescing before each check is pointed out.
func TestRestAtEveryCheck(t *testing.T) {
	const quiesce = "quiesce: [{der: {modbus: {address: 'plant:502'}}}]"
	for _, tt := range []struct {
		lines []string
		want  bool
	}{
		{[]string{quiesce, "suspend: before_check"}, true},
		{[]string{quiesce, "suspend: before_check", "dwell: 0s"}, false},
		{[]string{quiesce}, false},
	} {
		a, err := configured(t, tt.lines...)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(a.Warnings(), func(w string) bool { return strings.Contains(w, "suspend is before_check") })
		if got != tt.want {
			t.Errorf("%q: got a warning: %v, want %v", tt.lines, got, tt.want)
		}
	}
}

// TestPlantInStatus: whoever asks for the status is told of a plant that is still at rest.
func TestPlantInStatus(t *testing.T) {
	a, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no answer")
	a.plant = plant.Func{ // a fake: it is not resumed while broken is set
		QuiesceFunc: func(context.Context) error { return nil },
		ResumeFunc:  func(context.Context) error { return broken },
	}
	status := func() string { return a.Status(t.Context()).Plant }
	if got := status(); got != "" {
		t.Errorf("at work: got %q, want nothing", got)
	}
	a.record.Store(&ota.Record{State: ota.Trial, Quiesced: true})
	if err := a.suspendPlant(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := status(), "quiesced for the update"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := a.resumePlant(t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if got, want := status(), "QUIESCED, AND CANNOT BE RESUMED, trying again: no answer"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	broken = nil
	if err := a.resumePlant(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.record.Store(&ota.Record{State: ota.Idle})
	if got := status(); got != "" {
		t.Errorf("resumed: got %q, want nothing", got)
	}
}
