package cloudwatch

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	maxAnswer   = 64 << 10 // bytes of an answer that are read
	maxHalvings = 40       // requests to find the events of one batch that are refused
	zipFrom     = 1 << 10  // bytes of a request that is worth it
)

// client speaks the three operations that are needed of the CloudWatch Logs API
// (JSON 1.1, version 2014-03-28). One goroutine uses it at a time.
type client struct {
	cfg    Config
	http   http.Client
	signer *v4.Signer
	token  *string // the stream's sequence token, which old implementations want
	plain  bool    // gzip was refused
}

func newClient(cfg Config) *client {
	c := &client{cfg: cfg, http: *cfg.Client, signer: v4.NewSigner()}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// apiError is an answer that is an error.
type apiError struct {
	status  int
	code    string // ThrottlingException and so on; empty if the answer is not of AWS
	message string
	token   *string // expectedSequenceToken
}

func (e *apiError) Error() string {
	code := e.code
	if code == "" {
		code = "no error of AWS"
	}
	return fmt.Sprintf("the answer is %d, %s: %s", e.status, code, e.message)
}

// errRefused says that CloudWatch will never take a batch as it is.
var errRefused = errors.New("refused")

// result tells what became of the first events of a batch.
type result struct {
	settled int              // events that need no more sending
	sent    int64            // of them, accepted
	dropped map[string]int64 // of them, not accepted, by why
	err     error            // why the rest must be sent later
}

func (r *result) drop(lines int, why string) {
	if lines > 0 {
		r.dropped[why] += int64(lines)
	}
}

// send sends a batch that keeps the limits. If CloudWatch refuses it as wrong it
// is cut in halves until what is wrong is found, so that one event cannot hold
// up the others for ever.
func (c *client) send(ctx context.Context, events []event) result {
	res := result{dropped: map[string]int64{}}
	budget := maxHalvings
	var halve func([]event) bool
	halve = func(part []event) bool {
		budget--
		old, ahead, err := c.put(ctx, part)
		switch {
		case err == nil:
			res.drop(old, whyOld)
			res.drop(ahead, whyNew)
			res.sent += int64(len(part) - old - ahead)
		case !errors.Is(err, errRefused):
			res.err = fmt.Errorf("send %d lines to CloudWatch group %s: %w", len(part), c.cfg.Group, err)
			return false
		case len(part) > 1 && budget > 0:
			return halve(part[:len(part)/2]) && halve(part[len(part)/2:])
		default:
			res.drop(len(part), whyRefused)
		}
		res.settled += len(part)
		return true
	}
	halve(events)
	return res
}

// put is one PutLogEvents, repeated at once where that can help. It returns how
// many of the events were not taken, because they are too old or too new.
func (c *client) put(ctx context.Context, events []event) (old, ahead int, err error) {
	type logEvent struct {
		Timestamp int64  `json:"timestamp"`
		Message   string `json:"message"`
	}
	in := struct {
		Group  string     `json:"logGroupName"`
		Stream string     `json:"logStreamName"`
		Token  *string    `json:"sequenceToken,omitempty"`
		Events []logEvent `json:"logEvents"`
	}{Group: c.cfg.Group, Stream: c.cfg.Stream}
	for _, e := range events {
		in.Events = append(in.Events, logEvent{e.ms, string(e.text)})
	}
	var out struct {
		Next     *string `json:"nextSequenceToken"`
		Rejected struct {
			TooNewStart *int `json:"tooNewLogEventStartIndex"` // inclusive
			TooOldEnd   *int `json:"tooOldLogEventEndIndex"`   // exclusive
			ExpiredEnd  *int `json:"expiredLogEventEndIndex"`  // not said; like the one before
		} `json:"rejectedLogEventsInfo"`
	}
	for range 4 { // a new stream, a new token, new credentials, no gzip
		in.Token = c.token
		err = c.call(ctx, "PutLogEvents", in, &out)
		if err == nil {
			c.token = out.Next
			r := out.Rejected
			old = clamp(r.TooOldEnd, 0, len(events))
			old = max(old, clamp(r.ExpiredEnd, 0, len(events)))
			ahead = len(events) - max(old, clamp(r.TooNewStart, len(events), len(events)))
			return old, ahead, nil
		}
		var e *apiError
		if !errors.As(err, &e) {
			return 0, 0, err
		}
		switch {
		case e.code == "DataAlreadyAcceptedException": // an answer that was lost
			c.token = e.token
			return 0, 0, nil
		case e.code == "InvalidSequenceTokenException":
			c.token = e.token
		case e.code == "ResourceNotFoundException":
			if cerr := c.create(ctx); cerr != nil {
				return 0, 0, cerr
			}
		case slices.Contains(badCredentials, e.code):
			renewer, ok := c.cfg.Credentials.(interface{ Invalidate() })
			if !ok {
				return 0, 0, err
			}
			renewer.Invalidate()
		case !c.plain && (e.status == http.StatusUnsupportedMediaType || e.code == "SerializationException"):
			c.plain = true
		case e.code == "InvalidParameterException":
			return 0, 0, fmt.Errorf("%w: %w", errRefused, err)
		default:
			return 0, 0, err
		}
	}
	return 0, 0, err
}

// badCredentials are the errors that new credentials may end (Logs API Reference,
// "Common Errors").
var badCredentials = []string{"ExpiredTokenException", "ExpiredToken", "InvalidClientTokenId", "UnrecognizedClientException"}

func clamp(n *int, missing, limit int) int {
	if n == nil {
		return missing
	}
	return min(max(*n, 0), limit)
}

// create creates the stream, and the group if that is wanted.
func (c *client) create(ctx context.Context) error {
	type name struct {
		Group  string `json:"logGroupName"`
		Stream string `json:"logStreamName,omitempty"`
	}
	exists := func(err error) bool {
		var e *apiError
		return errors.As(err, &e) && e.code == "ResourceAlreadyExistsException"
	}
	missing := func(err error) bool {
		var e *apiError
		return errors.As(err, &e) && e.code == "ResourceNotFoundException"
	}
	stream := name{c.cfg.Group, c.cfg.Stream}
	err := c.call(ctx, "CreateLogStream", stream, nil)
	if missing(err) && !c.cfg.CreateGroup {
		return fmt.Errorf("create the log stream: %w: create the log group %s, or let the agent do it", err, c.cfg.Group)
	}
	if missing(err) {
		if err := c.call(ctx, "CreateLogGroup", name{Group: c.cfg.Group}, nil); err != nil && !exists(err) {
			return fmt.Errorf("create the log group: %w", err)
		}
		if c.cfg.Retention > 0 {
			policy := struct {
				Group string `json:"logGroupName"`
				Days  int    `json:"retentionInDays"`
			}{c.cfg.Group, c.cfg.Retention}
			if err := c.call(ctx, "PutRetentionPolicy", policy, nil); err != nil {
				return fmt.Errorf("set the retention of the log group: %w", err)
			}
		}
		err = c.call(ctx, "CreateLogStream", stream, nil)
	}
	if err != nil && !exists(err) {
		return fmt.Errorf("create the log stream: %w", err)
	}
	c.token = nil
	return nil
}

// call does one operation. out may be nil.
func (c *client) call(ctx context.Context, operation string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	creds, err := c.cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return err
	}
	req, err := c.request(ctx, operation, in, creds)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() // only read: nothing can be lost
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer to %s: %w", operation, err)
	}
	if res.StatusCode != http.StatusOK {
		return answered(res, body, creds)
	}
	if out == nil {
		return nil
	}
	// A portal that answers everything with its own page is not CloudWatch.
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("read the answer to %s: %d bytes that are no JSON: is there a portal in between?", operation, len(body))
	}
	return nil
}

