package lambda_test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/lambda"
)

type document struct{ Version, URL, Error, Details string }

func TestDocument(t *testing.T) {
	x := newHouse(t, nil)
	for _, path := range []string{"/", "/firmware", "/firmware/default", "/firmware/nobody", "/firmware/"} {
		w := x.do("GET", path, nil)
		x.want(w, 404, nil)
		if got, want := w.Body.String(), `{"error":"Firmware file not found"}`+"\n"; got != want {
			t.Errorf("%s before a release: %s, want %s", path, got, want)
		}
	}
	_, images := x.publish("1.0.1", "")
	x.publish("2.0.0", "site-7")
	key := func(image []byte) string { s := sha256.Sum256(image); return "images/" + hex.EncodeToString(s[:]) }
	for path, want := range map[string]string{"/": "1.0.1", "/firmware": "1.0.1", "/firmware/default": "1.0.1", "/firmware/": "1.0.1", "/firmware/site-7": "2.0.0",
		"/firmware?product=bess": "1.0.1", "/firmware?component=module": "1.0.1"} {
		var doc document
		w := x.do("GET", path, nil, "Accept: application/json", "Cache-Control: no-cache", "Connection: close")
		x.want(w, 200, &doc)
		if doc.Version != want || !strings.HasPrefix(doc.URL, "https://b.s3.example.com/images/") || !strings.Contains(doc.URL, "X-Amz-Expires=3600") {
			t.Errorf("%s: %+v, want version %s and an URL for an hour", path, doc, want)
		}
		for name, want := range map[string]string{"Content-Type": "application/json", "Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s: %q, want %q", path, name, got, want)
			}
		}
	}
	var doc document
	x.want(x.do("GET", "/firmware?component=module", nil), 200, &doc)
	if !strings.Contains(doc.URL, key(images[1])) {
		t.Errorf("URL %s, want one for %s", doc.URL, key(images[1]))
	}
	x.want(x.do("GET", "/firmware?component=turbine", nil), 404, nil)
	x.want(x.do("GET", "/firmware?product=pcs", nil), 404, nil)
	x.publish("7.0.0", "", func(m *ota.Manifest) { m.Product = "pcs" })
	w := x.do("GET", "/firmware", nil)
	x.want(w, 400, &doc)
	if doc.Error != "which product?" || !strings.Contains(doc.Details, "[bess pcs]") {
		t.Errorf("with two products: %+v, want both named", doc)
	}
	// The image is looked at first: an URL to nothing would fail only in the field.
	if err := x.store.Delete(t.Context(), key(images[0])); err != nil {
		t.Fatal(err)
	}
	doc = document{}
	x.want(x.do("GET", "/firmware?product=bess", nil), 404, &doc)
	if doc.Error != "Firmware file not found" || !strings.Contains(doc.Details, "images/") {
		t.Errorf("without the image: %+v, want the key named", doc)
	}
}

// What aws-s3-ota.md's own function was configured with is enough.
func TestSingle(t *testing.T) {
	image := []byte("firmware")
	x := newHouse(t, nil)
	single := func(c *lambda.Config) {
		c.Single = &lambda.Single{Objects: x.store, URLs: x.signer, Key: "fw/esp32.bin", Version: "1.0.1"}
	}
	for name, change := range map[string]func(*lambda.Config){
		"alone":          func(c *lambda.Config) { single(c); c.Bucket, c.Objects, c.URLs = nil, nil, nil },
		"with a bucket ": single,
	} {
		t.Run(name, func(t *testing.T) {
			x := x.in(t)
			y := newHouse(t, change)
			if err := x.store.Delete(t.Context(), "fw/esp32.bin"); err != nil {
				t.Fatal(err)
			}
			y.want(y.do("GET", "/firmware", nil), 404, nil)
			if _, err := x.store.Dir.Put(t.Context(), "fw/esp32.bin", bytes.NewReader(image), blobOptions); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"/", "/firmware", "/firmware/default"} {
				var doc document
				y.want(y.do("GET", path, nil), 200, &doc)
				if doc.Version != "1.0.1" || !strings.HasPrefix(doc.URL, "https://b.s3.example.com/fw/esp32.bin?") {
					t.Errorf("%s: %+v, want 1.0.1 and the file", path, doc)
				}
			}
			w := y.do("HEAD", "/image", nil)
			y.want(w, 200, nil)
			if w.Header().Get("X-Firmware-Version") != "1.0.1" || w.Header().Get("Content-Length") != "8" || w.Header().Get("X-Firmware-MD5") != "" {
				t.Errorf("HEAD: %v, want the version, the length and no hash", w.Header())
			}
			y.want(y.do("GET", "/firmware/site-7", nil), 404, nil)
			y.want(y.do("GET", "/bundle", nil), 404, nil)
			if strings.HasPrefix(name, "alone") {
				y.want(y.as("POST", "/api/v1/checkin", map[string]string{"device": "d1", "product": "bess"}), 404, nil)
			}
		})
	}
}

