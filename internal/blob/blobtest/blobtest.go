// Package blobtest is what every [blob.Store] has to pass.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/interlock-energy/ota/internal/blob"
)

// Run runs the suite. Each call of open returns an empty store.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, blob.Store)
	}{
		{"PutOpenStatDelete", putOpenStatDelete}, {"Ranges", ranges}, {"Replace", replace}, {"PutFromPosition", putFromPosition},
		{"IfAbsent", ifAbsent}, {"IfAbsentRace", ifAbsentRace}, {"IfETag", ifETag}, {"IfETagRace", ifETagRace},
		{"List", list}, {"BrokenPut", brokenPut}, {"CancelledPut", cancelledPut}, {"WholeOrOld", wholeOrOld}, {"Keys", keys},
		{"Large", large},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, open(t)) })
	}
}

func put(t *testing.T, s blob.Store, key, content string, o blob.PutOptions) blob.Object {
	t.Helper()
	out, err := s.Put(t.Context(), key, strings.NewReader(content), o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, s blob.Store, key string, offset, n int64) string {
	t.Helper()
	r, _, err := s.Open(t.Context(), key, offset, n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names lists what begins with prefix.
func names(t *testing.T, s blob.Store, prefix string) []string {
	t.Helper()
	var out []string
	for o, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, o.Key)
	}
	return out
}

func putOpenStatDelete(t *testing.T, s blob.Store) {
	const content = "0123456789"
	stored := put(t, s, "a/b/c.json", content, blob.PutOptions{ContentType: "application/json", CacheControl: "no-cache"})
	r, opened, err := s.Open(t.Context(), "a/b/c.json", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	stat, err := s.Stat(t.Context(), "a/b/c.json")
	if err != nil {
		t.Fatal(err)
	}
	for from, got := range map[string]blob.Object{"Put": stored, "Open": opened, "Stat": stat} {
		if got.Key != "a/b/c.json" || got.Size != 10 || got.ETag != stat.ETag || !strings.HasPrefix(got.ETag, `"`) {
			t.Errorf("%s: got %+v, want key, 10 bytes and the ETag %s", from, got, stat.ETag)
		}
		if d := time.Since(got.ModTime); d < -time.Minute || d > 10*time.Minute {
			t.Errorf("%s: modified %v ago", from, d)
		}
	}
	if got := read(t, s, "a/b/c.json", 0, -1); got != content {
		t.Errorf("read %q, want %q", got, content)
	}
	put(t, s, "empty", "", blob.PutOptions{})
	if got := read(t, s, "empty", 0, -1); got != "" {
		t.Errorf("the empty object has %q", got)
	}
	for range 2 {
		if err := s.Delete(t.Context(), "a/b/c.json"); err != nil {
			t.Fatal(err)
		}
		_, statErr := s.Stat(t.Context(), "a/b/c.json")
		_, _, openErr := s.Open(t.Context(), "a/b/c.json", 0, -1)
		_, _, noneErr := s.Open(t.Context(), "a/b/c.json", 0, 0)
		_, _, rangeErr := s.Open(t.Context(), "a/b/c.json", 5, 2)
		for _, err := range []error{statErr, openErr, noneErr, rangeErr} {
			if !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("of a deleted object: got %v, want ErrNotFound", err)
			}
		}
	}
	put(t, s, "a", "the name of a folder that was there", blob.PutOptions{})
}

func ranges(t *testing.T, s blob.Store) {
	put(t, s, "k", "0123456789", blob.PutOptions{})
	for _, tt := range []struct {
		offset, n int64
		want      string
	}{{0, -1, "0123456789"}, {0, 10, "0123456789"}, {3, 4, "3456"}, {9, 1, "9"}, {9, -1, "9"}, {10, -1, ""}, {10, 0, ""}, {0, 0, ""}, {4, 0, ""}} {
		r, o, err := s.Open(t.Context(), "k", tt.offset, tt.n)
		if err != nil {
			t.Errorf("%d bytes from %d: %v", tt.n, tt.offset, err)
			continue
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(got) != tt.want || o.Size != 10 {
			t.Errorf("%d bytes from %d: got %q of %d bytes, %v; want %q of 10", tt.n, tt.offset, got, o.Size, err, tt.want)
		}
	}
	for _, tt := range [][2]int64{{-1, 2}, {0, 11}, {5, 6}, {10, 1}, {11, -1}, {11, 0}, {20, 5}} {
		r, _, err := s.Open(t.Context(), "k", tt[0], tt[1])
		if err == nil {
			r.Close()
			t.Errorf("%d bytes from %d of 10: no error", tt[1], tt[0])
		}
		if errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%d bytes from %d of 10: %v, but it is there", tt[1], tt[0], err)
		}
	}
}

func replace(t *testing.T, s blob.Store) {
	first := put(t, s, "k", "first", blob.PutOptions{})
	second := put(t, s, "k", "other", blob.PutOptions{})
	if first.ETag == second.ETag {
		t.Errorf("ETag %s for two contents", first.ETag)
	}
	if got := read(t, s, "k", 0, -1); got != "other" {
		t.Errorf("got %q, want other", got)
	}
}

func putFromPosition(t *testing.T, s blob.Store) {
	r := strings.NewReader("head body")
	if _, err := r.Seek(5, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	o, err := s.Put(t.Context(), "k", r, blob.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, "k", 0, -1); got != "body" || o.Size != 4 {
		t.Errorf("got %q of %d bytes, want body", got, o.Size)
	}
}

func ifAbsent(t *testing.T, s blob.Store) {
	put(t, s, "k", "first", blob.PutOptions{IfAbsent: true})
	for _, content := range []string{"other", "first"} {
		if _, err := s.Put(t.Context(), "k", strings.NewReader(content), blob.PutOptions{IfAbsent: true}); !errors.Is(err, blob.ErrExists) {
			t.Errorf("again: got %v, want ErrExists", err)
		}
	}
	if got := read(t, s, "k", 0, -1); got != "first" {
		t.Errorf("got %q, want first", got)
	}
	if err := s.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "k", "again", blob.PutOptions{IfAbsent: true})
}

const writers = 8

// race lets all writers put their number at once and returns who could.
func race(t *testing.T, s blob.Store, o blob.PutOptions, lost error) (won []string) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range writers {
		wg.Go(func() {
			content := fmt.Sprintf("writer %d", i)
			<-start
			_, err := s.Put(t.Context(), "k", strings.NewReader(content), o)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, content)
			} else if !errors.Is(err, lost) {
				t.Errorf("%s: got %v, want %v", content, err, lost)
			}
		})
	}
	close(start)
	wg.Wait()
	return won
}

