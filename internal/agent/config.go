package agent

import (
	"log/slog"
	"time"
)

// Config is what interlockd reads from its file; docs/configuration.md explains
// every field. Names in it never change. Fields without a stated default are
// required. Pointers tell "not given" from zero.
type Config struct {
	Device   Device `yaml:"device"`
	StateDir string `yaml:"state_dir"` // the record; default /var/lib/interlock

	Source  *Source  `yaml:"source"`  // either this
	Sources []Source `yaml:"sources"` // or several, of which the newest release that fits wins

	VerifySignature *bool `yaml:"verify_signature"` // default true
	VerifyMD5       bool  `yaml:"verify_md5"`       // default false; SHA-256 is always checked
	Keys            Keys  `yaml:"keys"`

	CheckInterval   Duration  `yaml:"check_interval"`    // default 0: never by itself
	CheckIntervalMS *int64    `yaml:"check_interval_ms"` // the same in ms, the specification's name
	StartupDelay    *Duration `yaml:"startup_delay"`     // before the check at boot; default 10s
	AutomaticUpdate bool      `yaml:"automatic_update"`  // default false

	AllowRollback     *bool     `yaml:"allow_rollback"`      // default true
	RollbackTimeout   Duration  `yaml:"rollback_timeout"`    // default 5m
	RollbackTimeoutMS *int64    `yaml:"rollback_timeout_ms"` // the same in ms, the specification's name
	ValidationTime    *Duration `yaml:"validation_time"`     // default 10s
	MaxTries          int       `yaml:"max_tries"`           // default 3

	Retries      *int     `yaml:"retries"`       // default 3
	RetryDelay   Duration `yaml:"retry_delay"`   // default 2s
	StallTimeout Duration `yaml:"stall_timeout"` // default 120s
	MaxBackoff   Duration `yaml:"max_backoff"`   // default 1h

	Soak Soak `yaml:"soak"`

	Suspend string    `yaml:"suspend"` // before_restart (default) or before_check
	Battery Battery   `yaml:"battery"`
	Dwell   *Duration `yaml:"dwell"`   // default 30s
	Windows []string  `yaml:"windows"` // see gate.ParseHours; default: always
	Health  []Health  `yaml:"health"`
	Quiesce []Quiesce `yaml:"quiesce"` // in this order, after hooks.suspend
	Hooks   Hooks     `yaml:"hooks"`

	Logs     Logs     `yaml:"logs"`
	Slot     Slot     `yaml:"slot"`
	Control  Control  `yaml:"control"`
	Watchdog Watchdog `yaml:"watchdog"`

	// For programs that have the agent as a library; not in the file.
	Log     *slog.Logger        `yaml:"-"` // takes the place of Logs' console
	Getenv  func(string) string `yaml:"-"` // for NOTIFY_SOCKET and the like; default: an empty environment
	Version string              `yaml:"-"` // of the agent's software, for the server; default "dev"
	Built   time.Time           `yaml:"-"` // of the agent's software, a lower bound of the time
	AWS     AWS                 `yaml:"-"` // what sources of kind aws_iot and logs.cloudwatch are made with; nil: there are none
}

// Device says which device this is.
type Device struct {
	ID              string `yaml:"id"` // unique in the fleet
	Product         string `yaml:"product"`
	Hardware        string `yaml:"hardware"`
	Version         string `yaml:"version"`      // that runs now, or
	VersionFile     string `yaml:"version_file"` // whose first line has it, or slot.run, which asks the firmware
	SecurityVersion uint64 `yaml:"security_version"`
}

// Source is one place that releases come from.
type Source struct {
	Kind   string        `yaml:"kind"` // https, aws_iot, modbus, canbus, media, sd_card, usb; default: that of the only section given
	HTTPS  *HTTPS        `yaml:"https"`
	AWSIoT *AWSIoT       `yaml:"aws_iot"`
	Modbus *ModbusServer `yaml:"modbus"`
	CANBus *CANServer    `yaml:"canbus"`
	Media  *Media        `yaml:"media"`
	SDCard *SDCard       `yaml:"sd_card"`
	USB    *USB          `yaml:"usb"`
}

