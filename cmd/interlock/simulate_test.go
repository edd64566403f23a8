package main

import "testing"

// Without any address there is one, and only this machine can reach it.
func TestSimulateDefault(t *testing.T) {
	c := simulateBatteryCmd{Profile: "pylon-lv"}
	if cfg, err := c.config(); err != nil || cfg.SunSpec != "127.0.0.1:1502" {
		t.Errorf("got %q, %v", cfg.SunSpec, err)
	}
	c = simulateBatteryCmd{Profile: "pylon-lv", RTU: "pty:/tmp/x"}
	if cfg, err := c.config(); err != nil || cfg.SunSpec != "" || cfg.RTU.Path != "pty" || cfg.RTU.Link != "/tmp/x" {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true, "127.9.9.9:1": true,
		"0.0.0.0:1": false, ":1": false, "[::]:1": false, "192.0.2.1:1": false, "localhost.example.com:1": false, "10.0.0.1:1": false} {
		if got := loopback(address); got != want {
			t.Errorf("%s: got %t, want %t", address, got, want)
		}
	}
}