func ifAbsentRace(t *testing.T, s blob.Store) {
	for range 5 {
		won := race(t, s, blob.PutOptions{IfAbsent: true}, blob.ErrExists)
		if got := read(t, s, "k", 0, -1); len(won) != 1 || got != won[0] {
			t.Fatalf("%q stored it, and it is %q; want exactly one", won, got)
		}
		if err := s.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
	}
}

func ifETagRace(t *testing.T, s blob.Store) {
	at := put(t, s, "k", "first", blob.PutOptions{})
	for range 5 {
		won := race(t, s, blob.PutOptions{IfETag: at.ETag}, blob.ErrChanged)
		if got := read(t, s, "k", 0, -1); len(won) != 1 || got != won[0] {
			t.Fatalf("%q stored it, and it is %q; want exactly one", won, got)
		}
		at = put(t, s, "k", "first", blob.PutOptions{})
	}
}

func ifETag(t *testing.T, s blob.Store) {
	first := put(t, s, "k", "first", blob.PutOptions{})
	second := put(t, s, "k", "second", blob.PutOptions{IfETag: first.ETag})
	if _, err := s.Put(t.Context(), "k", strings.NewReader("third"), blob.PutOptions{IfETag: first.ETag}); !errors.Is(err, blob.ErrChanged) {
		t.Errorf("over what has changed: got %v, want ErrChanged", err)
	}
	if got := read(t, s, "k", 0, -1); got != "second" {
		t.Errorf("got %q, want second", got)
	}
	if err := s.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "k", strings.NewReader("third"), blob.PutOptions{IfETag: second.ETag}); !errors.Is(err, blob.ErrChanged) {
		t.Errorf("over what was deleted: got %v, want ErrChanged", err)
	}
	if got := names(t, s, ""); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func list(t *testing.T, s blob.Store) {
	if got := names(t, s, ""); len(got) != 0 {
		t.Errorf("an empty store lists %q", got)
	}
	all := []string{"Z", "a-b", "a.b", "a/b", "a/b-c/d", "a/b.c", "a0", "a_b/x", "z/1", "z/10", "z/2"}
	for i := range all {
		put(t, s, all[len(all)-1-i], strings.Repeat("x", i), blob.PutOptions{})
	}
	for prefix, want := range map[string][]string{
		"": all, "a/": {"a/b", "a/b-c/d", "a/b.c"}, "a/b": {"a/b", "a/b-c/d", "a/b.c"}, "a": all[1:8], "z/1": {"z/1", "z/10"},
		"a/b/": nil, "none": nil, "none/": nil, "../": nil, "a//": nil, "Z/": nil,
	} {
		if got := names(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("list %q: got %q, want %q", prefix, got, want)
		}
	}
	for o, err := range s.List(t.Context(), "a0") {
		stat, serr := s.Stat(t.Context(), "a0")
		if err != nil || serr != nil || o.Size != stat.Size || o.ETag != stat.ETag {
			t.Errorf("listed %+v, %v; Stat says %+v, %v", o, err, stat, serr)
		}
	}
	for range s.List(t.Context(), "") {
		break // ends it
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var got error
	for _, err := range s.List(ended, "") {
		got = err
	}
	if !errors.Is(got, context.Canceled) {
		t.Errorf("list with a context that is over: %v, want %v", got, context.Canceled)
	}
}

// seekable is a reader that breaks, or lets something happen, after its bytes.
// It is a fake: of Seek it can only go back to the start, and stay.
type seekable struct {
	parts func() io.Reader
	r     io.Reader
	read  int64
}

func (s *seekable) Read(p []byte) (int, error) {
	if s.r == nil {
		s.r = s.parts()
	}
	n, err := s.r.Read(p)
	s.read += int64(n)
	return n, err
}

func (s *seekable) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekCurrent {
		offset += s.read
	}
	if offset == s.read {
		return offset, nil
	}
	s.r, s.read = nil, 0
	return 0, nil
}

