package awstest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// caller is a client of CloudWatch Logs that signs with AWS's own signer.
type caller struct {
	t    testing.TB
	logs *Logs
	key  Key
	at   time.Time
	// change, if set, spoils a request after it was signed
	change func(*http.Request)
	gzip   bool
}

func (c caller) request(operation string, body []byte) *http.Request {
	c.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, c.logs.URL+"/", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "Logs_20140328."+operation)
	if c.gzip {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(body)
		z.Close()
		body = b.Bytes()
		r.Header.Set("Content-Encoding", "gzip")
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	sum := sha256.Sum256(body)
	credentials := aws.Credentials{AccessKeyID: c.key.AccessKeyID, SecretAccessKey: c.key.SecretAccessKey, SessionToken: c.key.SessionToken}
	if err := v4.NewSigner().SignHTTP(r.Context(), credentials, r, hex.EncodeToString(sum[:]), "logs", c.logs.Region, c.at); err != nil {
		c.t.Fatal(err)
	}
	if c.change != nil {
		c.change(r)
	}
	return r
}

// call returns the error's code, "" if it was done, or "cut".
func (c caller) call(operation string, in map[string]any) (string, map[string]any) {
	c.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	response, err := c.logs.Client().Do(c.request(operation, body))
	if err != nil {
		return "cut", nil
	}
	defer response.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(response.Body).Decode(&out); err != nil && err != io.EOF {
		c.t.Fatal(err)
	}
	code, _ := out["__type"].(string)
	if (code == "") != (response.StatusCode == http.StatusOK) || response.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		c.t.Errorf("%s: got status %d with %v", operation, response.StatusCode, out)
	}
	return code, out
}

func newCaller(t *testing.T, o LogsOptions) caller {
	t.Helper()
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	o.Now = func() time.Time { return now }
	keys := NewKeys()
	l := StartLogs(t, keys, o)
	c := caller{t: t, logs: l, key: keys.Issue(now.Add(time.Hour)), at: now}
	for _, operation := range []string{"CreateLogGroup", "CreateLogStream"} {
		if code, _ := c.call(operation, map[string]any{"logGroupName": "/bess/logs", "logStreamName": "dev-1"}); code != "" {
			t.Fatalf("%s: %s", operation, code)
		}
	}
	return c
}

func (c caller) put(events ...map[string]any) (string, map[string]any) {
	return c.call("PutLogEvents", map[string]any{"logGroupName": "/bess/logs", "logStreamName": "dev-1", "logEvents": events})
}

func event(at time.Time, text string) map[string]any {
	return map[string]any{"timestamp": at.UnixMilli(), "message": text}
}

func TestLogsTakesWhatIsWithinTheLimits(t *testing.T) {
	c := newCaller(t, LogsOptions{})
	if code, _ := c.put(event(c.at, "one"), event(c.at, "two")); code != "" {
		t.Fatal(code)
	}
	c.gzip = true
	if code, _ := c.put(event(c.at.Add(time.Millisecond), "three ü")); code != "" {
		t.Fatal(code)
	}
	got := c.logs.Events("/bess/logs", "dev-1")
	if len(got) != 3 || got[2].Message != "three ü" || !got[2].Timestamp.Equal(c.at.Add(time.Millisecond)) {
		t.Errorf("got %v", got)
	}
	requests := c.logs.Requests()
	if r := requests[len(requests)-1]; !r.Gzip || r.Events != 1 || r.Operation != "PutLogEvents" || r.Status != 200 || r.AccessKey != c.key.AccessKeyID {
		t.Errorf("got %+v", r)
	}
	if code, _ := c.call("PutRetentionPolicy", map[string]any{"logGroupName": "/bess/logs", "retentionInDays": 30}); code != "" || c.logs.Retention("/bess/logs") != 30 {
		t.Errorf("retention: %s, %d", code, c.logs.Retention("/bess/logs"))
	}
}

