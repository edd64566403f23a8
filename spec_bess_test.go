package ota_test

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/otatest"
)

// The rows of the document "OTA Manager Module".

func TestSpecBESSErrorCodes(t *testing.T) {
	for _, row := range []struct {
		name   string
		number int
		text   string
		make   func(t *testing.T) error // an error of this kind, the way a device meets it
	}{
		{"NONE", 0, "no error", func(*testing.T) error { return nil }},
		{"NO_UPDATES", -1, "no updates available", offer(func(d *otatest.Device) { d.Source.Firmware = v100 })},
		{"CONNECTIVITY", -2, "cannot connect to update server", offer(func(d *otatest.Device) { d.Source.Err = errors.New("no route to host") })},
		{"SERVER", -3, "server error", offer(func(d *otatest.Device) { d.Source.Err = fmt.Errorf("%w: status 500", ota.ErrServer) })},
		{"AUTHENTICATION", -4, "authentication failed", offer(func(d *otatest.Device) { d.Source.Err = fmt.Errorf("%w: status 401", ota.ErrAuthentication) })},
		{"INSUFFICIENT_SPACE", -5, "not enough space for update", offer(func(d *otatest.Device) {
			d.Disk.Capacity, d.Source.Firmware = 1<<20, otatest.NewFirmware("1.0.1", 2<<20, true, true)
		})},
		{"VALIDATION_FAILED", -6, "signature/checksum validation failed", offer(func(d *otatest.Device) { d.Source.Change = func(m *ota.Manifest) { m.Format = 9 } })},
		{"FLASH_WRITE", -7, "error writing to flash", install(func(d *otatest.Device) {
			d.Disk.OnEffect = func(_ int, effect string) otatest.Fault {
				if effect[:5] == "write" && len(effect) > 14 && effect[:14] == "write /device/" {
					return otatest.Fault{Err: syscall.EIO}
				}
				return otatest.Fault{}
			}
		})},
		{"INCOMPATIBLE_VERSION", -8, "incompatible firmware version", offer(func(d *otatest.Device) { d.Source.Change = func(m *ota.Manifest) { m.Product = "toaster" } })},
		{"BATTERY_LOW", -9, "battery too low for update", install(battery(bms.Measured(22, 20, 25, 0, time.Now())))},
		{"BMS_UNSAFE", -10, "BMS reports unsafe condition", install(battery(bms.Measured(80, 20, 47, 0, time.Now())))},
		{"INTERNAL", -100, "internal error", func(*testing.T) error { return errors.New("anything else") }},
	} {
		t.Run("OTA_ERR_"+row.name, func(t *testing.T) {
			err := row.make(t)
			code := ota.CodeOf(err)
			if int(code) != row.number || code.Name() != row.name || code.Error() != row.text {
				t.Errorf("%v is %d %s %q, want %d %s %q", err, int(code), code.Name(), code.Error(), row.number, row.name, row.text)
			}
		})
	}
}

// offer returns the error with which a check ends on a device changed by change.
func offer(change func(*otatest.Device)) func(*testing.T) error {
	return command(change, (*ota.Manager).Check)
}

// install returns the error with which an installation ends.
func install(change func(*otatest.Device)) func(*testing.T) error {
	return command(change, (*ota.Manager).Install)
}

func command(change func(*otatest.Device), call func(*ota.Manager) *ota.Call) func(*testing.T) error {
	return func(t *testing.T) (err error) {
		device(t, func(t *testing.T, d *otatest.Device) {
			before := d.Config
			d.Config = func(c *ota.Config) { before(c); c.Automatic, c.StartupDelay, c.Retries = false, -1, -1 }
			change(d)
			background(t, d, func(m *ota.Manager) { err = call(m).Wait(t.Context()) })
		})
		return err
	}
}

func battery(r bms.Reading) func(*otatest.Device) {
	return func(d *otatest.Device) {
		before := d.Config
		d.Config = func(c *ota.Config) {
			before(c)
			guard, err := bms.New(func(context.Context) (bms.Reading, error) {
				r.At, r.Valid = time.Now(), true
				return r, nil
			}, bms.Default())
			if err != nil {
				panic(err) // the defaults are valid
			}
			c.Gate = guard.Gate
		}
	}
}

