package bms

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Compared returns a reader of read whose readings have those of others beside them,
// to be compared. All are asked at the same time; one that errs leaves nothing to
// compare, so that its error is the answer.
func Compared(read Reader, others ...Reader) Reader {
	if len(others) == 0 {
		return read
	}
	others = slices.Clone(others) // the caller may reuse its slice
	return func(ctx context.Context) (Reading, error) {
		got := make([]Reading, len(others))
		errs := make([]error, len(others))
		var wg sync.WaitGroup
		for i, other := range others {
			wg.Go(func() { got[i], errs[i] = safely(ctx, other) })
		}
		r, err := safely(ctx, read)
		wg.Wait()
		if err != nil {
			return Reading{}, err
		}
		r.Others = slices.Clone(r.Others)
		for i, other := range got {
			if errs[i] != nil {
				return Reading{}, fmt.Errorf("compare %s with instrument %d: %w", orUnnamed(r.Source), i+2, errs[i])
			}
			others := other.Others
			other.Others = nil
			r.Others = append(append(r.Others, other), others...)
		}
		return r, nil
	}
}

func orUnnamed(source string) string {
	if source == "" {
		return "the battery"
	}
	return source
}

// safely asks a reader, and turns its panic into an error: it would end the process
// where nobody can catch it.
func safely(ctx context.Context, read Reader) (r Reading, err error) {
	defer func() {
		if p := recover(); p != nil {
			r, err = Reading{}, fmt.Errorf("the reader panicked: %v", p)
		}
	}()
	return read(ctx)
}