func brokenPut(t *testing.T, s blob.Store) {
	broken := errors.New("the disk is gone")
	r := &seekable{parts: func() io.Reader { return io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken)) }}
	if _, err := s.Put(t.Context(), "k", r, blob.PutOptions{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if got := names(t, s, ""); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// A Put whose context ends while its bytes are on the way leaves nothing.
func cancelledPut(t *testing.T, s blob.Store) {
	for pass := 1; pass <= 2; pass++ { // the first that reads the bytes, and the next, if the store has one
		ctx, cancel := context.WithCancel(t.Context())
		at := 0
		r := &seekable{parts: func() io.Reader {
			if at++; at < pass {
				return bytes.NewReader(make([]byte, 8<<20))
			}
			return io.MultiReader(bytes.NewReader(make([]byte, 4<<20)), call(cancel), bytes.NewReader(make([]byte, 4<<20)))
		}}
		_, err := s.Put(ctx, "k", r, blob.PutOptions{})
		if at >= pass {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("pass %d: got %v, want %v", pass, err, context.Canceled)
			}
			if got := names(t, s, ""); len(got) != 0 {
				t.Errorf("pass %d: left: %q", pass, got)
			}
		}
		cancel()
	}
}

// call is an empty reader that calls f.
func call(f func()) io.Reader { return readFunc(f) }

type readFunc func()

func (f readFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

// Who reads while others write sees the one object or the other, whole.
func wholeOrOld(t *testing.T, s blob.Store) {
	contents := []string{strings.Repeat("a", 300_000), strings.Repeat("b", 200_000)}
	put(t, s, "k", contents[0], blob.PutOptions{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 30 {
			if _, err := s.Put(t.Context(), "k", strings.NewReader(contents[(i+1)%2]), blob.PutOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	for range 60 {
		r, o, err := s.Open(t.Context(), "k", 0, -1)
		if err != nil {
			t.Error(err)
			break
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !slices.Contains(contents, string(got)) || o.Size != int64(len(got)) {
			t.Errorf("read %d bytes of %d, %v: neither the one nor the other", len(got), o.Size, err)
		}
	}
	wg.Wait()
}

func keys(t *testing.T, s blob.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "a b", "a+b", "ä", "a\\b", "~tmp/x", "a%2fb", "a\x00b", strings.Repeat("k", 901)} {
		_, perr := s.Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{})
		_, _, oerr := s.Open(t.Context(), key, 0, -1)
		_, serr := s.Stat(t.Context(), key)
		for verb, err := range map[string]error{"Put": perr, "Open": oerr, "Stat": serr, "Delete": s.Delete(t.Context(), key)} {
			if !errors.Is(err, blob.ErrKey) {
				t.Errorf("%s %.20q: got %v, want ErrKey", verb, key, err)
			}
		}
	}
	put(t, s, "A-z_0.9/.hidden", "x", blob.PutOptions{})
	if got := names(t, s, ""); !slices.Equal(got, []string{"A-z_0.9/.hidden"}) {
		t.Errorf("list: %q", got)
	}
}

// large is more than any buffer, and what is not changed in place.
func large(t *testing.T, s blob.Store) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	first, err := s.Put(t.Context(), "k", bytes.NewReader(content), blob.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if stat, err := s.Stat(t.Context(), "k"); err != nil || stat.ETag != first.ETag || stat.Size != int64(len(content)) {
		t.Errorf("Stat: %+v, %v; Put said %+v", stat, err, first)
	}
	if got, want := read(t, s, "k", 9_999_999, 1001), string(content[9_999_999:10_001_000]); got != want {
		t.Errorf("got %d other bytes than stored", len(got))
	}
	content[5_000_000]++
	second, err := s.Put(t.Context(), "k", bytes.NewReader(content), blob.PutOptions{IfETag: first.ETag})
	if err != nil {
		t.Fatal(err)
	}
	if first.ETag == second.ETag {
		t.Errorf("ETag %s for two contents", first.ETag)
	}
	if _, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{IfETag: first.ETag}); !errors.Is(err, blob.ErrChanged) {
		t.Errorf("over what has changed: got %v, want ErrChanged", err)
	}
	if got := read(t, s, "k", 0, -1); got != string(content) {
		t.Error("other bytes than stored")
	}
}
