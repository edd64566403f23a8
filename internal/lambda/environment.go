package lambda

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/lambda/event"
)

// Names of the environment variables that a function is configured with. They
// are in templates of operators, and never change. The first three are those of
// aws-s3-ota.md.
const (
	EnvBucketName      = "BUCKET_NAME"      // required, unless INTERLOCK_BUCKET is set
	EnvFirmwareKey     = "FIRMWARE_KEY"     // serve this one file at the front doors of the default group
	EnvFirmwareVersion = "FIRMWARE_VERSION" // its version; required with FIRMWARE_KEY

	EnvBucket        = "INTERLOCK_BUCKET"   // s3://bucket/prefix, as for "interlock publish --to"
	EnvOpen          = "OPEN"               // "true": devices need no token
	EnvURLLifetime   = "URL_LIFETIME"       // seconds; default 3600
	EnvPoll          = "POLL_SECONDS"       // between check-ins of an idle device; default 300
	EnvMaxURL        = "MAX_URL"            // characters of an URL in the document; default 511, 0: any
	EnvLogIdle       = "LOG_IDLE"           // "false": no line in the log for a device that is idle and told nothing new
	EnvBasePath      = "BASE_PATH"          // what a custom domain's mapping puts before all paths
	EnvSigningID     = "SIGNING_KEY_ID"     // access key that makes the presigned URLs, with
	EnvSigningSecret = "SIGNING_SECRET"     // its secret; a user's, so that no session token is in the URLs
	EnvSigningARN    = "SIGNING_SECRET_ARN" // the same from Secrets Manager: {"key_id": "...", "secret": "..."}
)

// FromEnvironment returns the adapter that answers Lambda's events as the
// environment says, which getenv reads. It makes one request if the signing key
// comes from Secrets Manager, and none otherwise. Credentials and endpoints for S3
// come from where AWS's programs have them.
func FromEnvironment(ctx context.Context, getenv func(string) string, log *slog.Logger) (event.Adapter, error) {
	f, err := fromEnvironment(ctx, getenv, log)
	if err != nil {
		return event.Adapter{}, fmt.Errorf("configure the function from its environment: %w", err)
	}
	return event.Adapter{Handler: f, BasePath: getenv(EnvBasePath)}, nil
}

func fromEnvironment(ctx context.Context, getenv func(string) string, log *slog.Logger) (*Function, error) {
	cfg := Config{Log: log}
	var err error
	if cfg.URLLifetime, err = seconds(getenv, EnvURLLifetime); err != nil {
		return nil, err
	}
	if cfg.PollInterval, err = seconds(getenv, EnvPoll); err != nil {
		return nil, err
	}
	if text := getenv(EnvMaxURL); text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%s is %q, want a number of characters, or 0 for any", EnvMaxURL, text)
		}
		if cfg.MaxURL = int(n); n == 0 {
			cfg.MaxURL = -1
		}
	}
	if cfg.Open, err = yes(getenv, EnvOpen, false); err != nil {
		return nil, err
	}
	logIdle, err := yes(getenv, EnvLogIdle, true)
	if err != nil {
		return nil, err
	}
	cfg.SkipIdle = !logIdle
	signer, err := signingKey(ctx, getenv, http.DefaultTransport)
	if err != nil {
		return nil, err
	}
	place, err := bucketURL(getenv)
	if err != nil {
		return nil, err
	}
	key, version := getenv(EnvFirmwareKey), getenv(EnvFirmwareVersion)
	if key == "" && version != "" {
		return nil, fmt.Errorf("%s is set without %s", EnvFirmwareVersion, EnvFirmwareKey)
	}
	if key != "" && version == "" {
		return nil, fmt.Errorf("%s is set without %s; devices compare it with theirs", EnvFirmwareKey, EnvFirmwareVersion)
	}
	if key != "" {
		if err := blob.CheckKey(key); err != nil {
			return nil, fmt.Errorf("%s: %w", EnvFirmwareKey, err)
		}
		whole, err := url.Parse(place)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", EnvBucket, err)
		}
		whole.Path = "" // the key is the whole one, whatever prefix the releases are below
		objects, urls, err := open(ctx, whole.String(), signer)
		if err != nil {
			return nil, err
		}
		cfg.Single = &Single{Objects: objects, URLs: urls, Key: key, Version: version}
	}
	objects, urls, err := open(ctx, place, signer)
	if err != nil {
		return nil, err
	}
	cfg.Objects, cfg.URLs, cfg.Bucket = objects, urls, bucket.New(objects)
	return New(cfg)
}

// bucketURL returns the bucket as s3.Open wants it.
func bucketURL(getenv func(string) string) (string, error) {
	name, place := getenv(EnvBucketName), getenv(EnvBucket)
	switch {
	case name != "" && place != "":
		return "", fmt.Errorf("both %s and %s are set; want one of them", EnvBucketName, EnvBucket)
	case place != "":
		if !s3.IsURL(place) {
			return "", fmt.Errorf("%s is %q, want a form like s3://bucket/prefix", EnvBucket, place)
		}
		return place, nil
	case name == "":
		return "", fmt.Errorf("neither %s nor %s is set", EnvBucketName, EnvBucket)
	case strings.ContainsAny(name, "/?:"):
		return "", fmt.Errorf("%s is %q, want the bucket's name alone; for a prefix set %s", EnvBucketName, name, EnvBucket)
	}
	return "s3://" + name, nil
}

// open returns the store, and what makes its URLs: the same, or one that has
// nothing but the signing key.
func open(ctx context.Context, place string, signer aws.CredentialsProvider) (*s3.Store, blob.Presigner, error) {
	objects, err := s3.Open(ctx, place, s3.Options{})
	if err != nil || signer == nil {
		return objects, objects, err
	}
	urls, err := s3.Open(ctx, place, s3.Options{Credentials: signer})
	return objects, urls, err
}

func yes(getenv func(string) string, name string, unset bool) (bool, error) {
	text := getenv(name)
	if text == "" {
		return unset, nil
	}
	is, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%s is %q, want true or false", name, text)
	}
	return is, nil
}

func seconds(getenv func(string) string, name string) (time.Duration, error) {
	text := getenv(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s is %q, want a number of seconds", name, text)
	}
	return time.Duration(n) * time.Second, nil
}

var errSigningKey = errors.New("want " + EnvSigningID + " and " + EnvSigningSecret + ", or " + EnvSigningARN + ", or none of them")