func TestSpecBESSConfigurationParameters(t *testing.T) {
	t.Run("check_interval_ms default 0 (disabled)", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.CheckInterval, c.StartupDelay = 0, -1 })
			if err := d.Live(t.Context(), 1000*time.Hour); err != nil {
				t.Fatal(err)
			}
			wantOrder(t, d, "")
		})
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.CheckInterval, c.StartupDelay = 24*time.Hour, -1 })
			d.Source.Firmware = v100
			if err := d.Live(t.Context(), 49*time.Hour); err != nil {
				t.Fatal(err)
			}
			wantOrder(t, d, "CheckStart UpToDate CheckStart UpToDate")
		})
	})
	t.Run("automatic_update default false", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.Automatic = (ota.Config{}).Automatic })
			if got := live(t, d); got.Status != ota.StatusUpdateAvailable || d.Source.Sent != 0 {
				t.Errorf("status %s after %d bytes, want UPDATE_AVAILABLE and none", got.Status, d.Source.Sent)
			}
			wantRunning(t, d, "1.0.0")
		})
		device(t, func(t *testing.T, d *otatest.Device) {
			live(t, d) // configure leaves Automatic at true
			wantRunning(t, d, "1.0.1")
		})
	})
	t.Run("verify_signature default true", func(t *testing.T) {
		// There is no manager without a verifier, and no verifier without keys.
		if _, err := ota.New(ota.Config{}); err == nil {
			t.Error("New accepted a configuration without Verify")
		}
		if _, err := new(bundle.Keys).Verify([]byte("{}")); !errors.Is(err, ota.ErrValidation) {
			t.Errorf("verify without keys: got %v, want ErrValidation", err)
		}
	})
	t.Run("allow_rollback default true", func(t *testing.T) {
		sick := otatest.NewFirmware("1.0.1", 21000, true, false)
		device(t, func(t *testing.T, d *otatest.Device) {
			live(t, d)
			wantRunning(t, d, "1.0.0")
			wantReport(t, d, ota.RolledBack, ota.ErrValidation, "no frames from the battery")
		}, sick)
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.NoRollback = true })
			if got := live(t, d); got.Status != ota.StatusTrial || got.CanRollBack {
				t.Errorf("status %s, can roll back %v; want TRIAL, still not marked good, and false", got.Status, got.CanRollBack)
			}
		}, sick)
	})
	t.Run("rollback_timeout_ms default 300000 (5 min)", func(t *testing.T) {
		device(t, func(t *testing.T, d *otatest.Device) {
			configure(d, func(c *ota.Config) { c.RollbackTimeout = 0 })
			var up, down time.Time
			d.AtStart = func(*ota.Manager) {
				if d.Running.Version == "1.0.1" {
					up = time.Now()
				} else if !up.IsZero() {
					down = time.Now()
				}
			}
			live(t, d)
			if got := down.Sub(up); got < 5*time.Minute || got > 5*time.Minute+time.Second {
				t.Errorf("the trial lasted %v, want 5m0s", got)
			}
		}, otatest.NewFirmware("1.0.1", 21000, true, false))
	})
	for _, row := range []struct {
		name    string
		no, yes bms.Reading
		code    ota.ErrorCode
	}{
		{"min_soc default 30%", bms.Measured(29.9, 20, 25, 0, time.Now()), bms.Measured(30, 20, 25, 0, time.Now()), ota.ErrBatteryLow},
		{"max_temperature default 45°C", bms.Measured(80, 20, 45.1, 0, time.Now()), bms.Measured(80, 20, 45, 0, time.Now()), ota.ErrBMSUnsafe},
		{"min_temperature default 0°C", bms.Measured(80, -0.1, 25, 0, time.Now()), bms.Measured(80, 0, 25, 0, time.Now()), ota.ErrBMSUnsafe},
		{"max_current default 10A", bms.Measured(80, 20, 25, -10.1, time.Now()), bms.Measured(80, 20, 25, 10, time.Now()), ota.ErrBMSUnsafe},
	} {
		t.Run(row.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				battery(row.no)(d)
				if got := live(t, d); got.Code != row.code || d.Source.Sent != 0 {
					t.Errorf("waits with %s after %d bytes, want %s and none", got.Code.Name(), d.Source.Sent, row.code.Name())
				}
				wantRunning(t, d, "1.0.0")
			})
			device(t, func(t *testing.T, d *otatest.Device) {
				battery(row.yes)(d)
				live(t, d)
				wantRunning(t, d, "1.0.1")
			})
		})
	}
}

