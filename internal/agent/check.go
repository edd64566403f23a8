package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/logfile"
)

// check refuses what is missing, and what is said twice.
func (c *Config) check() error {
	d := &c.Device
	for _, f := range []struct{ key, value string }{{"device.id", d.ID}, {"device.product", d.Product}} {
		if f.value == "" {
			return fmt.Errorf("%s is missing", f.key)
		}
		if err := ota.CheckName(f.value); err != nil {
			return fmt.Errorf("%s: %w", f.key, err)
		}
	}
	var versions []string
	for _, v := range []struct {
		key   string
		given bool
	}{{"device.version", d.Version != ""}, {"device.version_file", d.VersionFile != ""}, {"slot.run", c.Slot.Run}} {
		if v.given {
			versions = append(versions, v.key)
		}
	}
	switch {
	case len(versions) == 0:
		return errors.New("the running version is not known: set device.version, device.version_file, or slot.run, which asks the firmware")
	case len(versions) > 1:
		return fmt.Errorf("%s are given, and each says what the running version is; keep one", strings.Join(versions, " and "))
	case c.Source == nil && len(c.Sources) == 0:
		return errors.New("source is missing: where do releases come from?")
	case c.Source != nil && len(c.Sources) > 0:
		return errors.New("source and sources are both given; keep one")
	case c.CheckInterval != 0 && c.CheckIntervalMS != nil:
		return errors.New("check_interval and check_interval_ms are both given; keep one")
	case c.RollbackTimeout != 0 && c.RollbackTimeoutMS != nil:
		return errors.New("rollback_timeout and rollback_timeout_ms are both given; keep one")
	case c.CheckIntervalMS != nil && *c.CheckIntervalMS < 0:
		return fmt.Errorf("check_interval_ms is %d, want 0 or more", *c.CheckIntervalMS)
	case c.RollbackTimeoutMS != nil && *c.RollbackTimeoutMS <= 0:
		return fmt.Errorf("rollback_timeout_ms is %d, want more than 0", *c.RollbackTimeoutMS)
	case c.Retries != nil && *c.Retries < 0:
		return fmt.Errorf("retries is %d, want 0 or more", *c.Retries)
	case c.MaxTries < 0:
		return fmt.Errorf("max_tries is %d, want 1 or more", c.MaxTries)
	case c.Keys.Threshold < 0:
		return fmt.Errorf("keys.threshold is %d, want 1 or more", c.Keys.Threshold)
	}
	for name, h := range map[string]*Hook{"check_start": &c.Hooks.CheckStart, "suspend": &c.Hooks.Suspend, "resume": &c.Hooks.Resume, "event": &c.Hooks.Event} {
		if h.Timeout != 0 && len(h.Command) == 0 {
			return fmt.Errorf("hooks.%s has a timeout and no command", name)
		}
	}
	if err := c.Battery.check(); err != nil {
		return err
	}
	for i, q := range c.Quiesce {
		if q.DER != nil && q.DER.Contactors == "open" && c.Battery.Contactors == "closed" {
			return fmt.Errorf("quiesce, entry %d: der.contactors is open and battery.contactors closed: the gate would refuse every restart that was quiesced for, and open them for nothing each time", i+1)
		}
	}
	if c.Soak.Time > 0 && len(c.Soak.Checks) == 0 && len(c.Health) == 0 && !c.Slot.Run {
		return errors.New("soak.time is set, and neither soak.checks nor health says what to look at")
	}
	if c.Soak.Time == 0 && (c.Soak.SymptomTime != 0 || len(c.Soak.Checks) > 0) {
		return errors.New("soak.symptom_time or soak.checks is given, and without soak.time nothing is watched; set it, or remove them")
	}
	if err := c.Watchdog.check(); err != nil {
		return err
	}
	maxCall := orDefault(c.Watchdog.MaxCall, Duration(defaultMaxCall))
	for name, d := range c.timeouts() {
		if d >= maxCall {
			return fmt.Errorf("%s is %v, and with watchdog.max_call %v the agent would count as stuck meanwhile; make one shorter or the other longer", name, d, maxCall)
		}
	}
	if len(c.Hooks.Suspend.Command) > 0 && len(c.Hooks.Resume.Command) == 0 {
		return errors.New("hooks.suspend is set and hooks.resume is not: after a failed update nothing would start the plant again")
	}
	return c.Slot.check()
}

