package lambdatest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/interlock-energy/ota/internal/lambda/event"
)

// fronts are the HTTPS addresses.
type fronts struct {
	servers map[event.Kind]*http.Server
	addrs   map[event.Kind]string
	pool    *x509.CertPool
	ca      []byte
}

// CA returns the PEM certificate of the CA of the gateways' certificates.
func (f *fronts) CA() []byte { return slices.Clone(f.ca) }

func (f *fronts) url(kind event.Kind, o Options) string {
	u := "https://" + f.addrs[kind]
	switch {
	case kind == event.REST:
		u += "/" + o.Stage
	case kind == event.HTTP && o.HTTPStage != "$default":
		u += "/" + o.HTTPStage
	}
	return u
}

// listen opens one address for each kind.
func (f *fronts) listen(fn *Function) error {
	cert, ca, err := certificate()
	if err != nil {
		return err
	}
	f.ca, f.pool = ca, x509.NewCertPool()
	f.pool.AppendCertsFromPEM(ca)
	f.servers, f.addrs = map[event.Kind]*http.Server{}, map[event.Kind]string{}
	for _, kind := range []event.Kind{event.REST, event.HTTP, event.FunctionURL} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return errors.Join(err, f.closeListeners())
		}
		s := &http.Server{Handler: &gateway{fn, kind}, ErrorLog: log.New(io.Discard, "", 0),
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}
		f.servers[kind], f.addrs[kind] = s, l.Addr().String()
		go s.ServeTLS(l, "", "")
	}
	return nil
}

func (f *fronts) closeListeners() error {
	var errs []error
	for _, s := range f.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// gateway makes events of requests, and answers of answers.
type gateway struct {
	f    *Function
	kind event.Kind
}

// maxRequest is the greatest body: 10 MB of the gateways ("Quotas for configuring
// and running a REST API"), 6 MB of a function URL.
func (g *gateway) maxRequest() int64 {
	if g.kind == event.FunctionURL {
		return 6 << 20
	}
	return 10 << 20
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, g.maxRequest()+1))
	if err != nil {
		return
	}
	if int64(len(body)) > g.maxRequest() {
		g.refuse(w, http.StatusRequestEntityTooLarge, "Request Too Long")
		return
	}
	var e map[string]any
	if g.kind == event.REST {
		path, ok := strings.CutPrefix(r.URL.Path, "/"+g.f.opts.Stage)
		if !ok || path != "" && path[0] != '/' {
			g.refuse(w, http.StatusForbidden, "Forbidden") // no such stage
			return
		}
		e = g.eventV1(r, path, body)
	} else {
		if stage := g.stage(); stage != "$default" && r.URL.Path != "/"+stage && !strings.HasPrefix(r.URL.Path, "/"+stage+"/") {
			g.refuse(w, http.StatusNotFound, "Not Found")
			return
		}
		e = g.eventV2(r, body)
	}
	payload, err := json.Marshal(e)
	if err != nil {
		g.refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	if len(payload) > maxPayload {
		g.refuse(w, http.StatusRequestEntityTooLarge, "Request Entity Too Large")
		return
	}
	answer, err := g.f.Invoke(context.WithoutCancel(r.Context()), payload) // Lambda goes on when the client is gone
	if err != nil {
		g.failed(w)
		return
	}
	g.answer(w, r, answer)
}

func (g *gateway) stage() string {
	if g.kind == event.HTTP {
		return g.f.opts.HTTPStage
	}
	return "$default"
}

func (g *gateway) host(r *http.Request) string {
	if g.kind == event.FunctionURL {
		return "abcdefgh.lambda-url.us-east-1.on.aws"
	}
	return "abcdefghij.execute-api.us-east-1.amazonaws.com"
}

// eventV1 is what a REST API sends.
func (g *gateway) eventV1(r *http.Request, path string, body []byte) map[string]any {
	if path == "" {
		path = "/"
	}
	single, multi := map[string]string{}, map[string][]string{}
	add := func(name string, values []string) {
		single[name], multi[name] = values[len(values)-1], values
	}
	for name, values := range r.Header {
		add(name, values)
	}
	add("Host", []string{g.host(r)})
	add("X-Forwarded-For", []string{"192.0.2.1"})
	add("X-Forwarded-Port", []string{"443"})
	add("X-Forwarded-Proto", []string{"https"})
	out := map[string]any{
		"resource": "/{proxy+}", "path": path, "httpMethod": r.Method, "headers": single, "multiValueHeaders": multi,
		"queryStringParameters": nil, "multiValueQueryStringParameters": nil, "pathParameters": map[string]string{"proxy": strings.TrimPrefix(path, "/")},
		"stageVariables": nil, "body": nil, "isBase64Encoded": false,
		"requestContext": map[string]any{"accountId": "123456789012", "apiId": "abcdefghij", "domainName": g.host(r), "domainPrefix": "abcdefghij",
			"extendedRequestId": "TWegAcC4EowCHnA=", "httpMethod": r.Method, "identity": map[string]any{"sourceIp": "192.0.2.1", "userAgent": r.UserAgent()},
			"path": "/" + g.f.opts.Stage + path, "protocol": "HTTP/1.1", "requestId": requestID(), "requestTime": time.Now().UTC().Format("02/Jan/2006:15:04:05 -0700"),
			"requestTimeEpoch": time.Now().UnixMilli(), "resourceId": "abc123", "resourcePath": "/{proxy+}", "stage": g.f.opts.Stage},
	}
	if q := r.URL.Query(); len(q) > 0 {
		last := map[string]string{}
		for name, values := range q {
			last[name] = values[len(values)-1]
		}
		out["queryStringParameters"], out["multiValueQueryStringParameters"] = last, q
	}
	if len(body) > 0 {
		out["body"] = strings.ToValidUTF8(string(body), "\uFFFD")
		if g.f.opts.BinaryTypes {
			out["body"], out["isBase64Encoded"] = base64.StdEncoding.EncodeToString(body), true
		}
	}
	return out
}

