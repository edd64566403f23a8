package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// AWSIoT configures package source/awsiot.
type AWSIoT struct {
	Endpoint   string `yaml:"endpoint"`    // host or host:port
	Thing      string `yaml:"thing"`       // default: device.id
	ClientID   string `yaml:"client_id"`   // default: thing
	Topic      string `yaml:"topic"`       // base of topics of our own; the specification's name
	JobsPrefix string `yaml:"jobs_prefix"` // default: $aws/things/THING/jobs

	CertPEM        string `yaml:"cert_pem"` // CA of the broker; default: the system's
	CertPEMFile    string `yaml:"cert_pem_file"`
	ClientCertFile string `yaml:"client_cert_file"`
	ClientKeyFile  string `yaml:"client_key_file"`

	DownloadCertPEMFile string   `yaml:"download_cert_pem_file"` // CA of where files are; default: the system's
	CodeSigningFiles    []string `yaml:"code_signing_files"`     // keys or certificates of raw images; default: none are taken
	MaxFile             int64    `yaml:"max_file"`               // bytes, of a file that is kept until all of it is there; default 64 MiB

	StepTimeout    Duration `yaml:"step_timeout"`
	Keepalive      Duration `yaml:"keepalive"`
	SessionExpiry  Duration `yaml:"session_expiry"`
	StatusInterval Duration `yaml:"status_interval"`
	ConnectTimeout Duration `yaml:"connect_timeout"`
	AllowPlain     bool     `yaml:"allow_plain"`
}

// CloudWatch is a log at Amazon CloudWatch, see package internal/cloudwatch.
type CloudWatch struct {
	Group       string   `yaml:"group"`  // default /bess/logs
	Stream      string   `yaml:"stream"` // default: device.id
	Region      string   `yaml:"region"`
	Endpoint    string   `yaml:"endpoint"` // default: the region's
	CreateGroup bool     `yaml:"create_group"`
	Level       string   `yaml:"level"`     // default: that of Logs
	Every       Duration `yaml:"every"`     // default 5m
	MaxSpool    int64    `yaml:"max_spool"` // bytes on the disk while it cannot be sent; default 4 MiB

	Namespace    string   `yaml:"namespace"`     // of metrics; default Interlock
	MetricsEvery Duration `yaml:"metrics_every"` // default 0: on command only

	// Who signs the uploads: the AWS IoT credential provider, or a file, or, with
	// neither, the environment.
	CredentialEndpoint string `yaml:"credential_endpoint"`
	RoleAlias          string `yaml:"role_alias"`
	Thing              string `yaml:"thing"` // default: device.id
	ClientCertFile     string `yaml:"client_cert_file"`
	ClientKeyFile      string `yaml:"client_key_file"`
	CredentialsFile    string `yaml:"credentials_file"`
	Profile            string `yaml:"profile"` // default: default
	CertPEMFile        string `yaml:"cert_pem_file"`
}

// AWS is what the configuration's parts for AWS are made with. It is linked only
// by programs that want it, because it makes them larger: package
// internal/agent/amazon has it.
type AWS interface {
	// NewSource makes a source of kind aws_iot. It does not touch the network.
	NewSource(c *AWSIoT, e Surroundings) (ota.Source, error)
	// NewLog makes a log at CloudWatch. It does not touch the network.
	NewLog(c *CloudWatch, e Surroundings) (CloudLog, error)
}

// Surroundings are what a part has of its agent. Not all is set for a log, which is
// made first.
type Surroundings struct {
	Device   Device
	Version  string // of the firmware that runs
	Agent    string // of the agent
	StateDir string

	Verify  ota.Verify
	Judge   func(*ota.Manifest) error
	Skipped func(digest string) (reason string, skipped bool)
	InHand  func() string
	State   func() api.CheckinRequest

	CodeSigning  *bundle.CodeSigning // of raw images; nil: none are taken. Verify takes their envelopes
	ImageVersion func(r io.ReaderAt, size int64) (string, error)

	StallTimeout time.Duration
	Level        slog.Level  // of a log without its own
	Changed      func(error) // uploads of a log begin to fail, and why; nil: they work again
	Built        time.Time   // of the agent: the clock cannot be before that
	Log          *slog.Logger
	Now          func() time.Time
	Getenv       func(string) string
}

// CloudLog is a log that is sent away, and a place for metrics.
type CloudLog interface {
	Handler() slog.Handler
	// Run sends until ctx ends. It never holds up who logs.
	Run(ctx context.Context) error
	// Close sends what it can until ctx ends, and keeps the rest for the next start.
	Close(ctx context.Context) error
	PutDiagnostics(d control.Diagnostics)
	// Held returns the lines lost so far, and the bytes that wait to be sent.
	Held() (lost, bytes int64)
	Name() string // for people
	Err() error   // why the last upload did not work; nil: it did, or there was none yet
}

// errNoAWS is for programs that were built without it.
var errNoAWS = errors.New("this program was built without AWS (build tag noaws)")

