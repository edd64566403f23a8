package web_test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/web"
)

// oldClient is what the ESP32 library of aws-s3-ota.md does: one connection for
// each request, https only, fixed buffers, an exact Content-Length.
func oldClient(x *site, path string) (version, address, failure string) {
	a := x.do("GET", path, "", nil, "Accept: application/json", "Cache-Control: no-cache", "Connection: close")
	var doc struct{ Version, URL, Error string }
	if err := json.Unmarshal(a.body, &doc); err != nil {
		return "", "", err.Error()
	}
	switch {
	case a.StatusCode != 200:
		return "", "", doc.Error
	case a.ContentLength != int64(len(a.body)):
		return "", "", "Content-Length is not exact"
	case len(doc.Version) == 0 || len(doc.Version) > 31:
		return "", "", "version does not fit"
	case !strings.HasPrefix(doc.URL, "https://") || len(doc.URL) > 511:
		return "", "", "URL does not fit"
	}
	return doc.Version, doc.URL, ""
}

func TestFirmwareDocument(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{PublicURL: "https://ota.example.com/fleet/"})
	for _, path := range []string{"/firmware", "/firmware/default", "/firmware/nobody"} {
		a := x.do("GET", path, "", nil)
		x.want(a, 404, nil)
		if got, want := strings.TrimSpace(string(a.body)), `{"error":"Firmware file not found"}`; got != want {
			t.Errorf("%s before a release: %s, want %s", path, got, want)
		}
	}
	image := firmware(1, 30_000)
	x.publish(key.release(t, ota.Manifest{Version: "1.0.1"}, image, firmware(2, 100)), "")
	for _, path := range []string{"/firmware", "/firmware/default", "/firmware?product=bess", "/firmware?component=controller"} {
		version, address, failure := oldClient(x, path)
		if failure != "" || version != "1.0.1" {
			t.Fatalf("%s: version %q, failure %q", path, version, failure)
		}
		local, ok := strings.CutPrefix(address, "https://ota.example.com/fleet")
		if !ok {
			t.Fatalf("URL %s is not under the public URL", address)
		}
		a := x.do("GET", local, "", nil, "Connection: close")
		x.want(a, 200, nil)
		if a.ContentLength != int64(len(image)) || !bytes.Equal(a.body, image) {
			t.Errorf("%s: %d bytes, Content-Length %d; want the image of %d", path, len(a.body), a.ContentLength, len(image))
		}
		x.clock.turn(3600*time.Second - time.Second)
		x.want(x.do("GET", local, "", nil), 200, nil) // valid for 3600 s
	}
	a := x.do("GET", "/firmware", "", nil)
	for name, want := range map[string]string{"Content-Type": "application/json", "Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	x.want(x.do("GET", "/firmware?component=turbine", "", nil), 404, nil)
	x.want(x.do("GET", "/firmware?product=pcs", "", nil), 404, nil)
	x.publish(key.release(t, ota.Manifest{Version: "7.0.0", Product: "pcs"}, firmware(3, 100)), "")
	a = x.do("GET", "/firmware", "", nil)
	x.want(a, 400, nil)
	if !strings.Contains(string(a.body), "product=[bess pcs]") {
		t.Errorf("with two products: %s, want both named", a.body)
	}
}

func TestFirmwareDocumentSaysWhatDoesNotFit(t *testing.T) {
	key := newSigner(t)
	long := "1.0.0-" + strings.Repeat("x", 26) // 32 characters
	for _, tt := range []struct {
		name, public, version, want string
	}{
		{"version", "https://ota.example.com", long, "32 characters, these devices take 31"},
		{"URL", "https://ota.example.com/" + strings.Repeat("x", 400), "1.0.0", "these devices take 511"},
		{"http", "http://ota.example.com", "1.0.0", "public URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := newSite(t, web.Config{PublicURL: tt.public})
			x.publish(key.release(t, ota.Manifest{Version: tt.version}, firmware(1, 100)), "")
			var doc struct{ Error, Details string }
			x.want(x.do("GET", "/firmware", "", nil), 500, &doc)
			if doc.Error == "" || !strings.Contains(doc.Details, tt.want) {
				t.Errorf("error %q, details %q; want %q in them", doc.Error, doc.Details, tt.want)
			}
		})
	}
	// Without a public URL it is the one that was asked for.
	x := newSite(t, web.Config{})
	x.publish(key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 100)), "")
	if _, address, failure := oldClient(x, "/firmware"); failure != "" || !strings.HasPrefix(address, x.srv.URL+"/d/") {
		t.Errorf("URL %q, failure %q; want one under %s", address, failure, x.srv.URL)
	}
}

