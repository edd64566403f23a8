// Package web is the update server's HTTP side: the devices' API, the operators'
// API, the front doors for devices that know nothing of us, and the dashboard.
//
// Start with [Open], which needs a data directory only, serve with
// [Server.HTTP] and end with [Server.Close]:
//
//	data/fleet.db    devices, groups, releases, outcomes, hashes of tokens, keys
//	data/blobs/      release files, unless [Config.Store] is set
//	data/spool/      with it: what is being received
//	data/lock        one server at a time
//
// Promised: nothing is changed without a token; a token bound to a device speaks
// for no other; an upload is streamed to disk and is stored only after every byte
// was compared with its manifest; a report is confirmed only once it is durable;
// download URLs cannot be made up, changed or used after their time, and go on
// working across a restart of the server.
//
// Whoever reaches the server may read the front doors (/firmware, /bundle/...)
// unless [Config.BasicUser] is set: what they serve is signed, not secret.
package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/fleet"
)

// Config is how a server behaves. The zero value works.
type Config struct {
	// PublicURL is where devices and people reach the server, for example
	// https://ota.example.com. The documents of /firmware need it, because those
	// devices want absolute https URLs. Default: as asked for, if that was https.
	PublicURL string

	// Keys check the signatures of uploads. Nil: only form and hashes are checked.
	Keys *bundle.Keys

	// Store is where release files are. Nil: in the data directory.
	Store blob.Store

	// Direct sends devices to Store for images, if it can give out URLs: their
	// bytes do not go through this server. The devices must trust the certificate
	// that they find there as well. All else goes through the server in any case.
	Direct bool

	PollInterval time.Duration // between check-ins of an idle device; default 5 min
	URLLifetime  time.Duration // of download URLs, at least; default 1 h, at most 5 days
	MaxUpload    int64         // bytes of a bundle; default 4 GiB
	Uploads      int           // at a time; default 2
	Listeners    int           // live pages and event streams at a time; default 64
	MaxDevices   int           // default 100,000

	// BasicUser and BasicPassword, if set, are asked for at the front doors.
	BasicUser, BasicPassword string

	// OpenDashboard shows the dashboard, which changes nothing, to everybody.
	// Default: it wants an operator's token.
	OpenDashboard bool

	Now func() time.Time // default: time.Now
	Log *slog.Logger     // default: slog.Default()
}

// maxURLLifetime leaves room for the quarter that URLs may live longer: those of
// S3 end after 7 days.
const maxURLLifetime = 5 * 24 * time.Hour

// Server is an open server.
type Server struct {
	// FirstTokens are set if this Open made them: now is the only time to see them.
	FirstTokens Tokens

	cfg       Config
	fleet     *fleet.Fleet
	lock      io.Closer
	handler   http.Handler
	pages     *template.Template
	urls      signer
	sessions  signer
	offers    offers
	summary   summaries
	uploads   chan struct{}
	listeners chan struct{}
	closing   chan struct{} // closed by endOnce, ends event streams
	endOnce   sync.Once
	cross     *http.CrossOriginProtection
}

// Tokens are the tokens that a server begins with.
type Tokens struct {
	Operator string // for people: everything
	Device   string // for devices: to speak for any device
}

// Open opens the server whose data is in dataDir, which is created if needed.
// Other users of the machine cannot read what is in it.
func Open(dataDir string, cfg Config) (*Server, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("open the server: %w", err)
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("open the server: %w", err)
	}
	lock, err := durable.Lock(filepath.Join(dataDir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open the server: data directory %s: %w; is another server running on it?", dataDir, err)
	}
	s, err := open(dataDir, cfg)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open the server: %w", err)
	}
	s.lock = lock
	return s, nil
}

func open(dataDir string, cfg Config) (*Server, error) {
	ctx := context.Background()
	blobs, err := openFiles(dataDir, cfg)
	if err != nil {
		return nil, err
	}
	fc := fleet.Config{PollInterval: cfg.PollInterval, MaxDevices: cfg.MaxDevices, Now: cfg.Now, Log: cfg.Log}
	if cfg.Keys != nil {
		fc.Verify = cfg.Keys.Verify
	}
	f, err := fleet.Open(ctx, filepath.Join(dataDir, "fleet.db"), blobs, fc)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, fleet: f, offers: offers{byDigest: map[string]offer{}}, uploads: make(chan struct{}, cfg.Uploads),
		listeners: make(chan struct{}, cfg.Listeners), closing: make(chan struct{}), cross: http.NewCrossOriginProtection()}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.handler = s.routes()
	return s, nil
}

func openFiles(dataDir string, cfg Config) (*blob.Files, error) {
	if cfg.Store == nil {
		return blob.Open(filepath.Join(dataDir, "blobs"))
	}
	return blob.OpenFiles(filepath.Join(dataDir, "spool"), cfg.Store)
}

