package awsiot

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

var (
	thingName = regexp.MustCompile(`^[a-zA-Z0-9:_-]{1,128}$`) // API reference, DescribeThing
	jobName   = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)   // API reference, UpdateJobExecution
)

// complete checks cfg and fills in what is left out.
func (cfg *Config) complete() (*tls.Config, error) {
	host, port, err := net.SplitHostPort(cfg.Endpoint)
	if err != nil {
		host, port = strings.Trim(cfg.Endpoint, "[]"), defaultPort
	}
	if _, err := strconv.ParseUint(port, 10, 16); host == "" || strings.ContainsAny(host, "/ ") || err != nil {
		return nil, fmt.Errorf("endpoint %q: want host or host:port, as \"aws iot describe-endpoint --endpoint-type iot:Data-ATS\" says it", cfg.Endpoint)
	}
	cfg.Endpoint = net.JoinHostPort(host, port)
	if !thingName.MatchString(cfg.Thing) {
		return nil, fmt.Errorf("thing %q: want 1 to 128 of a-z, A-Z, 0-9 and :_-", cfg.Thing)
	}
	if cfg.ClientID == "" {
		cfg.ClientID = cfg.Thing
	}
	if cfg.JobsPrefix == "" {
		cfg.JobsPrefix = "$aws/things/" + cfg.Thing + "/jobs"
	}
	for _, t := range []struct{ name, v string }{{"topic", cfg.Topic}, {"jobs prefix", cfg.JobsPrefix}} {
		if strings.ContainsAny(t.v, "+#\x00") || len(t.v) > 200 || strings.HasSuffix(t.v, "/") {
			return nil, fmt.Errorf("%s %q: want a topic without + and #, and without a slash at its end, of at most 200 bytes", t.name, t.v)
		}
	}
	if err := ota.CheckName(cfg.Product); err != nil {
		return nil, fmt.Errorf("product: %w", err)
	}
	if cfg.Version != "" {
		if err := ota.CheckVersion(cfg.Version); err != nil {
			return nil, fmt.Errorf("running version: %w", err)
		}
	}
	switch {
	case cfg.Verify == nil:
		return nil, errors.New("Verify is missing; it must be given, also where signatures are not wanted")
	case cfg.HTTP == nil:
		return nil, errors.New("HTTP is missing; bundles are fetched with it")
	case cfg.Dir == "":
		return nil, errors.New("dir is missing; what is known of the job in hand must survive a restart")
	}
	if err := cfg.durations(); err != nil {
		return nil, err
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Judge == nil {
		cfg.Judge = cfg.compare
	}
	if cfg.Skipped == nil {
		cfg.Skipped = func(string) (string, bool) { return "", false }
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.SpoolSize == 0 {
		cfg.SpoolSize = 64 << 20
	}
	return tlsConfig(cfg, host, port)
}

func (cfg *Config) durations() error {
	for _, d := range []struct {
		name           string
		v              *time.Duration
		def, low, high time.Duration
	}{
		{"step timeout", &cfg.StepTimeout, 0, 0, 10080 * time.Minute}, // UpdateJobExecution: 1 to 10080 minutes
		{"keepalive", &cfg.Keepalive, 2 * time.Minute, time.Second, 20 * time.Minute},
		{"session expiry", &cfg.SessionExpiry, time.Hour, time.Second, 7 * 24 * time.Hour},
		{"status interval", &cfg.StatusInterval, 10 * time.Second, time.Second, time.Hour},
		{"connect timeout", &cfg.ConnectTimeout, 30 * time.Second, time.Millisecond, time.Hour},
		{"answer timeout", &cfg.AnswerTimeout, 15 * time.Second, time.Millisecond, time.Hour},
		{"least back-off", &cfg.MinBackoff, time.Second, time.Millisecond, time.Hour},
		{"greatest back-off", &cfg.MaxBackoff, 5 * time.Minute, time.Millisecond, 24 * time.Hour},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < d.low || *d.v > d.high {
			return fmt.Errorf("%s is %v, want %v to %v", d.name, *d.v, d.low, d.high)
		}
	}
	cfg.StepTimeout = (cfg.StepTimeout + time.Minute - 1).Truncate(time.Minute)
	return nil
}

// compare is the default of Judge.
func (cfg *Config) compare(m *ota.Manifest) error {
	switch {
	case m.Product != cfg.Product:
		return fmt.Errorf("%w: release %s is for product %s, this is %s", ota.ErrIncompatible, m.Version, m.Product, cfg.Product)
	case len(m.Hardware) > 0 && !slices.Contains(m.Hardware, cfg.Hardware):
		return fmt.Errorf("%w: release %s is for hardware %v, this is %q", ota.ErrIncompatible, m.Version, m.Hardware, cfg.Hardware)
	case cfg.Version == "":
		return nil
	}
	switch c := ota.CompareVersions(m.Version, cfg.Version); {
	case c == 0:
		return fmt.Errorf("%w: version %s is running", ota.ErrNoUpdate, cfg.Version)
	case c < 0 && !m.AllowDowngrade:
		return fmt.Errorf("%w: release %s is older than the running %s", ota.ErrNoUpdate, m.Version, cfg.Version)
	}
	return nil
}
