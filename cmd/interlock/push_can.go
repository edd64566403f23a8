package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/source/can/profile"
)

type pushCANCmd struct {
	pushFlags
	Key     string `placeholder:"PRIVATE.pem" help:"Private key of this tester, which the device knows: Ed25519 or P-256, as keygen makes them."`
	Bitrate int    `default:"500000" help:"Of the bus, in bit/s. Default: ${default}."`
	Share   int    `default:"50" help:"Percent of the bus that this may use. Default: ${default}."`
	Target  *byte  `placeholder:"ADDRESS" help:"Of the device, in identifiers of 29 bits. Default: 0x10."`
	Source  *byte  `placeholder:"ADDRESS" help:"Of this tester, in identifiers of 29 bits. Default: 0xF1."`
	TX      uint32 `name:"tx" placeholder:"ID" help:"Identifier to send with, instead of addresses: 0x7E0. More than 0x7FF has 29 bits."`
	RX      uint32 `name:"rx" placeholder:"ID" help:"Identifier that the device answers with: 0x7E8."`
	Baud    int    `default:"115200" help:"Of an adapter's serial port. Default: ${default}. On USB it does not matter."`
	Silent  bool   `help:"The adapter never answers, as some do."`

	Plain     bool   `group:"plain" help:"The device is a controller that knows UDS and nothing of bundles."`
	Address   uint32 `group:"plain" help:"Where the file goes in its memory."`
	Component string `group:"plain" help:"The image to send if the file is a bundle with several."`
	NoReset   bool   `group:"plain" help:"Do not restart it at the end."`
}

func (*pushCANCmd) Help() string {
	return `LINE is slcan:/dev/ttyACM0 for a serial adapter, can0 for a network interface of Linux, or tcp13://192.168.0.7:20001 for a converter from CAN to TCP with frames of 13 bytes. Interface and converter know their bit rate already.

The device is asked who it is, and whether it may be updated now; the release goes into it, is verified there, and installed when the battery allows it. A transfer that was interrupted goes on where it stopped. At most half of the bus is used, if --share does not say otherwise: the battery's own frames must get through.

With --plain the file is written as it is into a controller of another maker; of a bundle it is an image. Nobody asks the battery then, unless that controller does: see to it yourself that nothing is charged or discharged. Exit code 0 means then that it was written, not that it works; a transfer that broke begins again.

` + pushHelp + `Examples:

    interlock push can --to slcan:/dev/ttyACM0 --key tester/private.pem bess-1.2.0.bundle
    interlock push can --to can0 --tx 0x7E0 --rx 0x7E8 --status
    interlock push can --to tcp13://192.168.0.7:20001 --key tester/private.pem --precheck
    interlock push can --to can0 --tx 0x7E0 --rx 0x7E8 --plain --address 0x8000 module.bin`
}

// Run pushes over CAN.
func (c *pushCANCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	if c.Plain {
		return c.plain(ctx, e, cfg)
	}
	if c.Component != "" || c.Address != 0 || c.NoReset {
		return usage("--address, --component and --no-reset go with --plain: a device of ours decides that itself")
	}
	return c.pushFlags.run(ctx, e, func(context.Context) (push.Device, error) { return overcan.New(cfg) })
}

