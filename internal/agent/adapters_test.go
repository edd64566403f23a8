package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/bus/can"
)

// linked makes a device and a link to it, as Linux does in /dev/serial/by-id.
func linked(t *testing.T) (device, link string) {
	t.Helper()
	dir := t.TempDir()
	device, link = filepath.Join(dir, "ttyUSB0"), filepath.Join(dir, "usb-CANable-if00")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("ttyUSB0", link); err != nil {
		t.Fatal(err)
	}
	return device, link
}

// An adapter on CAN, and a converter, is shared by all that name it, by whatever name; and they must
// agree on what it is.
func TestOneAdapterForAll(t *testing.T) {
	device, link := linked(t)
	for _, tt := range []struct {
		name, source, battery, compare string
		want                           string // error; "": they share
		speed                          int    // of the serial line, for the source
	}{
		{"the same", "slcan: {device: /dev/ttyS9}", "slcan: {device: /dev/ttyS9}", "", "", 115200},
		{"the defaults, said", "slcan: {device: /dev/ttyS9}, bitrate: 500000", "slcan: {device: /dev/ttyS9, baud: 115200, bitrate: 500000}", "", "", 115200},
		{"a link", "slcan: {device: " + link + "}", "slcan: {device: " + device + "}", "", "", 115200},
		{"the other way round", "slcan: {device: " + device + "}", "slcan: {device: " + link + "}", "", "", 115200},
		{"not plugged in", "slcan: {device: /dev/../dev/ttyS9, baud: 1000000}", "slcan: {device: /dev/ttyS9, baud: 1000000}", "", "", 1000000},
		{"on USB itself", "slcan: {device: /dev/ttyACM9}", "slcan: {device: /dev/ttyACM9}", "", "", 0},
		{"two batteries", "slcan: {device: /dev/ttyS9}", "slcan: {device: /dev/ttyS9}", "slcan: {device: /dev/ttyS9}", "", 115200},
		{"compared", "slcan: {device: /dev/ttyS9}", "slcan: {device: /dev/ttyS8}", "slcan: {device: /dev/ttyS9}", "", 115200},
		{"alone", "slcan: {device: /dev/ttyS9}", "slcan: {device: /dev/ttyS8}", "", "", 0},
		{"silent battery", "slcan: {device: /dev/ttyS9}", "silent: true, slcan: {device: /dev/ttyS9}", "", "", 115200},
		{"a converter", "tcp: 'Gateway:20001'", "tcp: 'gateway:20001'", "", "", 0},

		{"bitrate", "slcan: {device: /dev/ttyS9, bitrate: 250000}", "slcan: {device: /dev/ttyS9}", "",
			"canbus: slcan.bitrate is 250000, and battery.can has 500000 for the same adapter, /dev/ttyS9; they share it, so say the same in both", 0},
		{"bitrate of the bus", "slcan: {device: /dev/ttyS9}, bitrate: 250000", "slcan: {device: /dev/ttyS9}", "", "canbus: slcan.bitrate is 250000, and battery.can has 500000", 0},
		{"two bitrates", "slcan: {device: /dev/ttyS9, bitrate: 250000}, bitrate: 125000", "slcan: {device: /dev/ttyS8}", "",
			"canbus: slcan.bitrate is 250000 and bitrate 125000, and the bus has one; keep one of them", 0},
		{"baud", "slcan: {device: " + link + ", baud: 1000000}", "slcan: {device: " + device + "}", "", "canbus: slcan.baud is 1000000, and battery.can has 115200 for the same adapter, " + device, 0},
		{"never_answers", "slcan: {device: /dev/ttyS9, never_answers: true}", "slcan: {device: /dev/ttyS9}", "", "canbus: slcan.never_answers is true, and battery.can has false", 0},
		{"compared with itself", "interface: can0", "slcan: {device: /dev/ttyS9}", "slcan: {device: /dev/ttyS9, baud: 9600}", "battery.compare[1].can: slcan.baud is 9600, and battery.can has 115200", 0},
		{"nothing", "bitrate: 500000", "slcan: {device: /dev/ttyS9}", "", "canbus: interface, slcan and tcp are missing; one of them says where the bus is", 0},
		{"two ways", "interface: can0, tcp: 'a:1'", "slcan: {device: /dev/ttyS9}", "", "canbus: interface and tcp are given; keep one", 0},
		{"no device", "slcan: {baud: 1}", "slcan: {device: /dev/ttyS9}", "", "canbus: slcan.device is missing, for example /dev/ttyACM0", 0},
	} {
		battery := "battery: {reader: can, can: {profile: victron, " + tt.battery + "}"
		if tt.compare != "" {
			battery += ", compare: [{reader: can, can: {profile: sma, " + tt.compare + "}}]"
		}
		a, err := configured(t, "source: {canbus: {allow_open: true, "+tt.source+"}}", battery+"}")
		if tt.want != "" || err != nil {
			if err == nil || tt.want == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
			}
			continue
		}
		want := 1
		if strings.Contains(tt.name, "alone") || strings.Contains(tt.name, "compared") {
			want = 2
		}
		if got := len(a.adapters.by); got != want {
			t.Errorf("%s: %d adapters, want %d", tt.name, got, want)
		}
		if got := a.adapters.speed(a.cfg.Source.CANBus.SLCAN); got != tt.speed {
			t.Errorf("%s: the source is told of a line of %d baud, want %d", tt.name, got, tt.speed)
		}
	}
}