// HTTPS configures package source/https.
type HTTPS struct {
	URL               string   `yaml:"url"`
	Kind              string   `yaml:"kind"`     // server (default), bundle, manifest
	CertPEM           string   `yaml:"cert_pem"` // CA certificates; default: the system's
	CertPEMFile       string   `yaml:"cert_pem_file"`
	BasicAuthUser     string   `yaml:"basic_auth_user"`
	BasicAuthPass     string   `yaml:"basic_auth_pass"`
	BasicAuthPassFile string   `yaml:"basic_auth_pass_file"`
	Token             string   `yaml:"token"`
	TokenFile         string   `yaml:"token_file"`
	ClientCertFile    string   `yaml:"client_cert_file"`
	ClientKeyFile     string   `yaml:"client_key_file"`
	AllowPlain        bool     `yaml:"allow_plain"`
	ReadBuffer        int      `yaml:"read_buffer"`
	ConnectTimeout    Duration `yaml:"connect_timeout"`
	ResponseTimeout   Duration `yaml:"response_timeout"`
}

// Media configures package source/media.
type Media struct {
	Path string   `yaml:"path"`
	Poll Duration `yaml:"poll"`
}

// SDCard is Media with the specification's name for the path.
type SDCard struct {
	FilePath string `yaml:"filepath"`
}

// USB is Media with the specification's name for the path.
type USB struct {
	DevicePath string `yaml:"device_path"`
}

// Keys are the public keys that releases must be signed with.
type Keys struct {
	Files        []string `yaml:"files"`
	PublicKeyPEM string   `yaml:"public_key_pem"` // the specification's name, for a key in place
	Threshold    int      `yaml:"threshold"`      // how many different keys must have signed; default 1
}

// Health is one check of the firmware on trial. Exactly one of Command, HTTP,
// TCP and Battery is set.
type Health struct {
	Name    string   `yaml:"name"`
	Command Command  `yaml:"command"` // healthy if it exits with 0
	HTTP    string   `yaml:"http"`    // healthy if the answer's status is 200 to 299
	TCP     string   `yaml:"tcp"`     // healthy if a connection is accepted
	Battery string   `yaml:"battery"` // "fresh": readings are back; "as_before": and as before the restart; "within_limits": and allow an update
	Timeout Duration `yaml:"timeout"` // default 10s
}

// Soak watches firmware that was proven and marked good, at work.
type Soak struct {
	Time        Duration `yaml:"time"`         // default 0: not at all
	SymptomTime Duration `yaml:"symptom_time"` // a check that fails for so long rolls back; default 30s
	Checks      []Health `yaml:"checks"`       // default: those of health
}

// Hooks are commands that the agent runs.
type Hooks struct {
	CheckStart Hook `yaml:"check_start"` // exit status 0: a check may begin
	Suspend    Hook `yaml:"suspend"`     // quiesce the plant
	Resume     Hook `yaml:"resume"`      // the opposite
	Event      Hook `yaml:"event"`       // for every change of status, one at a time, in order
}

// Hook is a command with a deadline.
type Hook struct {
	Command Command  `yaml:"command"`
	Timeout Duration `yaml:"timeout"` // default 60s
}

// Logs says where the log goes.
type Logs struct {
	Level   string   `yaml:"level"`   // debug, info (default), warn, error
	Console *bool    `yaml:"console"` // default true: standard error
	File    *LogFile `yaml:"file"`

	CloudWatch *CloudWatch `yaml:"cloudwatch"`
}

// LogFile is a log on a medium such as an SD card.
type LogFile struct {
	Path    string `yaml:"path"`
	MaxSize int64  `yaml:"max_size"` // bytes; default 1 MiB
	Files   int    `yaml:"files"`    // default 10
	Level   string `yaml:"level"`    // default: that of Logs
}

// Slot says where images go, and who boots them.
type Slot struct {
	Kind       string               `yaml:"kind"` // see slotKinds
	Dir        string               `yaml:"dir"`
	Components map[string][2]string `yaml:"components"` // files or block devices of slots A and B
	BootFile   string               `yaml:"boot_file"`
	Capacity   int64                `yaml:"capacity"` // bytes

	Run          bool     `yaml:"run"`           // this process boots the firmware itself
	Component    string   `yaml:"component"`     // the one that is run; default controller
	Factory      string   `yaml:"factory"`       // image for slot A of a directory that is not a device yet
	StartTimeout Duration `yaml:"start_timeout"` // until the firmware says its version; default 10s
	StopGrace    Duration `yaml:"stop_grace"`    // between asking it to stop and killing it; default 5s

	Unprotected bool `yaml:"unprotected"` // install although the bootloader was seen not to come back; default false

	Booted Booted  `yaml:"booted"` // who else knows what is booted
	Reboot Command `yaml:"reboot"` // restarts the device

	UBoot UBoot `yaml:"uboot"`
	GRUB  GRUB  `yaml:"grub"`
	ESP32 ESP32 `yaml:"esp32"`

	Tryboot Tryboot `yaml:"tryboot"`
	SDBoot  SDBoot  `yaml:"sdboot"`
}

