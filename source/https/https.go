// Package https gets releases over HTTPS, in three ways:
//
//   - [Server]: from Interlock's own server, with one request per check, live
//     progress and outcomes reported back;
//   - [Bundle]: from a bundle file on any HTTP server or bucket that answers
//     Range requests; nothing of ours runs there;
//   - [Manifest]: from the document {"version", "url"} of an ESP32 fleet behind
//     API Gateway, whose url, often presigned, is that of a bundle file.
//
// Start with [New] and give the source to the manager. What the package
// promises:
//
//   - It trusts nothing that it fetches, and concludes from unsigned words only
//     that there is nothing new.
//   - Credentials go to the configured origin (scheme, host, port) and nowhere
//     else. HTTPS never becomes HTTP. Errors and logs hold no query strings,
//     because presigned ones are secrets.
//   - A download goes on where it stopped: bytes that the manager has verified
//     are never asked for again. The package itself reads ahead at most 4 KiB
//     and the TLS record (16 KiB) at hand; what the kernel's socket buffer holds
//     when a connection is dropped has crossed the line as well, and
//     [Config.ReadBuffer] bounds that for metered links. Only a server that
//     ignores Range makes the beginning cross again; it is read and dropped.
//   - Every answer has a limit in size, every wait a limit in time, and
//     cancelling the context ends everything.
//   - Proxies are taken from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
//
// Errors are [*Error] and wrap one of ota's codes: ErrConnectivity if the other
// side was not reached or the line broke, ErrAuthentication if one side does not
// accept the other, ErrServer for everything that the other side got wrong.
package https

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Kind is what is at the configured URL.
type Kind string

// Kinds. The values are those of the agent's configuration.
const (
	Server   Kind = "server"
	Bundle   Kind = "bundle"
	Manifest Kind = "manifest"
)

// Config says where releases come from. The zero value of every field but URL,
// and for a server Device and Product, works.
type Config struct {
	// URL is the server's address, with a path if it is not at the root, or the
	// address of the bundle or manifest. It must be https, unless AllowPlain.
	URL  string
	Kind Kind // default: Server

	Device   string // this unit's name at the server
	Product  string
	Hardware string
	Version  string // that runs now; a bundle or manifest announced as the same is no update
	Agent    string // this software's own version

	// CACert is PEM. The other side's certificate must come from one of these
	// roots, and no other is accepted, also not for downloads and after
	// redirects. Nil: the roots of the operating system. Empty is an error.
	CACert     []byte
	CAName     string // where CACert is from, for messages
	ClientCert []byte // PEM chain, with ClientKey
	ClientKey  []byte // PEM

	// Token is sent as a bearer token, or else BasicUser and BasicPassword.
	Token         string
	BasicUser     string
	BasicPassword string

	// AllowPlain permits http URLs. Images are still verified, but everybody on
	// the way sees the token, and can hide updates. For development.
	AllowPlain bool

	ConnectTimeout  time.Duration // for the connection, and again for TLS; default 30 s
	ResponseTimeout time.Duration // from the request to the first byte of the answer; default 30 s
	StallTimeout    time.Duration // an answer to a check without a byte for so long is given up; default 2 min

	// ReadBuffer is the size in bytes of the kernel's receive buffer. It bounds
	// what is lost when a metered connection is dropped, and at a round trip of
	// r seconds the speed to ReadBuffer/r. Default: the system's.
	ReadBuffer int

	// Now is the time by which certificates are judged. A device whose clock
	// starts in 1970 gives the newest signed time it knows as the lower bound.
	// Default: time.Now.
	Now func() time.Time
}

// Source is an [ota.Source], and an [ota.Reporter] towards a server. Its
// methods may be called from any goroutine.
type Source struct {
	cfg    Config
	base   *url.URL
	client *http.Client

	mu      sync.Mutex
	state   func() api.CheckinRequest
	poll    time.Duration
	waits   map[string]time.Time // origin -> no request before
	offer   offer                // Kind Server
	located located              // Kinds Bundle and Manifest
}

var (
	_ ota.Source   = (*Source)(nil)
	_ ota.Reporter = (*Source)(nil)
)

