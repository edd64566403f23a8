package bundle

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

// smallPayload is a manifest whose bytes tests change. Its image is 5 bytes, "image".
const smallPayload = `{"format":1,"product":"p","version":"1.0","created":"2026-01-02T03:04:05+02:00","expires":"2027-01-02T03:04:05Z",` +
	`"security_version":7,"limits":{"min_soc":30},"notes":"n","images":[{"component":"c","size":5,` +
	`"sha256":"6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d","chunk_size":4096,` +
	`"chunks":"YQXWzHavQAMl6U1YjOURvlv9u3O0N9xR7KQ5F9ekPj0="}]}`

// signRaw signs any payload, as an attacker with a key, or a newer tool, could.
func signRaw(t testing.TB, payload string, kinds ...string) []byte {
	t.Helper()
	var e envelope
	e.setPayload([]byte(payload))
	for _, kind := range kinds {
		if err := e.sign(testSigner(t, kind)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wantRefused checks that err is ErrValidation and names what is wrong.
func wantRefused(t *testing.T, m *ota.Manifest, err error, want string) {
	t.Helper()
	if m != nil || !errors.Is(err, ota.ErrValidation) || ota.CodeOf(err) != ota.ErrValidation || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, error %v; want ErrValidation with %q", m, err, want)
	}
}

// DSSE, protocol.md, test vectors.
func TestPAE(t *testing.T) {
	got := string(pae("http://example.com/HelloWorld", []byte("hello world")))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBadEnvelopes(t *testing.T) {
	k := testKeys(t, 1, "ed25519")
	good := string(signRaw(t, smallPayload, "ed25519"))
	if _, err := k.Verify([]byte(good)); err != nil {
		t.Fatal(err)
	}
	var fields struct {
		PayloadType, Payload string
		Signatures           json.RawMessage
	}
	if err := json.Unmarshal([]byte(good), &fields); err != nil {
		t.Fatal(err)
	}
	sig := string(fields.Signatures[1 : len(fields.Signatures)-1])
	replace := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	p := `"payload":"` + fields.Payload + `"`
	many := func(n int) string { return replace(sig, strings.Repeat(sig+",", n-1)+sig) }

	for _, tc := range []struct{ name, envelope, want string }{
		{"empty", "", "got 0 bytes"},
		{"too large", strings.Repeat(" ", MaxEnvelopeSize+1), "want 1 to 16777216"},
		{"not JSON", "hello", "not one JSON value: at byte 1"},
		{"null", "null", "not an object"},
		{"list", "[" + good + "]", "not an object"},
		{"trailing data", good + "{}", "not one JSON value"},
		{"trailing NUL", good + "\x00", "not one JSON value"},
		{"byte order mark", "\xef\xbb\xbf" + good, "not one JSON value"},
		{"truncated", good[:len(good)-1], "not one JSON value"},
		{"invalid UTF-8", replace(`{"p`, `{"x":"`+"\xff"+`","p`), "not valid UTF-8"},
		{"comma at the end", replace(`]}`, `],}`), "not one JSON value"},
		{"deep nesting in an unknown field", replace(`{"p`, `{"x":`+strings.Repeat("[", 9)+strings.Repeat("]", 9)+`,"p`), "nested deeper than 8"},
		{"endless list in an unknown field", replace(`{"p`, `{"x":[`+strings.Repeat("0,", 8_000_000)+`0],"p`), "more than 1000 values"},
		{"bottomless nesting", strings.Repeat("[", 1<<20), "not one JSON value"},
		{"duplicate payload", replace(`{"p`, `{`+p+`,"p`), `"payload" is given twice`},
		{"duplicate payload, escaped", replace(`{"p`, `{`+strings.Replace(p, "p", `\u0070`, 1)+`,"p`), `"payload" is given twice`},
		{"duplicate payload in other case", replace(`{"p`, `{`+strings.Replace(p, "p", "P", 1)+`,"p`), "other letter case"},
		{"duplicate signatures", replace(`{"p`, `{"signatures":[],"p`), `"signatures" is given twice`},
		{"duplicate sig", replace(`"sig":"`, `"sig":"AA==","sig":"`), `"sig" is given twice`},
		{"sig in other case", replace(`"sig":"`, `"SIG":"AA==","sig":"`), "other letter case"},
		{"folded letter", replace(`"sig":"`, `"ſig":"AA==","sig":"`), "other letter case"},
		{"payloadType missing", replace(`"payloadType":"`+PayloadType+`",`, ""), "payloadType is missing"},
		{"payloadType of another use", replace(PayloadType, "application/vnd.in-toto+json"), `"application/vnd.in-toto+json", want`},
		{"payloadType in capitals", replace("vnd.interlock", "vnd.Interlock"), "payloadType"},
		{"payloadType a number", replace(`"`+PayloadType+`"`, "1"), "a string is wanted"},
		{"payload missing", replace(p+",", ""), "payload is missing"},
		{"payload empty", replace(fields.Payload, ""), "payload is empty"},
		{"payload null", replace(p, `"payload":null`), "a string is wanted"},
		{"payload an object", replace(p, `"payload":{}`), "a string is wanted"},
		{"base64 with a line end", replace(fields.Payload, fields.Payload[:8]+`\n`+fields.Payload[8:]), "line end at 8"},
		{"base64 with a space", replace(fields.Payload, fields.Payload[:8]+" "+fields.Payload[8:]), "not base64"},
		{"base64 without padding", replace(`fQ==`, `fQ`), "not base64"},
		{"base64 with stray bits", replace(`fQ==`, `fR==`), "not base64"},
		{"base64 in both alphabets", replace(fields.Payload, "-_+/"), "not base64"},
		{"too many fields", replace(`{"p`, `{`+manyFields(17)+`"p`), "more than 16 fields"},
		{"signatures missing", replace(`,"signatures":[`+sig+`]`, ""), "signatures is missing"},
		{"signatures null", replace("["+sig+"]", "null"), "signatures is not a list"},
		{"signatures an object", replace("["+sig+"]", sig), "signatures is not a list"},
		{"signature a string", replace(sig, `"AA=="`), "not an object"},
		{"signature null", replace(sig, `null`), "not an object"},
		{"sig missing", replace(`"sig":`, `"sgi":`), "sig is missing"},
		{"sig null", replace(sig, `{"sig":null}`), "a string is wanted"},
		{"sig not base64", replace(sig, `{"sig":"*"}`), "signature 1: not base64"},
		{"sig too long", replace(sig, `{"sig":"`+base64.StdEncoding.EncodeToString(make([]byte, 1025))+`"}`), "has 1025 bytes, want at most 1024"},
		{"keyid too long", replace(sig, `{"keyid":"`+strings.Repeat("k", 257)+`","sig":"AA=="}`), "keyid has 257 characters"},
		{"keyid a number", replace(sig, `{"keyid":1,"sig":"AA=="}`), "a string is wanted"},
		{"17 signatures", many(17), "more than 16 signatures"},
		{"100,000 signatures", many(100_000)[:MaxEnvelopeSize-1], "not one JSON value"},
		{"60,000 signatures", many(60_000), "more than 16 signatures"},
		{"no signatures", replace(sig, ""), "0 by keys trusted here hold, want 1; the envelope has 0, by nobody"},
		{"empty sig", replace(sig, `{"sig":""}`), "0 by keys trusted here hold"},
		{"sig of zeros", replace(sig, `{"sig":"`+base64.StdEncoding.EncodeToString(make([]byte, 64))+`"}`), "0 by keys trusted here hold"},
		{"sig cut", replace(sig, `{"sig":"AA=="}`), "0 by keys trusted here hold"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := k.Verify([]byte(tc.envelope))
			wantRefused(t, m, err, tc.want)
			if len(err.Error()) > 1000 {
				t.Errorf("got an error of %d characters, want at most 1000", len(err.Error()))
			}
		})
	}
}

func manyFields(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, `"x%d":%d,`, i, i)
	}
	return s.String()
}

