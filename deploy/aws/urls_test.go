package aws_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/original/awsota"
	"github.com/interlock-energy/ota/internal/original/bessota"
)

// The longest names that the template takes still make URLs that the devices of
// both documents take, with the key of the signing user; with the credentials of
// a role they do not. README.md has the numbers.
func TestURLLengths(t *testing.T) {
	user := aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "x"}
	role := user
	role.SessionToken = strings.Repeat("x", 300) // AWS's own are longer
	for _, tt := range []struct {
		name, bucket, prefix, region string
		lifetime                     time.Duration
		credentials                  aws.Credentials
		want                         int // characters
		fits                         bool
	}{
		{"as a rule", "interlock-ota-bucket-1a2b3c4d5e6f", "", "eu-central-1", time.Hour, user, 413, true},
		{"short names", "ota", "", "us-east-1", time.Hour, user, 377, true},
		{"the longest names", strings.Repeat("b", 63), strings.Repeat("p", 39) + "/", "ap-southeast-1", 7 * 24 * time.Hour, user, 489, true},
		{"with a session token of 300 characters", "interlock-ota-bucket-1a2b3c4d5e6f", "", "eu-central-1", time.Hour, role, 735, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			store, err := s3.Open(t.Context(), "s3://"+tt.bucket+"/"+tt.prefix+"?region="+tt.region, s3.Options{
				Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return tt.credentials, nil })})
			if err != nil {
				t.Fatal(err)
			}
			text, err := store.PresignGet(t.Context(), "images/"+strings.Repeat("0", 64), tt.lifetime)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if len(text) != tt.want {
				t.Errorf("%d characters, want %d, which README.md has, too", len(text), tt.want)
			}
			request := len("GET " + u.RequestURI() + " HTTP/1.1\r\n")
			if fits := len(text) <= awsota.MaxURL && request <= bessota.MaxRequestLine; fits != tt.fits {
				t.Errorf("URL of %d characters, request line of %d: fits %v, want %v\n%s", len(text), request, fits, tt.fits, text)
			}
		})
	}
}
