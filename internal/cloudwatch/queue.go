package cloudwatch

import (
	"sync"
	"time"
)

// Bounds of what waits in memory, not counting what the disk is just being given.
const (
	queueLines = 4096
	queueBytes = 1 << 20
)

// item is a line before its time is known for sure.
type item struct {
	seq     uint64
	at      time.Time     // by the wall clock
	since   time.Duration // since the writer was opened, by a clock that cannot be set
	text    []byte
	metrics *Metrics // instead of text: written when the time is known
}

func (i *item) size() int { return len(i.text) + overhead }

// queue is two, so that errors outlive what is no error, and the oldest of either
// is found at once.
type queue struct {
	lost func() // called for every line that is dropped; must not block

	mu            sync.Mutex
	plain, errors []item
	seq           uint64
	bytes         int
}

// push adds a line, at the expense of older ones. It returns whether the queue
// is half full.
func (q *queue) push(i item, isError bool) (half bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seq++
	i.seq = q.seq
	if isError {
		q.errors = append(q.errors, i)
	} else {
		q.plain = append(q.plain, i)
	}
	q.bytes += i.size()
	for q.bytes > queueBytes || len(q.plain)+len(q.errors) > queueLines {
		if len(q.plain) > 0 {
			q.pop(&q.plain)
		} else {
			q.pop(&q.errors)
		}
		q.lost()
	}
	return q.bytes > queueBytes/2 || len(q.plain)+len(q.errors) > queueLines/2
}

func (q *queue) pop(from *[]item) item {
	i := (*from)[0]
	(*from)[0] = item{} // or the line would stay in memory
	*from = (*from)[1:]
	q.bytes -= i.size()
	return i
}

// take removes all lines and returns them in the order they came in.
func (q *queue) take() []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]item, 0, len(q.plain)+len(q.errors))
	for len(q.plain)+len(q.errors) > 0 {
		from := &q.plain
		if len(q.plain) == 0 || len(q.errors) > 0 && q.errors[0].seq < q.plain[0].seq {
			from = &q.errors
		}
		all = append(all, q.pop(from))
	}
	q.plain, q.errors = nil, nil // give the memory of a storm back
	return all
}

// waiting returns lines and bytes.
func (q *queue) waiting() (int, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.plain) + len(q.errors), q.bytes
}