func TestLogsLimits(t *testing.T) {
	c := newCaller(t, LogsOptions{})
	many := func(n, size int) []map[string]any {
		events := make([]map[string]any, n)
		for i := range events {
			events[i] = event(c.at, strings.Repeat("x", size))
		}
		return events
	}
	for name, row := range map[string]struct {
		events []map[string]any
		code   string
	}{
		"no event":              {nil, "InvalidParameterException"},
		"10,000 events":         {many(10000, 1), ""},
		"10,001 events":         {many(10001, 1), "InvalidParameterException"},
		"the largest event":     {many(1, 262144-26), ""},
		"one byte more":         {many(1, 262144-25), "InvalidParameterException"},
		"the largest batch":     {many(4, 262144-26), ""},
		"26 bytes more":         {append(many(4, 262144-26), event(c.at, "x")), "InvalidParameterException"},
		"an empty message":      {many(1, 0), "InvalidParameterException"},
		"no timestamp":          {[]map[string]any{{"message": "x"}}, "InvalidParameterException"},
		"not in order":          {[]map[string]any{event(c.at, "a"), event(c.at.Add(-time.Millisecond), "b")}, "InvalidParameterException"},
		"a span of 24 h":        {[]map[string]any{event(c.at.Add(-24*time.Hour), "a"), event(c.at, "b")}, ""},
		"a span of 24 h + 1 ms": {[]map[string]any{event(c.at.Add(-24*time.Hour-time.Millisecond), "a"), event(c.at, "b")}, "InvalidParameterException"},
	} {
		before := len(c.logs.Events("/bess/logs", "dev-1"))
		code, out := c.put(row.events...)
		if code != row.code {
			t.Errorf("%s: got %q (%v), want %q", name, code, out["message"], row.code)
		}
		if taken := len(c.logs.Events("/bess/logs", "dev-1")) - before; code != "" && taken != 0 {
			t.Errorf("%s: a refused batch left %d events", name, taken)
		}
	}
	for name, in := range map[string]map[string]any{
		"ResourceNotFoundException 1":      {"logGroupName": "/none", "logStreamName": "dev-1"},
		"ResourceNotFoundException 2":      {"logGroupName": "/bess/logs", "logStreamName": "none"},
		"ResourceAlreadyExistsException 3": nil, "ResourceAlreadyExistsException 4": nil,
		"InvalidParameterException 5": {"logGroupName": "a b"}, "InvalidParameterException 6": {"logGroupName": "/bess/logs", "logStreamName": "a:b"},
	} {
		operation := "PutLogEvents"
		switch {
		case strings.HasSuffix(name, "3"), strings.HasSuffix(name, "5"):
			operation = "CreateLogGroup"
		case strings.HasSuffix(name, "4"), strings.HasSuffix(name, "6"):
			operation = "CreateLogStream"
		}
		if in == nil {
			in = map[string]any{"logGroupName": "/bess/logs", "logStreamName": "dev-1"}
		}
		in["logEvents"] = []map[string]any{event(c.at, "x")}
		if code, _ := c.call(operation, in); !strings.HasPrefix(name, code+" ") || code == "" {
			t.Errorf("%s: got %q", name, code)
		}
	}
}

// Too old and too new events do not fail the batch: the answer says which were left out.
func TestLogsLeavesOutWhatIsTooOldOrTooNew(t *testing.T) {
	c := newCaller(t, LogsOptions{})
	day := 24 * time.Hour
	code, out := c.put(event(c.at.Add(-14*day-time.Second), "too old"), event(c.at.Add(-14*day), "just in time"))
	if got := fmt.Sprint(out["rejectedLogEventsInfo"]); code != "" || got != "map[tooOldLogEventEndIndex:1]" {
		t.Errorf("got %q, %s", code, got)
	}
	code, out = c.put(event(c.at, "now"), event(c.at.Add(2*time.Hour), "soon"), event(c.at.Add(2*time.Hour+time.Second), "too new"), event(c.at.Add(3*time.Hour), "too new"))
	if got := fmt.Sprint(out["rejectedLogEventsInfo"]); code != "" || got != "map[tooNewLogEventStartIndex:2]" {
		t.Errorf("got %q, %s", code, got)
	}
	c.call("PutRetentionPolicy", map[string]any{"logGroupName": "/bess/logs", "retentionInDays": 1})
	_, out = c.put(event(c.at.Add(-2*day), "expired"))
	if got := fmt.Sprint(out["rejectedLogEventsInfo"]); got != "map[expiredLogEventEndIndex:1]" {
		t.Errorf("got %s", got)
	}
	var texts []string
	for _, e := range c.logs.Events("/bess/logs", "dev-1") {
		texts = append(texts, e.Message)
	}
	want(t, texts, "just in time", "now", "soon")
}