// An URL or a version that does not fit into a device's buffer is an error here
// and not in the field, and says what to do.
func TestDocumentLimits(t *testing.T) {
	for _, tt := range []struct {
		name, version, prefix, token string
		max                          int
		want                         string // in the details; empty: it fits
	}{
		{"role", "1.0.0", "", strings.Repeat("t", 800), 0, "800 of them are the session token of the function's role"},
		{"role, no such devices", "1.0.0", "", strings.Repeat("t", 800), -1, ""},
		{"user", "1.0.0", "", "", 0, ""},
		{"long bucket", "1.0.0", "https://" + strings.Repeat("b", 480) + "/", "", 0, "a shorter name for the bucket"},
		{"plain", "1.0.0", "http://b.example.com/", "", 0, "https only"},
		{"version", "1.0.0-" + strings.Repeat("x", 26), "", "", 0, "32 characters, these devices take 31"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := newHouse(t, func(c *lambda.Config) { c.MaxURL = tt.max })
			x.signer.prefix, x.signer.token = tt.prefix, tt.token
			x.publish(tt.version, "")
			var doc document
			w := x.do("GET", "/firmware", nil)
			if tt.want == "" {
				x.want(w, 200, &doc)
				return
			}
			x.want(w, 500, &doc)
			if doc.Error == "" || !strings.Contains(doc.Details, tt.want) || strings.Contains(doc.Details, "secret") {
				t.Errorf("%+v, want %q in the details and no secret", doc, tt.want)
			}
			x.log.take(t)
		})
	}
}

func TestImage(t *testing.T) {
	x := newHouse(t, nil)
	for _, path := range []string{"/image", "/bundle"} {
		x.want(x.do("HEAD", path, nil), 404, nil)
	}
	minSoC := 42.5
	_, images := x.publish("2.0.0", "", func(m *ota.Manifest) {
		m.Mandatory, m.NoReboot, m.Limits, m.Notes = true, true, ota.Limits{MinSoC: &minSoC}, "Balancing\r\nX-Firmware-Version: 9"
	})
	md, sha := md5.Sum(images[0]), sha256.Sum256(images[0])
	for _, path := range []string{"/image", "/image/default", "/firmware.bin", "/bess/latest.bin", "/firmware/default/firmware.bin"} {
		t.Run(path, func(t *testing.T) {
			x := x.in(t)
			w := x.do("HEAD", path, nil)
			x.want(w, 200, nil)
			got := map[string]string{}
			for name, v := range w.Header() {
				if name != "X-Firmware-Published" && name != "Etag" {
					got[name] = strings.Join(v, " and ")
				}
			}
			want := map[string]string{"X-Firmware-Version": "2.0.0", "X-Firmware-Md5": hex.EncodeToString(md[:]), "X-Firmware-Sha256": hex.EncodeToString(sha[:]),
				"X-Firmware-Mandatory": "true", "X-Firmware-Reboot": "false", "X-Firmware-Minsoc": "43", "X-Firmware-Notes": "Balancing X-Firmware-Version: 9",
				"X-Firmware-Size": "30000", "Content-Length": "30000", "Content-Type": "application/octet-stream", "Cache-Control": "no-cache",
				"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("HEAD (-want +got):\n%s", diff)
			}
			w = x.do("GET", path, nil)
			x.want(w, http.StatusFound, nil)
			if to := w.Header().Get("Location"); !strings.HasPrefix(to, "https://b.s3.example.com/images/"+hex.EncodeToString(sha[:])+"?") {
				t.Errorf("GET goes to %s, want the image", to)
			}
			if got := w.Header().Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control %q, want no-store: the address ends", got)
			}
			// With an Authorization header S3 would refuse, so the bytes come from here.
			w = x.do("GET", path, nil, "Authorization: Basic YmVzc19kZXZpY2U6cGFzc3dvcmQxMjM=")
			x.want(w, 200, nil)
			if !bytes.Equal(w.Body.Bytes(), images[0]) || w.Header().Get("Content-Length") != strconv.Itoa(len(images[0])) {
				t.Errorf("with Authorization: %d bytes, want the image", w.Body.Len())
			}
			x.want(x.do("GET", path, nil, "Authorization: Basic YQ==", "Range: bytes=1-2"), http.StatusFound, nil)
		})
	}
	w := x.do("HEAD", "/bundle/default", nil)
	x.want(w, 200, nil)
	if n, _ := strconv.Atoi(w.Header().Get("Content-Length")); n <= len(images[0])+len(images[1]) {
		t.Errorf("bundle: %d bytes, want more than its images", n)
	}
	x.want(x.do("GET", "/bundle", nil), http.StatusFound, nil)
	x.want(x.do("HEAD", "/image/nobody", nil), 404, nil)
}

