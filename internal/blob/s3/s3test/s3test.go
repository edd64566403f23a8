// Package s3test starts a real S3 server, versitygw, for tests. It checks
// signatures, checksums, conditions and the end of URLs as Amazon S3 does, and
// its objects are files that a test can look at.
//
// Start with [Start]. The program comes from scripts/versitygw, which puts it
// into bin/.
package s3test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"

	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/otatest"
)

// Options say what to start. The zero value is plain HTTP and a bucket named
// "bucket" in us-east-1.
type Options struct {
	TLS    bool   // https, with a CA of the test
	Bucket string // created at the start
	Region string
}

// Server is a running S3 server on loopback. It ends with the test.
type Server struct {
	Endpoint             string // http(s)://127.0.0.1:port
	CA                   []byte // PEM of the CA that signed the server's certificate; nil without TLS
	CAFile               string // the same in a file; "" without TLS
	Region               string
	AccessKey, SecretKey string // of the owner, who may do everything
	Bucket               string
	Dir                  string // where the objects are: Dir/bucket/key

	program string
	client  *http.Client
}

// User is somebody else than the owner.
type User struct{ AccessKey, SecretKey string }

// startTime is how long the server may take to answer, on a busy machine.
const startTime = 30 * time.Second

// Start starts a server. Without the program the test is skipped, or fails, as
// otatest.Tool does it.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{Region: "us-east-1", Bucket: "bucket", Dir: filepath.Join(t.TempDir(), "s3"), program: program(t),
		AccessKey: "AKIAOWNEROWNEROWNER1", SecretKey: "secret-of-the-owner-for-tests-only-12345", client: &http.Client{}}
	if o.Bucket != "" {
		s.Bucket = o.Bucket
	}
	if o.Region != "" {
		s.Region = o.Region
	}
	side, iam := filepath.Join(t.TempDir(), "sidecar"), filepath.Join(t.TempDir(), "iam")
	for _, dir := range []string{s.Dir, side, iam} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// With its metadata in files beside the objects, the server sometimes gives the old
	// content with the new ETag, so that is only for disks without extended attributes.
	metadata := []string{"posix"}
	if err := unix.Setxattr(s.Dir, "user.s3test", []byte("1"), 0); err != nil {
		metadata = append(metadata, "--sidecar", side)
	}
	args := []string{"--quiet", "--keep-alive", "--region", s.Region, "--health", "/health", "--iam-dir", iam, "--iam-cache-disable"}
	scheme := "http"
	if o.TLS {
		cert, key := s.certificate(t)
		args, scheme = append(args, "--cert", cert, "--key", key), "https"
	}
	for try := 1; ; try++ { // somebody may take the port first
		addr := otatest.FreeAddr(t)
		s.Endpoint = scheme + "://" + addr
		err := s.start(t, slices.Concat(args, []string{"--port", addr}, metadata, []string{s.Dir}))
		if err == nil {
			break
		}
		if try == 3 {
			t.Fatalf("start an S3 server: %v", err)
		}
	}
	if _, err := s.sdk(t).CreateBucket(t.Context(), &awss3.CreateBucketInput{Bucket: &s.Bucket}); err != nil {
		t.Fatalf("make the bucket %s: %v", s.Bucket, err)
	}
	return s
}

// program finds versitygw in bin/ of the checkout, or where programs are.
func program(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		name := filepath.Join(dir, "bin", "versitygw")
		if _, err := os.Stat(name); err == nil {
			return name
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
	}
	return otatest.Tool(t, "versitygw")
}