func TestLogsVerifiesSignatures(t *testing.T) {
	good := newCaller(t, LogsOptions{})
	for name, row := range map[string]struct {
		spoil func(*caller)
		code  string
	}{
		"nothing":           {func(*caller) {}, ""},
		"four minutes late": {func(c *caller) { c.at = c.at.Add(-4 * time.Minute) }, ""},
		"six minutes late":  {func(c *caller) { c.at = c.at.Add(-6 * time.Minute) }, "InvalidSignatureException"},
		"six minutes early": {func(c *caller) { c.at = c.at.Add(6 * time.Minute) }, "InvalidSignatureException"},
		"another secret":    {func(c *caller) { c.key.SecretAccessKey += "x" }, "InvalidSignatureException"},
		"an unknown key":    {func(c *caller) { c.key.AccessKeyID = "ASIAUNKNOWN" }, "UnrecognizedClientException"},
		"no session token":  {func(c *caller) { c.key.SessionToken = "" }, "UnrecognizedClientException"},
		"a foreign token":   {func(c *caller) { c.key.SessionToken = "x" }, "UnrecognizedClientException"},
		"not signed":        {func(c *caller) { c.change = func(r *http.Request) { r.Header.Del("Authorization") } }, "MissingAuthenticationTokenException"},
		"half a header": {func(c *caller) {
			c.change = func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=a") }
		}, "IncompleteSignatureException"},
		"another body": {func(c *caller) {
			c.change = func(r *http.Request) {
				r.Body = io.NopCloser(strings.NewReader(`{"logEvents":[]}`))
				r.ContentLength = 16
			}
		}, "InvalidSignatureException"},
		"another operation": {func(c *caller) {
			c.change = func(r *http.Request) { r.Header.Set("X-Amz-Target", "Logs_20140328.DeleteLogGroup") }
		}, "InvalidSignatureException"},
		"another host":         {func(c *caller) { c.change = func(r *http.Request) { r.Host = "logs.us-east-1.amazonaws.com" } }, "InvalidSignatureException"},
		"an unsigned x-amz":    {func(c *caller) { c.change = func(r *http.Request) { r.Header.Set("X-Amz-Extra", "1") } }, "InvalidSignatureException"},
		"a signature of zeros": {func(c *caller) { c.change = zeroSignature }, "InvalidSignatureException"},
		"another region":       {func(c *caller) { c.change = otherRegion }, "InvalidSignatureException"},
	} {
		c := good
		row.spoil(&c)
		before := len(c.logs.Events("/bess/logs", "dev-1"))
		if code, out := c.put(event(good.at, "x")); code != row.code {
			t.Errorf("%s: got %q (%v), want %q", name, code, out["message"], row.code)
		}
		if taken := len(c.logs.Events("/bess/logs", "dev-1")) > before; taken != (row.code == "") {
			t.Errorf("%s: taken %t", name, taken)
		}
	}
	c := good
	c.key = good.logs.keys.Issue(good.at)
	if code, _ := c.put(event(good.at, "x")); code != "ExpiredTokenException" {
		t.Errorf("expired: got %q", code)
	}
	c.key = good.logs.keys.Issue(time.Time{})
	if code, _ := c.put(event(good.at, "x")); code != "" || c.key.SessionToken != "" {
		t.Errorf("lasting: got %q", code)
	}
	good.logs.keys.Revoke(c.key.AccessKeyID)
	if code, _ := c.put(event(good.at, "x")); code != "UnrecognizedClientException" {
		t.Errorf("revoked: got %q", code)
	}
}

func zeroSignature(r *http.Request) {
	header, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	r.Header.Set("Authorization", header+"Signature="+strings.Repeat("0", 64))
}

func otherRegion(r *http.Request) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "eu-central-1", "us-east-1", 1))
}

func TestLogsThrottlingAndOutages(t *testing.T) {
	c := newCaller(t, LogsOptions{TLS: NewCA(t)})
	if !strings.HasPrefix(c.logs.URL, "https://") {
		t.Fatalf("got %s", c.logs.URL)
	}
	c.logs.Throttle(2)
	var codes []string
	for range 3 {
		code, _ := c.put(event(c.at, "throttled"))
		codes = append(codes, code)
	}
	want(t, codes, "ThrottlingException", "ThrottlingException", "")
	for _, row := range []struct {
		outage int
		code   string
		taken  int
	}{{503, "ServiceUnavailableException", 0}, {500, "ServiceUnavailableException", 0}, {CutConnection, "cut", 0}, {0, "", 1}} {
		c.logs.Outage(row.outage)
		before := len(c.logs.Events("/bess/logs", "dev-1"))
		code, _ := c.put(event(c.at, "x"))
		if taken := len(c.logs.Events("/bess/logs", "dev-1")) - before; code != row.code || taken != row.taken {
			t.Errorf("outage %d: got %q and %d events, want %q and %d", row.outage, code, taken, row.code, row.taken)
		}
	}
	c.logs.Outage(CutAfterTheRequest)
	if code, _ := c.put(event(c.at, "done, but nobody knows")); code != "cut" {
		t.Errorf("got %q", code)
	}
	events := c.logs.Events("/bess/logs", "dev-1")
	if events[len(events)-1].Message != "done, but nobody knows" {
		t.Error("the request that was cut afterwards had no effect")
	}
}

