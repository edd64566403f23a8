package cloudwatch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/interlock-energy/ota/internal/logfile"
)

// Handler returns a handler that queues lines of JSON, whose members CloudWatch
// Logs Insights finds by itself, from [Config.Level] on. Lines of level error and
// above are the last to be dropped.
func (w *Writer) Handler() slog.Handler {
	options := &slog.HandlerOptions{Level: w.cfg.Level}
	return logfile.ByLevel(slog.NewJSONHandler(lines{w, false}, options), slog.NewJSONHandler(lines{w, true}, options))
}

// lines is where a handler of package slog writes, one line with each call.
type lines struct {
	w       *Writer
	isError bool
}

func (l lines) Write(p []byte) (int, error) {
	l.w.put(item{text: clean(p, l.w.maxEvent())}, l.isError)
	return len(p), nil
}

// PutMetrics queues figures as one line of CloudWatch's embedded metric format.
// Without a time they are of now. An error says what of m the format forbids.
func (w *Writer) PutMetrics(m Metrics) error {
	if m.Time.IsZero() {
		m.Time = w.cfg.Now()
	}
	text, err := m.EMF()
	if err != nil {
		return err
	}
	if max := w.maxEvent(); len(text) > max {
		return fmt.Errorf("send figures: they are %d bytes, want at most %d", len(text), max)
	}
	i := item{at: m.Time, text: text}
	if !w.cfg.Plausible(m.Time) {
		i.metrics = &m // its time is written anew later
	}
	w.put(i, false)
	return nil
}

// put queues a line and returns at once.
func (w *Writer) put(i item, isError bool) {
	w.mu.Lock()
	closed := w.closed
	w.mu.Unlock()
	if closed {
		w.drop(1, whyClosed)
		return
	}
	if i.at.IsZero() {
		i.at = w.cfg.Now()
	}
	i.since = time.Since(w.start)
	if w.queue.push(i, isError) || isError {
		w.nudge()
	}
}

func (w *Writer) nudge() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}

// maxEvent is the size of the longest line in bytes: eight must fit on the disk.
func (w *Writer) maxEvent() int {
	return min(maxEvent, int(w.cfg.MaxSpool/8)-overhead-recordHeader-segmentHeader)
}

// clean makes a line one that CloudWatch takes: valid UTF-8, not empty, not too
// long. It copies p.
func clean(p []byte, limit int) []byte {
	p = bytes.TrimSuffix(p, []byte("\n"))
	if len(p) == 0 {
		return []byte(" ")
	}
	p = bytes.ToValidUTF8(p, []byte("\uFFFD"))
	if len(p) <= limit {
		return bytes.Clone(p)
	}
	mark := fmt.Sprintf("... (cut, it has %d bytes)", len(p))
	end := limit - len(mark)
	for end > 0 && !utf8.RuneStart(p[end]) {
		end--
	}
	return append(bytes.Clone(p[:end]), mark...)
}

// event makes an event of a line, now that the clock is plausible. What was
// logged before gets the time that the clock would have shown, by the time that
// has passed since, and says so.
func (w *Writer) event(i item, now time.Time, since time.Duration) event {
	if w.cfg.Plausible(i.at) {
		return event{i.at.UnixMilli(), i.text}
	}
	at := now.Add(i.since - since)
	if i.metrics != nil {
		m := *i.metrics
		m.Time = at
		m.Properties = map[string]string{"clock_was": i.at.UTC().Format(time.RFC3339)}
		for k, v := range i.metrics.Properties {
			m.Properties[k] = v
		}
		if text, err := m.EMF(); err == nil {
			return event{at.UnixMilli(), text}
		}
	}
	return event{at.UnixMilli(), w.marked(i.text, i.at)}
}

// marked adds to a line of JSON what the clock showed.
func (w *Writer) marked(text []byte, was time.Time) []byte {
	mark := fmt.Sprintf(`,"clock_was":%q}`, was.UTC().Format(time.RFC3339))
	body, ok := bytes.CutSuffix(text, []byte("}"))
	if !ok || len(body) < 2 || len(text)+len(mark) > w.maxEvent() {
		return text
	}
	return append(bytes.Clone(body), mark...)
}

// reckon gives a time to those of events that an earlier process had to write to
// disk while the clock was not plausible: the last of them not later than this
// process began, which is all that is known.
func (w *Writer) reckon(events []event, began time.Time) {
	astray := func(e event) bool { t := time.UnixMilli(e.ms); return !w.cfg.Plausible(t) && t.Before(began) }
	last := int64(-1 << 62)
	for _, e := range events {
		if astray(e) {
			last = max(last, e.ms)
		}
	}
	for i, e := range events {
		if astray(e) {
			events[i] = event{began.UnixMilli() - (last - e.ms), w.marked(e.text, time.UnixMilli(e.ms))}
		}
	}
}

// Why lines are dropped. The names stand in the log.
const (
	whyQueue   = "the queue in memory was full"
	whySpool   = "the spool on disk was full"
	whyRead    = "the spool on disk could not be read"
	whyOld     = "older than CloudWatch takes"
	whyNew     = "further in the future than CloudWatch takes"
	whyRefused = "CloudWatch refused them"
	whyClosed  = "the log was closed"
)

// notice returns a line that says what was dropped since the last one, or nothing.
func (w *Writer) notice(now time.Time) []event {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lost) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, `{"time":%q,"level":"WARN","msg":"log lines are missing before this one","dropped_in_all":%d,"dropped":`, now.Format(time.RFC3339Nano), w.gone)
	json.NewEncoder(&b).Encode(w.lost) // a map of numbers: it cannot be wrong
	text := strings.TrimSpace(b.String()) + "}"
	w.lost = map[string]int64{}
	return []event{{now.UnixMilli(), []byte(text)}}
}