// start returns when the server answers. It ends with the test.
func (s *Server) start(t testing.TB, args []string) error {
	cmd := exec.Command(s.program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	stop := func() { _ = cmd.Process.Kill(); <-ended }
	deadline := time.After(startTime)
	for {
		if res, err := s.client.Get(s.Endpoint + "/health"); err == nil {
			res.Body.Close()
			t.Cleanup(stop)
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%s ended: %v\n%s", s.program, err, said.Bytes())
		case <-deadline:
			stop()
			return fmt.Errorf("%s does not answer at %s\n%s", s.program, s.Endpoint, said.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// URL returns what s3.Open wants for the bucket: s3://bucket/prefix?endpoint=...&region=...
func (s *Server) URL(prefix string) string {
	return "s3://" + s.Bucket + "/" + prefix + "?" + url.Values{"endpoint": {s.Endpoint}, "region": {s.Region}}.Encode()
}

// Env returns the environment, as NAME=value, with which the usual clients use
// the server as its owner: keys, AWS_REGION, AWS_ENDPOINT_URL_S3,
// AWS_EC2_METADATA_DISABLED, and AWS_CA_BUNDLE with TLS.
func (s *Server) Env() []string {
	env := []string{"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey, "AWS_SESSION_TOKEN=",
		"AWS_REGION=" + s.Region, "AWS_ENDPOINT_URL_S3=" + s.Endpoint, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"}
	if s.CAFile != "" {
		env = append(env, "AWS_CA_BUNDLE="+s.CAFile)
	}
	return env
}

// Client returns an HTTP client that trusts the server.
func (s *Server) Client() *http.Client { return s.client }

// Options returns what s3.Open needs besides the URL, to be the owner.
func (s *Server) Options() s3.Options {
	return s.OptionsFor(User{s.AccessKey, s.SecretKey})
}

// OptionsFor is Options for somebody else.
func (s *Server) OptionsFor(u User) s3.Options {
	return s3.Options{Endpoint: s.Endpoint, Region: s.Region, HTTPClient: s.client,
		Credentials: credentials.NewStaticCredentialsProvider(u.AccessKey, u.SecretKey, "")}
}

// Store returns the store below prefix in the bucket, for its owner.
func (s *Server) Store(t testing.TB, prefix string) *s3.Store {
	t.Helper()
	store, err := s3.Open(t.Context(), s.URL(prefix), s.Options())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// AddUser makes a user who may do in the bucket what actions say, for example
// s3:GetObject, and nothing else. It takes the place of earlier ones' rights.
func (s *Server) AddUser(t testing.TB, actions ...string) User {
	t.Helper()
	u := User{"AKIA" + rand.Text()[:16], rand.Text()}
	args := []string{"admin", "--access", s.AccessKey, "--secret", s.SecretKey, "--region", s.Region, "--endpoint-url", s.Endpoint,
		"--allow-insecure", "create-user", "--access", u.AccessKey, "--secret", u.SecretKey, "--role", "user"}
	if out, err := exec.CommandContext(t.Context(), s.program, args...).CombinedOutput(); err != nil {
		t.Fatalf("make a user: %v\n%s", err, out)
	}
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{map[string]any{
		"Effect": "Allow", "Principal": []string{u.AccessKey}, "Action": actions,
		"Resource": []string{"arn:aws:s3:::" + s.Bucket, "arn:aws:s3:::" + s.Bucket + "/*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.sdk(t).PutBucketPolicy(t.Context(), &awss3.PutBucketPolicyInput{Bucket: &s.Bucket, Policy: aws.String(string(policy))}); err != nil {
		t.Fatalf("give the user rights: %v\n%s", err, policy)
	}
	return u
}

// sdk returns the SDK's own client, for the owner.
func (s *Server) sdk(testing.TB) *awss3.Client {
	return awss3.New(awss3.Options{BaseEndpoint: &s.Endpoint, Region: s.Region, UsePathStyle: true, HTTPClient: s.client,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, nil
		})})
}

// certificate makes a CA and a certificate of the server's, and trusts them.
func (s *Server) certificate(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	sign := func(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "s3test " + rand.Text()}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "s3test"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	s.CA = sign(ca, ca, keys[0], keys[0])
	key, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	s.CAFile, certFile, keyFile = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, content := range map[string][]byte{s.CAFile: s.CA, certFile: sign(leaf, ca, keys[1], keys[0]),
		keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	return certFile, keyFile
}