func TestFirmwareHeaders(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	image := firmware(1, 30_000)
	minSoC := 42.5
	file := key.release(t, ota.Manifest{Version: "2.0.0", Mandatory: true, NoReboot: true, Limits: ota.Limits{MinSoC: &minSoC},
		Notes: "Balancing\r\nX-Firmware-Version: 9.9.9\u2028\x00 é " + strings.Repeat("é", 200)}, image)
	x.publish(file, "")
	hexOf := func(b []byte) string { return hex.EncodeToString(b) }
	imageMD5, imageSHA, fileMD5, fileSHA := md5.Sum(image), sha256.Sum256(image), md5.Sum(file), sha256.Sum256(file)
	for _, tt := range []struct {
		path, md5, sha string
		body           []byte
	}{
		{"/firmware.bin", hexOf(imageMD5[:]), hexOf(imageSHA[:]), image},
		{"/bess/latest.bin", hexOf(imageMD5[:]), hexOf(imageSHA[:]), image},
		{"/firmware/default/firmware.bin", hexOf(imageMD5[:]), hexOf(imageSHA[:]), image},
		{"/bundle/default", hexOf(fileMD5[:]), hexOf(fileSHA[:]), file},
	} {
		t.Run(tt.path, func(t *testing.T) {
			a := x.do("HEAD", tt.path, "", nil)
			x.want(a, 200, nil)
			got := map[string]string{}
			for name := range a.Header {
				if strings.HasPrefix(name, "X-Firmware-") && name != "X-Firmware-Notes" && name != "X-Firmware-Published" {
					got[name] = strings.Join(a.Header.Values(name), " and ")
				}
			}
			want := map[string]string{"X-Firmware-Version": "2.0.0", "X-Firmware-Md5": tt.md5, "X-Firmware-Sha256": tt.sha,
				"X-Firmware-Mandatory": "true", "X-Firmware-Reboot": "false", "X-Firmware-Minsoc": "43"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			notes := a.Header.Get("X-Firmware-Notes")
			if !strings.HasPrefix(notes, "Balancing X-Firmware-Version: 9.9.9 é é") || len(notes) > 200 {
				t.Errorf("notes of %d bytes: %q", len(notes), notes)
			}
			if a.ContentLength != int64(len(tt.body)) {
				t.Errorf("Content-Length %d, want %d", a.ContentLength, len(tt.body))
			}
			a = x.do("GET", tt.path, "", nil)
			x.want(a, 200, nil)
			if !bytes.Equal(a.body, tt.body) {
				t.Errorf("got %d bytes, want the %d published", len(a.body), len(tt.body))
			}
			a = x.do("GET", tt.path, "", nil, "Range: bytes=100-199", "If-Range: "+a.Header.Get("ETag"))
			x.want(a, 206, nil)
			if !bytes.Equal(a.body, tt.body[100:200]) {
				t.Error("the range is not the published bytes")
			}
			a = x.do("GET", tt.path, "", nil, "Range: bytes=100-199", `If-Range: "other"`)
			x.want(a, 200, nil)
		})
	}
}

func TestBasicAuthentication(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{BasicUser: "bess_device", BasicPassword: "password123"})
	x.publish(key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(1, 100)), "")
	for _, path := range []string{"/firmware", "/firmware.bin", "/bess/latest.bin", "/firmware/default/firmware.bin", "/bundle/default"} {
		for _, tt := range []struct {
			user, password string
			want           int
		}{
			{"", "", 401}, {"bess_device", "", 401}, {"bess_device", "password12", 401}, {"Bess_device", "password123", 401}, {"bess_device", "password123", 200},
		} {
			r, err := http.NewRequest("GET", x.srv.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.user != "" {
				r.SetBasicAuth(tt.user, tt.password)
			}
			res, err := x.srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != tt.want {
				t.Errorf("%s as %s:%s: %d, want %d", path, tt.user, tt.password, res.StatusCode, tt.want)
			}
			if tt.want == 401 && !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Basic ") {
				t.Errorf("%s: no challenge", path)
			}
		}
	}
	if _, err := web.Open(t.TempDir(), web.Config{BasicUser: "only"}); err == nil {
		t.Error("a user without a password was taken")
	}
}

// The server has limits of its own, before any handler; and without TLS files
// go from disk to socket by another way than with it.
func TestHTTPServer(t *testing.T) {
	key := newSigner(t)
	x := newSite(t, web.Config{})
	image := firmware(1, 1_000_001)
	x.publish(key.release(t, ota.Manifest{Version: "1.0.0"}, firmware(2, 5000), image), "")
	h := x.s.HTTP()
	if h.ReadHeaderTimeout <= 0 || h.IdleTimeout <= 0 {
		t.Errorf("timeouts %v and %v, want both", h.ReadHeaderTimeout, h.IdleTimeout)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go h.Serve(l)
	defer h.Close()
	r, err := http.NewRequest("GET", "http://"+l.Addr().String()+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %d, want 431", res.StatusCode)
	}
	for _, from := range []int{0, 1, 511, 512, 262_143, 262_144, 700_000, 1_000_000} {
		r.URL.Path, r.URL.RawQuery = "/firmware.bin", "component=module"
		r.Header = http.Header{"Range": {fmt.Sprintf("bytes=%d-", from)}}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusPartialContent || !bytes.Equal(got, image[from:]) {
			t.Errorf("from %d: %d with %d bytes, %v; want 206 with %d", from, res.StatusCode, len(got), err, len(image)-from)
		}
	}
}
