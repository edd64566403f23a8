package awsiot_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"runtime"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/awstest"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/awsiot"
)

// signer is AWS Signer: it signs files as a whole.
type signer struct {
	key *ecdsa.PrivateKey
	pem []byte
}

func newSigner(t *testing.T) signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

func (s signer) sign(t *testing.T, file []byte) string {
	sum := sha256.Sum256(file)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// freeRTOS is the document that AWS makes for a FreeRTOS OTA update of one file.
func freeRTOS(path string, size int, signature, protocol, url string) string {
	f := map[string]any{"filepath": path, "filesize": size, "fileid": 0, "certfile": "cert.pem", "sig-sha256-ecdsa": signature}
	if url != "" {
		f["update_data_url"], f["auth_scheme"] = url, "aws.s3.presigned"
	}
	b, _ := json.Marshal(map[string]any{"afr_ota": map[string]any{"protocols": []string{protocol}, "streamname": "AFR_OTA-1", "files": []any{f}}})
	return string(b)
}

// withSigner lets the device take files that only s has signed.
func (r *rig) withSigner(c *awsiot.Config, s signer) {
	code, err := bundle.ParseCodeSigning("bess", "controller", s.pem)
	if err != nil {
		r.t.Fatal(err)
	}
	c.CodeSigning = code
	c.Verify = bundle.VerifyAny(map[string]ota.Verify{bundle.PayloadType: r.verify, bundle.CodeSignedType: code.Verify})
}

// await calls Latest each time that the source wakes the manager, until there is a release
// or the job is over.
func await(t *testing.T, r *rig, s *awsiot.Source) []byte {
	t.Helper()
	for {
		signed, err := s.Latest(t.Context())
		if err == nil {
			return signed
		}
		if !errors.Is(err, ota.ErrNoUpdate) {
			t.Fatal(err)
		}
		if r.execution("AFR_OTA-1").Status.Terminal() {
			return nil
		}
		<-s.Wake()
	}
}

// An image that AWS Signer has signed goes the whole way, by HTTP and by MQTT, and over a
// restart in the middle.
func TestFreeRTOSImage(t *testing.T) {
	image := make([]byte, 300_000)
	_, _ = rand.Read(image)
	for _, protocol := range []string{"HTTP", "MQTT"} {
		t.Run(protocol, func(t *testing.T) {
			r := newRig(t)
			sign := newSigner(t)
			streams := awstest.NewStreams()
			r.broker = awstest.StartBroker(t, r.ca, r.jobs, streams)
			url := ""
			if protocol == "HTTP" {
				url = presigned("image")
				r.bucket.put("image", image)
			} else if err := streams.Create(thing, "AFR_OTA-1", map[int][]byte{0: image}); err != nil {
				t.Fatal(err)
			}
			r.create("AFR_OTA-1", freeRTOS("/fw/bess-1.1.0.bin", len(image), sign.sign(t, image), protocol, url))
			cfg := r.config(running)
			r.withSigner(&cfg, sign)
			s, stop := start(t, cfg)
			signed := await(t, r, s)
			m, err := cfg.Verify(signed)
			if err != nil {
				t.Fatal(err)
			}
			rel := &otatest.SignedRelease{Manifest: m, Images: map[string][]byte{"controller": image}}
			if err := fetch(t.Context(), s, rel); err != nil {
				t.Fatal(err)
			}
			if got := r.execution("AFR_OTA-1").Status; got != awstest.InProgress {
				t.Errorf("the job is %s, want %s", got, awstest.InProgress)
			}
			stop()
			r.withSigner(&cfg, sign) // the next process
			s, _ = start(t, cfg)
			requests := len(r.bucket.ranges)
			for {
				if err = fetch(t.Context(), s, rel); err == nil {
					break
				}
				if ota.CodeOf(err) != ota.ErrConnectivity {
					t.Fatal(err)
				}
				<-s.Wake()
			}
			if n := len(r.bucket.ranges) - requests; n != 0 {
				t.Errorf("%d requests for what was in the spool", n)
			}
			if err := s.Report(t.Context(), report(rel, ota.Succeeded, ota.ErrNone, "")); err != nil {
				t.Fatal(err)
			}
			r.wantFinal("AFR_OTA-1", awstest.Succeeded, "")
			if r.disk.Content(dir+"/awsiot-spool/file") != nil {
				t.Error("the file is still on the disk")
			}
		})
	}
}

// What is wrong with a file ends its job, and no byte of it was offered.
func TestFreeRTOSRefused(t *testing.T) {
	image := make([]byte, 5000)
	for _, tt := range []struct {
		name   string
		change func(c *awsiot.Config)
		file   func(f []byte) []byte
		reason string
	}{
		{"other file", nil, func(f []byte) []byte { f[77] ^= 1; return f }, "signature"},
		{"no key", func(c *awsiot.Config) { c.CodeSigning = nil }, nil, "no code-signing certificate"},
		{"too large", func(c *awsiot.Config) { c.SpoolSize = 4999 }, nil, "room for 4999"},
		{"not taken at all", func(c *awsiot.Config) { c.SpoolSize = -1 }, nil, "takes no FreeRTOS OTA jobs"},
		{"older", func(c *awsiot.Config) { c.Version = "9.0.0" }, nil, "older than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			sign := newSigner(t)
			file := append([]byte(nil), image...)
			signature := sign.sign(t, file)
			if tt.file != nil {
				file = tt.file(file)
			}
			r.bucket.put("image", file)
			r.create("AFR_OTA-1", freeRTOS("/fw/bess-1.1.0.bin", len(image), signature, "HTTP", presigned("image")))
			cfg := r.config(running)
			r.withSigner(&cfg, sign)
			if tt.change != nil {
				tt.change(&cfg)
			}
			s, _ := start(t, cfg)
			if signed := await(t, r, s); signed != nil {
				t.Errorf("it was offered: %.80q", signed)
			}
			r.wantFinal("AFR_OTA-1", awstest.Rejected, tt.reason)
		})
	}
}