// timeouts are those of what the manager waits for, as they hold.
func (c *Config) timeouts() map[string]Duration {
	t := map[string]Duration{
		"battery.timeout": c.Battery.Timeout,
		"stall_timeout":   orDefault(c.StallTimeout, Duration(stallTimeout)),
	}
	for name, h := range map[string]*Hook{"check_start": &c.Hooks.CheckStart, "suspend": &c.Hooks.Suspend, "resume": &c.Hooks.Resume} {
		if len(h.Command) > 0 {
			t["hooks."+name+".timeout"] = orDefault(h.Timeout, Duration(hookTimeout))
		}
	}
	var all Duration // one call does all of them, and none of them is let off
	for i := range c.Quiesce {
		d := Duration(c.Quiesce[i].timeout())
		all += d
		t[fmt.Sprintf("timeout of quiesce, entry %d", i+1)] = d
	}
	if len(c.Quiesce) > 1 {
		t["the sum of the timeouts of quiesce"] = all
	}
	for i, h := range c.Health {
		t[fmt.Sprintf("timeout of health check %d", i+1)] = orDefault(h.Timeout, Duration(healthTimeout))
	}
	for i, h := range c.Soak.Checks {
		t[fmt.Sprintf("timeout of soak.checks, check %d", i+1)] = orDefault(h.Timeout, Duration(healthTimeout))
	}
	return t
}

// stallTimeout is the manager's default, see [ota.Config].
const stallTimeout = 2 * time.Minute

func (s *Slot) check() error {
	switch {
	case !slices.Contains(slotKinds, s.Kind): // makeSlots says what is wrong
		return nil
	case s.Kind != "file" && (s.Run || s.Dir != "" || s.BootFile != "" || s.Factory != ""):
		return fmt.Errorf("slot.run, slot.dir, slot.boot_file and slot.factory are for kind file, and the kind is %s; remove them", s.Kind)
	case s.Kind != "file" && len(s.Components) == 0 && s.Kind != "esp32":
		return errors.New("slot.components is missing: the files or block devices of slots A and B, for each component")
	case s.Kind == "file" && s.Dir == "" && (len(s.Components) == 0 || s.BootFile == ""):
		return errors.New("slot.dir is missing, or slot.components and slot.boot_file instead")
	case s.Run && (len(s.Booted.Command) > 0 || s.Booted.Cmdline != "" || len(s.Reboot) > 0):
		return errors.New("slot.run makes the agent the bootloader, so slot.booted and slot.reboot have nothing to say; remove them")
	case s.Run && len(s.Components) > 0 && s.Components[s.Component] == [2]string{}:
		return fmt.Errorf("slot.component is %s, and slot.components has only %s", s.Component, strings.Join(sortedKeys(s.Components), ", "))
	case s.Run:
		return nil
	case len(s.Booted.Command) > 0 && s.Booted.Cmdline != "":
		return errors.New("slot.booted.command and slot.booted.cmdline are both given; keep one")
	case len(s.Booted.Command) == 0 && s.Booted.Cmdline == "" && (s.Kind == "file" || s.Kind == "uboot" || s.Kind == "grub" || s.Kind == "sdboot"):
		return errors.New("nobody says which slot is booted: set slot.run, slot.booted.command or slot.booted.cmdline")
	case s.Kind == "tryboot" && (len(s.Booted.Command) > 0 || s.Booted.Cmdline != ""):
		return errors.New("slot.booted is given, and with kind tryboot the firmware says which slot is booted; remove it")
	case s.Kind == "tryboot" && len(s.Reboot) == 3 && s.Reboot[1] == "-c":
		return errors.New("slot.reboot is a line for the shell, and with kind tryboot it gets one more argument: write it as a list, [systemctl, reboot]")
	case len(s.Reboot) == 0:
		return errors.New("slot.reboot is missing: the command that restarts the device, for example [systemctl, reboot]")
	}
	return nil
}

