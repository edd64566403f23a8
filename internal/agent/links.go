package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/bus/serial"
)

// Modbus says how a Modbus unit is reached. One of Address and Serial is given.
type Modbus struct {
	Address string     `yaml:"address"` // host:port of a TCP server
	TLS     *ModbusTLS `yaml:"tls"`     // Modbus Security; default: plain
	Serial  *Serial    `yaml:"serial"`  // an RTU line
	Unit    int        `yaml:"unit"`    // default 1
	Timeout Duration   `yaml:"timeout"` // of one request; default 500ms
	Retries *int       `yaml:"retries"` // default 1
}

// ModbusTLS is Modbus over TLS, with certificates on both sides.
type ModbusTLS struct {
	CAFile     string `yaml:"ca_file"`
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"` // in the server's certificate; default: the host of address
}

// Serial is a serial line.
type Serial struct {
	Device   string `yaml:"device"`
	Baud     int    `yaml:"baud"`      // default 9600
	Parity   string `yaml:"parity"`    // none (default), even or odd
	StopBits int    `yaml:"stop_bits"` // 1 (default) or 2
}

func (s *Serial) config() serial.Config {
	return serial.Config{Path: s.Device, Baud: s.Baud, Parity: serial.Parity(s.Parity), StopBits: s.StopBits}
}

// links are the connections to the plant. Several parts of the agent talk to the
// same units, and a serial line has room for one owner, so they share them.
type links struct {
	mu     sync.Mutex
	shared map[string]*link
}

type link struct {
	how    any // what the configuration says of it, without the unit
	client *modbus.Client
}

const (
	modbusTimeout = 500 * time.Millisecond
	modbusDial    = 3 * time.Second
)

// unit returns the unit that m names. Nothing is connected yet.
func (l *links) unit(m *Modbus) (modbus.Unit, error) {
	if m == nil {
		return modbus.Unit{}, errors.New("modbus is missing: address or serial of the unit")
	}
	id := orDefault(m.Unit, 1)
	if id < 1 || id > 255 {
		return modbus.Unit{}, fmt.Errorf("modbus.unit is %d, want 1 to 255", id)
	}
	how := *m
	how.Unit = 0
	key := m.name()
	if m.Serial != nil {
		key = realPath(key)
		line := *m.Serial
		line.Device, how.Serial = key, &line
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.shared[key]; ok {
		if !reflect.DeepEqual(old.how, how) {
			return modbus.Unit{}, fmt.Errorf("modbus: %s is used twice, with different settings; a connection has one", m.name())
		}
		return old.client.Unit(byte(id)), nil
	}
	client, err := m.client()
	if err != nil {
		return modbus.Unit{}, err
	}
	if l.shared == nil {
		l.shared = map[string]*link{}
	}
	l.shared[key] = &link{how, client}
	return client.Unit(byte(id)), nil
}

// devices are the serial lines among them.
func (l *links) devices() (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, s := range l.shared {
		if m, ok := s.how.(Modbus); ok && m.Serial != nil {
			list = append(list, key)
		}
	}
	slices.Sort(list)
	return list
}

// paths are those of files and devices; m may be nil.
func (m *Modbus) paths() (paths []*string) {
	if m == nil {
		return nil
	}
	if m.TLS != nil {
		paths = append(paths, &m.TLS.CAFile, &m.TLS.CertFile, &m.TLS.KeyFile)
	}
	if m.Serial != nil {
		paths = append(paths, &m.Serial.Device)
	}
	return paths
}

func (m *Modbus) name() string {
	if m.Serial != nil {
		return m.Serial.Device
	}
	return m.Address
}

// client makes a client that connects when it is first asked.
func (m *Modbus) client() (*modbus.Client, error) {
	c := modbus.Config{Timeout: time.Duration(orDefault(m.Timeout, Duration(modbusTimeout))), Retries: valueOr(m.Retries, 1)}
	if c.Retries <= 0 {
		c.Retries = -1
	}
	switch {
	case m.Address == "" && m.Serial == nil:
		return nil, errors.New("modbus.address and modbus.serial are missing; one of them says where the unit is")
	case m.Address != "" && m.Serial != nil:
		return nil, errors.New("modbus.address and modbus.serial are both given; keep one")
	case m.Serial != nil:
		if m.TLS != nil {
			return nil, errors.New("modbus.tls is given, and a serial line has none; remove it")
		}
		line := m.Serial.config()
		if line.Path == "" {
			return nil, errors.New("modbus.serial.device is missing, for example /dev/ttyUSB0")
		}
		if err := line.Validate(); err != nil {
			return nil, fmt.Errorf("modbus.serial: %w", err)
		}
		c.Baud = orDefault(line.Baud, 9600)
		c.Redial = func(context.Context) (io.ReadWriteCloser, error) { return serial.Open(line) }
		return modbus.NewRTU(nil, c), nil
	}
	if !strings.Contains(m.Address, ":") {
		return nil, fmt.Errorf("modbus.address is %q, want host:port, for example %s:502", m.Address, m.Address)
	}
	var security *tls.Config
	if m.TLS != nil {
		var err error
		if security, err = m.TLS.config(m.Address); err != nil {
			return nil, err
		}
	}
	c.Redial = func(ctx context.Context) (io.ReadWriteCloser, error) {
		ctx, cancel := context.WithTimeout(ctx, modbusDial)
		defer cancel()
		var plain net.Dialer
		if security == nil {
			return plain.DialContext(ctx, "tcp", m.Address)
		}
		return (&tls.Dialer{NetDialer: &plain, Config: security}).DialContext(ctx, "tcp", m.Address)
	}
	return modbus.NewTCP(nil, c), nil
}

func (t *ModbusTLS) config(address string) (*tls.Config, error) {
	pair, pool, err := readTLS("modbus.tls", t.CAFile, t.CertFile, t.KeyFile)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("modbus.address: %w", err)
	}
	config, err := modbus.ClientTLS(pair, pool, orDefault(t.ServerName, host))
	if err != nil {
		return nil, fmt.Errorf("modbus.tls: %w", err)
	}
	return config, nil
}

// readTLS reads the certificates of a connection on which both sides show one. section is
// where they are configured.
func readTLS(section, ca, cert, key string) (pair tls.Certificate, pool *x509.CertPool, err error) {
	var pems [3][]byte
	for i, f := range []struct{ key, path string }{{"ca_file", ca}, {"cert_file", cert}, {"key_file", key}} {
		if f.path == "" {
			return pair, nil, fmt.Errorf("%s.%s is missing: both sides show certificates", section, f.key)
		}
		if pems[i], err = readSmall(f.path); err != nil {
			return pair, nil, fmt.Errorf("%s.%s: %w", section, f.key, err)
		}
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pems[0]) {
		return pair, nil, fmt.Errorf("%s.ca_file: %s has no certificate", section, ca)
	}
	if pair, err = tls.X509KeyPair(pems[1], pems[2]); err != nil {
		return pair, nil, fmt.Errorf("%s: %s and %s: %w", section, cert, key, err)
	}
	return pair, pool, nil
}

func (l *links) close() (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.shared {
		err = errors.Join(err, s.client.Close())
	}
	l.shared = nil
	return err
}