// A bundle comes over a stream as well, and an address that has expired meanwhile is
// asked for again.
func TestFreeRTOSBundle(t *testing.T) {
	r := newRig(t)
	rel := r.key.Release(t, "1.1.0", 100_000, 777)
	r.bucket.put("image", rel.Bundle)
	r.create("AFR_OTA-1", freeRTOS("/fw/bess.bundle", len(rel.Bundle), newSigner(t).sign(t, rel.Bundle), "HTTP", presigned("image")))
	r.bucket.set(func() { r.bucket.status = 503 })
	s := r.start(running)
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Fatal(err)
	}
	for tried := 0; tried < 2; { // it is tried again by itself
		r.bucket.set(func() { tried = len(r.bucket.ranges) })
		runtime.Gosched()
	}
	r.bucket.set(func() { r.bucket.status = 0; r.bucket.current++ })
	if signed := await(t, r, s); string(signed) != string(rel.Signed) {
		t.Fatalf("got %d bytes, want the envelope of the bundle", len(signed))
	}
	if err := fetch(t.Context(), s, rel); err != nil {
		t.Fatal(err)
	}
	if err := s.Report(t.Context(), report(rel, ota.RolledBack, ota.ErrInternal, "no CAN")); err != nil {
		t.Fatal(err)
	}
	r.wantFinal("AFR_OTA-1", awstest.Failed, "")
}

// Several files are refused with a reason.
func TestFreeRTOSFiles(t *testing.T) {
	r := newRig(t)
	var doc map[string]map[string]any
	if err := json.Unmarshal([]byte(freeRTOS("/a", 10, "AAAA", "MQTT", "")), &doc); err != nil {
		t.Fatal(err)
	}
	f := doc["afr_ota"]["files"].([]any)[0].(map[string]any)
	g := map[string]any{}
	for k, v := range f {
		g[k] = v
	}
	g["fileid"], g["filepath"] = 1, "/b"
	doc["afr_ota"]["files"] = []any{f, g}
	b, _ := json.Marshal(doc)
	r.create("AFR_OTA-1", string(b))
	s := r.start(running)
	if _, err := s.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Fatal(err)
	}
	r.wantFinal("AFR_OTA-1", awstest.Rejected, "has 2 files")
}
