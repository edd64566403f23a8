package door_test

import (
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota/internal/door"
)

// The texts are what devices in the field parse.
func TestDocument(t *testing.T) {
	d := door.Document{Version: "1.0.1", URL: "https://b.s3.amazonaws.com/fw.bin?X-Amz-Date=1&X-Amz-Signature=2"}
	if got, want := string(d.JSON()), `{"version":"1.0.1","url":"https://b.s3.amazonaws.com/fw.bin?X-Amz-Date=1&X-Amz-Signature=2"}`+"\n"; got != want {
		t.Errorf("document %s, want %s", got, want)
	}
	if got, want := string(door.Missing("").JSON()), `{"error":"Firmware file not found"}`+"\n"; got != want {
		t.Errorf("404 %s, want %s", got, want)
	}
	e := door.Fail("no", "because")
	if got, want := string(e.JSON()), `{"error":"no","details":"because"}`+"\n"; got != want || e.Status != 500 {
		t.Errorf("%d %s, want 500 %s", e.Status, got, want)
	}
	h := http.Header{}
	door.SetHeaders(h)
	want := http.Header{"Content-Type": {"application/json"}, "Access-Control-Allow-Origin": {"*"}, "Cache-Control": {"no-cache"}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

// The limits are those of the buffers char version[32] and char url[512].
func TestDocumentLimits(t *testing.T) {
	url := func(n int) string { return "https://" + strings.Repeat("u", n-len("https://")) }
	for _, tt := range []struct {
		name         string
		version, url string
		max          int
		want         string // in the error; empty: it fits
	}{
		{"fits", strings.Repeat("1", 31), url(511), door.MaxURL, ""},
		{"long version", strings.Repeat("1", 32), url(100), door.MaxURL, "32 characters, these devices take 31"},
		{"no version", "", url(100), door.MaxURL, "empty version"},
		{"long URL", "1", url(512), door.MaxURL, "512 characters, these devices take 511"},
		{"no limit", "1", url(5000), 0, ""},
		{"http", "1", "http://example.com", door.MaxURL, "https only"},
		{"no host", "1", "https://", door.MaxURL, "https only"},
		{"nothing", "1", "", door.MaxURL, "https only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := door.Document{Version: tt.version, URL: tt.url}.Check(tt.max)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e, ok := errors.AsType[*door.Error](err)
			if !ok || e.Status != 500 || !strings.Contains(e.Details, tt.want) {
				t.Errorf("got %v, want a 500 with %q", err, tt.want)
			}
		})
	}
}

func TestFirmwareHeaders(t *testing.T) {
	minSoC := 42.5
	h := http.Header{}
	door.Firmware{Version: "2.0.0", MD5: "ab", SHA256: "cd", Notes: "Balancing\r\nX-Firmware-Version: 9.9.9\u2028\x00 é " + strings.Repeat("é", 200),
		Mandatory: true, MinSoC: &minSoC, Published: time.Date(2026, 11, 1, 12, 0, 0, 0, time.FixedZone("", 3600)), Size: 5}.SetHeaders(h)
	notes := h.Get("X-Firmware-Notes")
	if !strings.HasPrefix(notes, "Balancing X-Firmware-Version: 9.9.9") || len(notes) > door.MaxNotes || strings.ContainsAny(notes, "\r\n\x00\u2028") {
		t.Errorf("notes of %d bytes: %q", len(notes), notes)
	}
	h.Del("X-Firmware-Notes")
	want := http.Header{"X-Firmware-Version": {"2.0.0"}, "X-Firmware-Md5": {"ab"}, "X-Firmware-Sha256": {"cd"}, "X-Firmware-Mandatory": {"true"},
		"X-Firmware-Reboot": {"false"}, "X-Firmware-Minsoc": {"43"}, "X-Firmware-Published": {"2026-11-01T11:00:00Z"}, "X-Firmware-Size": {"5"}, "Cache-Control": {"no-cache"}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	// What is not known is not said: an empty hash would be compared with.
	h = http.Header{}
	door.Firmware{Version: "1", Reboot: true}.SetHeaders(h)
	want = http.Header{"X-Firmware-Version": {"1"}, "X-Firmware-Mandatory": {"false"}, "X-Firmware-Reboot": {"true"}, "Cache-Control": {"no-cache"}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("headers of the least (-want +got):\n%s", diff)
	}
}

// Limits of the charge as controllers read them, with atoi: whatever is stored, none
// is lower than what was meant.
func TestMinSoC(t *testing.T) {
	for soc, want := range map[float64]string{0: "0", 30: "30", 42.1: "43", 99.5: "100", 100: "100", 100.5: "100", 1e300: "100", -1e300: "100", -5: "100",
		math.Inf(1): "100", math.NaN(): "100"} {
		h := http.Header{}
		door.Firmware{MinSoC: &soc}.SetHeaders(h)
		if got := h.Get("X-Firmware-MinSoC"); got != want {
			t.Errorf("%v: got %s, want %s", soc, got, want)
		}
	}
}
