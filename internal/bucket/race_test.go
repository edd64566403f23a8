package bucket

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

// resign adds the second person's signature.
func resign(t *testing.T, file []byte) []byte {
	t.Helper()
	f, err := bundle.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	keys, _ := signer()
	signed, err := bundle.AddSignature(f.Signed(), keys[1])
	if err != nil {
		t.Fatal(err)
	}
	return append(header(signed), file[bundle.HeaderSize+len(f.Signed()):]...)
}

// actor does one thing, an operation of the store at a time, when it is told to.
type actor struct {
	ask, turn, did chan struct{}
	end            chan error
	over           bool
	err            error
}

func act(store blob.Store, do func(b *Bucket) error) *actor {
	a := &actor{ask: make(chan struct{}), turn: make(chan struct{}), did: make(chan struct{}), end: make(chan error)}
	b := open(&around{store, func(_ string, run func() error) error {
		a.ask <- struct{}{}
		<-a.turn
		err := run()
		a.did <- struct{}{}
		return err
	}})
	go func() { a.end <- do(b) }()
	return a
}

// steps lets a do n operations, or all that it has for n < 0.
func (a *actor) steps(n int) {
	for ; n != 0 && !a.over; n-- {
		select {
		case <-a.ask:
			a.turn <- struct{}{}
			<-a.did
		case a.err = <-a.end:
			a.over = true
		}
	}
}

