// Package amazon is what an agent needs to use AWS: sources of kind aws_iot, and a
// log at CloudWatch. It is apart from package agent because of its size: a program
// that links it sets
//
//	cfg.AWS = amazon.AWS{}
//
// and then its configuration may name them.
package amazon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/agent"
	"github.com/interlock-energy/ota/internal/awscred"
	"github.com/interlock-energy/ota/internal/cloudwatch"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/source/awsiot"
	"github.com/interlock-energy/ota/source/https"
)

// maxPEM bounds a certificate or key, in bytes.
const maxPEM = 1 << 20

// AWS implements [agent.AWS].
type AWS struct{}

var _ agent.AWS = AWS{}

// NewSource implements [agent.AWS].
func (AWS) NewSource(c *agent.AWSIoT, e agent.Surroundings) (ota.Source, error) {
	if c.Endpoint == "" {
		return nil, errors.New("endpoint is missing: see it with aws iot describe-endpoint --endpoint-type iot:Data-ATS")
	}
	cfg := awsiot.Config{
		Endpoint: c.Endpoint, Thing: c.Thing, ClientID: c.ClientID, Topic: c.Topic, JobsPrefix: c.JobsPrefix,
		Product: e.Device.Product, Hardware: e.Device.Hardware, Version: e.Version,
		Dir:    filepath.Join(e.StateDir, "awsiot"),
		Verify: e.Verify, Judge: e.Judge, Skipped: e.Skipped, InHand: e.InHand,
		CodeSigning: e.CodeSigning, ImageVersion: e.ImageVersion, SpoolSize: c.MaxFile,
		StepTimeout: time.Duration(c.StepTimeout), Keepalive: time.Duration(c.Keepalive), SessionExpiry: time.Duration(c.SessionExpiry),
		StatusInterval: time.Duration(c.StatusInterval), ConnectTimeout: time.Duration(c.ConnectTimeout),
		AllowPlain: c.AllowPlain, Log: e.Log, Now: e.Now,
	}
	if cfg.Thing == "" {
		cfg.Thing = e.Device.ID
	}
	var err error
	if cfg.CACert, err = inlineOrFile("cert_pem", c.CertPEM, c.CertPEMFile); err != nil {
		return nil, err
	}
	if cfg.ClientCert, err = file("client_cert_file", c.ClientCertFile); err != nil {
		return nil, err
	}
	if cfg.ClientKey, err = file("client_key_file", c.ClientKeyFile); err != nil {
		return nil, err
	}
	roots, err := file("download_cert_pem_file", c.DownloadCertPEMFile)
	if err != nil {
		return nil, err
	}
	if cfg.HTTP, err = newFetcher(c, e, roots); err != nil {
		return nil, err
	}
	return awsiot.New(cfg)
}

// fetcher is an [awsiot.Fetcher] that uses the client of package https.
type fetcher struct{ *https.Fetcher }

func newFetcher(c *agent.AWSIoT, e agent.Surroundings, roots []byte) (fetcher, error) {
	host, _, err := net.SplitHostPort(c.Endpoint)
	if err != nil {
		host = c.Endpoint
	}
	f, err := https.NewFetcher(https.Config{URL: "https://" + net.JoinHostPort(host, "443"), CACert: roots, CAName: c.DownloadCertPEMFile,
		AllowPlain: c.AllowPlain, StallTimeout: e.StallTimeout, Agent: e.Agent, Now: e.Now})
	return fetcher{f}, err
}

// Fetch implements [awsiot.Fetcher].
func (f fetcher) Fetch(ctx context.Context, url string, offset, length int64) (io.ReadCloser, int64, error) {
	r, size, err := f.Fetcher.Fetch(ctx, url, offset, length)
	if err != nil && https.Expired(err) {
		err = fmt.Errorf("%w: %w", awsiot.ErrExpired, err)
	}
	return r, size, err
}

// cloudLog is a [cloudwatch.Writer] as the agent sees it.
type cloudLog struct {
	*cloudwatch.Writer
	group, namespace string
}

// NewLog implements [agent.AWS].
func (AWS) NewLog(c *agent.CloudWatch, e agent.Surroundings) (agent.CloudLog, error) {
	if c.Region == "" {
		return nil, errors.New("region is missing, for example eu-central-1")
	}
	roots, err := file("cert_pem_file", c.CertPEMFile)
	if err != nil {
		return nil, err
	}
	credentials, err := newCredentials(c, e, roots)
	if err != nil {
		return nil, err
	}
	client, err := newClient(roots, nil, nil)
	if err != nil {
		return nil, err
	}
	cfg := cloudwatch.Config{Group: c.Group, Stream: c.Stream, Region: c.Region, Endpoint: c.Endpoint, Credentials: credentials, Client: client,
		CreateGroup: c.CreateGroup, Changed: e.Changed, Level: e.Level, Every: time.Duration(c.Every), Dir: filepath.Join(e.StateDir, "cloudwatch"), MaxSpool: c.MaxSpool}
	if cfg.Stream == "" {
		cfg.Stream = e.Device.ID
	}
	if !e.Built.IsZero() {
		cfg.Plausible = func(now time.Time) bool { return now.After(e.Built) }
	}
	w, err := cloudwatch.Open(cfg)
	if err != nil {
		return nil, err
	}
	l := &cloudLog{w, cfg.Group, c.Namespace}
	if l.group == "" {
		l.group = "/bess/logs"
	}
	if l.namespace == "" {
		l.namespace = cloudwatch.Namespace
	}
	return l, nil
}

