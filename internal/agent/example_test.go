package agent_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/interlock-energy/ota/internal/agent"
)

// A configuration is checked before anything is touched.
func ExampleLoad() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "interlockd.yaml")
	if err := os.WriteFile(path, []byte("device: {id: desk-01, product: demo}\nstat_dir: state\n"), 0o644); err != nil {
		fmt.Println(err)
		return
	}
	_, err = agent.Load(path)
	fmt.Println(err.Error()[len("read the configuration "+path+": "):])
	// Output: line 2: unknown key "stat_dir"; did you mean "state_dir"?
}

// A device without a word about its battery is not updated.
func ExampleNew() {
	_, err := agent.New(agent.Config{
		Device: agent.Device{ID: "desk-01", Product: "demo", Version: "1.0.0"},
		Source: &agent.Source{Media: &agent.Media{Path: "/media/*"}},
		// Only so that the example needs no key.
		VerifySignature: new(false),
		Slot:            agent.Slot{Kind: "file", Dir: "slots", Booted: agent.Booted{Cmdline: "slot"}, Reboot: agent.Command{"reboot"}},
		Log:             slog.New(slog.DiscardHandler),
	})
	fmt.Println(err)
	// Output: configure the agent: battery.reader is missing, and without readings nobody knows whether an update is safe; set sunspec, can, file or http, or none for a device that has no battery
}
