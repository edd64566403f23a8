package awsiot

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

// afrDocument is as AWS makes it, with both protocols.
const afrDocument = `{"afr_ota":{"protocols":["MQTT","HTTP"],"streamname":"AFR_OTA-7d2e","files":[{
	"filepath":"/fw/bess-1.0.1.bin","filesize":1164016,"fileid":0,"certfile":"cert.pem","fileType":255,
	"update_data_url":"https://bucket.s3.amazonaws.com/x?X-Amz-Signature=1","auth_scheme":"aws.s3.presigned","attr":3,
	"sig-sha256-ecdsa":"MEQCIF2Q"}]}}`

func TestAFRDocument(t *testing.T) {
	got, err := parseAFR(json.RawMessage(afrDocument))
	want := &afrJob{Stream: "AFR_OTA-7d2e", MQTT: true, HTTP: true, Files: []afrFile{{Path: "/fw/bess-1.0.1.bin", Size: 1164016,
		URL: "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=1", SignatureName: "sig-sha256-ecdsa", Signature: []byte{0x30, 0x44, 0x02, 0x20, 0x5d, 0x90}}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// TestAFRVariants changes one thing of the document at a time.
func TestAFRVariants(t *testing.T) {
	for name, c := range map[string]struct {
		old, new string
		check    func(*afrJob) bool
	}{
		"MQTT only": {`"MQTT","HTTP"`, `"MQTT"`, func(j *afrJob) bool { return j.MQTT && !j.HTTP }},
		"HTTP only, no stream": {`"MQTT","HTTP"],"streamname":"AFR_OTA-7d2e"`, `"HTTP"]`,
			func(j *afrJob) bool { return !j.MQTT && j.HTTP && j.Stream == "" }},
		"a protocol that is not known": {`"MQTT","HTTP"`, `"COAP","MQTT"`, func(j *afrJob) bool { return j.MQTT }},
		"quoted size":                  {`1164016`, `"1024"`, func(j *afrJob) bool { return j.Files[0].Size == 1024 }},
		"quoted id":                    {`"fileid":0`, `"fileid":"7"`, func(j *afrJob) bool { return j.Files[0].ID == 7 }},
		"RSA": {`sig-sha256-ecdsa`, `sig-sha256-rsa`,
			func(j *afrJob) bool { return j.Files[0].SignatureName == "sig-sha256-rsa" }},
		"another platform's name": {`sig-sha256-ecdsa`, `sig-sha256-p256-hsm`, func(j *afrJob) bool { return len(j.Files[0].Signature) == 6 }},
		"signature in lines":      {`MEQCIF2Q`, `MEQC\nIF2Q\n`, func(j *afrJob) bool { return len(j.Files[0].Signature) == 6 }},
		"no fileType":             {`"fileType":255,`, ``, func(j *afrJob) bool { return true }},
		"version of the file":     {`"fileid":0`, `"fileid":0,"version":"2.0.0"`, func(j *afrJob) bool { return j.Files[0].Version == "2.0.0" }},
		"version of the job":      {`"protocols"`, `"version":"2.0.0","protocols"`, func(j *afrJob) bool { return j.Files[0].Version == "2.0.0" }},
		"version of the document": {`{"afr_ota"`, `{"version":"2.0.0","afr_ota"`, func(j *afrJob) bool { return j.Files[0].Version == "2.0.0" }},
		"no URL":                  {`"update_data_url"`, `"x"`, func(j *afrJob) bool { return j.MQTT && !j.HTTP }},
		"another scheme":          {`aws.s3.presigned`, `magic`, func(j *afrJob) bool { return j.MQTT && !j.HTTP && j.Files[0].URL == "" }},
		"too large for a stream":  {`1164016`, `25165825`, func(j *afrJob) bool { return !j.MQTT && j.HTTP }},
	} {
		if !strings.Contains(afrDocument, c.old) {
			t.Fatal(name)
		}
		job, err := parseAFR(json.RawMessage(strings.Replace(afrDocument, c.old, c.new, 1)))
		if err != nil || !c.check(job) {
			t.Errorf("%s: got %+v, %v", name, job, err)
		}
	}
}

// TestAFRRefused: what an operator reads in the job.
func TestAFRRefused(t *testing.T) {
	for name, c := range map[string]struct{ old, new, says string }{
		"no JSON":             {`}]}}`, ``, "unexpected end"},
		"a list":              {`{"afr_ota":{`, `{"afr_ota":[{`, "invalid character"},
		"protocols":           {`["MQTT","HTTP"]`, `[]`, `protocols are [], want "MQTT", "HTTP" or both`},
		"unknown protocols":   {`["MQTT","HTTP"]`, `["mqtt"]`, `protocols are ["mqtt"]`},
		"no stream":           {`"streamname":"AFR_OTA-7d2e",`, ``, "streamname is missing"},
		"stream is a topic":   {`AFR_OTA-7d2e`, `a/+/b`, `streamname "a/+/b"`},
		"no files":            {`"files"`, `"f"`, "0 files, want 1 to 10"},
		"no path":             {`"filepath"`, `"f"`, "file 1 of 1: filepath is missing"},
		"empty path":          {`/fw/bess-1.0.1.bin`, ``, "filepath has 0 characters"},
		"no size":             {`"filesize"`, `"f"`, "filesize is missing"},
		"size 0":              {`1164016`, `0`, "filesize is 0, want 1 to"},
		"size with a point":   {`1164016`, `1.5`, `filesize: "1.5" is no whole number`},
		"size of a word":      {`1164016`, `"many"`, `filesize: "many" is no whole number`},
		"size too large":      {`1164016`, `99999999999999999999`, "is no whole number"},
		"negative id":         {`"fileid":0`, `"fileid":-1`, "fileid is -1, want 0 to 255"},
		"id too large":        {`"fileid":0`, `"fileid":256`, "fileid is 256"},
		"no id":               {`"fileid"`, `"f"`, "fileid is missing"},
		"no certificate":      {`"certfile"`, `"c"`, "certfile is missing"},
		"no signature":        {`"sig-sha256-ecdsa"`, `"s"`, "the signature is missing"},
		"SHA-1":               {`"sig-sha256-ecdsa"`, `"sig-sha1-rsa"`, `the signature is "sig-sha1-rsa", want one with SHA-256`},
		"two signatures":      {`"attr":3`, `"sig-sha256-rsa":"AA=="`, "two signatures"},
		"signature no base64": {`MEQCIF2Q`, `M!`, "sig-sha256-ecdsa is not base64"},
		"empty signature":     {`MEQCIF2Q`, ``, "sig-sha256-ecdsa is not base64"},
		"signature a number":  {`"MEQCIF2Q"`, `5`, "no string"},
		"HTTP without URL":    {`"MQTT","HTTP"],"streamname":"AFR_OTA-7d2e","files":[{`, `"HTTP"],"files":[{"update_data_url":null,`, ""},
		"version a number":    {`"fileid":0`, `"fileid":0,"version":2`, `version: "2" is no string`},
	} {
		if !strings.Contains(afrDocument, c.old) {
			t.Fatal(name)
		}
		doc := strings.Replace(afrDocument, c.old, c.new, 1)
		if name == "HTTP without URL" {
			doc, c.says = strings.Replace(doc, `"update_data_url":"`, `"u":"`, 1), "update_data_url is missing"
		}
		job, err := parseAFR(json.RawMessage(doc))
		if job != nil && err == nil || err == nil || !strings.HasPrefix(err.Error(), "the FreeRTOS OTA job cannot be used: ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %+v, %v, want an error that says %q", name, job, err, c.says)
		}
	}
	file := afrDocument[strings.Index(afrDocument, `[{`)+1 : strings.LastIndex(afrDocument, `]`)]
	for n, says := range map[int]string{2: "fileid 0 is that of another file", 11: "11 files, want 1 to 10"} {
		doc := strings.Replace(afrDocument, file, strings.Repeat(file+",", n-1)+file, 1)
		if _, err := parseAFR(json.RawMessage(doc)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%d files: got %v, want an error that says %q", n, err, says)
		}
	}
	large := strings.Replace(strings.Replace(afrDocument, `1164016`, `25165825`, 1), `"MQTT","HTTP"`, `"MQTT"`, 1)
	if _, err := parseAFR(json.RawMessage(large)); err == nil || !strings.Contains(err.Error(), "has 25165825 bytes, and a stream has files of at most 25165824") {
		t.Errorf("got %v", err)
	}
}

func TestIsAFR(t *testing.T) {
	for doc, want := range map[string]bool{
		afrDocument: true, `{"afr_ota":null}`: false, `{}`: false, `[]`: false, ``: false, `{"interlock":{"bundle":"https://x/y"}}`: false,
		`{"interlock":{"bundle":"https://x/y"},"afr_ota":{}}`: false, `{"interlock":null,"afr_ota":{}}`: true,
	} {
		if got := isAFR(json.RawMessage(doc)); got != want {
			t.Errorf("%.60s: got %v, want %v", doc, got, want)
		}
	}
}

// TestAFRDetails compares with what the agents write (FreeRTOS OTA agent, ota.c).
func TestAFRDetails(t *testing.T) {
	for _, c := range []struct {
		got  map[string]string
		want map[string]string
	}{
		{afrReceiving(64*4096, 1164016), map[string]string{"receive": "64/285"}},
		{afrReceiving(64*4096+1, 1164016), map[string]string{"receive": "64/285"}},
		{afrReceiving(0, 1164016), map[string]string{"receive": "0/285"}},
		{afrReceiving(1164016, 1164016), map[string]string{"receive": "285/285"}},
		{afrReceiving(-1, -1), map[string]string{"receive": "0/0"}},
		{afrSelfTest(false, "1.0.0"), map[string]string{"self_test": "ready", "updatedBy": "0x1000000"}},
		{afrSelfTest(true, "0.9.2"), map[string]string{"self_test": "active", "updatedBy": "0x90002"}},
		{afrSelfTest(true, "1.2.3-rc.1+b"), map[string]string{"self_test": "active", "updatedBy": "0x1020003"}},
		{afrSelfTest(true, "2026.1.0"), map[string]string{"self_test": "active", "updatedBy": "2026.1.0"}},
		{afrSelfTest(true, "1.0"), map[string]string{"self_test": "active", "updatedBy": "1.0"}},
		{afrOutcome(ota.Report{Result: ota.Succeeded, Version: "0.9.3", From: "0.9.2"}), map[string]string{"reason": "accepted  v0.9.3", "updatedBy": "  v0.9.2"}},
		{afrOutcome(ota.Report{Result: ota.RolledBack, Code: ota.ErrInternal}), map[string]string{"reason": "rejected: 0x64"}},
		{afrOutcome(ota.Report{Result: ota.Failed, Code: ota.ErrValidation}), map[string]string{"reason": "rejected: 0x6"}},
	} {
		if !maps.Equal(c.got, c.want) {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

// FuzzAFR: what is taken has everything that its users rely on.
func FuzzAFR(f *testing.F) {
	f.Add([]byte(afrDocument))
	f.Add([]byte(strings.Replace(afrDocument, `1164016`, `"1024"`, 1)))
	f.Add([]byte(strings.Replace(afrDocument, `"MQTT","HTTP"`, `"HTTP"`, 1)))
	f.Add([]byte(`{"afr_ota":{"protocols":["MQTT"],"streamname":"s","files":[{}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		isAFR(b)
		job, err := parseAFR(b)
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if problem := afrProblem(job); problem != "" {
			t.Errorf("took %+v: %s", job, problem)
		}
	})
}

func afrProblem(job *afrJob) string {
	if n := len(job.Files); n < 1 || n > 10 || !job.MQTT && !job.HTTP || job.MQTT && !streamName(job.Stream) || strings.ContainsAny(job.Stream, "/+#") {
		return fmt.Sprint("files ", n)
	}
	for _, f := range job.Files {
		switch {
		case f.Size < 1, f.Path == "", f.ID < 0, f.ID > 255, len(f.Signature) == 0:
			return fmt.Sprintf("file %+v", f)
		case job.MQTT && f.Size > 24<<20, job.HTTP && f.URL == "":
			return fmt.Sprintf("file %+v cannot be had", f)
		}
	}
	return ""
}