// New checks cfg and returns the source. It does not touch the network.
func New(cfg Config) (*Source, error) {
	s, err := newSource(cfg)
	if err != nil {
		return nil, fmt.Errorf("configure the https source: %w", err)
	}
	return s, nil
}

func newSource(cfg Config) (*Source, error) {
	if cfg.Kind == "" {
		cfg.Kind = Server
	}
	base, err := checkURL(cfg.URL, cfg.AllowPlain)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if base.Path == "" {
		base.Path = "/" // the same, and JoinPath and comparisons need it
	}
	switch cfg.Kind {
	case Server:
		if base.RawQuery != "" {
			return nil, fmt.Errorf("url %s has a query; want the server's address only", redact(base))
		}
		if err := ota.CheckName(cfg.Device); err != nil {
			return nil, fmt.Errorf("device: %w", err)
		}
		if err := ota.CheckName(cfg.Product); err != nil {
			return nil, fmt.Errorf("product: %w", err)
		}
	case Bundle, Manifest:
	default:
		return nil, fmt.Errorf("kind %q is not known; want %s, %s or %s", cfg.Kind, Server, Bundle, Manifest)
	}
	if cfg.Token != "" && (cfg.BasicUser != "" || cfg.BasicPassword != "") {
		return nil, fmt.Errorf("both a token and a basic user are given; want one of them")
	}
	if cfg.BasicPassword != "" && cfg.BasicUser == "" {
		return nil, fmt.Errorf("a basic password is given without a user")
	}
	for _, d := range []struct {
		name      string
		v         *time.Duration
		byDefault time.Duration
	}{
		{"ConnectTimeout", &cfg.ConnectTimeout, 30 * time.Second},
		{"ResponseTimeout", &cfg.ResponseTimeout, 30 * time.Second},
		{"StallTimeout", &cfg.StallTimeout, 2 * time.Minute},
	} {
		if *d.v < 0 {
			return nil, fmt.Errorf("%s is %v, want 0 or more", d.name, *d.v)
		}
		if *d.v == 0 {
			*d.v = d.byDefault
		}
	}
	if cfg.ReadBuffer < 0 {
		return nil, fmt.Errorf("ReadBuffer is %d bytes, want 0 or more", cfg.ReadBuffer)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Source{cfg: cfg, base: base, waits: map[string]time.Time{}}
	if s.client, err = s.newClient(); err != nil {
		return nil, err
	}
	return s, nil
}

// Latest implements [ota.Source]. If the other side says that nothing changed,
// it returns the previous answer.
func (s *Source) Latest(ctx context.Context) ([]byte, error) {
	switch s.cfg.Kind {
	case Bundle:
		return s.latestBundle(ctx)
	case Manifest:
		return s.latestManifest(ctx)
	default:
		return s.latestServer(ctx)
	}
}

// Open implements [ota.Source]. If the address that it knows has expired, it
// asks once for a new one and goes on at the same offset. If what is there now
// is another release, the error says so, and the caller must check again.
func (s *Source) Open(ctx context.Context, m *ota.Manifest, im *ota.Image, offset int64) (io.ReadCloser, error) {
	op := fmt.Sprintf("download %s of %s from byte %d", im.Component, m.Version, offset)
	if offset < 0 || offset > im.Size {
		return nil, &Error{Op: op, Code: ota.ErrInternal, Err: fmt.Errorf("the image has %d bytes", im.Size)}
	}
	if offset == im.Size {
		return http.NoBody, nil
	}
	if s.cfg.Kind == Server {
		return s.openServer(ctx, op, m, im, offset)
	}
	return s.openBundle(ctx, op, m, im, offset)
}

// PollInterval returns how long the server wants to be left alone until the
// next check, at least 1 s and at most 7 days, or 0 if it has no wish. It
// includes a Retry-After of the server's.
func (s *Source) PollInterval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.poll, time.Until(s.waits[origin(s.base)]))
}

// SetState sets what fills the next check-ins. Device, product, hardware, and
// agent are the configuration's; a version in it goes before the
// configuration's. The func is called from Latest and Open.
func (s *Source) SetState(state func() api.CheckinRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

// CloseIdle closes connections that are kept for the next request.
func (s *Source) CloseIdle() { s.client.CloseIdleConnections() }