func newCredentials(c *agent.CloudWatch, e agent.Surroundings, roots []byte) (aws.CredentialsProvider, error) {
	switch {
	case (c.CredentialEndpoint == "") != (c.RoleAlias == ""):
		return nil, errors.New("credential_endpoint and role_alias belong together; one is missing")
	case c.CredentialEndpoint != "" && c.CredentialsFile != "":
		return nil, errors.New("credential_endpoint and credentials_file are both given; keep one")
	case c.CredentialsFile != "":
		return awscred.FromFile(c.CredentialsFile, c.Profile)
	case c.CredentialEndpoint == "":
		p, err := awscred.FromEnv(e.Getenv)
		if err != nil {
			return nil, fmt.Errorf("%w; set credential_endpoint and role_alias, or credentials_file", err)
		}
		return p, nil
	}
	cert, err := file("client_cert_file", c.ClientCertFile)
	if err != nil {
		return nil, err
	}
	key, err := file("client_key_file", c.ClientKeyFile)
	if err != nil {
		return nil, err
	}
	if cert == nil || key == nil {
		return nil, errors.New("client_cert_file and client_key_file are missing: the credential provider knows the device by its certificate")
	}
	client, err := newClient(roots, cert, key)
	if err != nil {
		return nil, err
	}
	thing := c.Thing
	if thing == "" {
		thing = e.Device.ID
	}
	return awscred.NewIoT(awscred.IoTConfig{Endpoint: c.CredentialEndpoint, RoleAlias: c.RoleAlias, Thing: thing, Client: client})
}

// PutDiagnostics implements [agent.CloudLog].
func (l *cloudLog) PutDiagnostics(d control.Diagnostics) {
	out := cloudwatch.Diagnostics{Time: d.Time, Device: d.Device, Agent: d.Agent, Uptime: time.Duration(d.Uptime * float64(time.Second)),
		Running: d.Running, Slot: d.Slot, Status: d.Status.String(), Checks: int64(d.Checks), ChecksFailed: int64(d.ChecksFailed),
		Attempts: int64(d.Attempts), Results: wide(d.Results), Unsent: int64(d.Unsent), Refusals: wide(d.Refusals), Bytes: d.Bytes,
		Seconds: d.Seconds, Memory: int64(d.Memory), LogsLost: d.LogsLost, LogsHeld: d.LogsHeld}
	if d.Code != ota.ErrNone {
		out.Code = d.Code.Name()
	}
	for _, s := range d.Readings {
		out.Readings = append(out.Readings, cloudwatch.Reading{Name: s.Name, Value: s.Value, Unit: s.Unit})
	}
	// A value that is no number is no reason to fail whoever asked for all of them.
	_ = l.Writer.PutDiagnostics(l.namespace, out)
}

func wide(m map[string]int) map[string]int64 {
	out := make(map[string]int64, len(m))
	for k, v := range m {
		out[k] = int64(v)
	}
	return out
}

// Held implements [agent.CloudLog].
func (l *cloudLog) Held() (lost, bytes int64) {
	s := l.Status()
	return s.Dropped, s.Held
}

// Name implements [agent.CloudLog].
func (l *cloudLog) Name() string { return "CloudWatch " + l.group + " and " + l.namespace }

// Err implements [agent.CloudLog].
func (l *cloudLog) Err() error { return l.Status().Err }

// newClient returns a client with deadlines, for one request every few minutes.
func newClient(roots, cert, key []byte) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if roots != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(roots) {
			return nil, errors.New("cert_pem_file: no PEM certificate in it")
		}
	}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate and key: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf,
		TLSHandshakeTimeout: 30 * time.Second, IdleConnTimeout: 30 * time.Second}}, nil
}

func inlineOrFile(key, inline, path string) ([]byte, error) {
	if inline != "" && path != "" {
		return nil, fmt.Errorf("%s and %s_file are both given; keep one", key, key)
	}
	if inline != "" {
		return []byte(inline), nil
	}
	return file(key+"_file", path)
}

// file reads a small file that key names; nil for none.
func file(key, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxPEM {
		return nil, fmt.Errorf("%s: %s is not a file of at most %d bytes", key, path, maxPEM)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, fmt.Errorf("%s: %s is empty", key, path)
	}
	return b, nil
}