// Two publishers at once, one interrupting the other at every operation, and
// being interrupted itself at every operation: nothing that one has done is undone
// by the other, and what a reader finds is whole.
func TestTwoPublishers(t *testing.T) {
	one, two := build(t, "bess", "1.0.0", "", 1), build(t, "bess", "2.0.0", "", 1)
	other, third := build(t, "bess", "1.0.0", "corrected", 1), build(t, "bess", "1.0.0", "corrected again", 1)
	meter := build(t, "meter", "1.0.0", "", 1)
	d := func(f []byte) string { return digest(t, f) }
	put := func(f []byte, o PublishOptions) func(*Bucket) error {
		return func(b *Bucket) error { return publish(t, b, f, o) }
	}
	setup := func(files ...[]byte) *memory {
		s := newMemory()
		b := open(s)
		for _, g := range []string{"default", "canary"} {
			if err := b.CreateGroup(t.Context(), g); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range files {
			mustPublish(t, b, f, PublishOptions{})
		}
		return s
	}
	replace := PublishOptions{Replace: true}
	type state = map[string]map[string]string
	for _, tt := range []struct {
		name   string
		before *memory
		a, b   func(*Bucket) error
		check  func(now state, store *memory, a, b error) error
	}{
		{"two products", setup(), put(one, PublishOptions{}), put(meter, PublishOptions{}),
			func(now state, _ *memory, a, b error) error {
				if a != nil || b != nil || now["default"]["bess"] != d(one) || now["default"]["meter"] != d(meter) {
					return errors.New("want both")
				}
				return nil
			}},
		{"two groups", setup(), put(one, PublishOptions{}), put(two, PublishOptions{Group: "canary"}),
			func(now state, _ *memory, a, b error) error {
				if a != nil || b != nil || now["default"]["bess"] != d(one) || now["canary"]["bess"] != d(two) {
					return errors.New("want one in each")
				}
				return nil
			}},
		{"one group: the last counts, and both are there", setup(), put(one, PublishOptions{}), put(two, PublishOptions{}),
			func(now state, s *memory, a, b error) error {
				is := now["default"]["bess"]
				list, err := open(s).Releases(t.Context())
				if a != nil || b != nil || err != nil || len(list) != 2 || is != d(one) && is != d(two) {
					return fmt.Errorf("want either, and two releases: %d, %v", len(list), err)
				}
				c, err := open(s).Current(t.Context(), "default")
				if err != nil || len(c.Given) != 2 {
					return fmt.Errorf("want both given: %v", err)
				}
				return nil
			}},
		{"the same file", setup(), put(one, PublishOptions{}), put(one, PublishOptions{}),
			func(now state, _ *memory, a, b error) error {
				if a != nil || b != nil || now["default"]["bess"] != d(one) {
					return errors.New("want it")
				}
				return nil
			}},
		{"one version, two releases", setup(), put(one, PublishOptions{}), put(other, PublishOptions{}),
			func(now state, _ *memory, a, b error) error {
				is := now["default"]["bess"]
				if a == nil && is == d(one) && errors.Is(b, ErrConflict) || b == nil && is == d(other) && errors.Is(a, ErrConflict) {
					return nil
				}
				return errors.New("want one, and a conflict for the other")
			}},
		{"both replace", setup(one), put(other, replace), put(third, replace),
			func(now state, s *memory, a, b error) error {
				is := now["default"]["bess"]
				v, _, err := open(s).version(t.Context(), &Release{Product: "bess", Version: "1.0.0"})
				if err != nil || is != v || is != d(other) && is != d(third) {
					return fmt.Errorf("want the one that replaced all, %.12s: %v", v, err)
				}
				if a != nil && !errors.Is(a, ErrConflict) || b != nil && !errors.Is(b, ErrConflict) || a != nil && b != nil {
					return errors.New("want success for one, and success or a conflict for the other")
				}
				return nil
			}},
		{"promoted and replaced", setup(one), func(b *Bucket) error { return b.Promote(t.Context(), "canary", d(one)) }, put(other, replace),
			func(now state, _ *memory, a, b error) error {
				canary := now["canary"]["bess"]
				if b != nil || now["default"]["bess"] != d(other) || canary == d(one) {
					return errors.New("want nobody to have what was replaced")
				}
				if a == nil && canary != d(other) || a != nil && !errors.Is(a, ErrConflict) {
					return errors.New("want the new one in canary, or a conflict")
				}
				return nil
			}},
		{"withdrawn and published", setup(one), func(b *Bucket) error { return b.Withdraw(t.Context(), "default", d(one)) }, put(two, PublishOptions{}),
			func(now state, _ *memory, a, b error) error {
				if b != nil || now["default"]["bess"] != d(two) || a != nil && !errors.Is(a, ErrConflict) {
					return errors.New("want the new one")
				}
				return nil
			}},
		{"signed twice and again once", setup(one), put(resign(t, one), PublishOptions{}), put(one, PublishOptions{}),
			func(now state, s *memory, a, b error) error {
				c, err := open(s).Current(t.Context(), "default")
				if err != nil || a != nil || b != nil {
					return err
				}
				envelope, err := open(s).Envelope(t.Context(), c.Releases["bess"])
				if err != nil {
					return err
				}
				if sigs, err := bundle.ReadSignatures(envelope); err != nil || len(sigs) != 2 {
					return fmt.Errorf("want two signatures: %d, %v", len(sigs), err)
				}
				return nil
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runs := 0
			for _, swapped := range []bool{false, true} {
				first, second := tt.a, tt.b
				if swapped {
					first, second = tt.b, tt.a
				}
				for i, more := 0, true; more; i++ {
					for j := 0; ; j++ {
						store := tt.before.clone()
						x, y := act(store, first), act(store, second)
						x.steps(i)
						more = !x.over
						y.steps(j)
						last := y.over
						whole(t, store)
						x.steps(-1)
						whole(t, store)
						y.steps(-1)
						a, b := x.err, y.err
						if swapped {
							a, b = b, a
						}
						runs++
						if now := whole(t, store); t.Failed() {
							t.Fatalf("after %d and %d operations", i, j)
						} else if err := tt.check(now, store, a, b); err != nil {
							t.Fatalf("swapped %t, after %d and %d operations: got %v, with %v and %v: %v", swapped, i, j, now, a, b, err)
						}
						if last {
							break
						}
					}
				}
			}
			t.Logf("%d orders", runs)
		})
	}
}
