package fielddemo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/otatest"
)

// line is a way from a laptop to a device, with a tap on it.
type line struct {
	source string   // for the device's configuration
	bundle string   // that is pushed
	to     []string // for the laptop
	unit   int      // bytes that sent counts as one
	// How much was sent, and what was sent again after it was acknowledged.
	sent  func() int
	again func() []string
}

// disturbed is what a bad line does to frames.
func disturbed(seed uint64) bustest.Faults {
	return bustest.Faults{Seed: seed, Lose: 0.1, Double: 0.1, Reorder: 0.1}
}

// modbusBlock is the [bustest.Key] of a block of the register profile: FC 16, or the write
// of FC 23, to +100.
func modbusBlock(pdu []byte) (string, bool) {
	at := 0
	switch {
	case len(pdu) > 12 && pdu[0] == 16:
		at = 6
		if binary.BigEndian.Uint16(pdu[1:]) != 0xE100 {
			return "", false
		}
	case len(pdu) > 16 && pdu[0] == 23:
		at = 10
		if binary.BigEndian.Uint16(pdu[5:]) != 0xE100 {
			return "", false
		}
	default:
		return "", false
	}
	return fmt.Sprintf("block %d", binary.BigEndian.Uint32(pdu[at+2:])), true
}

// count is how many different blocks were sent so far.
func count(records []bustest.Record, tcp bool) int {
	blocks := map[string]bool{}
	for _, r := range records {
		pdu := r.Data
		switch {
		case r.From != bustest.Master:
			continue
		case tcp && len(r.Data) > 7:
			pdu = r.Data[7:]
		case !tcp && len(r.Data) > 3:
			pdu = r.Data[1 : len(r.Data)-2]
		}
		if block, ok := modbusBlock(pdu); ok {
			blocks[block] = true
		}
	}
	return len(blocks)
}

func modbusLine(source string, tap *bustest.Tap, tcp bool, to ...string) line {
	name := small
	if tcp {
		name = large
	}
	return line{source: source, bundle: name, unit: 224, to: append([]string{"modbus"}, to...),
		sent:  func() int { return count(tap.Records(), tcp) },
		again: func() []string { return bustest.AgainModbus(tap.Records(), tcp, modbusBlock) }}
}

// plainTCP is a connection that breaks at every tenth frame.
func plainTCP(t *testing.T, seed uint64) line {
	t.Helper()
	server, tap := otatest.FreeAddr(t), new(bustest.Tap)
	proxy, err := bustest.ProxyTo(server, bustest.ProxyConfig{Faults: bustest.Faults{Seed: seed, Cut: 0.1}, Delay: 5 * time.Millisecond, Tap: tap})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	return modbusLine(fmt.Sprintf("modbus: {listen: %q, allow_plain: true, allow: [127.0.0.1]}", server), tap, true, "--to", "tcp://"+proxy.Addr())
}

// rtu is a serial line with noise on it.
func rtu(t *testing.T, seed uint64, baud int) line {
	t.Helper()
	tap := new(bustest.Tap)
	laptop, laptopPath := bustest.PTY(t)
	device, devicePath := bustest.PTY(t)
	t.Cleanup(bustest.Relay(laptop, device, bustest.RelayConfig{Cut: bustest.RTU, Faults: disturbed(seed), Tap: tap}))
	return modbusLine(fmt.Sprintf("modbus: {serial: {device: %s, baud: %d, parity: even}}", devicePath, baud), tap, false,
		"--to", laptopPath, "--baud", fmt.Sprint(baud), "--parity", "even")
}

