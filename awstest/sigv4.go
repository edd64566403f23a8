package awstest

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxSkew is how far a request's time may be from the service's (IAM user guide,
// "AWS Signature Version 4": five minutes).
const maxSkew = 5 * time.Minute

// verify checks a request's signature (AWS Signature Version 4, in the header): AWS's
// own signer signs the same request with the secret key that belongs to the access
// key, and the two must be equal.
func verify(r *http.Request, body []byte, keys *Keys, service, region string, now time.Time) (accessKey string, failure *awsError) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", bad("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	credential, signed, ok := parseAuthorization(header)
	if !ok {
		return "", bad("IncompleteSignatureException", "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature': %q", header)
	}
	scope := strings.Split(credential, "/")
	if len(scope) != 5 {
		return "", bad("IncompleteSignatureException", "Credential must have exactly 5 slash-delimited elements, got %q", credential)
	}
	key, known := keys.lookup(scope[0])
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch {
	case err != nil:
		return scope[0], bad("IncompleteSignatureException", "X-Amz-Date: %v", err)
	case !known, key.SessionToken != r.Header.Get("X-Amz-Security-Token"):
		return scope[0], bad("UnrecognizedClientException", "The security token included in the request is invalid.")
	case !key.Expires.IsZero() && !now.Before(key.Expires):
		return scope[0], bad("ExpiredTokenException", "The security token included in the request is expired")
	case at.Sub(now).Abs() > maxSkew:
		return scope[0], bad("InvalidSignatureException", "Signature expired or not yet current: %s is more than 5 min. from %s",
			at.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case strings.Join(scope[1:], "/") != strings.Join([]string{at.Format("20060102"), region, service, "aws4_request"}, "/"):
		return scope[0], bad("InvalidSignatureException", "Credential should be scoped to %s of service %s, got %q", region, service, credential)
	}
	if missing := unsigned(r.Header, signed); missing != "" {
		return scope[0], bad("InvalidSignatureException", "The header %s must be signed", missing)
	}
	want, err := signAgain(r, body, key, signed, service, region, at)
	if err != nil {
		return scope[0], bad("InvalidSignatureException", "%v", err)
	}
	if subtle.ConstantTimeCompare([]byte(signature(header)), []byte(signature(want))) != 1 {
		return scope[0], bad("InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
	}
	return scope[0], nil
}

// parseAuthorization takes the header apart; the order and the blanks are free.
func parseAuthorization(header string) (credential string, signed []string, ok bool) {
	rest, found := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	credential = fields["Credential"]
	return credential, strings.Split(fields["SignedHeaders"], ";"),
		found && credential != "" && fields["SignedHeaders"] != "" && fields["Signature"] != ""
}

func signature(header string) string {
	_, s, _ := strings.Cut(header, "Signature=")
	s, _, _ = strings.Cut(s, ",")
	return strings.TrimSpace(s)
}

// unsigned is a header that has to be signed and is not.
func unsigned(h http.Header, signed []string) string {
	if !slices.Contains(signed, "host") {
		return "host"
	}
	for name := range h {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return name
		}
	}
	return ""
}

func signAgain(r *http.Request, body []byte, key Key, signed []string, service, region string, at time.Time) (string, error) {
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.RequestURI(), http.NoBody)
	if err != nil {
		return "", err
	}
	again.ContentLength = 0
	for _, name := range signed {
		switch name {
		case "host":
		case "content-length":
			again.ContentLength = r.ContentLength
		default:
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	credentials := aws.Credentials{AccessKeyID: key.AccessKeyID, SecretAccessKey: key.SecretAccessKey, SessionToken: key.SessionToken}
	err = v4.NewSigner().SignHTTP(r.Context(), credentials, again, hex.EncodeToString(sum[:]), service, region, at)
	return again.Header.Get("Authorization"), err
}
