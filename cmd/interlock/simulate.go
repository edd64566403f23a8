package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/interlock-energy/ota/bus/can/broadcast"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/internal/battery"
	"github.com/interlock-energy/ota/internal/simulate"
)

type simulateCmd struct {
	Battery simulateBatteryCmd `cmd:"" help:"A battery system on Modbus (SunSpec) and CAN."`
}

type simulateBatteryCmd struct {
	Listen string `placeholder:"ADDR" help:"Address of SunSpec over Modbus TCP; port 0 picks one. Default, if nothing else is served: 127.0.0.1:1502."`
	Unit   byte   `default:"1" placeholder:"N" help:"Modbus unit. Default: ${default}."`
	Base   uint16 `default:"40000" placeholder:"N" help:"Where the SunSpec map begins. Default: ${default}."`
	Cells  bool   `help:"Every cell too: model 805 for each module."`
	RTU    string `name:"rtu" placeholder:"PATH" help:"SunSpec over Modbus RTU on a serial device, or on a pseudo terminal: pty, or pty:LINK with a link to it."`
	Baud   int    `default:"9600" placeholder:"N" help:"Of a serial device for --rtu. Default: ${default}."`
	Parity string `default:"none" enum:"none,even,odd" placeholder:"P" help:"Of a serial device for --rtu: none, even or odd. Default: ${default}."`

	SLCAN   string `name:"slcan" placeholder:"PATH" help:"CAN frames, as an SLCAN adapter gives them, on a serial device, pty or pty:LINK."`
	CANTCP  string `name:"can-tcp" placeholder:"ADDR" help:"CAN frames, as a converter with frames of 13 bytes gives them."`
	Profile string `default:"pylon-lv" placeholder:"NAME" help:"Whose CAN frames. Default: ${default}."`
	HTTP    string `name:"http" placeholder:"ADDR" help:"The reading as JSON, and changes with PUT."`

	SoC         signed `name:"soc" default:"57.5" placeholder:"%" help:"State of charge at the start. Default: ${default}."`
	SoH         signed `name:"soh" default:"99" placeholder:"%" help:"State of health. Default: ${default}."`
	Current     signed `default:"-2.5" placeholder:"A" help:"Above 0 discharges. Default: ${default}."`
	Temperature signed `default:"28.7" placeholder:"°C" help:"Of the hottest module; the coldest is 4.6 K below. Default: ${default}."`
	Noise       bool   `help:"Let the measured values tremble."`
	Seed        uint64 `placeholder:"N" help:"Of the differences between cells, and of the noise. Default: ${default}." default:"0"`

	Fault  []string `placeholder:"NAME" help:"A fault from the beginning; several with commas, or again. See docs/simulator.md."`
	Script string   `placeholder:"STEPS" help:"What happens by itself: \"10s soc=22; 20s fault frozen\"."`
	Expose bool     `help:"Allow addresses that others can reach: whoever does may control the battery."`
}

func (*simulateBatteryCmd) Help() string {
	return `Serves a battery of 100 kW and 208 kWh that does not exist, for tests and for people without one: 13 modules of 16 cells, a converter that obeys set-points with a ramp and a dead-man, and faults on command. It ends with Ctrl-C.

Where it can be reached is printed first, one line each:

    serving sunspec on 127.0.0.1:1502 unit 1

While it runs, it takes commands on standard input: soc 22, current 11, temperature 46, contactors open, fault frozen, clear, faults, status, help. --script gives some of them beforehand, each after its time since the start: --script "10s soc=22; 20s fault silent; 40s clear".

Examples:

    interlock simulate battery --listen 127.0.0.1:1502 --soc 57.5
    interlock simulate battery --rtu pty:/tmp/rtu --slcan pty:/tmp/can --profile victron
    interlock simulate battery --listen 127.0.0.1:0 --fault frozen,sign-flip`
}

// signed is a number that may begin with a minus: --current -2.5. The parser would
// take that for a flag.
type signed float64

// Decode implements kong.MapperValue.
func (s *signed) Decode(ctx *kong.DecodeContext) error {
	t := ctx.Scan.Pop()
	if t.IsEOL() {
		return fmt.Errorf("want a number")
	}
	v, err := strconv.ParseFloat(t.String(), 64)
	if err != nil {
		return fmt.Errorf("got %q, want a number", t)
	}
	*s = signed(v)
	return nil
}