// prepare loads or makes what a server keeps secret.
func (s *Server) prepare(ctx context.Context) error {
	var err error
	if s.pages, err = parseTemplates(); err != nil {
		return fmt.Errorf("read the pages: %w", err)
	}
	for name, sign := range map[string]*signer{"download-urls": &s.urls, "sessions": &s.sessions} {
		key, err := s.fleet.Secret(ctx, name)
		if err != nil {
			return err
		}
		sign.key, sign.now = key, s.cfg.Now
	}
	for _, t := range []struct {
		role  fleet.Role
		token *string
	}{{fleet.Operator, &s.FirstTokens.Operator}, {fleet.Agent, &s.FirstTokens.Device}} {
		if s.fleet.HasToken(t.role) {
			continue
		}
		if *t.token, err = s.fleet.NewToken(ctx, t.role, "", "made at the first start"); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) fill() error {
	c.PublicURL = strings.TrimSuffix(c.PublicURL, "/")
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return fmt.Errorf("public URL %q: want a form like https://ota.example.com", c.PublicURL)
		}
	}
	if (c.BasicUser == "") != (c.BasicPassword == "") {
		return errors.New("basic authentication wants both a user and a password")
	}
	if c.PollInterval < 0 || c.URLLifetime < 0 || c.MaxUpload < 0 || c.Uploads < 0 || c.Listeners < 0 || c.MaxDevices < 0 {
		return errors.New("a duration or a limit is negative")
	}
	c.PollInterval = cmp.Or(c.PollInterval, 5*time.Minute)
	c.URLLifetime = min(max(cmp.Or(c.URLLifetime, time.Hour), time.Minute), maxURLLifetime)
	c.MaxUpload = cmp.Or(c.MaxUpload, 4<<30)
	c.Uploads = cmp.Or(c.Uploads, 2)
	c.Listeners = cmp.Or(c.Listeners, 64)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Handler returns the handler for all paths. It sets deadlines for each request
// by itself.
func (s *Server) Handler() http.Handler { return s.handler }

// HTTP returns a server with the handler and limits that suit it. Set Addr and
// TLSConfig, or call Serve with a listener. ECDSA P-256 certificates cost a
// fifth of RSA-2048 ones, and with devices that connect anew for each poll the
// handshake is nearly all of the work.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	}
}

// NewOperatorToken makes another operator's token, for one who has lost his.
func (s *Server) NewOperatorToken(ctx context.Context, note string) (string, error) {
	return s.fleet.NewToken(ctx, fleet.Operator, "", note)
}

// Close writes what is in memory and closes the data directory. Shut the HTTP
// server down first; Close must be called once. To end event streams before
// that, call [Server.EndStreams].
func (s *Server) Close() error {
	s.EndStreams()
	return errors.Join(s.fleet.Close(), s.lock.Close())
}

// EndStreams ends live pages and event streams, which a shutdown of the HTTP
// server would wait for.
func (s *Server) EndStreams() { s.endOnce.Do(func() { close(s.closing) }) }

// routes is the list of all paths, and of who may ask for them.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h handler) { mux.Handle(pattern, s.serve(h, writeError)) }
	door := func(pattern string, h handler) { mux.Handle(pattern, s.serve(s.basic(h), writeDoorError)) }
	page := func(pattern string, h handler) { mux.Handle(pattern, s.serve(s.viewer(h), writePageError)) }

	handle("POST "+api.PathCheckin, s.agent(s.checkin))
	handle("POST "+api.PathStatus, s.agent(s.status))
	handle("POST "+api.PathReports, s.agent(s.reports))
	handle("GET "+api.PathDownload+"{ticket}/{digest}", s.download)
	handle("GET "+api.PathDownload+"{ticket}/{digest}/{component}", s.download)

	handle("POST "+api.PathReleases, s.operator(s.publish))
	handle("GET "+api.PathReleases, s.operator(s.listReleases))
	handle("GET "+api.PathDevices, s.operator(s.listDevices))
	handle("GET "+api.PathDevice, s.operator(s.showDevice))
	handle("PUT "+api.PathDevice, s.operator(s.moveDevice))
	handle("GET "+api.PathGroups, s.operator(s.listGroups))
	handle("GET "+api.PathGroup, s.operator(s.showGroup))
	handle("PUT "+api.PathGroup, s.operator(s.changeGroup))
	handle("POST "+api.PathTokens, s.operator(s.makeToken))
	handle("GET "+api.PathTokens, s.operator(s.listTokens))
	handle("DELETE "+api.PathTokens+"/{id}", s.operator(s.revokeToken))
	handle("GET "+api.PathEvents, s.operator(s.events))

	door("GET /firmware", s.firmwareDocument)
	door("GET /firmware/{group}", s.firmwareDocument)
	door("GET /firmware.bin", s.firmware)
	door("GET /firmware/{group}/firmware.bin", s.firmware)
	door("GET /bess/latest.bin", s.firmware)
	door("GET /bundle/{group}", s.bundleFile)

	page("GET /{$}", s.dashboard)
	page("GET /devices/{id}", s.devicePage)
	page("GET /events", s.live)
	handle("GET /login", s.loginPage)
	handle("POST /login", s.sameSite(s.login))
	handle("POST /logout", s.sameSite(s.logout))
	handle("GET /static/{file}", s.static)
	handle("GET /healthz", func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.WriteString(w, "ok\n")
		return err
	})
	mux.Handle("/", s.serve(func(w http.ResponseWriter, r *http.Request) error {
		if _, pattern := mux.Handler(&http.Request{Method: "GET", URL: r.URL, Host: r.Host}); r.Method != "GET" && pattern != "/" {
			return fail(http.StatusMethodNotAllowed, r.Method+" is not possible here", "")
		}
		return fail(http.StatusNotFound, "there is nothing at this path", "the API begins at /api/v1/")
	}, writeError))
	return mux
}
