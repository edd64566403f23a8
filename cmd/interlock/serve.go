package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/serve"
	"github.com/interlock-energy/ota/internal/web"
)

type serveCmd struct {
	Data   string   `required:"" placeholder:"DIR" env:"INTERLOCK_DATA" help:"Directory for everything the server keeps; made at the first start."`
	Listen string   `default:"127.0.0.1:8443" placeholder:"ADDR" help:"Address for HTTPS. Use :8443 to be reached from elsewhere. Default: ${default}."`
	Host   []string `sep:"none" placeholder:"NAME" help:"Further name or IP address for the server's certificate. Repeat for more."`

	TLSCert string `name:"tls-cert" placeholder:"FILE" help:"Certificate to use instead of the server's own CA; read again when it changes."`
	TLSKey  string `name:"tls-key" placeholder:"FILE" help:"Its private key."`

	Plain    string `placeholder:"ADDR" help:"Further address for plain HTTP, for a browser or a proxy on this machine."`
	Insecure bool   `help:"Let --plain be reached from elsewhere. Tokens can then be read on the way."`

	PublicURL string `name:"public-url" placeholder:"URL" help:"Where devices and people reach the server, if that is another address."`
	Files     string `placeholder:"s3://BUCKET/PREFIX" env:"INTERLOCK_FILES" help:"Bucket for the release files, instead of the data directory. Add ?region=NAME, and for another server than Amazon's &endpoint=URL."`
	Direct    string `enum:"auto,always,never" default:"auto" help:"Whether devices fetch images from the bucket itself, by URLs that end after an hour: auto (with --tls-cert only), always, never. They must trust the bucket's certificate, too. Default: ${default}."`

	Key           []string      `sep:"none" placeholder:"PUBLIC.pem" help:"Public key that releases must be signed with; others are not taken. Repeat for more."`
	Threshold     int           `default:"1" help:"How many different keys must have signed."`
	PollInterval  time.Duration `default:"5m" placeholder:"TIME" help:"How often idle devices are to ask. Default: ${default}."`
	BasicAuth     string        `placeholder:"USER:PASSWORD" env:"INTERLOCK_BASIC_AUTH" help:"What devices without a token must give at /firmware and /bundle."`
	OpenDashboard bool          `help:"Show the dashboard to everybody who can reach the server. It changes nothing."`

	NewOperatorToken bool `help:"Make another operator token, for example because the first is lost."`
}

func (*serveCmd) Help() string {
	return `Needs nothing but a data directory. At the first start it makes a certificate authority (ca.pem, which devices pin), a token for people (operator.token) and one for devices (device.token).

Back up the whole data directory; with ca.key lost, every device has to be given a new ca.pem.

Examples:

    interlock serve --data /var/lib/interlock --listen :8443 --host ota.example.com \
        --key keys/public.pem
    interlock serve --data ./data --plain 127.0.0.1:8080
    interlock serve --data /srv/ota --listen :443 --tls-cert fullchain.pem --tls-key privkey.pem \
        --files 's3://my-bucket/releases?region=eu-central-1'

With --files the credentials come from where AWS's own programs have them: the environment, ~/.aws, or the machine's role. They need s3:GetObject, s3:PutObject and s3:DeleteObject on the objects, and s3:ListBucket on the bucket. To move to a bucket, copy data/blobs into it without ~tmp and tmp, and publish the releases again if devices are to fetch from there. Devices that pin the server's own ca.pem cannot fetch from a bucket unless their file has the bucket's CA, too: that is why auto means through the server then.`
}

func (c *serveCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config(ctx, e)
	if err != nil {
		return err
	}
	s, err := serve.Open(cfg)
	if err != nil {
		return err
	}
	c.greet(e, s)
	return s.Run(ctx)
}

func (c *serveCmd) config(ctx context.Context, e *env) (serve.Config, error) {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	cfg := serve.Config{Data: c.Data, Listen: c.Listen, Hosts: c.Host, TLSCert: c.TLSCert, TLSKey: c.TLSKey,
		Plain: c.Plain, Insecure: c.Insecure, NewOperatorToken: c.NewOperatorToken,
		Web: web.Config{PublicURL: c.PublicURL, PollInterval: c.PollInterval, OpenDashboard: c.OpenDashboard, Log: log}}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return cfg, usage("--tls-cert and --tls-key go together")
	}
	if c.PollInterval < time.Second {
		return cfg, usage("--poll-interval: got %v, want at least 1s", c.PollInterval)
	}
	if c.BasicAuth != "" {
		var ok bool
		if cfg.Web.BasicUser, cfg.Web.BasicPassword, ok = strings.Cut(c.BasicAuth, ":"); !ok || cfg.Web.BasicUser == "" || cfg.Web.BasicPassword == "" {
			return cfg, usage("--basic-auth: want USER:PASSWORD")
		}
	}
	if err := c.files(ctx, &cfg.Web); err != nil || len(c.Key) == 0 {
		return cfg, err
	}
	keys, err := bundle.LoadKeys(c.Threshold, c.Key...)
	cfg.Web.Keys = keys
	return cfg, exitWith(exitFailed, err)
}

// files opens the bucket, and looks into it: what is wrong with it is said now.
func (c *serveCmd) files(ctx context.Context, cfg *web.Config) error {
	if c.Files == "" {
		if c.Direct == "always" {
			return usage("--direct always: without --files there is no bucket")
		}
		return nil
	}
	if !s3.IsURL(c.Files) {
		return usage("--files %s: want s3://bucket/prefix", c.Files)
	}
	store, err := s3.Open(ctx, c.Files, s3.Options{})
	if err != nil {
		return exitWith(exitFailed, err)
	}
	cfg.Store, cfg.Direct = store, c.Direct == "always" || c.Direct == "auto" && c.TLSCert != ""
	return exitWith(exitFailed, store.Check(ctx))
}

// greet says where the server is. At the first start it says what to do next.
func (c *serveCmd) greet(e *env, s *serve.Server) {
	fmt.Fprintf(e.stdout, "serving    %s\n", s.URL)
	login := when(!c.OpenDashboard, " (log in with the operator token)")
	fmt.Fprintf(e.stdout, "dashboard  %s/%s\n", or(s.PlainURL, s.URL), login)
	if c.Files != "" {
		fmt.Fprintf(e.stdout, "files      %s%s\n", c.Files, when(c.Direct == "always" || c.Direct == "auto" && c.TLSCert != "", " (devices fetch images there)"))
	}
	if len(c.Key) == 0 {
		e.say("note: without --key the server takes releases unverified; devices verify them in any case")
	}
	if s.Tokens.Operator == "" && s.Tokens.Device == "" {
		return
	}
	settings := "INTERLOCK_SERVER=" + s.URL + " INTERLOCK_TOKEN_FILE=" + quote(absolute(s.OperatorFile))
	if s.CAFile != "" {
		settings += " INTERLOCK_CA=" + quote(absolute(s.CAFile))
		fmt.Fprintf(e.stdout, "CA         %s (devices pin it; back up %s)\n", s.CAFile, c.Data)
	}
	if s.Tokens.Operator != "" {
		fmt.Fprintf(e.stdout, "tokens     %s (for people)\n", s.OperatorFile)
	}
	if s.Tokens.Device != "" {
		fmt.Fprintf(e.stdout, "           %s (for devices)\n", s.DeviceFile)
	}
	fmt.Fprintf(e.stdout, `
next, in another terminal:
  export %s
  interlock publish FILE
  interlock devices list
  interlock devices token DEVICE
`, settings)
}

// absolute makes a file name one that works in another terminal.
func absolute(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}

// quote makes a file name one word for a shell.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