func TestSpecBESSStateMachine(t *testing.T) {
	names := []string{"IDLE", "CHECKING", "UPDATE_AVAILABLE", "DOWNLOADING", "VERIFYING", "READY_TO_APPLY", "APPLYING", "COMPLETE", "REBOOTING", "FAILED", "ABORTED", "TRIAL", "ROLLING_BACK"}
	for i, want := range names {
		if got := ota.Status(i).String(); got != want {
			t.Errorf("status %d is %s, want %s", i, got, want)
		}
		var back ota.Status
		if err := back.UnmarshalText([]byte(want)); err != nil || back != ota.Status(i) {
			t.Errorf("%s reads back as %v, %v", want, back, err)
		}
	}
	for _, c := range []struct {
		name  string
		other otatest.Firmware
		want  []string
	}{
		{"a good release", v101, []string{"CHECKING", "UPDATE_AVAILABLE", "DOWNLOADING", "VERIFYING", "READY_TO_APPLY", "APPLYING",
			"REBOOTING", "TRIAL", "COMPLETE", "CHECKING", "IDLE"}},
		{"a release that is not healthy", otatest.NewFirmware("1.0.1", 21000, true, false), []string{"CHECKING", "UPDATE_AVAILABLE", "DOWNLOADING", "VERIFYING", "READY_TO_APPLY", "APPLYING",
			"REBOOTING", "TRIAL", "ROLLING_BACK", "FAILED", "CHECKING", "IDLE"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				configure(d, func(c *ota.Config) { c.CheckInterval = 0 })
				seen := statuses(d)
				live(t, d)
				if fmt.Sprint(*seen) != fmt.Sprint(c.want) {
					t.Errorf("statuses:\n got %v\nwant %v", *seen, c.want)
				}
			}, c.other)
		})
	}
}

// Hash Verification: MD5 and SHA256.
func TestSpecBESSHashVerification(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*ota.Image)
		check  bool
		want   string // version
		reason string
	}{
		{"SHA256 right", func(im *ota.Image) {}, false, "1.0.1", ""},
		{"SHA256 wrong", func(im *ota.Image) { im.SHA256[0] ^= 1 }, false, "1.0.0", "reads back with SHA-256"},
		{"MD5 right", func(im *ota.Image) { im.MD5 = fmt.Sprintf("%x", md5.Sum(v101.Image)) }, true, "1.0.1", ""},
		{"MD5 wrong", func(im *ota.Image) { im.MD5 = fmt.Sprintf("%x", md5.Sum(v100.Image)) }, true, "1.0.0", "has MD5"},
		{"MD5 wrong and not asked for", func(im *ota.Image) { im.MD5 = fmt.Sprintf("%x", md5.Sum(v100.Image)) }, false, "1.0.1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			device(t, func(t *testing.T, d *otatest.Device) {
				configure(d, func(cfg *ota.Config) { cfg.VerifyMD5 = c.check })
				d.Source.Change = func(m *ota.Manifest) { c.change(&m.Images[0]) }
				live(t, d)
				wantRunning(t, d, c.want)
				if c.reason != "" && !strings.Contains(d.Source.Reports[0].Reason, c.reason) {
					t.Errorf("reason %q, want %q", d.Source.Reports[0].Reason, c.reason)
				}
			})
		})
	}
}
