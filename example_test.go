package ota_test

import (
	"context"
	"log"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/slot/file"
	"github.com/interlock-energy/ota/source/https"
	"github.com/interlock-energy/ota/store"
)

// What a device needs: a source, keys, slots, a gate, and a place for the record.
func Example() {
	run := func(ctx context.Context, version string, restart func(context.Context) error, battery bms.Reader, healthy func(context.Context) error) error {
		keys, err := bundle.LoadKeys(1, "/etc/bess/release.pem")
		if err != nil {
			return err
		}
		source, err := https.New(https.Config{URL: "https://ota.example.com", Device: "bess-0001", Product: "bess", Version: version})
		if err != nil {
			return err
		}
		slots, err := file.Open(file.Config{Dir: "/var/lib/bess/slots", Restart: restart})
		if err != nil {
			return err
		}
		record, err := store.Open("/var/lib/bess/record")
		if err != nil {
			return err
		}
		guard, err := bms.New(battery, bms.Default())
		if err != nil {
			return err
		}
		manager, err := ota.New(ota.Config{Product: "bess", Version: version, Source: source, Verify: keys.Verify,
			Slots: slots, Store: record, Gate: guard.Gate, Healthy: healthy, Automatic: true})
		if err != nil {
			return err
		}
		return manager.Run(ctx)
	}
	log.Printf("%T", run)
}