// Modbus and CAN cannot have the same serial line, nor two who speak Modbus, by whatever name.
func TestLinksToOneLine(t *testing.T) {
	device, link := linked(t)
	const why = "; a serial line has one owner, so give one of them another line, or take the other out of the configuration"
	for _, tt := range []struct {
		name   string
		source string
		lines  []string
		want   string
	}{
		{"battery and source on Modbus", "source: {modbus: {serial: {device: " + link + "}}}", []string{"battery: {reader: sunspec, modbus: {serial: {device: " + device + "}}}"},
			"modbus: serial.device: a Modbus client of the plant uses " + link + ", too" + why},
		{"battery on Modbus, source on CAN", "source: {canbus: {slcan: {device: " + device + "}}}", []string{"battery: {reader: sunspec, modbus: {serial: {device: " + link + "}}}"},
			"canbus: slcan.device: a Modbus client of the plant uses " + device + ", too" + why},
		{"battery on CAN, source on Modbus", "source: {modbus: {serial: {device: " + link + "}}}", []string{"battery: {reader: can, can: {profile: victron, slcan: {device: " + device + "}}}"},
			"modbus: serial.device: battery.can uses " + link + ", too" + why},
		{"two sources", "source:", []string{"sources: [{modbus: {serial: {device: " + link + "}}}, {canbus: {allow_open: true, slcan: {device: " + device + "}}}]"},
			"modbus: serial.device: source canbus uses " + link + ", too" + why},
		{"batteries on CAN and on Modbus", "source: {canbus: {interface: can0}}", []string{"battery: {reader: can, can: {profile: victron, slcan: {device: " + link + "}}, compare: [{reader: sunspec, modbus: {serial: {device: " + device + "}}}]}"},
			"battery.can: a Modbus client of the plant uses " + device + ", too" + why},
		{"a line with two speeds", "source: {canbus: {interface: can0}}", []string{"battery: {reader: sunspec, modbus: {serial: {device: " + device + "}}, compare: [{reader: sunspec, modbus: {serial: {device: " + link + ", baud: 19200}}}]}"},
			"modbus: " + link + " is used twice, with different settings; a connection has one"},
		{"units of one line", "source: {canbus: {interface: can0}}", []string{"battery: {reader: sunspec, modbus: {serial: {device: " + device + "}}, compare: [{reader: sunspec, modbus: {unit: 2, serial: {device: " + link + "}}}]}"}, ""},
	} {
		_, err := configured(t, append([]string{tt.source}, tt.lines...)...)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
}

// An adapter that is not plugged in says so, to each who wants it.
func TestAdapterNotThere(t *testing.T) {
	var l adapters
	slcan := &SLCAN{Device: filepath.Join(t.TempDir(), "ttyUSB0")}
	bus, err := l.share("battery.can", slcan, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if u, err := bus.Join(t.Context(), can.UserConfig{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, %v, want that it is not there", u, err)
		}
	}
}
