// Package awscred hands out the credentials with which a device signs requests
// to AWS: static ones of the environment or of a shared credentials file, or
// temporary ones of the AWS IoT credential provider, which wants nothing but the
// device's own certificate.
//
// Start with [FromEnv], [FromFile] or [NewIoT]. Each gives an
// [aws.CredentialsProvider], the interface of the AWS SDK, so that its clients
// take it, too. The SDK's package config, which can do much more, is not used:
// it would bring the agent three services and two megabytes.
//
// What is promised: no error shows a secret. Temporary credentials are renewed
// before they expire, by one request at a time; while renewing them does not
// work, those that are still valid are used on.
package awscred

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// ErrNone says that there are no credentials where they were looked for.
var ErrNone = errors.New("no credentials")

// maxFile bounds what is read of a shared credentials file, in bytes.
const maxFile = 1 << 20

// FromEnv returns static credentials of AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY and, if it is set, AWS_SESSION_TOKEN, as getenv tells
// them (usually [os.Getenv]). If one of the first two is missing the error wraps
// [ErrNone].
func FromEnv(getenv func(string) string) (aws.CredentialsProvider, error) {
	c := aws.Credentials{
		AccessKeyID:     getenv("AWS_ACCESS_KEY_ID"),
		SecretAccessKey: getenv("AWS_SECRET_ACCESS_KEY"),
		SessionToken:    getenv("AWS_SESSION_TOKEN"),
		Source:          "environment",
	}
	if !c.HasKeys() {
		return nil, fmt.Errorf("read AWS credentials of the environment: %w: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", ErrNone)
	}
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return c, nil }), nil
}

// FromFile returns the credentials of one profile ("default", if it is empty) of
// a shared credentials file, in the format of the AWS CLI. The file is read at
// once, to tell whether it is right, and again for every Retrieve: somebody may
// replace keys while the agent runs. Without both keys the error wraps [ErrNone].
func FromFile(path, profile string) (aws.CredentialsProvider, error) {
	if profile == "" {
		profile = "default"
	}
	read := func(context.Context) (aws.Credentials, error) {
		f, err := os.Open(path)
		if err != nil {
			return aws.Credentials{}, fmt.Errorf("read AWS credentials: %w", err)
		}
		defer f.Close() // only read: nothing can be lost
		data, err := io.ReadAll(io.LimitReader(f, maxFile))
		if err != nil {
			return aws.Credentials{}, fmt.Errorf("read AWS credentials: %w", err)
		}
		c := parse(data, profile)
		if !c.HasKeys() {
			return aws.Credentials{}, fmt.Errorf("read AWS credentials %s: %w: want aws_access_key_id and aws_secret_access_key under [%s]", path, ErrNone, profile)
		}
		return c, nil
	}
	if _, err := read(context.Background()); err != nil {
		return nil, err
	}
	return aws.CredentialsProviderFunc(read), nil
}

// parse finds the keys of a profile. What it does not know it passes over, as
// the AWS tools do: the file is shared with them. (AWS CLI User Guide,
// "Configuration and credential file settings".)
func parse(data []byte, profile string) aws.Credentials {
	c := aws.Credentials{Source: "credentials file"}
	ours := false
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	lines.Buffer(nil, maxFile+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			name, _, _ := strings.Cut(line[1:], "]")
			name = strings.TrimSpace(name)
			if rest, ok := strings.CutPrefix(name, "profile "); ok { // the spelling of ~/.aws/config
				name = strings.TrimSpace(rest)
			}
			ours = name == profile
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		if !ours {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "aws_access_key_id":
			c.AccessKeyID = value
		case "aws_secret_access_key":
			c.SecretAccessKey = value
		case "aws_session_token":
			c.SessionToken = value
		}
	}
	return c
}