// What DSSE 1.0.2 demands that a consumer accepts.
func TestEnvelopesOfOtherTools(t *testing.T) {
	k := testKeys(t, 1, "ed25519")
	// ÿ and ? make both alphabets differ: the base64 has characters 62 and 63.
	payload := strings.Replace(smallPayload, `"n"`, `"ÿÿÿ???>>>~~~"`, 1)
	good := signRaw(t, payload, "ed25519")
	want, err := k.Verify(good)
	if err != nil {
		t.Fatal(err)
	}
	std, url := base64.StdEncoding.EncodeToString([]byte(payload)), base64.URLEncoding.EncodeToString([]byte(payload))
	if std == url {
		t.Fatal("the payload does not tell the alphabets apart")
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, good, "", "\t"); err != nil {
		t.Fatal(err)
	}
	for name, envelope := range map[string]string{
		"URL-safe base64":           strings.Replace(string(good), std, url, 1),
		"white space":               indented.String() + "\n",
		"escapes":                   strings.Replace(string(good), "application/", `\u0061pplication\/`, 1),
		"unknown fields":            strings.NewReplacer(`{"payload`, `{"x":[{"y":null}],"payload`, `"sig":`, `"cert":"...","sig":`).Replace(string(good)),
		"no keyid":                  strings.Replace(string(good), `"keyid":"`+k.IDs()[0]+`",`, "", 1),
		"empty keyid":               strings.Replace(string(good), k.IDs()[0], "", 1),
		"a bad signature before it": strings.Replace(string(good), `"signatures":[`, `"signatures":[{"keyid":"`+k.IDs()[0]+`","sig":"AA=="},`, 1),
	} {
		m, err := k.Verify([]byte(envelope))
		if err != nil || m.Digest != want.Digest {
			t.Errorf("%s: got %v, %v, want digest %s", name, m, err, want.Digest)
		}
	}
}

