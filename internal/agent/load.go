package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// Load reads the configuration file at path. A key that is not known is an
// error with its line and the key that was probably meant, for a misspelt limit
// must not be a limit that is not set. Relative paths in the file are relative
// to the file's directory. What the values mean together is checked by [New].
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("it is more than %d bytes", maxConfig)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	cfg, err := parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	cfg.resolve(dir)
	return cfg, nil
}

func parse(b []byte) (cfg Config, err error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	err = d.Decode(&cfg)
	if errors.Is(err, io.EOF) {
		return cfg, errors.New("it is empty")
	}
	if err == nil && !errors.Is(d.Decode(new(yaml.Node)), io.EOF) {
		return cfg, errors.New("a second document follows after ---; only one is read")
	}
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		for i, e := range te.Errors {
			te.Errors[i] = plain(e)
		}
		return cfg, errors.New(strings.Join(te.Errors, "; "))
	}
	if err != nil {
		return cfg, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return cfg, nil
}

var (
	unknownField = regexp.MustCompile(`^(line \d+): field (.*) not found in type agent\.(\w+)$`)
	twice        = regexp.MustCompile(`^(line \d+): mapping key "(.*)" already defined at line (\d+)$`)
	wrongType    = regexp.MustCompile("^(line \\d+): cannot unmarshal !!(\\w+)(?: `(.*)`)? into (.*)$")
)

// plain says an error of the YAML package to people who do not write Go.
func plain(e string) string {
	if m := unknownField.FindStringSubmatch(e); m != nil {
		known := knownKeys[m[3]]
		where := ""
		if m[3] != "Config" {
			where = " in this section"
		}
		if near := nearest(m[2], known); near != "" {
			return fmt.Sprintf("%s: unknown key %q%s; did you mean %q?", m[1], m[2], where, near)
		}
		return fmt.Sprintf("%s: unknown key %q%s; known are %s", m[1], m[2], where, strings.Join(known, ", "))
	}
	if m := twice.FindStringSubmatch(e); m != nil {
		return fmt.Sprintf("%s: key %q is there already, in line %s", m[1], m[2], m[3])
	}
	if m := wrongType.FindStringSubmatch(e); m != nil {
		got := map[string]string{"map": "a section", "seq": "a list", "str": "text", "int": "a number", "float": "a number with a point", "bool": "true or false"}[m[2]]
		if m[3] != "" {
			got = fmt.Sprintf("%q", m[3])
		}
		return fmt.Sprintf("%s: got %s, want %s", m[1], got, kindOf(m[4]))
	}
	return e
}

func kindOf(goType string) string {
	switch {
	case goType == "bool":
		return "true or false"
	case goType == "string":
		return "text"
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a whole number"
	case strings.HasPrefix(goType, "float"):
		return "a number"
	case strings.HasPrefix(goType, "[]"), strings.HasPrefix(goType, "[2]"):
		return "a list"
	}
	return "a section with keys"
}

