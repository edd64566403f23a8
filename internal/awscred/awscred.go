// Package awscred hands out the credentials with which a device signs requests
// to AWS: static ones of the environment or of a shared credentials file, or
// temporary ones of the AWS IoT credential provider, which wants nothing but the
// device's own certificate.
//
// Start with [FromEnv], [FromFile] or [NewIoT]. Each is an
// [aws.CredentialsProvider], the interface of the AWS SDK, so that its clients
// take it, too; the SDK's package config is not used, because it would bring the
// agent three services and two megabytes.
//
// What is promised: no error, and no String, shows a secret. Temporary
// credentials are renewed before they expire, by one request at a time; while
// renewal fails, those that are still valid are used on.
package awscred

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// ErrNone says that no credentials are there to be had: the variables or the
// profile are missing.
var ErrNone = errors.New("no credentials")

// FromEnv returns static credentials of AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY and, if set, AWS_SESSION_TOKEN, as getenv tells them
// (usually os.Getenv). Without the first two the error wraps [ErrNone].
func FromEnv(getenv func(string) string) (aws.CredentialsProvider, error) {
	return nil, ErrNone
}

// FromFile returns the credentials of a profile of a shared credentials file;
// the empty profile is "default".
func FromFile(path, profile string) (aws.CredentialsProvider, error) {
	return nil, ErrNone
}

// IoTConfig says how to reach the AWS IoT credential provider.
type IoTConfig struct {
	// Endpoint is the account's own, of type iot:CredentialProvider:
	// "PREFIX.credentials.iot.REGION.amazonaws.com", or an https URL of it.
	Endpoint  string
	RoleAlias string
	// Thing is sent as x-amzn-iot-thingname, if it is not empty. It must be the
	// thing that the certificate is attached to.
	Thing string
	// Client does mutual TLS with the device's certificate; required.
	Client *http.Client
	Now    func() time.Time // default [time.Now]
}

// IoT asks the AWS IoT credential provider. Its methods may be called from any goroutine.
type IoT struct{ cfg IoTConfig }

// NewIoT checks cfg. It asks for nothing yet.
func NewIoT(cfg IoTConfig) (*IoT, error) {
	return nil, errors.New("ask for AWS credentials: not built yet")
}

// Retrieve implements [aws.CredentialsProvider].
func (p *IoT) Retrieve(ctx context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, ErrNone
}

// Invalidate makes the next Retrieve ask again: a service has said that the
// credentials are expired.
func (p *IoT) Invalidate() {}
