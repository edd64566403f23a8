// Package bessota is the controller of the document bess-ota-manager.md with the
// source HTTPS, for tests: it asks a server about its firmware with a HEAD request,
// downloads it with a GET, and keeps the limits of the original, and so shows that a
// server of ours serves the controllers that are in the field already.
//
// Start with [New], then [Client.Update] as often as the controller would look:
//
//	c, err := bessota.New(bessota.Config{URL: url, CertPEM: pem, Version: "1.0.0", Flash: &flash})
//	result, err := c.Update(ctx)
//
// Errors are a [*Error] with the document's number. Promised, as the original does:
//
//   - TLS with the certificates of CertPEM only, the host name checked.
//   - The version is cut after 31 characters, the notes after 255, MD5 after 32,
//     SHA-256 after 64 and the numbers and booleans after 9.
//   - X-Firmware-Mandatory is true for "true" only, X-Firmware-Reboot false for
//     "false" only, X-Firmware-MinSoC is read as atoi does.
//   - Versions are compared for equality: an older one is installed.
//   - Status 500 and above is [Server]; what is not 200 otherwise [Connectivity].
//
// And as the document says, where the original does nothing: 401 and 403 are
// [Authentication], MD5 and SHA-256 are compared, the battery is asked.
//
// Assumed of ESP-IDF's esp_http_client with the defaults that the original leaves
// alone (v5; disable_auto_redirect, auth_type, buffer_size_tx of its configuration):
//
//   - The answers 301, 302, 303, 307 and 308 are followed, ten times at most, with
//     the method as it was.
//   - User and password are sent after an answer 401 with a Basic challenge, and
//     from then on to every host, those of redirects too. Amazon S3 refuses a
//     presigned URL beside another Authorization (400 InvalidArgument).
//   - The request line, with its line end, has 511 bytes of room, which leaves 496
//     for path and query after "GET ".
//   - The body of an answer with a redirect goes where all bodies go, into the flash.
package bessota

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The room of the controller, in characters without the byte that ends a C string.
const (
	MaxVersion     = 31  // char version[32]
	MaxNotes       = 255 // char release_notes[256]
	MaxRequestLine = 511 // DEFAULT_HTTP_BUF_SIZE 512 of esp_http_client
	maxFlag        = 9   // char mandatory_header[10] and its like
)

const (
	maxRedirects   = 10               // DEFAULT_MAX_REDIRECT of esp_http_client
	defaultTimeout = 10 * time.Second // timeout_ms
	defaultMinSoC  = 30               // percent; the document's default
)

// Config is what ota_manager_init is given. URL, CertPEM, Version and Flash are
// needed.
type Config struct {
	URL            string // of the firmware, https
	CertPEM        []byte // the only certificates that are trusted
	User, Password string // basic_auth_user, basic_auth_pass; empty: none

	Version   string        // of the firmware that runs
	Flash     io.Writer     // where the image goes
	FlashSize int64         // bytes of the partition; 0: as large as it takes
	Timeout   time.Duration // without a byte; default 10 s

	SoC    func() int  // percent; nil: full
	Safe   func() bool // what the BMS says; nil: safe
	MinSoC int         // percent, where a release names none; default 30
}

// Info is ota_update_info_t of the original.
type Info struct {
	Version   string
	Notes     string
	Size      int64 // bytes; -1 if the server does not say
	MD5       string
	SHA256    string
	Mandatory bool
	Reboot    bool
	MinSoC    int // percent
}

// Result is what an update did.
type Result struct {
	Info    Info
	Updated bool  // the controller would restart now, if Info.Reboot
	Size    int64 // bytes written to the flash
}

// Code is a number of the document ("Error Handling").
type Code int

// The numbers of the document.
const (
	None                Code = 0
	NoUpdates           Code = -1
	Connectivity        Code = -2
	Server              Code = -3
	Authentication      Code = -4
	InsufficientSpace   Code = -5
	ValidationFailed    Code = -6
	FlashWrite          Code = -7
	IncompatibleVersion Code = -8
	BatteryLow          Code = -9
	BMSUnsafe           Code = -10
	Internal            Code = -100
)

// Error is why there was no update.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%v (error %d)", e.Err, e.Code) }

// Unwrap returns what happened.
func (e *Error) Unwrap() error { return e.Err }

func fail(code Code, format string, args ...any) *Error {
	return &Error{code, fmt.Errorf(format, args...)}
}

// CodeOf returns the number of an error of [Client.Update], and None for nil.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return None
	case errors.As(err, &e):
		return e.Code
	}
	return Internal
}

// Client is a controller. Use it from one goroutine.
type Client struct {
	cfg  Config
	http *http.Client

	authorize bool // a server has asked for it
}

// New returns a controller. It does not ask anybody anything.
func New(cfg Config) (*Client, error) {
	if cfg.Flash == nil || cfg.URL == "" {
		return nil, errors.New("make a controller: it needs the URL of its firmware and a flash")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cfg.CertPEM) {
		return nil, errors.New("make a controller: the certificate is not PEM")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.MinSoC == 0 {
		cfg.MinSoC = defaultMinSoC
	}
	if cfg.SoC == nil {
		cfg.SoC = func() int { return 100 }
	}
	if cfg.Safe == nil {
		cfg.Safe = func() bool { return true }
	}
	cfg.Version = cut(cfg.Version, MaxVersion)
	return &Client{cfg: cfg, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}}, nil
}

func cut(s string, n int) string { return s[:min(len(s), n)] }