func (c *simulateBatteryCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	cfg.Log = func(err error) {
		select {
		case failed <- err:
		default: // the first one ends everything already
		}
	}
	s, err := simulate.Start(ctx, cfg)
	if err != nil {
		return hint(err, "interlock simulate battery --help")
	}
	defer s.Close()
	for _, at := range s.Endpoints() {
		if _, err := fmt.Fprintf(e.stdout, "serving %s on %s %s\n", at.What, at.Where, at.Detail); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	var tick <-chan time.Time
	if !e.quiet && onTerminal(e.stdout, e.getenv) {
		fmt.Fprintln(e.stdout, "type help for commands, Ctrl-C to end")
		fmt.Fprintln(e.stdout, s.Status())
		ticker := time.NewTicker(5 * time.Second)
		defer ticker.Stop()
		tick = ticker.C
	}
	lines := readLines(e)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-tick:
			fmt.Fprintln(e.stdout, s.Status())
		case line := <-lines: // never again after the end of standard input
			if err := c.obey(s, e, line); err != nil {
				fmt.Fprintln(e.stderr, clean(err.Error()))
			}
		}
	}
}

// readLines hands over the lines of standard input. Nothing can end a read of a
// terminal, so the goroutine stays until the process ends.
func readLines(e *env) <-chan string {
	lines := make(chan string)
	go func() {
		scanner := bufio.NewScanner(e.stdin)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
	}()
	return lines
}

// obey does one line of standard input.
func (c *simulateBatteryCmd) obey(s *simulate.System, e *env, line string) error {
	switch strings.TrimSpace(line) {
	case "":
		return nil
	case "help":
		fmt.Fprintf(e.stdout, "%s\nfaults                 which there are\nstatus                 what is so\n", simulate.Commands)
		return nil
	case "faults":
		for _, f := range simulate.Faults() {
			fmt.Fprintf(e.stdout, "%s\n    SunSpec: %s\n    CAN: %s\n", f.Name, f.SunSpec, f.CAN)
		}
		return nil
	case "status":
	default:
		command, err := simulate.Parse(line)
		if err != nil {
			return err
		}
		if err := s.Do(command); err != nil {
			return err
		}
	}
	fmt.Fprintln(e.stdout, s.Status())
	return nil
}

// config checks the command line.
func (c *simulateBatteryCmd) config() (simulate.Config, error) {
	if c.Listen == "" && c.RTU == "" && c.SLCAN == "" && c.CANTCP == "" && c.HTTP == "" {
		c.Listen = "127.0.0.1:1502"
	}
	for flag, address := range map[string]string{"--listen": c.Listen, "--can-tcp": c.CANTCP, "--http": c.HTTP} {
		if address != "" && !c.Expose && !loopback(address) {
			return simulate.Config{}, usage("%s: %s can be reached by others, who then control the battery; use 127.0.0.1, or say --expose", flag, address)
		}
	}
	if _, err := broadcast.Named(c.Profile); err != nil {
		return simulate.Config{}, usage("--profile: %w", err)
	}
	script, err := simulate.ParseScript(c.Script)
	if err != nil {
		return simulate.Config{}, usage("--script: %w", err)
	}
	for _, name := range c.Fault {
		if _, err := simulate.Parse("fault " + name); err != nil {
			return simulate.Config{}, usage("--fault: %w", err)
		}
	}
	start := simulate.Warmth(float64(c.Temperature))
	start.SoC, start.SoH, start.Current = (*float64)(&c.SoC), (*float64)(&c.SoH), (*float64)(&c.Current)
	b := battery.Config{Start: start, Noise: c.Noise, Seed: c.Seed}
	if _, err := battery.New(b); err != nil {
		return simulate.Config{}, usage("%w", err)
	}
	cfg := simulate.Config{Battery: b, SunSpec: c.Listen, Unit: c.Unit, Base: c.Base, Cells: c.Cells,
		RTU: line(c.RTU), SLCAN: line(c.SLCAN), CANTCP: c.CANTCP, Profile: c.Profile, HTTP: c.HTTP, Faults: c.Fault, Script: script}
	cfg.RTU.Baud, cfg.RTU.Parity = c.Baud, serial.Parity(c.Parity)
	return cfg, nil
}

// line reads PATH, pty or pty:LINK.
func line(flag string) simulate.Line {
	if link, ok := strings.CutPrefix(flag, "pty:"); ok {
		return simulate.Line{Path: "pty", Link: link}
	}
	return simulate.Line{Path: flag}
}

// loopback reports whether only this machine can reach an address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return true // it will be refused with a better reason
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