func TestThresholds(t *testing.T) {
	one := signRaw(t, smallPayload, "ed25519")
	two := signRaw(t, smallPayload, "ed25519", "p256")
	all := signRaw(t, smallPayload, kinds()...)
	id := func(kind string) string { return testKeys(t, 1, kind).IDs()[0] }
	edit := func(b []byte, oldNew ...string) []byte {
		return []byte(strings.NewReplacer(oldNew...).Replace(string(b)))
	}
	// A JSON of the one signature twice, the second time under another hint.
	sigs := one[bytes.Index(one, []byte(`"signatures":[`))+14 : len(one)-2]
	twice := edit(one, string(sigs), string(sigs)+","+string(sigs))
	twiceHidden := edit(one, string(sigs), string(sigs)+","+strings.Replace(string(sigs), id("ed25519"), id("p256"), 1))

	for _, tc := range []struct {
		name      string
		envelope  []byte
		keys      []string
		threshold int
		want      string // empty: verifies
	}{
		{"1 of 1", one, []string{"ed25519"}, 1, ""},
		{"1 of 4", one, kinds(), 1, ""},
		{"2 of 2", two, []string{"ed25519", "p256"}, 2, ""},
		{"2 of 3, one does not sign", two, []string{"ed25519", "p384", "p256"}, 2, ""},
		{"4 of 4", all, kinds(), 4, ""},
		{"more signatures than keys", all, []string{"rsa3072"}, 1, ""},
		{"wrong key", one, []string{"p256"}, 1, "0 by keys trusted here hold, want 1"},
		{"2 wanted, 1 there", one, []string{"ed25519", "p256"}, 2, "1 by keys trusted here hold, want 2; the envelope has 1"},
		{"2 wanted, 1 of 2 by a stranger", two, []string{"ed25519", "p384"}, 2, "1 by keys trusted here hold, want 2; the envelope has 2"},
		{"same signature twice", twice, []string{"ed25519", "p256"}, 2, "1 by keys trusted here hold, want 2"},
		{"same signature twice, other hint", twiceHidden, []string{"ed25519", "p256"}, 2, "1 by keys trusted here hold, want 2"},
		{"hint of another key of another type", edit(one, id("ed25519"), id("p256")), []string{"ed25519", "p256"}, 1, ""},
		{"hint of the only trusted key, signed by a stranger", edit(one, id("ed25519"), id("p256")), []string{"p256"}, 1, "0 by keys trusted here hold"},
		{"hint of the only trusted key, ECDSA signature", edit(signRaw(t, smallPayload, "p256"), id("p256"), id("ed25519")), []string{"ed25519"}, 1, "0 by keys trusted here hold"},
		{"hints exchanged", edit(two, id("ed25519"), id("p256"), id("p256"), id("ed25519")), []string{"ed25519", "p256"}, 2, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := testKeys(t, tc.threshold, tc.keys...).Verify(tc.envelope)
			if tc.want != "" {
				wantRefused(t, m, err, tc.want)
			} else if err != nil || m.Product != "p" {
				t.Errorf("got %v, %v, want product p", m, err)
			}
		})
	}
}

