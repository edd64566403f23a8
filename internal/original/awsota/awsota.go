// Package awsota is the ESP32 device of the document aws-s3-ota.md, for tests: it
// updates itself as that device does, keeps its limits, and so shows that a server
// of ours serves the devices that are in the field already.
//
// Start with [New], then [Client.Update] as often as the device would look:
//
//	c, err := awsota.New(awsota.Config{ManifestURL: url, Version: "1.0.0", RootCA: pem, Flash: &flash})
//	result, err := c.Update(ctx)
//
// Promised: no more is taken than the device takes. What the device cuts off is cut
// off here, and what makes it give up makes this give up:
//
//   - TLS 1.2, only the certificates of RootCA, the host name checked; HTTP/1.1, a
//     connection for each request.
//   - The URL of the manifest is cut after 255 characters, versions after 31 and the
//     URL of the image after 511, without a word, as strncpy does.
//   - The manifest wants status 200, JSON, and a version and a URL that are not
//     empty; the URL begins with https://. Redirects are followed while it is asked
//     for, because the library sets HTTPC_STRICT_FOLLOW_REDIRECTS. Up to three tries,
//     two seconds apart; a manifest that cannot be read is tried again, too.
//   - Versions are compared for equality: an older one is installed.
//   - The image is asked for once. It wants status 200 without a redirect, which is
//     the default of Arduino's HTTPClient, and a Content-Length above 0 that is met
//     to the byte.
//   - 120 seconds without a byte end it.
//
// The callbacks come in the order of the document ("Callback Execution Order"). The
// device checks no hash and no signature: whoever can change what S3 holds can
// change what it runs. That is the document's design, and not ours.
//
// The limits were read from version 2.0.0 of the public library of that document.
package awsota

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// The room of the device, in characters without the byte that ends a C string.
const (
	MaxManifestURL = 255 // char _manifestUrl[256]
	MaxVersion     = 31  // char _currentVersion[32], MAX_VERSION_LEN 32
	MaxURL         = 511 // MAX_FIRMWARE_URL_LEN 512
)

const (
	defaultTries   = 3               // setMaxRetries
	betweenTries   = 2 * time.Second // vTaskDelay(pdMS_TO_TICKS(2000))
	defaultTimeout = 120 * time.Second
)

// Config is what a device is built with. ManifestURL, Version, RootCA and Flash
// are the arguments of begin, and are needed.
type Config struct {
	ManifestURL string    // https://.../firmware
	Version     string    // of the firmware that runs
	RootCA      []byte    // PEM; the only certificates that are trusted, for both hosts
	Flash       io.Writer // where the image goes

	FlashSize int64         // bytes of the partition; 0: as large as it takes
	Tries     int           // for the manifest; default 3
	Timeout   time.Duration // without a byte; default 120 s
	Callbacks Callbacks

	// Wait waits between tries. Default: a timer.
	Wait func(context.Context, time.Duration) error
	// Dial opens TCP connections. Default: that of net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Callbacks are those of the document, by its names. Nil ones are skipped.
type Callbacks struct {
	OnCheckStart   func() bool // false: not now
	OnSuspendTasks func() bool // false: not now
	OnOtaStarted   func()
	OnOtaProgress  func(percent int) // at every tenth of the image
	OnOtaFinished  func()
	OnOtaFailed    func(reason string)
	OnOtaUpToDate  func()
	OnResumeTasks  func()
}

// Result is what an update did.
type Result struct {
	Updated bool   // the device would restart now
	Version string // that the manifest named, as far as the device has room for it
	Size    int64  // bytes written to the flash
	Tries   int    // for the manifest
}

var (
	// ErrDenied is returned if a callback said no.
	ErrDenied = errors.New("a callback of the application said no")
	// ErrManifest is returned if no try brought a manifest.
	ErrManifest = errors.New("Manifest fetch failed") // the words of the library
	// ErrDownload is returned if the image did not arrive whole.
	ErrDownload = errors.New("Download or flash failed") // the words of the library
)

// Client is a device. Use it from one goroutine.
type Client struct {
	cfg Config
	tls *tls.Config
}

// New returns a device. It does not ask anybody anything.
func New(cfg Config) (*Client, error) {
	if cfg.Flash == nil || cfg.ManifestURL == "" {
		return nil, errors.New("make a device: it needs the URL of a manifest and a flash")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cfg.RootCA) {
		return nil, errors.New("make a device: the root CA has no certificate in PEM")
	}
	cfg.ManifestURL, cfg.Version = cut(cfg.ManifestURL, MaxManifestURL), cut(cfg.Version, MaxVersion)
	if cfg.Tries == 0 {
		cfg.Tries = defaultTries
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Wait == nil {
		cfg.Wait = wait
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	return &Client{cfg: cfg, tls: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}}, nil
}

// cut is what strncpy into a buffer of n+1 bytes leaves.
func cut(s string, n int) string { return s[:min(len(s), n)] }

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// http returns a client for one request: the device keeps no connection.
func (c *Client) http(redirects func(*http.Request, []*http.Request) error) *http.Client {
	return &http.Client{CheckRedirect: redirects, Transport: &http.Transport{
		DialContext: c.cfg.Dial, TLSClientConfig: c.tls, DisableKeepAlives: true, DisableCompression: true}}
}