// slcan is a CAN bus with an adapter at each end.
func slcan(t *testing.T, w *workshop, seed uint64) line {
	t.Helper()
	tap := new(bustest.Tap)
	bus := bustest.NewCAN(bustest.CANConfig{Faults: disturbed(seed), Tap: tap})
	ctx, cancel := context.WithCancel(context.Background())
	var paths []string
	for _, name := range []string{"laptop", "device"} {
		port, path := bustest.PTY(t)
		adapter, node := can.NewAdapter(port, can.AdapterConfig{}), bus.Join(name)
		go pass(ctx, adapter, node)
		go pass(ctx, node, adapter)
		t.Cleanup(func() { adapter.Close() })
		paths = append(paths, path)
	}
	t.Cleanup(func() {
		cancel()
		bus.Close()
	})
	// A laptop that is busy may read an answer some time after it was on the bus.
	uds := func() (acknowledged int64, again []string) {
		acknowledged, _, again = bustest.AgainUDS(bustest.PDUs(tap.Records(), 0x18DA10F1, 0x18DAF110), "laptop", 500*time.Millisecond)
		return acknowledged, again
	}
	return line{bundle: tiny, unit: 1,
		source: fmt.Sprintf("canbus: {slcan: {device: %s}, tester_files: [%s]}", paths[1], filepath.Join(w.dir, "technician", "public.pem")),
		to:     []string{"can", "--to", "slcan:" + paths[0], "--key", "technician/private.pem"},
		sent:   func() int { n, _ := uds(); return int(n) },
		again:  func() []string { _, again := uds(); return again },
	}
}

// pass passes frames on until ctx ends.
func pass(ctx context.Context, from, to can.Bus) {
	for {
		f, err := from.Receive(ctx)
		if err == nil {
			err = to.Send(ctx, f)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// secure is Modbus Security. The tap is a party to it: it shows the device's certificate to
// the laptop, and one with the role to the device.
func secure(t *testing.T, seed uint64) line {
	t.Helper()
	dir := authority(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	pair := func(name string) tls.Certificate {
		c, err := tls.LoadX509KeyPair(file(name+".pem"), file(name+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	pem, err := os.ReadFile(file("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	asDevice, err := modbus.ServerTLS(pair("device"), roots)
	if err != nil {
		t.Fatal(err)
	}
	asLaptop, err := modbus.ClientTLS(pair("laptop"), roots, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	server, tap := otatest.FreeAddr(t), new(bustest.Tap)
	l, err := tls.Listen("tcp", "127.0.0.1:0", asDevice)
	if err != nil {
		t.Fatal(err)
	}
	proxy := bustest.NewProxy(l, func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: asLaptop}).DialContext(ctx, "tcp", server)
	}, bustest.ProxyConfig{Faults: bustest.Faults{Seed: seed, Cut: 0.1}, Delay: 5 * time.Millisecond, Tap: tap})
	t.Cleanup(func() { proxy.Close() })
	return modbusLine(fmt.Sprintf("modbus: {tls: {listen: %q, ca_file: %s, cert_file: %s, key_file: %s}}", server, file("ca.pem"), file("device.pem"), file("device-key.pem")),
		tap, true, "--to", "tls://"+proxy.Addr(), "--ca", file("ca.pem"), "--cert", file("laptop.pem"), "--key", file("laptop-key.pem"))
}

// authority makes certificates as docs/fieldbus.md says.
func authority(t *testing.T) (dir string) {
	t.Helper()
	manual, err := os.ReadFile("../../docs/fieldbus.md")
	if err != nil {
		t.Fatal(err)
	}
	openssl, dir := otatest.Tool(t, "openssl"), t.TempDir()
	for _, args := range certificates {
		if !strings.Contains(string(manual), "openssl "+args+"\n") {
			t.Errorf("docs/fieldbus.md does not say: openssl %s", args)
		}
		cmd := exec.Command(openssl, strings.Fields(args)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", args, err, out)
		}
	}
	return dir
}

// certificates are the commands of docs/fieldbus.md.
var certificates = []string{
	"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=site -keyout ca-key.pem -out ca.pem",
	"req -x509 -CA ca.pem -CAkey ca-key.pem -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=bess-07 -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1 -keyout device-key.pem -out device.pem",
	"req -x509 -CA ca.pem -CAkey ca-key.pem -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=laptop -addext basicConstraints=critical,CA:FALSE -addext 1.3.6.1.4.1.50316.802.1=ASN1:UTF8String:Updater -keyout laptop-key.pem -out laptop.pem",
}
