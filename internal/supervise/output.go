package supervise

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
)

const (
	maxLine  = 512 // bytes; the rest of a longer line is dropped
	maxLines = 6   // that an error repeats
)

// lines calls to with every line that is written, without its end. One
// goroutine writes, that of package exec.
type lines struct {
	to   func(string)
	line []byte
}

func (l *lines) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte("\n"))
		l.line = append(l.line, part[:min(len(part), maxLine-len(l.line))]...)
		if whole {
			l.to(strings.ToValidUTF8(strings.TrimSuffix(string(l.line), "\r"), "?"))
			l.line = l.line[:0]
		}
		rest = after
	}
	return len(p), nil
}

// tail remembers the last lines, for the error that may come.
type tail struct {
	mu   sync.Mutex
	last []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last = append(t.last, line); len(t.last) > maxLines {
		t.last = t.last[1:]
	}
}

// String is what an error says of it, the last line first: texts are cut at
// their ends, and what firmware says last is mostly why.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch n := len(t.last); n {
	case 0:
		return "it wrote nothing"
	case 1:
		return fmt.Sprintf("it wrote %q", t.last[0])
	default:
		return fmt.Sprintf("it wrote %q (before that: %q)", t.last[n-1], t.last[:n-1])
	}
}
