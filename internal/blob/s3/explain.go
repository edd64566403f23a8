package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/interlock-energy/ota/internal/blob"
)

// statusOf returns the HTTP status that came with an error, or 0.
func statusOf(err error) int {
	var r *awshttp.ResponseError
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

// codeOf returns the error's code as S3 names it ("Error responses", Amazon S3 API
// reference), or "".
func codeOf(err error) string {
	var a smithy.APIError
	if errors.As(err, &a) {
		return a.ErrorCode()
	}
	return ""
}

// explain says what was being done, to what, what is wrong and what to do. Of
// what the SDK says it keeps the last part, and the whole for programs.
func (s *Store) explain(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	what := doing + " " + s.String()
	if key != "" {
		what = doing + " " + key + " in " + s.String()
	}
	status, code := statusOf(err), codeOf(err)
	if status == http.StatusNotFound && code != "NoSuchBucket" {
		return fmt.Errorf("%s: %w", what, blob.ErrNotFound)
	}
	e := &failure{what: what, why: reason(err), cause: err, later: status == http.StatusTooManyRequests || status >= 500}
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		e.later = false // the caller's time was over, or he went away
	case code == "NoSuchBucket":
		e.hint = fmt.Sprintf("there is no bucket %q on this server; make it, or correct the name", s.bucket)
	case code == "InvalidAccessKeyId":
		e.hint = "the server does not know this access key; check the credentials"
	case code == "SignatureDoesNotMatch":
		e.hint = "the secret key is not that of the access key; check the credentials"
	case code == "ExpiredToken" || code == "TokenRefreshRequired":
		e.hint = "the temporary credentials have expired; get new ones"
	case code == "RequestTimeTooSkewed" || code == "RequestTimeSkewed":
		e.hint = "the clock of this machine is wrong; set it"
	case region(err) != "":
		e.hint = fmt.Sprintf("the bucket is in region %s, not %s; set that", region(err), s.client.Options().Region)
	case status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect || code == "AuthorizationHeaderMalformed":
		e.hint = fmt.Sprintf("the bucket is not in region %s; set its own", s.client.Options().Region)
	case status == http.StatusForbidden:
		e.hint = "the credentials are refused: they need s3:GetObject, s3:PutObject and s3:DeleteObject on the objects, and s3:ListBucket on the bucket"
	case status == 0 && code == "" && strings.Contains(err.Error(), "retrieve credentials") || strings.Contains(err.Error(), "failed to refresh cached credentials"):
		e.why, e.hint = "there are no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
	case status == 0:
		e.later = true
		e.hint = "check the endpoint and the network"
	}
	return e
}

// region returns the region that the server says the bucket is in, or "".
func region(err error) string {
	var r *awshttp.ResponseError
	if s := statusOf(err); s != http.StatusMovedPermanently && s != http.StatusTemporaryRedirect && s != http.StatusBadRequest || !errors.As(err, &r) {
		return ""
	}
	return r.Response.Header.Get("X-Amz-Bucket-Region")
}

// reason is what is wrong, without the names of the SDK's layers.
func reason(err error) string {
	var a smithy.APIError
	if errors.As(err, &a) {
		if a.ErrorMessage() == "" {
			return fmt.Sprintf("%s (%d)", a.ErrorCode(), statusOf(err))
		}
		return fmt.Sprintf("%s: %s", a.ErrorCode(), a.ErrorMessage())
	}
	for _, layer := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, layer) {
			return layer.Error()
		}
	}
	text := err.Error()
	if i := strings.LastIndex(text, "request send failed, "); i >= 0 {
		text = text[i+len("request send failed, "):]
	}
	if status := statusOf(err); status != 0 {
		return fmt.Sprintf("the server answered %d: %s", status, text)
	}
	return text
}

// failure is an error in the words of reason, and for errors.Is and errors.As
// all that the SDK knows.
type failure struct {
	what, why, hint string
	later           bool // the store is to blame, and another try later is worth it
	cause           error
}

// Is makes it a [blob.ErrUnavailable].
func (f *failure) Is(target error) bool { return f.later && target == blob.ErrUnavailable }

func (f *failure) Error() string {
	if f.hint == "" {
		return f.what + ": " + f.why
	}
	return f.what + ": " + f.why + "; " + f.hint
}

func (f *failure) Unwrap() error { return f.cause }
