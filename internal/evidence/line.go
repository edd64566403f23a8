package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// Line is one line of a file.
type Line struct {
	Seq  int       `json:"seq"` // 1, 2, ... in the file
	Time time.Time `json:"time"`
	Kind Kind      `json:"kind"`
	Prev string    `json:"prev"` // hash of the line before; zeros for the first

	Raw []byte `json:"-"` // the whole line with its newline
}

// Page is what the length of every line is a multiple of, in bytes: spaces fill it up.
// A medium that loses power while it writes may garble all of what it writes at once,
// also what was there before; so nothing is ever written into a page that holds a line.
// 4096 is what file systems and disks write at most so (EXT4, "4Kn" drives), and
// syncing a line costs a page in any case.
const Page = 4096

// MaxLine is how long a line may be, in bytes. A gate that sees a thousand signals
// needs a tenth of it.
const MaxLine = 1 << 20

// zeroHash stands for the line before the first.
var zeroHash = hash(nil)

// hash is the SHA-256 of a line with its newline, in hex; zeros for none.
func hash(line []byte) string {
	if line == nil {
		return hex.EncodeToString(make([]byte, sha256.Size))
	}
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// sumMark comes before the sum that ends each line. The sum covers the bytes before
// the mark. It tells a line that is damaged from one whose neighbour is, and one that
// a power cut has torn from a whole one; it is no signature.
const (
	sumMark = `,"sum":"`
	sumEnd  = "\"}"
	sumLen  = 16 // hex digits
)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:sumLen/2])
}

// encode returns the line with body's fields behind those that every line has.
func encode(seq int, at time.Time, kind Kind, prev string, body any) ([]byte, error) {
	head, err := marshal(Line{Seq: seq, Time: at.Round(0).UTC(), Kind: kind, Prev: prev})
	if err != nil {
		return nil, err
	}
	fields, err := marshal(body)
	if err != nil {
		return nil, err
	}
	if len(fields) < 2 || fields[0] != '{' {
		return nil, fmt.Errorf("write a line of kind %s: its fields are no object: %.60s", kind, fields)
	}
	b := head[:len(head)-1]
	if len(fields) > 2 {
		b = append(append(b, ','), fields[1:len(fields)-1]...)
	}
	b = append(b, sumMark+sum(b)+sumEnd...)
	b = append(b, bytes.Repeat([]byte(" "), padding(len(b)))...)
	b = append(b, '\n')
	if len(b) > MaxLine {
		return nil, fmt.Errorf("write a line of kind %s: it is %d bytes, want at most %d", kind, len(b), MaxLine)
	}
	return b, nil
}

// padding returns how many spaces stand between n bytes and the newline.
func padding(n int) int { return Page - 1 - n%Page }

// marshal is json.Marshal for readers: it leaves < and > alone.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// parse reads a line with its newline, and checks its form and its sum.
func parse(raw []byte) (Line, error) {
	l := Line{Raw: raw}
	text, ok := bytes.CutSuffix(raw, []byte("\n"))
	text = bytes.TrimRight(text, " ")
	body, closed := bytes.CutSuffix(text, []byte(sumEnd))
	if !ok || !closed || len(raw)-1-len(text) != padding(len(text)) || bytes.IndexByte(body, '\n') >= 0 {
		return l, fmt.Errorf("it does not end as a line does")
	}
	if len(raw) > MaxLine {
		return l, fmt.Errorf("it is %d bytes, want at most %d", len(raw), MaxLine)
	}
	at := len(body) - sumLen - len(sumMark)
	if at < 0 || string(body[at:at+len(sumMark)]) != sumMark {
		return l, fmt.Errorf("it has no sum")
	}
	if got, want := string(body[at+len(sumMark):]), sum(body[:at]); got != want {
		return l, fmt.Errorf("its sum is %.16q, want %q", got, want)
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return l, fmt.Errorf("it is not JSON: %w", err)
	}
	if l.Seq < 1 || l.Kind == "" || len(l.Prev) != 2*sha256.Size || l.Time.IsZero() {
		return l, fmt.Errorf("seq, time, kind or prev is missing")
	}
	return l, nil
}

// Hash is what the next line has as its prev: the SHA-256 of the line with its
// newline, in hex.
func (l *Line) Hash() string { return hash(l.Raw) }

// Decode reads the fields of the line's kind into v, a pointer to its type.
func (l *Line) Decode(v any) error {
	if err := json.Unmarshal(l.Raw, v); err != nil {
		return fmt.Errorf("read line %d, %s: %w", l.Seq, l.Kind, err)
	}
	return nil
}
