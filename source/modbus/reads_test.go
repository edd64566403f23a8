package modbus_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// 0, and beyond the end there is nothing.
func TestMapIsRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		base := uint16(1000)
		r := newRig(t, rel, func(c *modbus.Config) { c.Base, c.Unit, c.Window = &base, 7, 5 })
		m := r.master("203.0.113.9") // reading is for all
		m.unit, m.base = 7, base
		r.manager(func(h *api.CheckinRequest) {
			h.Status, h.Code, h.Reason, h.UpdateVersion = ota.StatusUpdateAvailable, ota.ErrBatteryLow, "state of charge 22.0 %, want at least 30 %", "2.0.0"
			at := time.Now().Add(-3 * time.Second)
			for i, name := range []string{"soc", "temperature_min", "temperature_max", "current", "voltage", "cell_min", "cell_max", "soh"} {
				h.Signals = append(h.Signals, ota.Signal{Name: name, Value: 3 + float64(i)/10, At: at})
			}
			h.Signals = append(h.Signals, ota.Signal{Name: "soc", Value: 99, At: at.Add(-time.Hour), Source: "another instrument"})
		})
		var all []uint16
		for at := 0; at < profile.Size; at += 125 {
			n := uint16(min(125, profile.Size-at))
			holding, err := m.c.ReadHolding(t.Context(), 7, base+uint16(at), n)
			if err != nil {
				t.Fatal(err)
			}
			input, err := m.c.ReadInput(t.Context(), 7, base+uint16(at), n)
			if err != nil || !slices.Equal(holding, input) {
				t.Fatalf("+%X: function 3 reads %04x, function 4 %04x, %v", at, holding, input, err)
			}
			all = append(all, holding...)
		}
		want := make([]uint16, profile.Size)
		(&profile.Identity{Version: 0x100, Caps: 0b10011111, BlockSize: 224, Window: 5, IdleTimeout: 60, Components: 1, MaxSize: 256 << 20}).Encode(want)
		(&profile.Display{Running: "1.0.0", Update: "2.0.0", Device: "bess-7", Product: "bess", Reason: "state of charge 22.0 %, want at least 30 %",
			Status: 2, Code: -9, Charge: 30, TemperatureMin: 31, TemperatureMax: 32, Current: 33, Voltage: 34, CellMin: 3500, CellMax: 3600, Health: 37, Age: 3}).Encode(want[profile.OffsetDisplay:])
		for _, row := range profile.Map() {
			from, to := int(row.Offset), int(row.Offset)+row.Registers
			if !slices.Equal(all[from:to], want[from:to]) {
				t.Errorf("%s: got %04x, want %04x", row.Name, all[from:to], want[from:to])
			}
			clear(all[from:to])
		}
		for i, v := range all {
			if v != 0 {
				t.Errorf("+%X is not in the map: got %04x, want 0", i, v)
			}
		}
		for _, c := range []struct{ address, count uint16 }{{base - 1, 2}, {base - 1, 1}, {base + profile.Size - 1, 2}, {base + profile.Size, 1}, {0, 1}, {65535, 1}} {
			if _, err := m.c.ReadHolding(t.Context(), 7, c.address, c.count); exception(t, err) != bus.IllegalAddress {
				t.Errorf("registers %d to %d: got %v, want %v", c.address, c.address+c.count-1, err, bus.IllegalAddress)
			}
		}
		if d := m.display(); d.Reason == "" {
			t.Error("no reason is shown")
		}
	})
}

// TestUnits: on TCP the device is its unit, and 0 and 255, and nothing else.
func TestUnits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newRelease(t), func(c *modbus.Config) { c.Unit = 9 })
		m := r.master("192.0.2.1")
		for unit, want := range map[byte]bus.Exception{9: 0, 0: 0, 255: 0, 1: bus.GatewayPath, 247: bus.GatewayPath} {
			m.unit = unit
			_, err := m.c.ReadHolding(t.Context(), unit, m.base, 2)
			if got := exception(t, err); got != want {
				t.Errorf("unit %d: got %v, want %v", unit, got, want)
			}
		}
	})
}

