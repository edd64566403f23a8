package bundle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/interlock-energy/ota"
)

func TestBadManifests(t *testing.T) {
	k := testKeys(t, 1, "ed25519")
	const hash = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"
	replace := func(old, new string) string {
		t.Helper()
		if !strings.Contains(smallPayload, old) {
			t.Fatalf("%q is not in the payload", old)
		}
		return strings.Replace(smallPayload, old, new, 1)
	}
	type bad struct{ name, payload, want string }
	cases := []bad{
		{"null", "null", "not an object"},
		{"list", "[]", "not an object"},
		{"string", `"x"`, "not an object"},
		{"not JSON", "version: 1", "not one JSON value"},
		{"empty object", "{}", "format 0"},
		{"trailing data", smallPayload + "{}", "not one JSON value"},
		{"trailing bracket", smallPayload + "}", "not one JSON value"},
		{"invalid UTF-8", replace(`"n"`, "\"\xff\""), "not valid UTF-8"},
		{"newer format", `{"format":2,"stages":[]}`, "format 2 is not known here, want 1"},
		{"format a string", replace(`"format":1`, `"format":"1"`), "format: got string"},
		{"unknown field", replace(`"notes"`, `"max_power_kw":5,"notes"`), `unknown field "max_power_kw": it may be a rule`},
		{"unknown field of a limit", replace(`"min_soc"`, `"min_voltage":5,"min_soc"`), `unknown field "min_voltage"`},
		{"unknown field of an image", replace(`"size"`, `"offset":5,"size"`), `unknown field "offset"`},
		{"duplicate field", replace(`"version":"1.0"`, `"version":"1.0","version":"2.0"`), `"version" is given twice`},
		{"duplicate field, escaped", replace(`"version":"1.0"`, `"version":"1.0","\u0076ersion":"2.0"`), `"version" is given twice`},
		{"duplicate field of an image", replace(`"size":5`, `"size":5,"size":6`), `"size" is given twice`},
		{"duplicate field of a limit", replace(`"min_soc":30`, `"min_soc":30,"min_soc":0`), `"min_soc" is given twice`},
		{"duplicate field in other case", replace(`"version":"1.0"`, `"version":"1.0","Version":"2.0"`), `unknown field "Version"`},
		{"field in other case only", replace(`"version"`, `"VERSION"`), `unknown field "VERSION"`},
		{"field of a limit in other case", replace(`"min_soc"`, `"Min_SoC"`), `unknown field "Min_SoC"`},
		{"field with a long s", replace(`"version"`, `"verſion"`), `unknown field "verſion"`},
		{"field with a Kelvin sign", replace(`"chunks"`, `"chun\u212as"`), `unknown field "chun`},
		{"field without a name", replace(`"notes"`, `"":1,"notes"`), `unknown field ""`},
		{"the digest itself", replace(`"notes"`, `"digest":"x","notes"`), `unknown field "digest"`},
		{"the digest by its Go name", replace(`"notes"`, `"Digest":"x","notes"`), `unknown field "Digest"`},
		{"deep nesting", replace(`"n"`, strings.Repeat("[", 9)+strings.Repeat("]", 9)), "nested deeper than 8"},
		{"deep nesting of objects", strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9), "nested deeper than 8"},
		{"bottomless nesting", strings.Repeat("[", 100_000), "not one JSON value"},
		{"expires null", replace(`"expires":"2027-01-02T03:04:05Z"`, `"expires":null`), `"expires" is null`},
		{"expires zero", replace("2027-01-02T03:04:05Z", "0001-01-01T00:00:00Z"), "leave it out"},
		{"expires before created", replace("2027", "2025"), "is not after created"},
		{"expires in month 13", replace("2027-01", "2027-13"), "month out of range"},
		{"expires in the year 10000", replace("2027-01", "10000-01"), "read manifest"},
		{"created missing", replace(`"created":"2026-01-02T03:04:05+02:00",`, ""), "created is missing"},
		{"created without a zone", replace("+02:00", ""), "read manifest"},
		{"created a number", replace(`"2026-01-02T03:04:05+02:00"`, "1767316445"), "read manifest"},
		{"limits null", replace(`{"min_soc":30}`, "null"), `"limits" is null`},
		{"limit null", replace(`:30}`, ":null}"), `"min_soc" is null`},
		{"limit too large for a float", replace(`:30}`, ":1e999}"), "min_soc"},
		{"limit NaN", replace(`:30}`, ":NaN}"), "not one JSON value"},
		{"limit above 100", replace(`:30}`, ":100.1}"), "min_soc 100.1, want 0 to 100"},
		{"product with a path", replace(`"product":"p"`, `"product":"../p"`), "product"},
		{"component absolute", replace(`"component":"c"`, `"component":"/c"`), "component"},
		{"component with NUL", replace(`"component":"c"`, `"component":"c\u0000"`), "component"},
		{"component with a backslash", replace(`"component":"c"`, `"component":"c\\d"`), "component"},
		{"component in Unicode", replace(`"component":"c"`, `"component":"с"`), "component"},
		{"version without a number", replace(`"1.0"`, `"new"`), "version"},
		{"notes too long", replace(`"n"`, `"`+strings.Repeat("n", ota.MaxNotesSize+1)+`"`), "notes are 65537 bytes"},
		{"images missing", replace(`,"images"`, `}`)[:strings.Index(smallPayload, `,"images"`)+1], "0 images"},
		{"images empty", smallPayload[:strings.Index(smallPayload, `[{`)] + "[]}", "0 images"},
		{"image null", smallPayload[:strings.Index(smallPayload, `[{`)] + "[null]}", "null where"},
		{"two images for a component", replace(`}]}`, `},`+smallPayload[strings.Index(smallPayload, `{"component`):]), "two images for component c"},
		{"sha256 in capitals", replace(hash, strings.ToUpper(hash)), "not in lower case"},
		{"sha256 of 12 digits", replace(hash, hash[:12]), "SHA-256 has 12 characters, want 64"},
		{"sha256 with a space before it", replace(hash, " "+hash[1:]), "read manifest"},
		{"sha256 missing", replace(`"sha256":"`+hash+`",`, ""), "sha256 is missing"},
		{"md5 short", replace(`"chunk_size"`, `"md5":"00","chunk_size"`), "md5"},
		{"chunks missing", replace(`"chunks":"YQXWzHavQAMl6U1YjOURvlv9u3O0N9xR7KQ5F9ekPj0="`, `"md5":"00000000000000000000000000000000"`), "0 chunk hashes, want 1"},
		{"chunks short", replace("YQXW", ""), "not a multiple of 32"},
		{"chunks a list", replace(`"YQXWzHavQAMl6U1YjOURvlv9u3O0N9xR7KQ5F9ekPj0="`, "[]"), "0 chunk hashes"},
		{"chunk_size 0", replace("4096", "0"), "chunk_size 0"},
		{"chunk_size not a power of two", replace("4096", "5000"), "chunk_size 5000"},
		{"chunk_size 2^63", replace("4096", "9223372036854775808"), "images.chunk_size: got number 9223372036854775808"},
	}
	for _, n := range []string{"0", "-1", "-5", "2147483647", "2147483648", "2147483649", "4294967295", "4294967296", "4294967297",
		"4294967301", "1099511627777", "9223372036854775807", "-9223372036854775808"} {
		cases = append(cases, bad{"size " + n, replace(`"size":5`, `"size":`+n), "image c: "})
	}
	for _, n := range []string{"9223372036854775808", "-9223372036854775809", "18446744073709551621", "5.0", "5e0", "1e3", "1E+400", `"5"`, "true", "[5]"} {
		cases = append(cases, bad{"size " + n, replace(`"size":5`, `"size":`+n), "images.size: got"})
	}
	for _, n := range []string{"05", "+5", "0x5", ".5", "5.", "--5", "Infinity", "5_0"} {
		cases = append(cases, bad{"size " + n, replace(`"size":5`, `"size":`+n), "not one JSON value"})
	}
	for _, n := range []string{"-1", "18446744073709551616", "7.5", "1e3"} {
		cases = append(cases, bad{"security_version " + n, replace(`"security_version":7`, `"security_version":`+n), "security_version: got number"})
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			signed := signRaw(t, tc.payload, "ed25519")
			m, err := k.Verify(signed)
			wantRefused(t, m, err, tc.want)
			m, err = Unsigned(signed)
			wantRefused(t, m, err, tc.want)
		})
	}
}

