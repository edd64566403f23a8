// Package awsiot takes releases from AWS IoT Jobs: the operator makes a job for
// things or groups of things, its document says where a bundle is, and this
// device takes it when its gate allows, and tells the job how that ended.
//
// For device builders: start with [New], give the source to the manager, and run
// [Source.Run] beside it, which keeps the connection and wakes the manager. For
// operators: a job says where its release is, in one of these forms:
//
//	{"interlock": {"bundle": "https://..."}}
//	{"interlock": {"manifest": "https://...", "images": {"controller": "https://..."}}}
//	{"afr_ota": {...}}    FreeRTOS OTA, one file: a bundle, or an image under AWS code signing
//
// The first two may say product, version and digest as well, for people; these must then
// be those of the release. Addresses may be AWS's placeholders for presigned URLs. Jobs are
// taken in the order of the service; one that has begun is finished before the next. The
// status of an execution, and its details, are the device's words:
//
//	QUEUED       nothing has begun: the device waits for its gate, or has not heard of it
//	IN_PROGRESS  from the first byte of an image to the end of the trial
//	SUCCEEDED    the release is proven and marked good, or ran already
//	REJECTED     it never will be taken here: the document, the signature, the product, an
//	             older version, no room, or it failed here before
//	FAILED       it was begun, and given up, rolled back, lost, or stopped by a person
//
// A FreeRTOS file is kept in [Config.Dir] until all of it is there, and its job is offered
// only then.
//
// What the package promises:
//
//   - A job that waits is not started before the device begins with it: until then it
//     is queued, and no timer of the service runs.
//   - Each execution of a job gets one final status, whatever happens to the power,
//     the connection or the process in between. What is to be sent is on the disk
//     before it is sent, and it is sent until the service has it or says that the
//     execution is over.
//   - Only what is certain ends a job: a document that says nothing usable, a wrong
//     signature, a release that does not fit, one that failed here. A connection that
//     is down, an address that has expired, or a server's error never does.
//   - A job that is cancelled, times out or is removed while its release waits or is
//     being fetched withdraws it. Past the restart the device finishes or rolls back,
//     and says so to a service that may not want to hear it any more.
//   - The broker is not trusted: sizes, names and answers that were not asked for.
//     Only the manifest's signature makes a release.
//
// The connection is MQTT 5 over TLS with a client certificate (AWS IoT Core
// Developer Guide, "Device communication protocols"), the jobs are those of "Jobs device
// MQTT API operations" there.
//
// Errors wrap one of ota's codes: ErrConnectivity if the broker or the file was not
// reached, ErrAuthentication if one side does not accept the other, ErrServer for
// everything that the other side got wrong.
package awsiot

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/durable"
)

// ErrExpired is what a [Fetcher] wraps if the address is not accepted, any more or at
// all (HTTP status 401, 403, 404 or 410): the service may give another one.
var ErrExpired = errors.New("the address is not accepted any more")

// A Fetcher reads objects over HTTP.
type Fetcher interface {
	// Fetch returns the bytes of the object at url from offset on, length of them, or
	// all to the end if length is negative, and the size of the whole object, -1 if the
	// other side does not say. The reader may end early with an error, never with other bytes.
	// Cancelling ctx unblocks a Read.
	//
	// Errors wrap one of ota's codes, and [ErrExpired] where that is so. They hold no
	// query of the url, which may be a secret.
	Fetch(ctx context.Context, url string, offset, length int64) (body io.ReadCloser, size int64, err error)
}

// Config says who this device is and where its jobs are. The zero value of every field
// but Endpoint, Thing, Product, Dir, Verify and HTTP works; without AllowPlain the
// certificates are needed as well.
type Config struct {
	// Endpoint is host or host:port of the broker; the port is 8883 by default. With
	// port 443 TLS says that it wants MQTT (ALPN x-amzn-mqtt-ca).
	Endpoint string
	Thing    string // [a-zA-Z0-9:_-], at most 128
	ClientID string // default: Thing, as the policies of AWS's examples want it

	CACert     []byte // PEM; no other roots are accepted. Nil: those of the operating system
	ClientCert []byte // PEM chain
	ClientKey  []byte // PEM

	// Topic is the base of topics of our own: reports are published to Topic/reports,
	// status to Topic/status, and any message on Topic/wake wakes the manager. Default: "", none.
	Topic string
	// JobsPrefix is where the topics of the jobs begin; default: $aws/things/THING/jobs.
	JobsPrefix string

	Product  string
	Hardware string
	Version  string // that runs now

	// Dir is a directory that survives restarts, made when it is needed, for what is known of the
	// job in hand, and for files that are spooled.
	Dir string
	// FS is what Dir is on; default: durable.OS.
	FS durable.FS

	Verify ota.Verify
	// Judge says whether a release fits this device: nil if so. A job whose release is
	// ErrIncompatible, ErrValidation (it has expired) or ErrInsufficientSpace is rejected, and
	// one that is ErrNoUpdate, too, unless it has the version that runs: that job has
	// succeeded. ErrNotNow says that it is not certain yet, and the manager is woken to look
	// again. Other errors decide nothing. Default: product, hardware and version are compared.
	Judge func(*ota.Manifest) error
	// Skipped says of a release that it is not taken, because it failed here before, and
	// why. Default: none is.
	Skipped func(digest string) (reason string, skipped bool)
	// InHand returns the digest of the release that the manager has in hand, or "". If it is
	// given, a job that is gone withdraws only its own release. Default: nil.
	InHand func() string

	HTTP Fetcher // reads bundles and images

	// CodeSigning accepts files of FreeRTOS OTA jobs that are signed by AWS Signer only; Verify
	// must then take their envelopes, too (bundle.VerifyAny). Default: nil, only bundles are taken.
	CodeSigning *bundle.CodeSigning
	// ImageVersion reads the version in a raw image of such a job. Default: nil, the job must say it.
	ImageVersion func(r io.ReaderAt, size int64) (string, error)
	// SpoolSize is the size of a FreeRTOS OTA job's file in bytes, at most: it is kept in
	// Dir, whole, before anything of it is used. Default: 64 MiB. Negative: no such jobs.
	SpoolSize int64

	// StepTimeout is sent with every update of a job, in minutes, rounded up: a device that
	// is not heard of for so long loses the job. Updates come three times as often.
	// Default: 0, none is sent.
	StepTimeout time.Duration
	// Keepalive is after how much silence the connection is probed; default 2 min. The
	// broker ends it after one and a half times as much (AWS: 30 s to 20 min).
	Keepalive time.Duration
	// SessionExpiry is how long the broker keeps messages for a device that is away;
	// default 1 h.
	SessionExpiry time.Duration
	// StatusInterval is the least time between two updates of a job about progress;
	// default 10 s.
	StatusInterval time.Duration
	ConnectTimeout time.Duration // for TCP, TLS and MQTT together; default 30 s
	AnswerTimeout  time.Duration // for the service's answer to a request; default 15 s
	MinBackoff     time.Duration // before the second try to connect; doubles; default 1 s
	MaxBackoff     time.Duration // between two tries; default 5 min

	// Dial makes the connection below TLS; default: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// AllowPlain permits a connection without TLS, and http URLs. For tests on a loopback.
	AllowPlain bool

	Log *slog.Logger // default: slog.Default()
	// Now is the time by which certificates are judged; default: time.Now.
	Now func() time.Time
}

var (
	_ ota.Source   = (*Source)(nil)
	_ ota.Reporter = (*Source)(nil)
	_ ota.Waker    = (*Source)(nil)
)
