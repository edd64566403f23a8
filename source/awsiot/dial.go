package awsiot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/interlock-energy/ota"
)

// Ports and the protocol name for MQTT with a client certificate on the port of HTTPS
// (AWS IoT Core Developer Guide, "Device communication protocols").
const (
	defaultPort = "8883"
	webPort     = "443"
	alpn        = "x-amzn-mqtt-ca"
)

// maxPacket is the largest MQTT packet that is read: AWS's limit of 128 KiB for a
// payload, and room for its topic and properties.
const maxPacket = 128<<10 + 4<<10

// inFlight is how many messages of QoS 1 the broker may send without an answer.
const inFlight = 32

// writeTimeout is for one packet of at most 128 KiB, into the kernel's buffer.
const writeTimeout = time.Minute

// tlsConfig is nil if the connection is plain.
func tlsConfig(cfg *Config, host, port string) (*tls.Config, error) {
	if cfg.AllowPlain && cfg.CACert == nil && cfg.ClientCert == nil {
		return nil, nil
	}
	if len(cfg.ClientCert) == 0 || len(cfg.ClientKey) == 0 {
		return nil, errors.New("the client certificate and its key are missing; the broker knows the device by them")
	}
	pair, err := tls.X509KeyPair(cfg.ClientCert, cfg.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, Certificates: []tls.Certificate{pair}, Time: cfg.Now}
	if port == webPort {
		t.NextProtos = []string{alpn}
	}
	if cfg.CACert != nil {
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(cfg.CACert) {
			return nil, errors.New("the CA file holds no certificate in PEM")
		}
	}
	return t, nil
}

// connect makes a connection. lost receives once, why it ended.
func (l *line) connect(ctx context.Context) (c *paho.Client, lost <-chan error, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.ConnectTimeout)
	defer cancel()
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, nil, l.explain(err)
	}
	ended := make(chan error, 1)
	end := func(err error) {
		select {
		case ended <- err:
		default: // the first word counts
		}
	}
	c = paho.NewClient(paho.ClientConfig{
		Conn:               packets.NewThreadSafeConn(&bounded{Conn: conn}),
		PacketTimeout:      l.cfg.AnswerTimeout,
		AuthHandler:        noAuth{},
		OnPublishReceived:  []func(paho.PublishReceived) (bool, error){l.deliver},
		OnClientError:      func(err error) { end(l.explain(err)) },
		OnServerDisconnect: func(d *paho.Disconnect) { end(l.reason(d)) },
	})
	expiry, receive, size := uint32(l.cfg.SessionExpiry/time.Second), uint16(inFlight), uint32(maxPacket)
	ack, err := c.Connect(ctx, &paho.Connect{ClientID: l.cfg.ClientID, KeepAlive: uint16(l.cfg.Keepalive / time.Second), CleanStart: false,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &receive, MaximumPacketSize: &size}})
	if err != nil {
		conn.Close()
		return nil, nil, l.refused(ack, err)
	}
	return c, ended, nil
}

func (l *line) dial(ctx context.Context) (net.Conn, error) {
	conn, err := l.cfg.Dial(ctx, "tcp", l.cfg.Endpoint)
	if err != nil || l.tls == nil {
		return conn, err
	}
	t := tls.Client(conn, l.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

// refused says what it means that the broker did not take the connection.
func (l *line) refused(ack *paho.Connack, err error) error {
	if ack == nil || ack.ReasonCode < 0x80 {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: the broker closed the connection without an answer; is the certificate active, and does its policy let the client id %q connect?",
				ota.ErrConnectivity, l.cfg.ClientID)
		}
		return l.explain(err)
	}
	text := ""
	if ack.Properties != nil && ack.Properties.ReasonString != "" {
		text = ": " + clean(ack.Properties.ReasonString, 200)
	}
	code, hint := ota.ErrServer, ""
	switch ack.ReasonCode { // MQTT 5.0, section 3.2.2.2
	case packets.ConnackInvalidClientID:
		code, hint = ota.ErrAuthentication, fmt.Sprintf("; the client id %q is not valid there", l.cfg.ClientID)
	case packets.ConnackBadUsernameOrPassword, packets.ConnackNotAuthorized, packets.ConnackBanned:
		code, hint = ota.ErrAuthentication, fmt.Sprintf("; does the policy of the certificate let the client id %q connect?", l.cfg.ClientID)
	case packets.ConnackServerUnavailable, packets.ConnackServerBusy:
		code = ota.ErrConnectivity
	}
	return &codedError{code, fmt.Errorf("the broker refused the connection, reason 0x%02x%s%s", ack.ReasonCode, text, hint)}
}