// TestReadsOfFiles: what may be read, by whom.
func TestReadsOfFiles(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		evidence := []byte("first, and of an odd length")
		r := newRig(t, rel, func(c *modbus.Config) { c.Evidence = func() []byte { return evidence } })
		m, stranger := r.master("192.0.2.1"), r.master("198.51.100.1")
		m.push(rel.Bundle)
		last := uint16((len(rel.Bundle) - 1) / 2)
		lastFile, lastRecord := last/10000+1, last%10000
		for name, c := range map[string]struct {
			file, record, count uint16
			want, strange       bus.Exception
		}{
			"the first record":     {1, 0, 1, 0, 1},
			"the last record":      {lastFile, lastRecord, 1, 0, 1},
			"after the last":       {lastFile, lastRecord, 2, 2, 1},
			"another file":         {lastFile + 1, 0, 1, 2, 1},
			"the manifest":         {0xF001, 0, 121, 0, 0},
			"after the manifest":   {0xF001, 9999, 1, 0, 0},
			"more of the manifest": {0xFF01, 0, 1, 0, 0},
			"the bitmap":           {0xF002, 0, 121, 0, 0},
			"the evidence":         {0xF003, 0, 10, 0, 1},
			"nothing":              {0xF004, 0, 1, 2, 1},
			"nothing, low":         {0xF000, 0, 1, 2, 1},
		} {
			_, err := m.c.ReadFile(t.Context(), 1, c.file, c.record, c.count)
			_, strange := stranger.c.ReadFile(t.Context(), 1, c.file, c.record, c.count)
			if got, other := exception(t, err), exception(t, strange); got != c.want || other != c.strange {
				t.Errorf("%s: got %v, and from one that may not write %v, want %v and %v", name, got, other, c.want, c.strange)
			}
		}
		// The evidence is of one moment, however long the reading takes.
		read := func(record, count uint16) []byte {
			registers, err := m.c.ReadFile(t.Context(), 1, profile.FileEvidence, record, count)
			if err != nil {
				t.Fatal(err)
			}
			return profile.Bytes(nil, registers)
		}
		first := evidence
		got := read(0, 5)
		evidence = []byte("second")
		got = append(got, read(5, 20)...)
		if want := append([]byte{0, 0, 0, byte(len(first))}, first...); !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 {
			t.Errorf("evidence: got %q, want %q and zeros", got, want)
		}
		if got := read(0, 5); string(got) != "\x00\x00\x00\x06second" {
			t.Errorf("evidence, read anew: got %q", got)
		}
		got = nil
		for record := range uint16(7) { // one by one, as some masters read
			got = append(got, read(record, 1)...)
		}
		if string(got) != "\x00\x00\x00\x06second\x00\x00\x00\x00" {
			t.Errorf("evidence, record by record: got %q", got)
		}
	})
}

// TestReadFrom: addresses that are not on the list read nothing.
func TestReadFrom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newRelease(t), func(c *modbus.Config) { c.ReadFrom = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} })
		for from, want := range map[string]bus.Exception{"203.0.113.5": 0, "192.0.2.1": 0, "198.51.100.1": bus.IllegalFunction, "::ffff:203.0.113.5": 0, "2001:db8::1": bus.IllegalFunction} {
			m := r.master(from)
			_, err := m.c.ReadHolding(t.Context(), 1, m.base, 1)
			_, file := m.c.ReadFile(t.Context(), 1, profile.FileBitmap, 0, 1)
			if got, other := exception(t, err), exception(t, file); got != want || other != want {
				t.Errorf("from %s: got %v for registers and %v for files, want %v", from, got, other, want)
			}
		}
	})
}