// knownKeys are the keys of each section, by the name of its type. A test
// compares them with the types.
var knownKeys = map[string][]string{
	"Config": {"device", "state_dir", "source", "sources", "verify_signature", "verify_md5", "keys", "check_interval", "check_interval_ms", "startup_delay",
		"automatic_update", "allow_rollback", "rollback_timeout", "rollback_timeout_ms", "validation_time", "max_tries", "retries", "retry_delay",
		"stall_timeout", "max_backoff", "soak", "suspend", "battery", "dwell", "windows", "health", "quiesce", "hooks", "logs", "slot", "control", "watchdog"},
	"Device": {"id", "product", "hardware", "version", "version_file", "security_version"},
	"Source": {"kind", "https", "aws_iot", "modbus", "canbus", "media", "sd_card", "usb"},
	"HTTPS": {"url", "kind", "cert_pem", "cert_pem_file", "basic_auth_user", "basic_auth_pass", "basic_auth_pass_file", "token", "token_file",
		"client_cert_file", "client_key_file", "allow_plain", "read_buffer", "connect_timeout", "response_timeout"},
	"AWSIoT": {"endpoint", "thing", "client_id", "topic", "jobs_prefix", "cert_pem", "cert_pem_file", "client_cert_file", "client_key_file",
		"download_cert_pem_file", "code_signing_files", "max_file", "step_timeout", "keepalive", "session_expiry", "status_interval",
		"connect_timeout", "allow_plain"},
	"ModbusServer": {"listen", "tls", "serial", "device_id", "function_code", "register_addr", "allow_plain", "allow", "idle_timeout", "window",
		"max_file", "consent"},
	"ModbusServerTLS": {"listen", "ca_file", "cert_file", "key_file", "roles"},
	"CANServer": {"interface", "slcan", "tcp", "bitrate", "address", "tester_address", "priority", "can_id", "answer_id", "bus_share", "block_size",
		"st_min", "tester_files", "allow_open", "max_file", "consent"},
	"Media":  {"path", "poll"},
	"SDCard": {"filepath"},
	"USB":    {"device_path"},
	"Keys":   {"files", "public_key_pem", "threshold"},
	"Soak":   {"time", "symptom_time", "checks"},
	"Battery": {"reader", "path", "url", "modbus", "sunspec", "can", "compare", "timeout", "poll", "rules", "min_soc", "max_soc", "max_temperature",
		"min_temperature", "max_temperature_rate", "max_current", "min_cell", "max_cell", "max_cell_delta", "max_age", "heartbeat", "standby",
		"contactors", "remote_control", "require_alarms", "ignore_alarms", "max_uncounted", "rated_capacity", "agreement", "keep"},
	"Instrument": {"reader", "path", "url", "modbus", "sunspec", "can"},
	"Agreement":  {"soc", "temperature", "current", "current_share"},
	"Keep":       {"min_soc", "max_soc", "min_temperature", "max_temperature", "max_current", "max_cell_delta"},
	"Modbus":     {"address", "tls", "serial", "unit", "timeout", "retries"},
	"ModbusTLS":  {"ca_file", "cert_file", "key_file", "server_name"},
	"Serial":     {"device", "baud", "parity", "stop_bits"},
	"SunSpec":    {"base", "directions", "patience"},
	"CAN":        {"interface", "slcan", "tcp", "profile", "address", "rated_current", "reverse_current", "first_module", "silent", "frozen_after"},
	"SLCAN":      {"device", "baud", "bitrate", "never_answers"},
	"Quiesce":    {"name", "der", "modbus", "http"},
	"DER": {"modbus", "base", "control", "dead_man", "no_dead_man", "rated_power", "ramp", "max_power", "max_current", "settle", "timeout",
		"contactors"},
	"WriteList":   {"link", "quiesce", "resume", "timeout"},
	"Step":        {"unit", "address", "values", "single", "expect", "command", "wait"},
	"Wait":        {"unit", "address", "input", "mask", "signed", "min", "max", "within", "for"},
	"QuiesceHTTP": {"quiesce", "resume", "token_file", "ca_file", "timeout"},
	"Health":      {"name", "command", "http", "tcp", "battery", "timeout"},
	"Hooks":       {"check_start", "suspend", "resume", "event"},
	"Hook":        {"command", "timeout"},
	"Logs":        {"level", "console", "file", "cloudwatch"},
	"LogFile":     {"path", "max_size", "files", "level"},
	"CloudWatch": {"group", "stream", "region", "endpoint", "create_group", "level", "every", "max_spool", "namespace", "metrics_every",
		"credential_endpoint", "role_alias", "thing", "client_cert_file", "client_key_file", "credentials_file", "profile", "cert_pem_file"},
	"Slot":     {"kind", "dir", "components", "boot_file", "capacity", "run", "component", "factory", "start_timeout", "stop_grace", "unprotected", "booted", "reboot", "uboot", "grub", "esp32", "tryboot", "sdboot"},
	"UBoot":    {"scheme", "names", "attempts", "parts", "env", "allow_single", "flags", "big_endian", "lock"},
	"EnvPlace": {"path", "offset", "size"},
	"ESP32":    {"flash", "table_offset", "flash_size", "rollback", "anti_rollback", "secure_version", "chip", "revision", "key_digests"},
	"Tryboot":  {"autoboot", "partitions", "boot_component"},
	"SDBoot":   {"dir", "entries", "names"},
	"SDEntry":  {"name", "text"},
	"GRUB":     {"env", "env2", "names"},
	"Booted":   {"command", "cmdline"},
	"Control":  {"socket"},
	"Watchdog": {"device", "timeout", "hold", "max_call"},
}

