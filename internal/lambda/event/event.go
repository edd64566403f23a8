// Package event lets an [http.Handler] answer the events of AWS Lambda: those of
// an API Gateway REST API (and of an HTTP API with payload format 1.0), of an HTTP
// API (payload format 2.0) and of a function URL.
//
// Start with [Adapter], whose Invoke is what the runtime of aws-lambda-go calls:
//
//	lambda.Start(event.Adapter{Handler: h})
//
// The formats are those of the AWS documentation: "Input format of a Lambda
// function for proxy integration" (API Gateway, REST), "Working with AWS Lambda
// proxy integrations for HTTP APIs", and "Invoking Lambda function URLs".
//
// Promised: a handler sees the same request whatever the event's kind, with the
// path as it is behind the stage; nothing that an event says makes it panic; an
// answer that Lambda would refuse for its size becomes an error that says so. An
// event of another kind is an error, and not a request.
package event

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Adapter answers events with Handler.
type Adapter struct {
	Handler http.Handler

	// BasePath is what a custom domain's mapping puts before all paths, such as
	// /ota. It is taken away where it is there.
	BasePath string
}

// Kind tells the forms of events apart.
type Kind string

// Kinds.
const (
	REST        Kind = "rest"         // API Gateway REST API, or HTTP API with payload format 1.0
	HTTP        Kind = "http"         // API Gateway HTTP API, payload format 2.0
	FunctionURL Kind = "function-url" // a form of payload format 2.0
)

// Origin is what a request's event said about itself.
type Origin struct {
	Kind      Kind
	RequestID string // by which the gateway's own log names the request
}

type originKey struct{}

// OriginOf returns where a request came from. It is empty for one that was no event.
func OriginOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}

// event has the fields of both formats that matter here.
type event struct {
	Version string `json:"version"`

	// Format 1.0.
	HTTPMethod      string              `json:"httpMethod"`
	Path            string              `json:"path"`
	MultiHeaders    map[string][]string `json:"multiValueHeaders"`
	Query           map[string]string   `json:"queryStringParameters"` // of 2.0 as well, where RawQuery has all
	MultiQuery      map[string][]string `json:"multiValueQueryStringParameters"`
	Headers         map[string]string   `json:"headers"` // of both
	Body            string              `json:"body"`
	IsBase64Encoded bool                `json:"isBase64Encoded"`

	// Format 2.0.
	RawPath  string   `json:"rawPath"`
	RawQuery string   `json:"rawQueryString"`
	Cookies  []string `json:"cookies"`

	Context struct {
		Stage        string          `json:"stage"`
		Path         string          `json:"path"` // 1.0
		RequestID    string          `json:"requestId"`
		DomainName   string          `json:"domainName"`
		ELB          json.RawMessage `json:"elb"`
		ConnectionID string          `json:"connectionId"`
		Identity     struct {
			SourceIP string `json:"sourceIp"`
		} `json:"identity"`
		HTTP struct {
			Method   string `json:"method"`
			SourceIP string `json:"sourceIp"`
		} `json:"http"`
	} `json:"requestContext"`
}

// Invoke implements the Handler interface of aws-lambda-go/lambda.
func (a Adapter) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	var e event
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, fmt.Errorf("read the event: %w", err)
	}
	kind, err := e.kind()
	if err != nil {
		return nil, fmt.Errorf("read the event: %w", err)
	}
	ctx = context.WithValue(ctx, originKey{}, Origin{kind, e.Context.RequestID})
	r, err := e.request(ctx, kind, a.BasePath)
	if err != nil {
		return nil, fmt.Errorf("read the %s event: %w", kind, err)
	}
	w := newWriter(r.Method)
	a.Handler.ServeHTTP(w, r)
	return w.answer(kind)
}

// kind reports which form e has, or what it is instead.
func (e *event) kind() (Kind, error) {
	switch {
	case e.Context.HTTP.Method != "" && e.Version == "2.0":
		if strings.Contains(e.Context.DomainName, ".lambda-url.") {
			return FunctionURL, nil
		}
		return HTTP, nil
	case e.Context.ELB != nil:
		return "", errors.New("it comes from an application load balancer; use an API Gateway or a function URL")
	case e.Context.ConnectionID != "":
		return "", errors.New("it comes from a WebSocket API; use a REST or HTTP API, or a function URL")
	case e.HTTPMethod != "" && (e.Version == "" || e.Version == "1.0"):
		return REST, nil
	}
	return "", errors.New("it is no HTTP request; want an event of API Gateway with the Lambda proxy integration, or of a function URL")
}

func (e *event) request(ctx context.Context, kind Kind, base string) (*http.Request, error) {
	body := []byte(e.Body)
	if e.IsBase64Encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(e.Body); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	method, path, query, addr := e.HTTPMethod, e.pathV1(), e.queryV1(), e.Context.Identity.SourceIP
	if kind != REST {
		method, path, query, addr = e.Context.HTTP.Method, behind(e.RawPath, e.Context.Stage), e.RawQuery, e.Context.HTTP.SourceIP
	}
	u := url.URL{Path: behind(decode(path), base), RawQuery: query}
	r, err := http.NewRequestWithContext(ctx, method, "/", strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	r.URL, r.RequestURI, r.RemoteAddr = &u, u.RequestURI(), addr
	r.Header = e.headers(kind)
	r.Host = r.Header.Get("Host")
	if r.Host == "" {
		r.Host = e.Context.DomainName
	}
	r.Header.Del("Host") // where net/http has it not
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return r, nil
}

// pathV1 returns the path of format 1.0. A REST API has the stage only in the
// context's path; an HTTP API may have it in both.
func (e *event) pathV1() string {
	if e.Context.Path == "/"+e.Context.Stage+e.Path {
		return e.Path
	}
	return behind(e.Path, e.Context.Stage)
}

// behind returns path without the part prefix at its beginning, if that is there.
func behind(path, prefix string) string {
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	prefix = strings.Trim(prefix, "/")
	if prefix == "" || prefix == "$default" {
		return path
	}
	if rest, ok := strings.CutPrefix(path, "/"+prefix); ok && (rest == "" || rest[0] == '/') {
		if rest == "" {
			return "/"
		}
		return rest
	}
	return path
}

// decode undoes percent-encoding, which some gateways have done already. What
// is meant by a path here never has a percent sign.
func decode(path string) string {
	if p, err := url.PathUnescape(path); err == nil {
		return p
	}
	return path
}

func (e *event) queryV1() string {
	q := url.Values{}
	for name, value := range e.Query {
		q.Set(name, value)
	}
	for name, values := range e.MultiQuery {
		q[name] = values
	}
	return q.Encode()
}

func (e *event) headers(kind Kind) http.Header {
	h := http.Header{}
	for name, value := range e.Headers {
		h.Set(name, value)
	}
	if kind == REST {
		for name, values := range e.MultiHeaders {
			h.Del(name)
			for _, v := range values {
				h.Add(name, v)
			}
		}
	} else if len(e.Cookies) > 0 {
		h.Set("Cookie", strings.Join(e.Cookies, "; "))
	}
	return h
}