// explain classifies why there is no connection, or no longer.
func (l *line) explain(err error) error {
	switch {
	case errors.Is(err, errTooLarge):
		return &codedError{ota.ErrServer, err}
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: no answer within %v", ota.ErrConnectivity, l.cfg.ConnectTimeout)
	}
	hint := ""
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Cert != nil && e.Reason == x509.Expired {
		hint = fmt.Sprintf("the broker's certificate is valid from %s to %s, and the clock says %s: correct the one that is wrong",
			day(e.Cert.NotBefore), day(e.Cert.NotAfter), day(l.cfg.Now()))
	} else if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		hint = "the broker's certificate is not signed by the configured CA"
	} else if _, ok := errors.AsType[x509.HostnameError](err); ok {
		hint = "the broker's certificate is for another name"
	} else if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		hint = "the broker's certificate is not accepted"
	} else if strings.Contains(err.Error(), "remote error: tls:") { // crypto/tls has no type for it
		hint = "the broker does not accept the client certificate"
	}
	if hint != "" {
		return &codedError{ota.ErrAuthentication, fmt.Errorf("%w (%s)", err, hint)}
	}
	return &codedError{ota.ErrConnectivity, err}
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

// noAuth answers a broker that begins with MQTT's enhanced authentication, for which
// the device has nothing. Without a handler paho would end the process.
type noAuth struct{}

func (noAuth) Authenticate(*paho.Auth) *paho.Auth {
	return &paho.Auth{ReasonCode: packets.AuthSuccess, Properties: &paho.AuthProperties{}}
}
func (noAuth) Authenticated() {}

var errTooLarge = errors.New("the broker sends a packet that is too large")

// bounded is a connection that ends at a packet of more than maxPacket bytes, before
// anybody makes room for it. It follows the fixed headers (MQTT 5.0, section 2.1).
type bounded struct {
	net.Conn
	heard  atomic.Bool // something was asked to be read
	left   int64       // bytes of the present packet that are not read yet
	length int64       // remaining length as far as it is read
	shift  uint        // 0: the next byte is a packet's first; else 1 + 7 for each byte of length
}

// Write says why the other side has hung up, if it did before it was asked anything: with
// TLS 1.3 that is how it refuses a certificate (RFC 8446, section 4.4.2.4), and only a read shows it.
//
// A write has a limit in time, so that a dead connection holds up nobody who says good-bye.
func (b *bounded) Write(p []byte) (int, error) {
	_ = b.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := b.Conn.Write(p)
	if err != nil && !b.heard.Load() {
		_ = b.SetReadDeadline(time.Now().Add(time.Second))
		if _, readErr := b.Conn.Read(make([]byte, 1)); readErr != nil && strings.Contains(readErr.Error(), "tls:") {
			err = readErr
		}
	}
	return n, err
}

func (b *bounded) Read(p []byte) (int, error) {
	b.heard.Store(true)
	n, err := b.Conn.Read(p)
	for i := 0; i < n; {
		if b.left > 0 {
			skip := min(b.left, int64(n-i))
			b.left -= skip
			i += int(skip)
			continue
		}
		c := p[i]
		i++
		if b.shift == 0 {
			b.shift, b.length = 1, 0
			continue
		}
		b.length |= int64(c&0x7f) << (b.shift - 1)
		b.shift += 7
		if b.length > maxPacket || b.shift > 1+4*7 {
			b.Conn.Close()
			return 0, fmt.Errorf("%w: more than %d bytes", errTooLarge, maxPacket)
		}
		if c&0x80 == 0 {
			b.left, b.shift = b.length, 0
		}
	}
	return n, err
}

// codedError is an error with a code, whose text is not said.
type codedError struct {
	code ota.ErrorCode
	err  error
}

func (e *codedError) Error() string   { return e.err.Error() }
func (e *codedError) Unwrap() []error { return []error{e.code, e.err} }

func coded(code ota.ErrorCode, format string, a ...any) error {
	return &codedError{code, fmt.Errorf(format, a...)}
}

// clean makes text from the other side fit for one line of a log, in at most limit
// characters.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "..."
	}
	return s
}
