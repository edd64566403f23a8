package control

import (
	"context"
	"sync"
)

// maxPending is how many changes of status wait for a slow watcher. The oldest
// of more are dropped.
const maxPending = 64

// Hub hands events to watchers, and never waits for them. The zero Hub is ready.
type Hub struct {
	mu       sync.Mutex
	closed   bool
	watchers map[*watcher]struct{}
}

type watcher struct {
	pending []Event
	wake    chan struct{} // receives when pending is not empty or the hub is closed
}

// Publish hands e to everybody who watches now.
func (h *Hub) Publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.add(e)
	}
}

// add appends e. Of progress only the newest counts.
func (w *watcher) add(e Event) {
	if n := len(w.pending); n > 0 && w.pending[n-1].Kind == KindProgress {
		w.pending = w.pending[:n-1]
	}
	if len(w.pending) == maxPending {
		w.pending = w.pending[:copy(w.pending, w.pending[1:])]
	}
	w.pending = append(w.pending, e)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Watch returns the events from now on, first among them first. The channel is
// closed when ctx ends or the hub is closed.
func (h *Hub) Watch(ctx context.Context, first Event) <-chan Event {
	w := &watcher{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	w.add(first)
	h.watchers[w] = struct{}{}
	h.mu.Unlock()
	out := make(chan Event)
	go func() {
		defer close(out)
		defer h.forget(w)
		for {
			e, ok, closed := h.next(w)
			switch {
			case ok:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case closed:
				return
			default:
				select {
				case <-w.wake:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func (h *Hub) next(w *watcher) (e Event, ok, closed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(w.pending) == 0 {
		return e, false, h.closed
	}
	e = w.pending[0]
	w.pending = w.pending[1:]
	return e, true, h.closed
}

func (h *Hub) forget(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// Close ends all watching, now and later, once what is pending is read.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for w := range h.watchers {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}