// eventV2 is what an HTTP API and a function URL send.
func (g *gateway) eventV2(r *http.Request, body []byte) map[string]any {
	headers := map[string]string{"host": g.host(r), "x-forwarded-for": "192.0.2.1", "x-forwarded-port": "443", "x-forwarded-proto": "https",
		"x-amzn-trace-id": "Root=1-5e9f0c65-1de4d666d4dd26aced652b6c", "content-length": strconv.Itoa(len(body))}
	for name, values := range r.Header {
		if name != "Cookie" {
			headers[strings.ToLower(name)] = strings.Join(values, ",")
		}
	}
	path := r.URL.Path
	if g.kind == event.FunctionURL {
		path = r.URL.EscapedPath()
	}
	out := map[string]any{
		"version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": r.URL.RawQuery, "headers": headers, "isBase64Encoded": false,
		"requestContext": map[string]any{"accountId": "anonymous", "apiId": "abcdefghij", "domainName": g.host(r), "domainPrefix": "abcdefghij",
			"http":      map[string]any{"method": r.Method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": r.UserAgent()},
			"requestId": requestID(), "routeKey": "$default", "stage": g.stage(), "time": time.Now().UTC().Format("02/Jan/2006:15:04:05 -0700"), "timeEpoch": time.Now().UnixMilli()},
	}
	var cookies []string
	for _, line := range r.Header["Cookie"] {
		for c := range strings.SplitSeq(line, ";") {
			cookies = append(cookies, strings.TrimSpace(c))
		}
	}
	if cookies != nil {
		out["cookies"] = cookies
	}
	if q := r.URL.Query(); len(q) > 0 {
		joined := map[string]string{}
		for name, values := range q {
			joined[name] = strings.Join(values, ",")
		}
		out["queryStringParameters"] = joined
	}
	if len(body) > 0 {
		out["body"] = string(body)
		if !textual(r.Header.Get("Content-Type")) || !utf8.Valid(body) {
			out["body"], out["isBase64Encoded"] = base64.StdEncoding.EncodeToString(body), true
		}
	}
	return out
}

// textual are the types whose bodies an HTTP API passes as they are; it codes
// others, unless it is told what to do.
func textual(contentType string) bool {
	t := strings.ToLower(contentType)
	return strings.HasPrefix(t, "text/") || strings.HasPrefix(t, "application/json") || strings.HasPrefix(t, "application/xml") ||
		strings.HasPrefix(t, "application/javascript")
}

// answer is what both formats of an answer have together.
type answer struct {
	Status   json.Number         `json:"statusCode"`
	Headers  map[string]any      `json:"headers"`
	Multi    map[string][]string `json:"multiValueHeaders"`
	Cookies  []string            `json:"cookies"`
	Body     string              `json:"body"`
	IsBase64 bool                `json:"isBase64Encoded"`
}

func (g *gateway) answer(w http.ResponseWriter, r *http.Request, raw []byte) {
	var a answer
	err := json.Unmarshal(raw, &a)
	status, statusErr := a.Status.Int64()
	if g.kind != event.REST && (err != nil || statusErr != nil) && json.Valid(raw) { // format 2.0: whatever else it is, is the body
		w.Header().Set("Content-Type", "application/json")
		w.Write(raw)
		return
	}
	if err != nil || statusErr != nil || status < 200 || status > 599 {
		g.failed(w)
		return
	}
	h := w.Header()
	for name, v := range a.Headers {
		if text, ok := v.(string); ok {
			h.Set(name, text)
		}
	}
	if g.kind == event.REST {
		for name, values := range a.Multi {
			h[http.CanonicalHeaderKey(name)] = values
		}
		remap(h)
	}
	for _, c := range a.Cookies {
		h.Add("Set-Cookie", c)
	}
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	body := []byte(a.Body)
	if a.IsBase64 && (g.kind != event.REST || g.f.opts.BinaryTypes) {
		if body, err = base64.StdEncoding.DecodeString(a.Body); err != nil {
			g.failed(w)
			return
		}
	}
	if r.Method != http.MethodHead {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(int(status))
	if r.Method != http.MethodHead && status != http.StatusNotModified && status != http.StatusNoContent {
		w.Write(body)
	}
}

// remap renames the headers that a REST API keeps for itself ("Amazon API Gateway
// important notes"; Content-Length is seen so in its answers).
func remap(h http.Header) {
	for _, name := range slices.Collect(maps.Keys(h)) {
		switch name {
		case "Www-Authenticate", "Date", "Server", "Connection", "Content-Length", "User-Agent":
			h["X-Amzn-Remapped-"+name] = h[name]
			delete(h, name)
		}
	}
}

// failed is what clients see when the function has no answer.
func (g *gateway) failed(w http.ResponseWriter) {
	switch g.kind {
	case event.REST:
		g.refuse(w, http.StatusBadGateway, "Internal server error")
	case event.HTTP:
		g.refuse(w, http.StatusInternalServerError, "Internal Server Error")
	default:
		http.Error(w, "Internal Server Error", http.StatusBadGateway)
	}
}

func (g *gateway) refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func requestID() string {
	var b [16]byte
	rand.Read(b[:])
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// certificate makes a CA and a certificate for loopback. They are of this run.
func certificate() (tls.Certificate, []byte, error) {
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	ca := template("lambdatest CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf := template("localhost")
	leaf.KeyUsage, leaf.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf.DNSNames, leaf.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