// config makes one of the flags.
func (c *pushCANCmd) config() (overcan.Config, error) {
	cfg := overcan.Config{Line: overcan.Line{To: c.To, Bitrate: c.Bitrate, Share: c.Share, Baud: c.Baud, Silent: c.Silent}}
	switch {
	case c.Share < 1 || c.Bitrate < 1 || c.Baud < 1: // 0 would be the default
		return cfg, usage("--share, --bitrate and --baud: got %d %%, %d and %d bit/s, want more than 0", c.Share, c.Bitrate, c.Baud)
	case (c.TX == 0) != (c.RX == 0):
		return cfg, usage("--tx and --rx go together")
	case c.TX != 0 && (c.Target != nil || c.Source != nil):
		return cfg, usage("--tx and --rx say the same as --target and --source: give one pair")
	case c.TX != 0:
		cfg.Line.Address = overcan.Address{TX: c.TX, RX: c.RX, Extended: max(c.TX, c.RX) > 0x7FF}
	default:
		target, source := byte(profile.DeviceAddress), byte(profile.TesterAddress)
		if c.Target != nil {
			target = *c.Target
		}
		if c.Source != nil {
			source = *c.Source
		}
		cfg.Line.Address = overcan.Fixed29(target, source)
	}
	if err := cfg.Line.Validate(); err != nil {
		return cfg, usage("%w", err)
	}
	if c.Key != "" {
		key, err := loadPrivateKey(c.Key)
		if err != nil {
			return cfg, err
		}
		cfg.Key = key
	}
	return cfg, nil
}

// plain writes a file into a controller of another maker.
func (c *pushCANCmd) plain(ctx context.Context, e *env, cfg overcan.Config) error {
	switch {
	case c.Status || c.Precheck || c.StageOnly || c.Abort:
		return usage("--status, --precheck, --abort and --stage-only are for devices of ours: a controller of another maker has no words for that")
	case c.File == "":
		return usage("the file is missing")
	}
	if c.Timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("%w, %v", push.ErrUnfinished, c.Timeout))
		defer cancel()
		ctx = limited
	}
	file, n, end, err := c.image()
	if err != nil {
		return err
	}
	defer end()
	d, err := overcan.New(cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	plan := d.Plan(n)
	if !c.JSON {
		e.say("%s", plan)
	}
	if err := c.accept(e)(plan); err != nil {
		return err
	}
	show, stop := e.progress("push", n)
	stuck := false
	err = d.SendPlain(ctx, file, n, overcan.Plain{Address: c.Address, NoReset: c.NoReset}, push.Tell{Progress: show, Trouble: func(err error) {
		if (err != nil) != stuck {
			stuck = err != nil
			e.say("%s", clean(or(errorText(err), "it goes on")))
		}
	}})
	stop()
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, push.ErrUnfinished) {
		return cause
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printLine(map[string]any{"event": "written", "done": n, "size": n})
	}
	fmt.Fprintf(e.stdout, "%s written at %#x; the controller does not say whether it works\n", size(n), c.Address)
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// image is what is to be written: a file as it is, or an image of a bundle.
func (c *pushCANCmd) image() (_ io.ReaderAt, size int64, end func(), err error) {
	f, err := os.Open(c.File)
	if err != nil {
		return nil, 0, nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, nil, err
	}
	end = func() { _ = f.Close() }
	magic := make([]byte, len(bundle.Magic))
	if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != bundle.Magic {
		if len(c.Trust) > 0 || c.Component != "" {
			return nil, 0, nil, fmt.Errorf("%s: %w: it is no bundle, so nobody has signed it", c.File, ota.ErrValidation)
		}
		return f, info.Size(), end, nil
	}
	b, err := bundle.Open(f, info.Size())
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%s: %w", c.File, err)
	}
	m, err := c.manifest(b)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%s: %w", c.File, err)
	}
	var names []string
	for i := range m.Images {
		names = append(names, m.Images[i].Component)
		if c.Component == m.Images[i].Component || c.Component == "" && len(m.Images) == 1 {
			r, err := b.Image(m, &m.Images[i])
			return r, m.Images[i].Size, end, err
		}
	}
	return nil, 0, nil, usage("--component: the bundle has images for %v", names)
}

// manifest is that of a bundle of which every byte was compared with it.
func (c *pushCANCmd) manifest(b *bundle.File) (*ota.Manifest, error) {
	verify := bundle.Unsigned
	if len(c.Trust) > 0 {
		keys, err := bundle.LoadKeys(c.Threshold, c.Trust...)
		if err != nil {
			return nil, err
		}
		verify = keys.Verify
	}
	m, err := verify(b.Signed())
	if err != nil {
		return nil, err
	}
	_, err = b.Check(m)
	return m, err
}