// runningVersion reads the version of a device whose firmware the agent does not run.
func (d *Device) runningVersion() (string, error) {
	if d.VersionFile == "" {
		return d.Version, nil
	}
	b, err := readSmall(d.VersionFile)
	if err != nil {
		return "", fmt.Errorf("device.version_file: %w", err)
	}
	v := firstLine(b)
	if err := ota.CheckVersion(v); err != nil {
		return "", fmt.Errorf("device.version_file %s: %w", d.VersionFile, err)
	}
	return v, nil
}

func (c *Config) rollbackTimeout() time.Duration {
	if c.RollbackTimeoutMS != nil {
		return time.Duration(*c.RollbackTimeoutMS) * time.Millisecond
	}
	return time.Duration(c.RollbackTimeout)
}

func (c *Config) checkInterval() time.Duration {
	if c.CheckIntervalMS != nil {
		return time.Duration(*c.CheckIntervalMS) * time.Millisecond
	}
	return time.Duration(c.CheckInterval)
}

func suspendAt(s string) (ota.SuspendAt, error) {
	switch s {
	case "", "before_restart":
		return ota.SuspendBeforeRestart, nil
	case "before_check":
		return ota.SuspendBeforeCheck, nil
	}
	return 0, fmt.Errorf("suspend is %q, want before_restart or before_check", s)
}

// newLog makes the log, and the places it goes to that have to be closed: each is
// nil if it is not configured.
func newLog(c *Config) (file *logfile.Writer, cloud CloudLog, log *slog.Logger, err error) {
	level, err := logLevel(c.Logs.Level, slog.LevelInfo)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("logs.level: %w", err)
	}
	var handlers []slog.Handler
	if c.Log != nil {
		handlers = append(handlers, c.Log.Handler())
	} else if valueOr(c.Logs.Console, true) {
		handlers = append(handlers, slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	}
	// Where the log goes is told in the log: the rest of it is somewhere.
	var all atomic.Pointer[slog.Logger]
	if cloud, err = newCloudLog(c, level, func(err error) { toldOf(all.Load(), err) }); err != nil {
		return nil, nil, nil, err
	}
	if cloud != nil {
		handlers = append(handlers, cloud.Handler())
	}
	if f := c.Logs.File; f != nil {
		if f.Path == "" {
			return nil, nil, nil, errors.New("logs.file.path is missing")
		}
		fileLevel, err := logLevel(f.Level, level)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("logs.file.level: %w", err)
		}
		if file, err = logfile.New(logfile.Config{Path: f.Path, MaxSize: f.MaxSize, Files: f.Files, Level: fileLevel}); err != nil {
			return nil, nil, nil, fmt.Errorf("logs.file: %w", err)
		}
		handlers = append(handlers, file.Handler())
	}
	log = slog.New(logfile.Tee(handlers...))
	all.Store(log)
	return file, cloud, log, nil
}

// toldOf notes that the log does not get to CloudWatch, or does again.
func toldOf(log *slog.Logger, err error) {
	switch {
	case log == nil:
	case err != nil:
		log.Warn("the log does not get to CloudWatch; it is kept until it does", "error", err)
	default:
		log.Info("the log gets to CloudWatch again")
	}
}

func logLevel(s string, byDefault slog.Level) (slog.Level, error) {
	switch s {
	case "":
		return byDefault, nil
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is not known, want debug, info, warn or error", s)
}