// Nothing of a manifest, not even that it is broken, is looked at before its
// signatures hold.
func TestManifestIsNotParsedBeforeItsSignature(t *testing.T) {
	m, err := testKeys(t, 1, "p256").Verify(signRaw(t, "not JSON", "ed25519"))
	wantRefused(t, m, err, "0 by keys trusted here hold")
}

func TestDatesRoundTrip(t *testing.T) {
	m, err := testKeys(t, 1, "ed25519").Verify(signRaw(t, smallPayload, "ed25519"))
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2026, 1, 2, 1, 4, 5, 0, time.UTC); !m.Created.Equal(want) {
		t.Errorf("got created %v, want %v", m.Created, want)
	}
	// A release that has expired is still what its signers signed: whether it is
	// taken is decided where the time is known.
	expired := strings.NewReplacer("2026", "1970", "2027", "1971").Replace(smallPayload)
	m, err = testKeys(t, 1, "ed25519").Verify(signRaw(t, expired, "ed25519"))
	if want := time.Date(1971, 1, 2, 3, 4, 5, 0, time.UTC); err != nil || !m.Expires.Equal(want) {
		t.Errorf("got %v, %v, want expires %v", m, err, want)
	}
	m, err = testKeys(t, 1, "ed25519").Verify(signRaw(t, strings.Replace(smallPayload, `"expires":"2027-01-02T03:04:05Z",`, "", 1), "ed25519"))
	if err != nil || !m.Expires.IsZero() {
		t.Errorf("got %v, %v, want no expiry", m, err)
	}
}

