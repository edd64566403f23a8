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
	return ByLevel(slog.NewTextHandler(w, options), slog.NewTextHandler(syncing{w}, options))
}

type syncing struct{ *Writer }

func (s syncing) Write(p []byte) (int, error) {
	s.add(p, true)
	return len(p), nil
}

// ByLevel returns a handler that gives records of level error and above to errors, and
// all others to plain: for writers that must know, because slog's handlers do not tell
// them the level. What is enabled is plain's to say.
func ByLevel(plain, errors slog.Handler) slog.Handler { return byLevel{plain, errors} }

type byLevel struct{ plain, errors slog.Handler }

func (h byLevel) Enabled(ctx context.Context, level slog.Level) bool {
	return h.plain.Enabled(ctx, level)
}

func (h byLevel) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		return h.errors.Handle(ctx, r)
	}
	return h.plain.Handle(ctx, r)
}

func (h byLevel) WithAttrs(attrs []slog.Attr) slog.Handler {
	return byLevel{h.plain.WithAttrs(attrs), h.errors.WithAttrs(attrs)}
}

func (h byLevel) WithGroup(name string) slog.Handler {
	return byLevel{h.plain.WithGroup(name), h.errors.WithGroup(name)}
}

// Tee returns a handler that gives every record to all handlers that want it; an
// error of one does not keep it from the others. Nil handlers are left out, so
// that an optional one needs no case.
func Tee(handlers ...slog.Handler) slog.Handler {
	return slog.NewMultiHandler(slices.DeleteFunc(slices.Clone(handlers), func(h slog.Handler) bool { return h == nil })...)
}