// nearest returns the known word that s is a misspelling of, if one is near.
func nearest(s string, known []string) string {
	best, distance := "", 1+max(1, len(s)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(s), k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance is that of Levenshtein.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// resolve makes relative paths absolute, so that it does not matter where the
// agent was started.
func (c *Config) resolve(dir string) {
	paths := []*string{&c.StateDir, &c.Device.VersionFile, &c.Slot.Dir, &c.Slot.BootFile, &c.Slot.Factory, &c.Watchdog.Device}
	if c.Control.Socket != noSocket {
		paths = append(paths, &c.Control.Socket)
	}
	for i := range c.Keys.Files {
		paths = append(paths, &c.Keys.Files[i])
	}
	paths = append(paths, &c.Slot.GRUB.Env, &c.Slot.ESP32.Flash, &c.Slot.Tryboot.Autoboot, &c.Slot.SDBoot.Dir)
	if c.Slot.GRUB.Env2 != "none" {
		paths = append(paths, &c.Slot.GRUB.Env2)
	}
	for i := range c.Slot.UBoot.Env {
		paths = append(paths, &c.Slot.UBoot.Env[i].Path)
	}
	for name, slots := range c.Slot.Components {
		for i := range slots {
			abs(dir, &slots[i])
		}
		c.Slot.Components[name] = slots
	}
	if c.Logs.File != nil {
		paths = append(paths, &c.Logs.File.Path)
	}
	if w := c.Logs.CloudWatch; w != nil {
		paths = append(paths, &w.ClientCertFile, &w.ClientKeyFile, &w.CredentialsFile, &w.CertPEMFile)
	}
	sources := slices.Clone(c.Sources)
	if c.Source != nil {
		sources = append(sources, *c.Source)
	}
	for _, s := range sources { // the sections are pointers
		if h := s.HTTPS; h != nil {
			paths = append(paths, &h.CertPEMFile, &h.BasicAuthPassFile, &h.TokenFile, &h.ClientCertFile, &h.ClientKeyFile)
		}
		if i := s.AWSIoT; i != nil {
			paths = append(paths, &i.CertPEMFile, &i.ClientCertFile, &i.ClientKeyFile, &i.DownloadCertPEMFile)
			for n := range i.CodeSigningFiles {
				paths = append(paths, &i.CodeSigningFiles[n])
			}
		}
		if b := s.Modbus; b != nil {
			if b.TLS != nil {
				paths = append(paths, &b.TLS.CAFile, &b.TLS.CertFile, &b.TLS.KeyFile)
			}
			if b.Serial != nil {
				paths = append(paths, &b.Serial.Device)
			}
		}
		if b := s.CANBus; b != nil {
			if b.SLCAN != nil {
				paths = append(paths, &b.SLCAN.Device)
			}
			for n := range b.TesterFiles {
				paths = append(paths, &b.TesterFiles[n])
			}
		}
		if s.Media != nil {
			paths = append(paths, &s.Media.Path)
		}
		if s.SDCard != nil {
			paths = append(paths, &s.SDCard.FilePath)
		}
		if s.USB != nil {
			paths = append(paths, &s.USB.DevicePath)
		}
	}
	for _, in := range append([]Instrument{c.Battery.instrument()}, c.Battery.Compare...) { // so are these
		paths = append(paths, in.Modbus.paths()...)
		if in.CAN != nil && in.CAN.SLCAN != nil {
			paths = append(paths, &in.CAN.SLCAN.Device)
		}
	}
	paths = append(paths, &c.Battery.Path)
	for i := range c.Battery.Compare {
		paths = append(paths, &c.Battery.Compare[i].Path)
	}
	for _, q := range c.Quiesce {
		switch {
		case q.DER != nil:
			paths = append(paths, q.DER.Modbus.paths()...)
		case q.Modbus != nil:
			paths = append(paths, q.Modbus.Link.paths()...)
		case q.HTTP != nil:
			paths = append(paths, &q.HTTP.TokenFile, &q.HTTP.CAFile)
		}
	}
	for _, p := range paths {
		abs(dir, p)
	}
}

func abs(dir string, p *string) {
	if *p != "" && !filepath.IsAbs(*p) {
		*p = filepath.Join(dir, *p)
	}
}