// ECDSA on P-384 with SHA-256, and RSA with PKCS #1 v1.5, are other algorithms
// under the same key; neither may be taken.
func TestSignaturesOfOtherAlgorithms(t *testing.T) {
	var e envelope
	e.setPayload([]byte(smallPayload))
	for _, tc := range otherAlgorithms(t, e.message) {
		e.signatures = []signature{{"", tc.sig}}
		b, err := e.encode()
		if err != nil {
			t.Fatal(err)
		}
		m, err := testKeys(t, 1, tc.kind).Verify(b)
		wantRefused(t, m, err, "0 by keys trusted here hold")
	}
}

// Every single bit of header and envelope: the bundle is refused, or only a
// hint changed and the payload is the same.
func TestEveryBitFlipped(t *testing.T) {
	golden := readFile(t, "testdata/format1-ed25519.bundle")
	k := testKeys(t, 1, "ed25519")
	f := openBytes(t, golden)
	want, err := k.Verify(f.Signed())
	if err != nil {
		t.Fatal(err)
	}
	n := HeaderSize + len(f.Signed())
	hint := bytes.Index(golden, []byte(`"keyid":"`))
	hintEnd := bytes.Index(golden, []byte(`","sig"`))
	accepted := 0
	for i := range n * 8 {
		b := bytes.Clone(golden)
		b[i/8] ^= 1 << (i % 8)
		f, err := Open(bytes.NewReader(b), int64(len(b)))
		var m *ota.Manifest
		if err == nil {
			m, err = f.VerifyAll(k, nil)
		}
		if err != nil {
			if !errors.Is(err, ota.ErrValidation) {
				t.Fatalf("bit %d: got %v, want ErrValidation", i, err)
			}
			continue
		}
		if accepted++; m.Digest != want.Digest || i/8 < hint || i/8 >= hintEnd {
			t.Errorf("bit %d of byte %d accepted, digest %s; want refused, or the hint at %d to %d changed", i%8, i/8, m.Digest, hint, hintEnd)
		}
	}
	t.Logf("%d bits flipped, %d of them in the hint and harmless", n*8, accepted)
}

func TestAddSignature(t *testing.T) {
	one := signRaw(t, smallPayload, "ed25519")
	two, err := AddSignature(one, testSigner(t, "p384"))
	if err != nil {
		t.Fatal(err)
	}
	keys := testKeys(t, 2, "ed25519", "p384")
	if _, err := keys.Verify(two); err != nil {
		t.Error(err)
	}
	infos, err := ReadSignatures(two)
	if err != nil || len(infos) != 2 || infos[0] != (SignatureInfo{keys.IDs()[0], 64}) || infos[1].KeyID != keys.IDs()[1] || infos[1].Size < 90 {
		t.Errorf("got %+v, %v, want the signatures of %q", infos, err, keys.IDs())
	}
	if got, err := keys.Signers(one); err != nil || len(got) != 1 || got[0] != keys.IDs()[0] {
		t.Errorf("got signers %q, %v, want %q", got, err, keys.IDs()[:1])
	}
	full := envelope{signatures: slices.Repeat([]signature{{"", []byte{0}}}, MaxSignatures)}
	full.setPayload([]byte(smallPayload))
	fullJSON, err := full.encode()
	if err != nil {
		t.Fatal(err)
	}
	hidden := bytes.Replace(one, []byte(keys.IDs()[0]), []byte("somebody else"), 1)
	for _, tc := range []struct {
		name, kind string
		envelope   []byte
		want       string
	}{
		{"same key", "ed25519", two, "has signed already"},
		{"same key behind another hint", "ed25519", hidden, "has signed already"},
		{"hint taken by somebody else", "ed25519", bytes.Replace(signRaw(t, smallPayload, "p256"), []byte(testKeys(t, 1, "p256").IDs()[0]), []byte(keys.IDs()[0]), 1), "has signed already"},
		{"no room", "ed25519", fullJSON, "16 signatures already"},
		{"not an envelope", "ed25519", []byte("{}"), "is missing"},
		{"not a manifest", "p256", signRaw(t, `{"format":1}`, "ed25519"), "product"},
	} {
		if got, err := AddSignature(tc.envelope, testSigner(t, tc.kind)); got != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %q, %v, want an error with %q", tc.name, got, err, tc.want)
		}
	}
}
