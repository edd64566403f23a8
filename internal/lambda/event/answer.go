package event

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxAnswer is the greatest size of an answer in bytes, as the JSON that it
// becomes: "Invocation payload (request and response)", 6 MB, of the Lambda quotas.
const MaxAnswer = 6 << 20

// writer is an [http.ResponseWriter] that keeps the answer in memory.
type writer struct {
	header http.Header
	sent   http.Header // as it was when the status was set; nil before
	status int
	head   bool // a HEAD has no body
	body   []byte
	full   bool // more was written than an answer can have
}

func newWriter(method string) *writer {
	return &writer{header: http.Header{}, head: method == http.MethodHead}
}

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(status int) {
	if w.sent != nil || status < 200 { // informational answers have no way to the client
		return
	}
	w.status, w.sent = status, w.header.Clone()
}

func (w *writer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.status == http.StatusNoContent, w.status == http.StatusNotModified:
		return 0, http.ErrBodyNotAllowed
	case w.full || len(w.body)+len(p) > MaxAnswer:
		w.full = true
		return 0, errTooLarge
	case !w.head:
		w.body = append(w.body, p...)
	}
	return len(p), nil
}

var errTooLarge = fmt.Errorf("the answer is larger than Lambda's %d bytes", MaxAnswer)

// answerV1 is what a REST API wants, answerV2 what the others do.
type answerV1 struct {
	StatusCode      int                 `json:"statusCode"`
	Headers         map[string][]string `json:"multiValueHeaders"`
	Body            string              `json:"body"`
	IsBase64Encoded bool                `json:"isBase64Encoded"`
}

type answerV2 struct {
	StatusCode      int               `json:"statusCode"`
	Headers         map[string]string `json:"headers"`
	Cookies         []string          `json:"cookies,omitempty"`
	Body            string            `json:"body"`
	IsBase64Encoded bool              `json:"isBase64Encoded"`
}

// answer returns the answer in the form that kind of event wants.
func (w *writer) answer(kind Kind) ([]byte, error) {
	w.WriteHeader(http.StatusOK)
	if !w.full {
		b, err := w.encode(kind)
		if err != nil || len(b) <= MaxAnswer {
			return b, err
		}
	}
	e := newWriter(http.MethodGet)
	e.header.Set("Content-Type", "application/json")
	e.header.Set("Access-Control-Allow-Origin", "*")
	e.WriteHeader(http.StatusInternalServerError)
	if !w.head {
		fmt.Fprintf(e, `{"error":"the answer is too large","details":"Lambda carries %d bytes at most; large files go by presigned URLs"}`+"\n", MaxAnswer)
	}
	return e.encode(kind)
}

func (w *writer) encode(kind Kind) ([]byte, error) {
	body, coded := string(w.body), false
	if !utf8.Valid(w.body) {
		body, coded = base64.StdEncoding.EncodeToString(w.body), true
	}
	h := w.sent
	if _, said := h["Content-Type"]; !said && len(w.body) > 0 {
		h.Set("Content-Type", http.DetectContentType(w.body)) // else the gateway says application/json
	}
	if kind == REST {
		return json.Marshal(answerV1{w.status, h, body, coded})
	}
	a := answerV2{StatusCode: w.status, Headers: map[string]string{}, Cookies: h["Set-Cookie"], Body: body, IsBase64Encoded: coded}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if name != "Set-Cookie" {
			a.Headers[name] = strings.Join(h[name], ", ")
		}
	}
	return json.Marshal(a)
}