func TestDoorErrors(t *testing.T) {
	x := newHouse(t, nil)
	x.publish("1.0.0", "")
	x.log.take(t)
	for _, tt := range []struct {
		first, path string
		err         error
	}{
		{"groups", "/firmware", errBroken},
		{"images", "/firmware", errBroken},
		{"images", "/image", errBroken},
		{"images", "/image", errors.New("access denied with ilk_dev_abcdef")},
	} {
		x.clock.turn(minute)
		x.store.breaks(tt.first, tt.err, false)
		var doc document
		x.want(x.do("GET", tt.path, nil), 500, &doc)
		if doc.Error != "internal error" || doc.Details == "" || strings.Contains(doc.Details, "secret") || strings.Contains(doc.Details, "ilk_") {
			t.Errorf("%s broken: %+v, want an error with details and without secrets", tt.first, doc)
		}
		lines := x.log.take(t)
		if len(lines) != 1 || lines[0]["level"] != "ERROR" || lines[0]["cause"] == nil {
			t.Errorf("%s broken: the log has %v, want one error with its cause", tt.first, lines)
		}
	}
	x.store.breaks("", nil, false)
	x.signer.err = errBroken
	x.want(x.do("GET", "/firmware", nil), 500, nil)
	x.want(x.do("POST", "/firmware", nil), 405, nil)
	x.want(x.do("GET", "/other", nil), 404, nil)
	x.want(x.do("GET", "/firmware/..%2f..%2fx", nil), 404, nil)
	x.want(x.do("GET", "/healthz", nil), 200, nil)
}

func TestDamagedBucket(t *testing.T) {
	x := newHouse(t, nil)
	_, images := x.publish("1.0.0", "")
	sha := sha256.Sum256(images[0])
	if _, err := x.store.Dir.Put(t.Context(), "images/"+hex.EncodeToString(sha[:]), strings.NewReader("short"), blobOptions); err != nil {
		t.Fatal(err)
	}
	var doc document
	x.want(x.do("GET", "/firmware", nil), 500, &doc)
	if !strings.Contains(doc.Details, "5 bytes, want 30000") {
		t.Errorf("a short image: %+v, want its numbers", doc)
	}
	if _, err := x.store.Dir.Put(t.Context(), "groups/default/current.json", strings.NewReader("{"), blobOptions); err != nil {
		t.Fatal(err)
	}
	x.clock.turn(minute)
	x.want(x.do("GET", "/firmware", nil), 500, &doc)
	if doc.Error != "what the bucket has is damaged" {
		t.Errorf("a broken current.json: %+v, want that said", doc)
	}
}
