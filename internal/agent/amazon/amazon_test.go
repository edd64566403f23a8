package amazon_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/agent"
	"github.com/interlock-energy/ota/internal/agent/amazon"
)

const (
	product = "bess-100"
	thing   = "bess-04"
	group   = "/bess/logs"
)

// firmware is a script that says its version and works until it is stopped.
func firmware(version string) []byte {
	b := bytes.NewBufferString(fmt.Sprintf("#!/bin/sh\necho interlock-firmware %s\nwhile read -r line; do :; done\nexit 0\n", version))
	for n := 0; b.Len() < 200_000; n++ {
		fmt.Fprintf(b, "# %s %08d\n", version, n)
	}
	return b.Bytes()
}

// cloud is all of AWS that a device needs, and the releases there.
type cloud struct {
	ca     *awstest.CA
	jobs   *awstest.Jobs
	broker *awstest.Broker
	logs   *awstest.Logs
	creds  *awstest.CredentialProvider
	files  *httptest.Server
	dir    string // with public.pem, ca.pem, thing.crt, thing.key, factory.img, and what files serves
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{ca: awstest.NewCA(t), jobs: awstest.NewJobs(awstest.JobsOptions{}), dir: t.TempDir()}
	c.broker = awstest.StartBroker(t, c.ca, c.jobs)
	keys := awstest.NewKeys()
	c.logs = awstest.StartLogs(t, keys, awstest.LogsOptions{TLS: c.ca})
	c.creds = awstest.StartCredentialProvider(t, c.ca, keys, awstest.CredentialOptions{Aliases: []string{"logs"}})
	c.files = httptest.NewUnstartedServer(http.FileServer(http.Dir(c.dir)))
	c.files.TLS = &tls.Config{Certificates: []tls.Certificate{c.ca.Server(t, "127.0.0.1").TLS}}
	c.files.StartTLS()
	t.Cleanup(c.files.Close)
	c.ca.WriteFile(t, c.dir)
	c.ca.Thing(t, thing).WriteFiles(t, c.dir, "thing")
	private, public, err := bundle.GenerateKey("")
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, "public.pem", public)
	c.write(t, "factory.img", firmware("1.0.0"))
	c.write(t, "new.img", firmware("1.0.1"))
	m := &ota.Manifest{Product: product, Version: "1.0.1", Created: time.Now().UTC().Truncate(time.Second)}
	if err := bundle.Build(c.path("bess-1.0.1.bundle"), m, map[string]string{"controller": c.path("new.img")}, key); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cloud) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cloud) write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(c.path(name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// config is a device that has nothing but AWS.
func (c *cloud) config(t *testing.T) agent.Config {
	short := agent.Duration(0)
	fast := agent.Duration(500 * time.Millisecond)
	quiet := false
	return agent.Config{
		Device:   agent.Device{ID: thing, Product: product},
		StateDir: filepath.Join(t.TempDir(), "state"),
		Source: &agent.Source{AWSIoT: &agent.AWSIoT{Endpoint: c.broker.Addr(), CertPEMFile: c.path("ca.pem"), Topic: "fleet/" + thing,
			ClientCertFile: c.path("thing.crt"), ClientKeyFile: c.path("thing.key"), DownloadCertPEMFile: c.path("ca.pem"), StatusInterval: agent.Duration(time.Second)}},
		Keys:         agent.Keys{Files: []string{c.path("public.pem")}},
		StartupDelay: &short, AutomaticUpdate: true, ValidationTime: &fast, CheckInterval: agent.Duration(time.Hour),
		Battery: agent.Battery{Reader: "none"}, Dwell: &short,
		Slot:    agent.Slot{Kind: "file", Dir: filepath.Join(t.TempDir(), "slots"), Run: true, Factory: c.path("factory.img"), StartTimeout: agent.Duration(20 * time.Second)},
		Control: agent.Control{Socket: "none"},
		Logs: agent.Logs{Console: &quiet, CloudWatch: &agent.CloudWatch{Group: group, Region: "eu-central-1", Endpoint: c.logs.URL, CreateGroup: true,
			Every: agent.Duration(time.Second), CredentialEndpoint: c.creds.URL, RoleAlias: "logs",
			ClientCertFile: c.path("thing.crt"), ClientKeyFile: c.path("thing.key"), CertPEMFile: c.path("ca.pem")}},
		AWS: amazon.AWS{},
	}
}

// TestJobUpdatesDevice: a job brings the release, its only final status comes once
// the release is proven, and the log and the figures are at CloudWatch.
func TestJobUpdatesDevice(t *testing.T) {
	c := newCloud(t)
	a, err := agent.New(c.config(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the agent ended: %v", err)
		}
	}()
	document := fmt.Sprintf(`{"interlock":{"version":"1.0.1","bundle":"%s/bess-1.0.1.bundle"}}`, c.files.URL)
	if err := c.jobs.Create(awstest.Job{ID: "update-1", Things: []string{thing}, Document: document}); err != nil {
		t.Fatal(err)
	}
	e, err := c.jobs.Wait(ctx, thing, "update-1")
	if err != nil {
		t.Fatalf("%v\n%v", err, a.Snapshot())
	}
	if e.Status != awstest.Succeeded || a.Snapshot().Running != "1.0.1" {
		t.Errorf("the job is %s %v, the device runs %s; want SUCCEEDED with 1.0.1", e.Status, e.StatusDetails, a.Snapshot().Running)
	}
	final := 0
	for _, u := range c.jobs.Updates(thing, "update-1") {
		if u.Code == "" && u.Status != awstest.InProgress {
			final++
		}
	}
	if final != 1 {
		t.Errorf("%d final statuses, want 1", final)
	}

	d := a.ReportDiagnostics(ctx)
	if len(d.Reported) != 2 || d.Results["succeeded"] != 1 || d.Attempts != 1 {
		t.Errorf("diagnostics: reported to %q, %d attempts, results %v; want log and CloudWatch, 1, 1 succeeded", d.Reported, d.Attempts, d.Results)
	}
	for _, want := range []string{`"msg":"diagnostics"`, `"results.succeeded":1`} {
		for !strings.Contains(messages(c.logs), want) {
			select {
			case <-ctx.Done():
				t.Fatalf("CloudWatch never got %s; it has:\n%s\n%v", want, messages(c.logs), a.Warnings())
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func messages(l *awstest.Logs) string {
	var b strings.Builder
	for _, e := range l.Events(group, thing) {
		b.WriteString(e.Message + "\n")
	}
	return b.String()
}

// TestUpdateWithoutCloudWatch: a log that cannot be sent holds nothing up.
func TestUpdateWithoutCloudWatch(t *testing.T) {
	c := newCloud(t)
	c.logs.Outage(awstest.CutConnection)
	c.creds.Outage(503)
	a, err := agent.New(c.config(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	document := fmt.Sprintf(`{"interlock":{"bundle":"%s/bess-1.0.1.bundle"}}`, c.files.URL)
	if err := c.jobs.Create(awstest.Job{ID: "update-1", Things: []string{thing}, Document: document}); err != nil {
		t.Fatal(err)
	}
	if e, err := c.jobs.Wait(ctx, thing, "update-1", awstest.Succeeded); err != nil {
		t.Errorf("%+v, %v", e, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the agent ended: %v", err)
	}
}

// TestConfigurationIsChecked: what is missing is said before anything is touched.
func TestConfigurationIsChecked(t *testing.T) {
	c := newCloud(t)
	for _, tt := range []struct {
		change func(*agent.Config)
		want   string
	}{
		{func(cfg *agent.Config) { cfg.AWS = nil }, "logs.cloudwatch: this program was built without AWS"},
		{func(cfg *agent.Config) { cfg.AWS, cfg.Logs.CloudWatch = nil, nil }, "source: aws_iot: this program was built without AWS"},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.Endpoint = "" }, "source: aws_iot: endpoint is missing"},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.ClientCertFile = "" }, "source: aws_iot: "},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.ClientKeyFile = c.path("none") }, "source: aws_iot: client_key_file: stat "},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.CertPEM = "x" }, "source: aws_iot: cert_pem and cert_pem_file are both given"},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.Topic = "a/#" }, "topic"},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.CodeSigningFiles = []string{c.path("ca.pem")} }, ""},
		{func(cfg *agent.Config) { cfg.Source.AWSIoT.CodeSigningFiles = []string{c.path("thing.key")} }, "aws_iot.code_signing_files: "},
		{func(cfg *agent.Config) { cfg.Logs.CloudWatch.Region = "" }, "logs.cloudwatch: region is missing"},
		{func(cfg *agent.Config) { cfg.Logs.CloudWatch.RoleAlias = "" }, "logs.cloudwatch: credential_endpoint and role_alias belong together"},
		{func(cfg *agent.Config) { cfg.Logs.CloudWatch.CredentialsFile = "x" }, "both given"},
		{func(cfg *agent.Config) {
			cfg.Logs.CloudWatch.CredentialEndpoint, cfg.Logs.CloudWatch.RoleAlias = "", ""
		}, "set credential_endpoint and role_alias, or credentials_file"},
		{func(cfg *agent.Config) { cfg.Logs.CloudWatch.ClientKeyFile = "" }, "client_cert_file and client_key_file are missing"},
	} {
		cfg := c.config(t)
		tt.change(&cfg)
		a, err := agent.New(cfg)
		if a != nil {
			a.Close()
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if _, err := os.Stat(cfg.StateDir); err == nil {
			t.Errorf("%q: the configuration was refused after something was written", tt.want)
		}
	}
}