func (a *Agent) newAWSIoT(c *AWSIoT, version string) (ota.Source, error) {
	if a.cfg.AWS == nil {
		return nil, errNoAWS
	}
	return a.cfg.AWS.NewSource(c, Surroundings{Device: a.cfg.Device, Version: version, Agent: a.cfg.Version, StateDir: a.cfg.StateDir,
		Verify: a.verify, CodeSigning: a.codeSigning, ImageVersion: a.imageVersion(), Judge: func(m *ota.Manifest) error { return a.judgeJob(m, version) }, Skipped: a.skippedWhy, InHand: a.inHand,
		State: a.checkin, StallTimeout: time.Duration(a.cfg.StallTimeout), Log: a.log, Now: a.now, Getenv: a.cfg.Getenv})
}

// judgeTimeout is for all that judgeJob asks the slots.
const judgeTimeout = 30 * time.Second

// judgeJob is judge, and what the slots say: a release that they can never hold must end its
// job, which otherwise stays in front of all others; and one that runs has ended its job well
// only when the bootloader no longer has it on trial, whatever the record says. It is called
// while the manager checks, which does not use the slots then.
func (a *Agent) judgeJob(m *ota.Manifest, version string) error {
	err := a.judge(m, version)
	runs := errors.Is(err, ota.ErrNoUpdate) && ota.CompareVersions(m.Version, version) == 0
	if err != nil && !runs {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), judgeTimeout)
	defer cancel()
	slots := watchedSlots{a.slots, &a.alive}
	b, bootErr := slots.Booted(ctx)
	switch {
	case bootErr != nil: // no code: it decides nothing
		return fmt.Errorf("read the booted slot: %v", bootErr)
	case runs && (b.Trial || a.unproven()): // not every bootloader can tell
		return fmt.Errorf("%w: version %s runs on trial", ota.ErrNotNow, version)
	case runs:
		return err
	}
	if err := m.Validate(); err != nil {
		return err
	}
	for i := range m.Images {
		im := &m.Images[i]
		s, err := slots.Open(ctx, im.Component, b.Other)
		if err != nil {
			return fmt.Errorf("release %s: open slot %s for %s: %w", m.Version, b.Other, im.Component, err)
		}
		capacity := s.Capacity()
		s.Close() // nothing was written
		if im.Size > capacity {
			return fmt.Errorf("%w: release %s: image %s has %d bytes, slot %s holds %d", ota.ErrInsufficientSpace, m.Version, im.Component, im.Size, b.Other, capacity)
		}
	}
	return nil
}

// unproven reports whether the record says that what runs may still go back, or is not known.
func (a *Agent) unproven() bool {
	r := a.record.Load()
	if r == nil {
		return true
	}
	switch r.State {
	case ota.Activating, ota.Trial, ota.Soak, ota.RollBack:
		return true
	}
	return false
}

// newCloudLog makes the log at CloudWatch, or nil.
func newCloudLog(c *Config, level slog.Level, changed func(error)) (CloudLog, error) {
	if c.Logs.CloudWatch == nil {
		return nil, nil
	}
	if c.AWS == nil {
		return nil, fmt.Errorf("logs.cloudwatch: %w", errNoAWS)
	}
	level, err := logLevel(c.Logs.CloudWatch.Level, level)
	if err != nil {
		return nil, fmt.Errorf("logs.cloudwatch.level: %w", err)
	}
	l, err := c.AWS.NewLog(c.Logs.CloudWatch, Surroundings{Device: c.Device, Agent: c.Version, StateDir: orDefault(c.StateDir, DefaultStateDir),
		Level: level, Changed: changed, Built: c.Built, Now: time.Now, Getenv: c.Getenv})
	if err != nil {
		return nil, fmt.Errorf("logs.cloudwatch: %w", err)
	}
	return l, nil
}

// runCloud sends the log, and with metrics_every the metrics, until ctx ends.
func (a *Agent) runCloud(ctx context.Context) {
	if every := time.Duration(a.cfg.Logs.CloudWatch.MetricsEvery); every > 0 {
		tick := time.NewTicker(every)
		defer tick.Stop()
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					a.cloud.PutDiagnostics(a.Diagnostics(ctx))
				}
			}
		}()
	}
	if err := a.cloud.Run(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("the log is not sent to CloudWatch any more", "error", err)
	}
}

// closeCloud sends the rest of the log, or leaves it for the next start. An agent that
// never ran has nothing to send.
func (a *Agent) closeCloud() {
	ctx, cancel := context.WithTimeout(context.Background(), closeLogs)
	defer cancel()
	if err := a.cloud.Close(ctx); err != nil {
		a.log.Warn("send the rest of the log", "error", err)
	}
}

// imageVersion reads the version in a raw image of the kind of slots that this
// device has, or is nil where images do not say it.
func (a *Agent) imageVersion() func(io.ReaderAt, int64) (string, error) {
	if a.cfg.Slot.Kind != "esp32" {
		return nil
	}
	return func(r io.ReaderAt, size int64) (string, error) {
		app, err := image.ReadAppDesc(r, size)
		if err != nil {
			return "", err
		}
		return app.Version, nil
	}
}
