package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/interlock-energy/ota/bundle"
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

	PublicURL     string        `name:"public-url" placeholder:"URL" help:"Where devices and people reach the server, if that is another address."`
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
    interlock serve --data /srv/ota --listen :443 --tls-cert fullchain.pem --tls-key privkey.pem`
}

func (c *serveCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config(e)
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

func (c *serveCmd) config(e *env) (serve.Config, error) {
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
	if len(c.Key) == 0 {
		return cfg, nil
	}
	keys, err := bundle.LoadKeys(c.Threshold, c.Key...)
	cfg.Web.Keys = keys
	return cfg, exitWith(exitFailed, err)
}

// greet says where the server is. At the first start it says what to do next.
func (c *serveCmd) greet(e *env, s *serve.Server) {
	fmt.Fprintf(e.stdout, "serving    %s\n", s.URL)
	login := when(!c.OpenDashboard, " (log in with the operator token)")
	fmt.Fprintf(e.stdout, "dashboard  %s/%s\n", or(s.PlainURL, s.URL), login)
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