// Sizes around the limits of 32-bit numbers (RAUC, CVE-2026-34155).
func TestLargeImagesRoundTrip(t *testing.T) {
	k, signer := testKeys(t, 1, "ed25519"), testSigner(t, "ed25519")
	for _, size := range []int64{1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 1, 1 << 32, 1<<32 + 1} {
		m := largeRelease(size)
		signed, err := Sign(m, signer)
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		got, err := k.Verify(signed)
		if err != nil || got.Images[0].Size != size {
			t.Fatalf("size %d: got %v, %v", size, got, err)
		}
		offset, err := ImageOffset(len(signed), got, "small")
		if want := 12 + int64(len(signed)) + size; err != nil || offset != want {
			t.Errorf("size %d: got offset %d, %v, want %d", size, offset, err, want)
		}
		if got, want := Size(len(signed), got), offset+5; got != want {
			t.Errorf("size %d: got bundle size %d, want %d", size, got, want)
		}
	}
	if _, err := Sign(largeRelease(ota.MaxImageSize+1), signer); err == nil || !strings.Contains(err.Error(), "size 1099511627777") {
		t.Errorf("2^40+1: got %v, want a refusal with the size", err)
	}
	// 2^40 bytes in 1 MiB chunks need an envelope of 57 MB.
	if _, err := Sign(largeRelease(ota.MaxImageSize), signer); err == nil || !strings.Contains(err.Error(), "take larger chunks") {
		t.Errorf("2^40: got %v, want advice", err)
	}
}

// largeRelease has an image of size bytes, whose hashes are made up, and one of 5.
func largeRelease(size int64) *ota.Manifest {
	const chunk = ota.MaxChunkSize
	return &ota.Manifest{Format: 1, Product: "p", Version: "1", Created: time.Unix(1e9, 0).UTC(), Images: []ota.Image{
		{Component: "large", Size: size, SHA256: ota.Hash{1}, ChunkSize: chunk, Chunks: make(ota.Hashes, (size+chunk-1)/chunk)},
		{Component: "small", Size: 5, SHA256: ota.Hash{1}, ChunkSize: chunk, Chunks: make(ota.Hashes, 1)},
	}}
}

func TestSignRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		change     func(*ota.Manifest)
	}{
		{"notes that are not UTF-8", "not valid UTF-8", func(m *ota.Manifest) { m.Notes = "\xff" }},
		{"year 10000", "year", func(m *ota.Manifest) { m.Created = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }},
		{"no format", "format 0", func(m *ota.Manifest) { m.Format = 0 }},
		{"no images", "0 images", func(m *ota.Manifest) { m.Images = nil }},
		{"no chunks", "0 chunk hashes", func(m *ota.Manifest) { m.Images[0].Chunks = nil }},
	} {
		m := largeRelease(1000)
		tc.change(m)
		if got, err := Sign(m, testSigner(t, "ed25519")); got != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %.40q, %v, want an error with %q", tc.name, got, err, tc.want)
		}
	}
	if got, err := Sign(largeRelease(1000), testSigner(t, "p256"), testSigner(t, "p256")); got != nil || err == nil || !strings.Contains(err.Error(), "signed already") {
		t.Errorf("same key twice: got %.40q, %v, want an error", got, err)
	}
}

func ExampleUnsigned() {
	_, err := Unsigned([]byte(`{"payloadType":"text/plain","payload":"","signatures":[]}`))
	fmt.Println(err)
	// Output: signature/checksum validation failed: read envelope: payloadType "text/plain", want "application/vnd.interlock.manifest+json"
}
