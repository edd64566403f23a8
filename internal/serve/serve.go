// Package serve runs an update server: the handler of internal/web with its
// certificates, token files and listeners. It is for the commands "interlock
// serve" and "interlock demo".
//
// Start with [Open], then [Server.Run]. The data directory gets, next to what
// internal/web keeps there:
//
//	data/ca.pem          certificate of the server's own CA: what devices pin
//	data/ca.key          its key, 0600: make a backup of both
//	data/operator.token  for people, 0600; written once
//	data/device.token    for devices, 0600; written once
//
// Promised: HTTPS always; plain HTTP only in addition, and only on loopback
// unless Insecure says otherwise. When Run's context ends, requests under way
// get ten seconds, and what the devices said is on the disk when Run returns.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/web"
)

// shutdownTime is how long requests under way may go on. A download that is cut
// goes on at the same byte with the next server.
const shutdownTime = 10 * time.Second

// Config is how a server is reached.
type Config struct {
	Data   string   // data directory; created if needed
	Listen string   // address for HTTPS
	Hosts  []string // more names and IP addresses for the certificate

	// TLSCert and TLSKey are PEM files to use instead of the server's own CA.
	// They are read again when they change.
	TLSCert, TLSKey string

	Plain    string // another address, for plain HTTP; empty: none
	Insecure bool   // Plain may be reachable from elsewhere

	// Wrap, if set, wraps the connections of the HTTPS listener. The demo slows
	// them down.
	Wrap func(net.Listener) net.Listener

	NewOperatorToken bool // make another operator's token, and write it over the old file

	Web web.Config
	Now func() time.Time // default: time.Now
}

// Server is an open server, listening but not yet answering.
type Server struct {
	URL      string // https
	PlainURL string // http, or ""

	CAFile       string // to pin; "" with TLSCert
	CA           []byte // its content
	OperatorFile string // token files
	DeviceFile   string
	Tokens       web.Tokens // made by this Open, if any

	web       *web.Server
	log       *slog.Logger
	listeners []net.Listener
	tls       *tls.Config
}

// Open opens the data directory and the listeners. End with [Server.Run] or
// [Server.Close].
func Open(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{OperatorFile: filepath.Join(cfg.Data, "operator.token"), DeviceFile: filepath.Join(cfg.Data, "device.token"), log: cfg.Web.Log}
	if s.log == nil {
		s.log = slog.Default()
	}
	if err := s.open(cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(cfg Config) (err error) {
	// The listeners first: a port in use is found before anything is written.
	if err := s.listen(cfg); err != nil {
		return err
	}
	if s.web, err = web.Open(cfg.Data, cfg.Web); err != nil {
		return err
	}
	if err := s.tokens(cfg); err != nil {
		return err
	}
	return s.certificate(cfg)
}

func (s *Server) listen(cfg Config) error {
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for HTTPS: %w", err)
	}
	s.URL = "https://" + reachable(l.Addr())
	if cfg.Wrap != nil {
		l = cfg.Wrap(l)
	}
	s.listeners = append(s.listeners, l)
	if cfg.Plain == "" {
		return nil
	}
	if l, err = net.Listen("tcp", cfg.Plain); err != nil {
		return fmt.Errorf("listen for plain HTTP: %w", err)
	}
	s.listeners = append(s.listeners, l)
	if a, ok := l.Addr().(*net.TCPAddr); !cfg.Insecure && (!ok || !a.IP.IsLoopback()) {
		return fmt.Errorf("listen for plain HTTP at %s: others could read tokens there; want an address like 127.0.0.1:8080", cfg.Plain)
	}
	s.PlainURL = "http://" + reachable(l.Addr())
	return nil
}

// reachable returns an address as somebody on this machine would use it.
func reachable(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	return fmt.Sprintf("localhost:%d", tcp.Port)
}

// tokens writes the tokens that were made just now. They are stored as hashes
// only, so this is the only time.
func (s *Server) tokens(cfg Config) error {
	s.Tokens = s.web.FirstTokens
	if cfg.NewOperatorToken && s.Tokens.Operator == "" {
		var err error
		if s.Tokens.Operator, err = s.web.NewOperatorToken(context.Background(), "made at a start with a new operator token"); err != nil {
			return err
		}
	}
	for file, token := range map[string]string{s.OperatorFile: s.Tokens.Operator, s.DeviceFile: s.Tokens.Device} {
		if token == "" {
			continue
		}
		if err := durable.WriteFile(durable.OS{}, file, []byte(token+"\n"), 0o600); err != nil {
			return fmt.Errorf("write a token: %w", err)
		}
	}
	return nil
}

func (s *Server) certificate(cfg Config) error {
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.TLSCert != "" || cfg.TLSKey != "" {
		f := &files{cert: cfg.TLSCert, key: cfg.TLSKey, now: cfg.Now}
		s.tls.GetCertificate = f.certificate
		_, err := f.certificate(nil)
		return err
	}
	ca, err := OpenCA(cfg.Data, names(s.listeners[0].Addr(), cfg.Hosts), cfg.Now)
	if err != nil {
		return err
	}
	s.CAFile, s.CA, s.tls.GetCertificate = filepath.Join(cfg.Data, "ca.pem"), ca.PEM, ca.Certificate
	return nil
}

// Run answers requests until ctx ends, which is not an error, or a listener
// fails. It closes the server.
func (s *Server) Run(ctx context.Context) error {
	ended := make(chan error, len(s.listeners))
	var servers []*http.Server
	for i, l := range s.listeners {
		h := s.web.HTTP()
		servers = append(servers, h)
		if i == 0 {
			h.TLSConfig = s.tls
			go func() { ended <- h.ServeTLS(l, "", "") }()
			continue
		}
		go func() { ended <- h.Serve(l) }()
	}
	var failed error
	running := len(servers)
	select {
	case <-ctx.Done():
	case failed = <-ended:
		running--
	}
	s.web.EndStreams()
	// Not ctx, which has ended.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	for _, h := range servers {
		if err := h.Shutdown(grace); err != nil {
			s.log.Warn("requests under way are cut off", "error", err)
			if err := h.Close(); err != nil {
				s.log.Warn("close the HTTP server", "error", err)
			}
		}
	}
	for range running {
		<-ended
	}
	s.listeners = nil // Shutdown has closed them
	if failed != nil {
		failed = fmt.Errorf("serve: %w", failed)
	}
	return errors.Join(failed, s.Close())
}

// Close closes what Open has opened. It is for a server that is not run.
func (s *Server) Close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	if s.web != nil {
		errs = append(errs, s.web.Close())
	}
	s.listeners, s.web = nil, nil
	return errors.Join(errs...)
}
