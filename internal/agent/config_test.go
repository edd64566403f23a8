package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/bundle"
)

// TestKnownKeys compares the table of keys, and the manual, with the types.
func TestKnownKeys(t *testing.T) {
	manual, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		if k := typ.Kind(); k == reflect.Pointer || k == reflect.Slice || k == reflect.Array {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() != reflect.TypeFor[Config]().PkgPath() || got[typ.Name()] != nil {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := f.Tag.Get("yaml")
			if key == "-" {
				continue
			}
			got[typ.Name()] = append(got[typ.Name()], key)
			if !strings.Contains(string(manual), key) {
				t.Errorf("docs/configuration.md does not explain %s", key)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[Config]())
	if diff := cmp.Diff(got, knownKeys); diff != "" {
		t.Errorf("keys, -types +table:\n%s", diff)
	}
}

func TestExample(t *testing.T) {
	cfg, err := Load("../../deploy/interlockd.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Everything that it says is understood; only the files are not on this machine.
	dir := t.TempDir()
	_, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cfg.Keys.Files = []string{file("key.pem", public)}
	cfg.Device.VersionFile = file("version", []byte("1.4.2\n"))
	cfg.Sources[0].HTTPS.CertPEMFile = ""
	cfg.Sources[0].HTTPS.TokenFile = file("token", []byte("secret\n"))
	cfg.Logs.File.Path = filepath.Join(dir, "log")
	cfg.Slot.Components["controller"] = [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	cfg.Slot.BootFile = filepath.Join(dir, "boot")
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got := a.Warnings(); len(got) != 0 {
		t.Errorf("got warnings %q, want none", got)
	}
	if got, want := a.interval(), 24*time.Hour; got != want {
		t.Errorf("interval: got %v, want %v", got, want)
	}
	if got := len(a.sourceNames()); got != 2 {
		t.Errorf("got %d sources, want 2", got)
	}
}

// good is a configuration with nothing wrong, in lines that tests replace.
const good = `device: {id: bess-01, product: bess, version: 1.0.0}
state_dir: state
source: {https: {url: "https://updates.example.com"}}
keys: {files: [key.pem]}
battery: {reader: file, path: bms.json}
slot: {kind: file, dir: slots, booted: {cmdline: slot}, reboot: [reboot]}
control: {socket: none}
logs: {console: false}
`

// TestConfigErrors: for each, the line of the good configuration with the same
// key is replaced, and the message is what a person gets to read.
func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	_, public, err := bundle.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"key.pem": public, "empty.pem": nil, "version": []byte("one\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ line, want string }{
		// What the file looks like.
		{"baterry: {}", `line 9: unknown key "baterry"; did you mean "battery"?`},
		{"battery: {reader: file, path: x, min_sock: 30}", `line 5: unknown key "min_sock" in this section; did you mean "min_soc"?`},
		{"battery: {reader: file, path: x, quantum: 1}", `line 5: unknown key "quantum" in this section; known are reader, path, url, modbus, sunspec, can, compare, timeout, poll, `},
		{"battery: {reader: file, path: x, min_soc: much}", `line 5: got "much", want a number`},
		{"battery: file", `line 5: got "file", want a section with keys`},
		{"automatic_update: perhaps", `line 9: got "perhaps", want true or false`},
		{"check_interval: 30", "line 9: duration 30 has no unit, write 30s for seconds"},
		{"check_interval: -3m", "line 9: duration -3m is negative"},
		{"check_interval: daily", `line 9: "daily" is not a duration, want a form like 90s, 5m, 24h or 7d`},
		{"hooks: {event: {command: ''}}", "line 9: the command is empty; want a list of words, or one line for the shell"},
		{"state_dir: other\nstate_dir: state", `line 3: key "state_dir" is there already, in line 2`},
		{"--- # again", "a second document follows after ---; only one is read"},
		{"state_dir: [", "line 1: did not find expected ',' or ']'"},

		// What it says.
		{"device: {product: bess, version: 1.0.0}", "device.id is missing"},
		{"device: {id: a/b, product: bess, version: 1.0.0}", `device.id: name "a/b" has '/' at 2; use letters, digits, and . _ - after the first`},
		{"device: {id: a, product: bess}", "the running version is not known: set device.version, device.version_file, or slot.run, which asks the firmware"},
		{"device: {id: a, product: bess, version: 1.0.0, version_file: version}", "device.version and device.version_file are given, and each says what the running version is; keep one"},
		{"device: {id: a, product: bess, version_file: version}", `device.version_file DIR/version: version "one": "one" is not a number; want a form like 1.4.2 or 1.4.2-rc.1`},
		{"device: {id: a, product: bess, version: one}", `configure the manager: running version: version "one": "one" is not a number; want a form like 1.4.2 or 1.4.2-rc.1`},
		{"source:", "source is missing: where do releases come from?"},
		{"sources: [{media: {path: /media/*}}]", "source and sources are both given; keep one"},
		{"source: {kind: ftp}", `source: kind "ftp" is not known; known are https, aws_iot, modbus, canbus, media, sd_card and usb`},
		{"source: {kind: modbus}", "source: section modbus is missing"},
		{"source: {modbus: {}}", "source: modbus: configure Modbus source: nobody could ask: give an address to listen on, or a serial line"},
		{"source: {modbus: {listen: ':502', allow_plain: true}}", "source: modbus: configure Modbus source: plain TCP may write, but no addresses are named from which; Modbus itself knows nobody"},
		{"source: {modbus: {listen: ':502', allow: [plant]}}", `source: modbus: allow: "plant" is neither an address nor a network such as 192.168.1.0/24`},
		{"source: {modbus: {tls: {}}}", "source: modbus: tls.ca_file is missing: both sides show certificates"},
		{"source: {modbus: {listen: ':502', function_code: 6}}", "source: modbus: function_code is 6, want 16 or 21, or nothing for both"},
		{"source: {modbus: {listen: ':502', device_id: 248}}", "source: modbus: device_id is 248, want 1 to 247"},
		{"source: {modbus: {serial: {}}}", "source: modbus: serial.device is missing, for example /dev/ttyS1"},
		{"source: {canbus: {interface: can0, address: 256}}", "source: canbus: address is 256, want 1 to 255"},
		{"source: {canbus: {interface: can0, tester_files: [empty.pem]}}", "source: canbus: tester_files: "},
		{"source: {canbus: {}}", "source: canbus: "},
		{"source: {kind: usb}", "source: section usb is missing"},
		{"source: {kind: usb, https: {url: x}}", `source: kind is "usb", and the section is https`},
		{"source: {usb: {device_path: /dev/sda1}}", "source: /dev/sda1 is a device; let the system mount it, and give the place where it is mounted, such as /media/*"},
		{"source: {media: {path: a}, https: {url: x}}", "source: sections https and media are given; a source has one, list several under sources"},
		{"source: {https: {}}", "source: https.url is missing"},
		{"source: {https: {url: https://x.example, token: a, token_file: b}}", "source: https.token and https.token_file are both given; keep one"},
		{"source: {https: {url: https://x.example, cert_pem_file: empty.pem}}", "source: https.cert_pem_file: DIR/empty.pem is empty"},
		{"keys: {}", "keys.files is missing: without a public key no release can be verified, and none is taken"},
		{"keys: {files: [none.pem]}", "keys.files: stat DIR/none.pem: no such file or directory"},
		{"battery: {}", "battery.reader is missing, and without readings nobody knows whether an update is safe; set sunspec, can, file or http, or none for a device that has no battery"},
		{"battery:", "battery.reader is missing, and without readings nobody knows whether an update is safe; set sunspec, can, file or http, or none for a device that has no battery"},
		{"battery: {reader: carrier_pigeon}", `battery.reader "carrier_pigeon" is not known; known are sunspec, can, file and http`},
		{"battery: {reader: none, min_soc: 30}", "battery.min_soc is given, and with battery.reader none nothing looks at it; remove one of them"},
		{"battery: {reader: none, compare: [{reader: file, path: x}]}", "battery.compare is given, and with battery.reader none nothing looks at it; remove one of them"},
		{"battery: {reader: sunspec}", "battery.modbus is missing: address or serial of the unit"},
		{"battery: {reader: sunspec, path: x}", "battery.path is given, and with reader sunspec nothing looks at it; remove one of them"},
		{"battery: {reader: sunspec, modbus: {}}", "battery.modbus.address and modbus.serial are missing; one of them says where the unit is"},
		{"battery: {reader: sunspec, modbus: {address: plant}}", `battery.modbus.address is "plant", want host:port, for example plant:502`},
		{"battery: {reader: sunspec, modbus: {address: 'plant:502', unit: 256}}", "battery.modbus.unit is 256, want 1 to 255"},
		{"battery: {reader: sunspec, modbus: {address: 'plant:502', serial: {device: x}}}", "battery.modbus.address and modbus.serial are both given; keep one"},
		{"battery: {reader: sunspec, modbus: {serial: {device: x, parity: perhaps}}}", `battery.modbus.serial: parity is "perhaps", `},
		{"battery: {reader: sunspec, modbus: {address: 'plant:802', tls: {}}}", "battery.modbus.tls.ca_file is missing: both sides show certificates"},
		{"battery: {reader: sunspec, modbus: {address: 'plant:502'}, sunspec: {directions: both}}", `battery: read a battery over SunSpec: directions are "both", `},
		{"battery: {reader: sunspec, modbus: {address: 'plant:502'}, compare: [{reader: sunspec, modbus: {address: 'plant:502', retries: 5}}]}",
			"battery.compare[1].modbus: plant:502 is used twice, with different settings; a connection has one"},
		{"battery: {reader: sunspec, modbus: {address: 'plant:502'}, timeout: 2s}", "battery.timeout is 2s, and at the restart an answer must not be older than 1s; set battery.poll, which reads in advance"},
		{"battery: {reader: can}", "battery.can is missing: where the battery broadcasts, and its profile"},
		{"battery: {reader: can, can: {profile: sma}}", "battery.can: interface, slcan and tcp are missing; one of them says where the bus is"},
		{"battery: {reader: can, can: {interface: can0, tcp: 'x:1', profile: sma}}", "battery.can: interface and tcp are given; keep one"},
		{"battery: {reader: can, can: {interface: can0}}", "battery.can.profile is missing; known are growatt-lv, "},
		{"battery: {reader: can, can: {interface: can0, profile: pylon}}", `battery.can: listen to the battery on CAN: `},
		{"battery: {reader: can, can: {interface: can0, profile: sma, frozen_after: 6m}}", "battery.can: listen to the battery on CAN: it would count as frozen after 6m0s, want at most 5m0s"},
		{"battery: {reader: can, can: {interface: can0, profile: growatt-lv}}", "battery.can.profile growatt-lv does not tell the lowest temperature, without which nothing is ever allowed; use another reader, and this one under compare"},
		{"battery: {reader: can, can: {slcan: {}, profile: sma}}", "battery.can: slcan.device is missing, for example /dev/ttyACM0"},
		{"battery: {reader: file, path: x, rules: mine}", `battery.rules is "mine", want one of: specification recommended`},
		{"battery: {reader: file, path: x, contactors: shut}", `battery.contactors is "shut", want one of: open closed any`},
		{"battery: {reader: file, path: x, max_soc: 20}", "battery: guard the battery: thresholds: "},
		{"soak: {time: 10m}", "soak.time is set, and neither soak.checks nor health says what to look at"},
		{"soak: {checks: [{tcp: 'x:1'}]}", "soak.symptom_time or soak.checks is given, and without soak.time nothing is watched; set it, or remove them"},
		{"quiesce: [{name: pcs}]", "quiesce, entry 1: 0 of der, modbus and http are given, want one"},
		{"quiesce: [{der: {}}]", "quiesce, entry 1: der.modbus is missing: address or serial of the unit"},
		{"quiesce: [{der: {modbus: {address: 'plant:502'}, dead_man: 7m}}]",
			"quiesce, entry 1: der.dead_man is 7m0s, and with der.timeout and rollback_timeout the power would come back in the middle of the trial; want at least 8m0s"},
		{"quiesce: [{der: {modbus: {address: 'plant:502'}, contactors: closed}}]", `quiesce, entry 1: der.contactors is "closed", want open or nothing`},
		{"quiesce: [{der: {modbus: {address: 'plant:502'}, timeout: 20m}}]", "timeout of quiesce, entry 1 is 20m0s, and with watchdog.max_call 10m0s the agent would count as stuck meanwhile; make one shorter or the other longer"},
		{"quiesce: [{name: a, der: {modbus: {address: 'plant:502'}}}, {name: b, der: {modbus: {address: 'plant:503'}}}, {name: c, http: {}}, {name: d, http: {}}]",
			"the sum of the timeouts of quiesce is 12m0s, and with watchdog.max_call 10m0s the agent would count as stuck meanwhile; make one shorter or the other longer"},
		{"soak: {time: 1h, checks: [{tcp: 'x:1', timeout: 20m}]}", "timeout of soak.checks, check 1 is 20m0s, and with watchdog.max_call 10m0s the agent would count as stuck meanwhile; make one shorter or the other longer"},
		{"battery: {reader: file, path: x, contactors: closed}\nquiesce: [{der: {modbus: {address: 'plant:502'}, contactors: open}}]",
			"quiesce, entry 1: der.contactors is open and battery.contactors closed: the gate would refuse every restart that was quiesced for, and open them for nothing each time"},
		{"battery: {reader: file, path: x, compare: [{reader: file, path: x}]}", "battery.compare[1] is an instrument that is there already, and it agrees with itself whatever it says; name another, or remove it"},
		{"battery: {reader: file, path: x, compare: [{reader: file, path: y}, {reader: file, path: y}]}", "battery.compare[2] is an instrument that is there already, and it agrees with itself whatever it says; name another, or remove it"},
		{"quiesce: [{modbus: {link: {address: 'plant:502'}, quiesce: [{unit: 300}]}}]", "quiesce, entry 1: modbus.quiesce: step 1: unit is 300, want 1 to 255"},
		{"battery: {reader: file}", "battery.path is missing: the file with the readings"},
		{"battery: {reader: http, url: nowhere}", `battery.url: "nowhere" is not an http or https URL`},
		{"battery: {reader: file, path: x, min_soc: 130}", "battery: guard the battery: thresholds: minimum state of charge is 130 %, want 0 to 100"},
		{"battery: {reader: file, path: x, max_age: 1h}", "battery: guard the battery: thresholds: "},
		{"windows: [always]", "windows, entry 1: "},
		{"health: [{tcp: here}]", `health, check 1: tcp: "here" is not host:port`},
		{"health: [{battery: full}]", `health, check 1: battery: "full" is not known, want fresh, as_before or within_limits`},
		{"health: [{name: nothing}]", "health, check 1: 0 of command, http, tcp and battery are given, want one"},
		{"health: [{tcp: 'a:1', http: 'http://a'}]", "health, check 1: 2 of command, http, tcp and battery are given, want one"},
		{"hooks: {suspend: {command: x}}", "hooks.suspend is set and hooks.resume is not: after a failed update nothing would start the plant again"},
		{"hooks: {event: {timeout: 3s}}", "hooks.event has a timeout and no command"},
		{"hooks: {resume: {command: x, timeout: 15m}}", "hooks.resume.timeout is 15m0s, and with watchdog.max_call 10m0s the agent would count as stuck meanwhile; make one shorter or the other longer"},
		{"suspend: never", `suspend is "never", want before_restart or before_check`},
		{"slot: {dir: slots}", "slot.kind is missing; known are " + strings.Join(slotKinds, ", ")},
		{"slot: {kind: tape}", `slot.kind "tape" is not known; known are ` + strings.Join(slotKinds, ", ")},
		{"slot: {kind: file}", "slot.dir is missing, or slot.components and slot.boot_file instead"},
		{"slot: {kind: file, dir: slots}", "nobody says which slot is booted: set slot.run, slot.booted.command or slot.booted.cmdline"},
		{"slot: {kind: file, dir: slots, booted: {cmdline: slot}}", "slot.reboot is missing: the command that restarts the device, for example [systemctl, reboot]"},
		{"slot: {kind: file, dir: slots, run: true}", "device.version and slot.run are given, and each says what the running version is; keep one"},
		{"rollback_timeout_ms: 0", "rollback_timeout_ms is 0, want more than 0"},
		{"validation_time: 6m", "configure the manager: ValidationTime 6m0s is not shorter than RollbackTimeout 5m0s"},
		{"logs: {level: loud}", `logs.level: "loud" is not known, want debug, info, warn or error`},
	} {
		t.Run(tt.line, func(t *testing.T) {
			path := filepath.Join(dir, "interlockd.yaml")
			if err := os.WriteFile(path, []byte(with(good, tt.line)), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := Load(path)
			want := "read the configuration " + path + ": " + tt.want
			if err == nil {
				var a *Agent
				if a, err = New(cfg); err == nil {
					a.Close()
					t.Fatal("it was accepted")
				}
				want = "configure the agent: " + strings.ReplaceAll(tt.want, "DIR", dir)
			}
			exact := !strings.HasSuffix(tt.want, ": ") && !strings.HasSuffix(tt.want, ", ") // the rest is somebody else's
			if got := err.Error(); exact && got != want || !strings.HasPrefix(got, want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	if err := os.WriteFile(filepath.Join(dir, "good.yaml"), []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(filepath.Join(dir, "good.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatalf("the good configuration: %v", err)
	}
	a.Close()
	if entries, err := os.ReadDir(dir); err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.IsDir() }) {
		t.Errorf("New left something behind: %v, %v", entries, err)
	}
}

// with replaces the line of config that has the same key, or adds line.
func with(config, line string) string {
	key, _, _ := strings.Cut(line, ":")
	lines := strings.Split(strings.TrimSuffix(config, "\n"), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, key+":") })
	if i < 0 {
		return config + line + "\n"
	}
	lines[i] = line
	return strings.Join(lines, "\n") + "\n"
}
