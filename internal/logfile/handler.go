package logfile

import (
	"context"
	"log/slog"
	"slices"
)

// Handler returns a handler that writes lines of text to w, from [Config.Level]
// on, and has those of level error and above synced.
func (w *Writer) Handler() slog.Handler {
	options := &slog.HandlerOptions{Level: w.cfg.Level}
	return handler{slog.NewTextHandler(w, options), slog.NewTextHandler(syncing{w}, options)}
}

type syncing struct{ *Writer }

func (s syncing) Write(p []byte) (int, error) {
	s.add(p, true)
	return len(p), nil
}

// handler is two, because a text handler does not tell its writer the level.
type handler struct{ plain, synced slog.Handler }

func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.plain.Enabled(ctx, level)
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		return h.synced.Handle(ctx, r)
	}
	return h.plain.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.plain.WithAttrs(attrs), h.synced.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.plain.WithGroup(name), h.synced.WithGroup(name)}
}

// Tee returns a handler that gives every record to all handlers that want it; an
// error of one does not keep it from the others. Nil handlers are left out, so
// that an optional one needs no case.
func Tee(handlers ...slog.Handler) slog.Handler {
	return slog.NewMultiHandler(slices.DeleteFunc(slices.Clone(handlers), func(h slog.Handler) bool { return h == nil })...)
}
