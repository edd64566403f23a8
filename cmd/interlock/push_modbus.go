package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overmodbus"
)

type pushModbusCmd struct {
	Unit   byte   `default:"1" placeholder:"N" help:"The device's unit, 1 to 247. Default: ${default}."`
	Base   string `default:"0xE000" placeholder:"ADDRESS" help:"Where its registers for updates begin. Default: ${default}."`
	Window int    `default:"8" placeholder:"N" help:"Blocks on their way at once, over TCP and TLS; the device may want fewer. Default: ${default}."`

	Baud   int    `default:"9600" placeholder:"N" help:"Of a serial port. Default: ${default}."`
	Parity string `default:"none" enum:"none,even,odd" placeholder:"P" help:"Of a serial port: none, even or odd. Default: ${default}."`
	Stop   int    `default:"0" placeholder:"N" help:"Stop bits of a serial port, 1 or 2. Default: 1."`
	Echo   bool   `help:"The serial adapter hears what it sends."`

	Cert string `placeholder:"CERT.pem" help:"Certificate to show to the device, with the role in it. For tls."`
	Key  string `placeholder:"KEY.pem" help:"Its private key. For tls."`
	CA   string `name:"ca" placeholder:"CA.pem" help:"Authority that has signed the device's certificate. For tls."`
	Name string `placeholder:"NAME" help:"What the device's certificate is for, if that is not HOST. For tls."`

	pushFlags
}

func (*pushModbusCmd) Help() string {
	return `LINE is tcp://HOST or tcp://HOST:502, tls://HOST or tls://HOST:802, or a serial port such as /dev/ttyUSB0 or COM3.

` + pushHelp + `Over plain TCP a device takes a release only if its configuration allows that; over tls it looks for a role in the certificate. On a serial line, think of the time: 1 MiB takes 23 min at 9600 baud.

Examples:

    interlock push modbus --to tcp://192.168.1.5 bess-1.2.0.bundle
    interlock push modbus --to tls://192.168.1.5 --cert tech.pem --key tech.key --ca site.pem \
        --trust keys/public.pem --timeout 2h bess-1.2.0.bundle
    interlock push modbus --to /dev/ttyUSB0 --baud 115200 --parity even --unit 7 bess-1.2.0.bundle
    interlock push modbus --to tcp://192.168.1.5 --precheck`
}

// Run pushes over Modbus.
func (c *pushModbusCmd) Run(ctx context.Context, e *env) error {
	base, err := strconv.ParseUint(c.Base, 0, 16)
	if err != nil {
		return usage("--base: got %q, want an address from 0 to 0xFFFF, such as 0xE000", c.Base)
	}
	if c.Unit < 1 || c.Unit > 247 {
		return usage("--unit: got %d, want 1 to 247", c.Unit)
	}
	if c.Window < 1 || c.Window > 1000 {
		return usage("--window: got %d, want 1 to 1000", c.Window)
	}
	device := overmodbus.Config{Unit: c.Unit, Base: uint16(base)}
	if err := c.connect(&device); err != nil {
		return exitWith(exitUsage, err)
	}
	return c.pushFlags.run(ctx, e, func(context.Context) (push.Device, error) {
		d, err := overmodbus.New(device)
		if err != nil { // not as an interface that holds nothing
			return nil, exitWith(exitUsage, err)
		}
		return d, nil
	})
}

// connect makes the client, which connects when it is first needed.
func (c *pushModbusCmd) connect(device *overmodbus.Config) error {
	scheme, host, ok := strings.Cut(c.To, "://")
	if ok && c.Echo {
		return fmt.Errorf("--echo is for serial ports, got --to %s", c.To)
	}
	switch {
	case !ok:
		return c.connectSerial(device)
	case scheme != "tls" && c.Cert+c.Key+c.CA+c.Name != "":
		return fmt.Errorf("--cert, --key, --ca and --name are for tls://, got --to %s", c.To)
	case scheme == "tcp":
		return c.connectTCP(device, host, "502", nil)
	case scheme == "tls":
		config, err := c.tls()
		if err != nil {
			return err
		}
		return c.connectTCP(device, host, "802", config)
	}
	return fmt.Errorf("--to: got %s, want tcp://HOST, tls://HOST or the path of a serial port", c.To)
}

func (c *pushModbusCmd) connectTCP(device *overmodbus.Config, host, port string, config *tls.Config) error {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), port)
	}
	if name, _, err := net.SplitHostPort(host); err != nil || name == "" {
		return fmt.Errorf("--to: got %s, want a host after ://", c.To)
	}
	device.Window = c.Window
	device.Line = "Modbus TCP"
	if config != nil {
		device.Line = "Modbus TCP with TLS"
	}
	device.Client = modbus.NewTCP(nil, modbus.Config{Window: c.Window, Timeout: 2 * time.Second, Redial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		if config != nil {
			return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", host)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", host)
	}})
	return nil
}

// tls reads the certificates.
func (c *pushModbusCmd) tls() (*tls.Config, error) {
	if c.Cert == "" || c.Key == "" || c.CA == "" {
		return nil, fmt.Errorf("tls:// needs --cert and --key, which the device asks for, and --ca")
	}
	certificate, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("--cert %s and --key %s: %w", c.Cert, c.Key, err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--ca: there is no certificate in PEM in %s", c.CA)
	}
	return modbus.ClientTLS(certificate, pool, c.Name)
}

func (c *pushModbusCmd) connectSerial(device *overmodbus.Config) error {
	port := serial.Config{Path: c.To, Baud: c.Baud, Parity: serial.Parity(c.Parity), StopBits: c.Stop}
	if err := port.Validate(); err != nil {
		return err
	}
	if c.Cert+c.Key+c.CA+c.Name != "" {
		return fmt.Errorf("--cert, --key, --ca and --name are for tls://, got --to %s", c.To)
	}
	bits := 1 + 8 + max(1, c.Stop)
	if port.Parity != serial.None {
		bits++
	}
	device.Line = fmt.Sprintf("%d baud", c.Baud)
	device.Rate = overmodbus.RTURate(c.Baud, bits)
	device.Client = modbus.NewRTU(nil, modbus.Config{Baud: c.Baud, Echo: c.Echo, Redial: func(context.Context) (io.ReadWriteCloser, error) {
		return serial.Open(port)
	}})
	return nil
}