func TestCredentialProvider(t *testing.T) {
	ca, keys, now := NewCA(t), NewKeys(), time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	p := StartCredentialProvider(t, ca, keys, CredentialOptions{
		Aliases: []string{"bess"}, TTL: 15 * time.Minute, Now: func() time.Time { return now },
	})
	get := func(alias, thing string, client *http.Client) (int, Key) {
		r, _ := http.NewRequest(http.MethodGet, p.URL+"/role-aliases/"+alias+"/credentials", nil)
		if thing != "" {
			r.Header.Set("x-amzn-iot-thingname", thing)
		}
		response, err := client.Do(r)
		if err != nil {
			return 0, Key{}
		}
		defer response.Body.Close()
		var out struct {
			Credentials struct {
				AccessKeyID, SecretAccessKey, SessionToken string
				Expiration                                 time.Time
			}
		}
		if err := json.NewDecoder(response.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		c := out.Credentials
		return response.StatusCode, Key{c.AccessKeyID, c.SecretAccessKey, c.SessionToken, c.Expiration}
	}
	dev1 := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.ClientTLS(t, "dev-1")}}
	defer dev1.CloseIdleConnections()
	status, key := get("bess", "dev-1", dev1)
	if known, ok := keys.lookup(key.AccessKeyID); status != 200 || !ok || known != key || !key.Expires.Equal(now.Add(15*time.Minute)) {
		t.Errorf("got %d, %+v, known %t", status, key, ok)
	}
	// what it gives is what Logs takes, until it expires
	l := StartLogs(t, keys, LogsOptions{Now: func() time.Time { return now }})
	c := caller{t: t, logs: l, key: key, at: now}
	if code, _ := c.call("CreateLogGroup", map[string]any{"logGroupName": "g"}); code != "" {
		t.Errorf("with its credentials: %s", code)
	}
	now = now.Add(15 * time.Minute)
	c.at = now
	if code, _ := c.call("CreateLogGroup", map[string]any{"logGroupName": "h"}); code != "ExpiredTokenException" {
		t.Errorf("with its expired credentials: %s", code)
	}
	for name, got := range map[string]int{
		"without the thing's name, 200": first2(get("bess", "", dev1)),
		"as another thing, 403":         first2(get("bess", "dev-2", dev1)),
		"another alias, 404":            first2(get("root", "dev-1", dev1)),
		"without a certificate, 0":      first2(get("bess", "dev-1", &http.Client{Transport: &http.Transport{TLSClientConfig: NewCA(t).ClientTLS(t, "dev-1")}})),
	} {
		if !strings.HasSuffix(name, fmt.Sprint(", ", got)) {
			t.Errorf("%s: got %d", name, got)
		}
	}
	p.Outage(503)
	if status, _ := get("bess", "dev-1", dev1); status != 503 {
		t.Errorf("outage: got %d", status)
	}
	if p.Requests() != 5 {
		t.Errorf("got %d requests, want 5", p.Requests())
	}
}

func first2(status int, _ Key) int { return status }

func FuzzAuthorization(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AKIA/20261101/eu-central-1/logs/aws4_request, SignedHeaders=host;x-amz-date, Signature=00", "20261101T120000Z", []byte("{}"))
	keys := NewKeys()
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	key := keys.Issue(time.Time{})
	f.Add("AWS4-HMAC-SHA256 Credential="+key.AccessKeyID+"/20261101/eu-central-1/logs/aws4_request, SignedHeaders=host;x-amz-date, Signature=00", "20261101T120000Z", []byte("{}"))
	f.Fuzz(func(t *testing.T, authorization, date string, body []byte) {
		r, err := http.NewRequest(http.MethodPost, "http://h/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RequestURI = "/"
		r.Header = http.Header{"Authorization": {authorization}, "X-Amz-Date": {date}}
		if _, failure := verify(r, body, keys, "logs", "eu-central-1", now); failure == nil {
			t.Fatal("a guessed signature was taken")
		}
	})
}
