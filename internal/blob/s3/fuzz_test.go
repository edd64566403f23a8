package s3

import (
	"fmt"
	"testing"
)

// Whatever a server says of a range: it is refused, or makes sense.
func FuzzContentRange(f *testing.F) {
	for _, h := range []string{"bytes 0-9/10", "bytes 3-3/4", "bytes */10", "bytes 0-9/*", "bytes 9-0/10", "bytes -1-2/3", "items 0-1/2",
		"bytes 0-9/99999999999999999999", "bytes +1-2/3", "", "bytes 5-9/5"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, h string) {
		from, size, err := contentRange(h)
		if err != nil {
			return
		}
		if from < 0 || size <= from {
			t.Errorf("%q: from %d of %d", h, from, size)
		}
	})
}

func TestContentRange(t *testing.T) {
	for h, want := range map[string]string{"bytes 0-9/10": "0 10", "bytes 3-3/4": "3 4", "bytes */10": "0 0", "bytes 0-9/*": "0 0",
		"bytes 5-9/5": "0 0", "items 0-1/2": "0 0", "": "0 0"} {
		from, size, err := contentRange(h)
		if got := fmt.Sprint(from, size); got != want || (err == nil) != (want != "0 0") {
			t.Errorf("%q: got %s, %v, want %s", h, got, err, want)
		}
	}
}