// request makes a signed request. Bodies are compressed as the CloudWatch agent of
// AWS does; the API Reference does not mention it, so a refusal is minded.
func (c *client) request(ctx context.Context, operation string, in any, creds aws.Credentials) (*http.Request, error) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(in); err != nil {
		return nil, fmt.Errorf("write %s: %w", operation, err)
	}
	zip := !c.plain && body.Len() >= zipFrom
	if zip {
		var small bytes.Buffer
		z := gzip.NewWriter(&small)
		z.Write(body.Bytes()) // to memory: no errors
		z.Close()
		body = small
	}
	sum := sha256.Sum256(body.Bytes())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.cfg.Endpoint, "/")+"/", &body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "Logs_20140328."+operation)
	if zip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	if err := c.signer.SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "logs", c.cfg.Region, c.cfg.Now().UTC()); err != nil {
		return nil, fmt.Errorf("sign %s: %w", operation, err)
	}
	return req, nil
}

// answered makes an error of an answer. AWS explains a signature that does not
// match by what it has signed, token and all: that must not get into a log.
func answered(res *http.Response, body []byte, creds aws.Credentials) error {
	var a struct {
		Type    string  `json:"__type"`
		Message string  `json:"message"`
		Upper   string  `json:"Message"`
		Token   *string `json:"expectedSequenceToken"`
	}
	e := &apiError{status: res.StatusCode}
	if json.Unmarshal(body, &a) == nil {
		e.code, e.message, e.token = a.Type, a.Message+a.Upper, a.Token
	}
	if e.code == "" {
		e.code = res.Header.Get("X-Amzn-Errortype")
	}
	e.code = e.code[strings.LastIndex(e.code, "#")+1:] // com.amazonaws.logs#...
	e.code, _, _ = strings.Cut(e.code, ":")            // ...:http://internal.amazon.com/coral/
	if strings.Contains(e.code, "Signature") {
		e.message = "are clock, region and secret key right? Its date is " + res.Header.Get("Date")
	}
	for _, secret := range []string{creds.SecretAccessKey, creds.SessionToken} {
		if secret != "" {
			e.message = strings.ReplaceAll(e.message, secret, "...")
		}
	}
	e.message, _, _ = strings.Cut(e.message, "\n")
	e.message = string(clean([]byte(e.message), 300))
	e.code = string(clean([]byte(e.code), 100))
	return e
}