// SDBoot configures package slot/sdboot.
type SDBoot struct {
	Dir     string     `yaml:"dir"`     // of the entries; default /efi/loader/entries
	Entries [2]SDEntry `yaml:"entries"` // of slots A and B
	Names   [2]string  `yaml:"names"`   // of the slots; default A and B
}

// SDEntry is how systemd-boot starts a slot.
type SDEntry struct {
	Name string `yaml:"name"` // without counters and .conf; default interlock-a and interlock-b
	Text string `yaml:"text"` // without sort-key and version
}

// UBoot configures package slot/uboot.
type UBoot struct {
	Scheme      string     `yaml:"scheme"`       // rauc (default) or mender
	Names       [2]string  `yaml:"names"`        // default A and B
	Attempts    int        `yaml:"attempts"`     // of a slot that is good, for rauc; default 3
	Parts       [2]int     `yaml:"parts"`        // numbers of the partitions, for mender
	Env         []EnvPlace `yaml:"env"`          // the copies, in the order of fw_env.config
	AllowSingle bool       `yaml:"allow_single"` // one copy only, which a power cut can lose
	Flags       string     `yaml:"flags"`        // incremental or boolean; default: as fw_setenv does
	BigEndian   bool       `yaml:"big_endian"`   // of the processor
	Lock        string     `yaml:"lock"`         // default /var/lock/fw_printenv.lock
}

// EnvPlace is a line of fw_env.config.
type EnvPlace struct {
	Path   string `yaml:"path"`
	Offset int64  `yaml:"offset"` // bytes
	Size   int64  `yaml:"size"`   // bytes
}

// ESP32 configures package slot/esp32.
type ESP32 struct {
	Flash         string   `yaml:"flash"`          // the whole flash of the chip
	TableOffset   uint32   `yaml:"table_offset"`   // bytes; default 0x8000
	FlashSize     int64    `yaml:"flash_size"`     // bytes; default: what flash has
	Rollback      bool     `yaml:"rollback"`       // how the bootloader was built
	AntiRollback  bool     `yaml:"anti_rollback"`  // the same
	SecureVersion uint32   `yaml:"secure_version"` // of the eFuses
	Chip          string   `yaml:"chip"`           // for example ESP32-S3; default: any
	Revision      uint16   `yaml:"revision"`       // major * 100 + minor; default: any
	KeyDigests    []string `yaml:"key_digests"`    // SHA-256 of Secure Boot keys, hexadecimal
}

// Tryboot configures package slot/tryboot.
type Tryboot struct {
	Autoboot   string `yaml:"autoboot"`   // default /boot/firmware/autoboot.txt
	Partitions [2]int `yaml:"partitions"` // numbers of the boot partitions of A and B; default 2 and 3

	BootComponent string `yaml:"boot_component"` // the boot partitions; looked at before they are tried
}

// GRUB configures package slot/grub.
type GRUB struct {
	Env   string    `yaml:"env"`   // the environment block; default /boot/grub/grubenv
	Env2  string    `yaml:"env2"`  // the second one; "none": there is one only
	Names [2]string `yaml:"names"` // default A and B
}

// Booted says how to find out which slot runs, if the agent does not boot it.
type Booted struct {
	Command Command `yaml:"command"` // prints A or B
	Cmdline string  `yaml:"cmdline"` // key on the kernel's command line whose value is A or B
}

// Control is the socket for the commands "interlock device".
type Control struct {
	Socket string `yaml:"socket"` // default /run/interlock/interlockd.sock; "none": no socket
}

// Watchdog bounds what the agent may be stuck in, and names the hardware that
// restarts a device which hangs as a whole.
type Watchdog struct {
	Device  string   `yaml:"device"`  // for example /dev/watchdog; default: none
	Timeout Duration `yaml:"timeout"` // from the last feeding to the restart; default 30s
	Hold    string   `yaml:"hold"`    // always (default), or trial: handed over once the firmware is good

	// MaxCall is how long one write, sync, hook or question may take before
	// systemd's watchdog and the hardware are no longer fed; default 10m.
	MaxCall Duration `yaml:"max_call"`
}

func orDefault[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

func valueOr[T any](p *T, byDefault T) T {
	if p == nil {
		return byDefault
	}
	return *p
}
