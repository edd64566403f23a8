package bucket

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/internal/blob"
)

// scenario is something that a person does, and what was there before.
type scenario struct {
	name   string
	before func(t *testing.T, b *Bucket)
	act    func(t *testing.T, b *Bucket) error
	again  error // what running it again may say: that it is done
}

func scenarios(t *testing.T) []scenario {
	one := build(t, "bess", "1.0.0", "", 1)
	two := build(t, "bess", "2.0.0", "", 1)
	other := build(t, "bess", "1.0.0", "corrected", 1)
	signedTwice := resign(t, one)
	meter := build(t, "meter", "1.0.0", "", 1)
	with := func(files ...[]byte) func(t *testing.T, b *Bucket) {
		return func(t *testing.T, b *Bucket) {
			for _, f := range files {
				mustPublish(t, b, f, PublishOptions{})
			}
		}
	}
	inTwoGroups := func(t *testing.T, b *Bucket) {
		with(one)(t, b)
		if err := b.CreateGroup(t.Context(), "canary"); err != nil {
			t.Fatal(err)
		}
		mustPublish(t, b, one, PublishOptions{Group: "canary"})
	}
	with1 := func(o PublishOptions, f []byte) func(t *testing.T, b *Bucket) error {
		return func(t *testing.T, b *Bucket) error { return publish(t, b, f, o) }
	}
	return []scenario{
		{"publish the first", func(*testing.T, *Bucket) {}, with1(PublishOptions{}, one), nil},
		{"publish the next", with(one, meter), with1(PublishOptions{}, two), nil},
		{"publish for another product", with(one), with1(PublishOptions{}, meter), nil},
		{"publish and hold", with(one), with1(PublishOptions{Hold: true}, two), nil},
		{"publish to another group", inTwoGroups, with1(PublishOptions{Group: "canary"}, two), nil},
		{"replace", inTwoGroups, with1(PublishOptions{Replace: true}, other), nil},
		{"replace and hold", inTwoGroups, with1(PublishOptions{Replace: true, Hold: true}, other), nil},
		{"add a signature", inTwoGroups, with1(PublishOptions{}, signedTwice), nil},
		{"the same again", with(one, two), with1(PublishOptions{}, two), nil},
		{"make a group", with(one), func(t *testing.T, b *Bucket) error { return b.CreateGroup(t.Context(), "canary") }, nil},
		{"promote", func(t *testing.T, b *Bucket) {
			inTwoGroups(t, b)
			mustPublish(t, b, two, PublishOptions{Hold: true})
		}, func(t *testing.T, b *Bucket) error { return b.Promote(t.Context(), "canary", digest(t, two)) }, nil},
		{"withdraw", inTwoGroups, func(t *testing.T, b *Bucket) error { return b.Withdraw(t.Context(), "canary", digest(t, one)) }, ErrConflict},
	}
}

// Whatever operation of the store fails, or is the last that a publisher does: a
// reader sees the old release or the new one, whole, and once the new one never the
// old one again; and to do the same again ends as if nothing had happened.
func TestFaults(t *testing.T) {
	modes := []struct {
		name     string
		do, dies bool
		says     error
	}{
		{"fails", false, false, errBroken},
		{"fails but did it", true, false, errBroken},
		{"dies before", false, true, errBroken},
		{"dies after", true, true, errBroken},
		{"did it, lost the answer, tried again and takes itself for another", true, false, blob.ErrChanged},
	}
	cases := 0
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			base := newMemory()
			sc.before(t, open(base))
			old := whole(t, base)
			good := base.clone()
			if err := sc.act(t, open(good)); err != nil {
				t.Fatal(err)
			}
			want := whole(t, good)
			ops := 0
			if err := sc.act(t, open(&around{base.clone(), func(_ string, run func() error) error { ops++; return run() }})); err != nil {
				t.Fatal(err)
			}
			for k := range ops {
				for _, mode := range modes {
					cases++
					store := base.clone()
					n, at := 0, ""
					seen := map[string]bool{} // group and product that have changed
					err := sc.act(t, open(&around{store, func(op string, run func() error) (err error) {
						n++
						switch {
						case n == k+1 && mode.do:
							at, err = op, run()
							if err == nil && (mode.says == errBroken || conditional(op)) {
								err = mode.says
							}
						case n == k+1:
							at, err = op, mode.says
						case n > k+1 && mode.dies:
							err = errBroken
						default:
							err = run()
						}
						oldOrNew(t, whole(t, store), old, want, seen)
						return err
					}}))
					if t.Failed() {
						t.Fatalf("operation %d, %s %s", k+1, at, mode.name)
					}
					if mode.says != errBroken && err != nil {
						t.Fatalf("operation %d, %s %s: %v, want none", k+1, at, mode.name, err)
					}
					if now := whole(t, store); err == nil && !reflect.DeepEqual(now, want) {
						t.Fatalf("operation %d, %s %s: no error, but groups have %v, want %v", k+1, at, mode.name, now, want)
					}
					if err := sc.act(t, open(store)); err != nil && !(sc.again != nil && errors.Is(err, sc.again)) {
						t.Fatalf("operation %d, %s %s; again: %v", k+1, at, mode.name, err)
					}
					if now := whole(t, store); !reflect.DeepEqual(now, want) {
						t.Fatalf("operation %d, %s %s; again: groups have %v, want %v", k+1, at, mode.name, now, want)
					}
					if !maps.EqualFunc(store.objects, good.objects, func(a, b []byte) bool { return string(a) == string(b) }) {
						t.Fatalf("operation %d, %s %s; again: the objects are not those of an undisturbed run", k+1, at, mode.name)
					}
				}
			}
		})
	}
	t.Logf("%d faults", cases)
}

// conditional reports whether an operation has a condition that can fail.
func conditional(op string) bool {
	return strings.HasPrefix(op, "put ") && !strings.Contains(op, "images/") && !strings.Contains(op, "bundles/") && !strings.Contains(op, "/manifest-")
}

// oldOrNew fails if a group runs neither, or the old one after the new one.
func oldOrNew(t *testing.T, now, old, want map[string]map[string]string, seen map[string]bool) {
	for group := range want {
		for product := range both(old[group], want[group]) {
			is := now[group][product]
			id := group + " " + product
			switch {
			case is == want[group][product] && is != old[group][product]:
				seen[id] = true
			case is != old[group][product], seen[id]:
				t.Errorf("%s: has %.12q, want %.12q or %.12q", id, is, old[group][product], want[group][product])
			}
		}
	}
}

func both(a, b map[string]string) map[string]string {
	all := maps.Clone(b)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, a)
	return all
}

// One damaged file hides nothing else, and says that it is damaged: with a group or
// a release of somebody else in the way, a bad release could not be withdrawn.
func TestDamagedAmongWhole(t *testing.T) {
	ctx := t.Context()
	one, two := build(t, "bess", "1.0.0", "", 1), build(t, "bess", "2.0.0", "", 1)
	for _, damage := range []string{"groups/canary/current.json", "releases/" + digest(t, two) + "/release.json", "tokens/", "reports/bess-01/"} {
		for _, what := range []string{"", "{", `{"format":2}`, `[]`, "gone"} {
			store := newMemory()
			b := open(store)
			if err := b.CreateGroup(ctx, "canary"); err != nil {
				t.Fatal(err)
			}
			mustPublish(t, b, one, PublishOptions{})
			mustPublish(t, b, two, PublishOptions{Group: "canary"})
			for range 2 {
				if _, err := b.NewToken(ctx, "bess-01", ""); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.AddReports(ctx, "bess-01", []ota.Report{{ID: "a", Result: ota.Failed}, {ID: "b", Result: ota.Failed}}); err != nil {
				t.Fatal(err)
			}
			hit := ""
			for _, key := range slices.Sorted(maps.Keys(store.objects)) {
				if strings.HasPrefix(key, damage) {
					store.objects[key] = []byte(what)
					hit = key
					break
				}
			}
			if what == "gone" { // between the list and the reading of it
				b = open(&around{store, func(op string, run func() error) error {
					if op == "open "+hit {
						return blob.ErrNotFound
					}
					return run()
				}})
			}
			in := func(part string, all, rest int) (want int, damaged bool) {
				if strings.HasPrefix(damage, part) {
					return rest, what != "gone"
				}
				return all, false
			}
			look := func(name string, got int, err error, want int, damaged bool) {
				t.Helper()
				if got != want || errors.Is(err, ErrDamaged) != damaged || err != nil && !damaged {
					t.Errorf("%s is %q: %s: got %d and %v, want %d, and damage %t", damage, what, name, got, err, want, damaged)
				}
			}
			groups, err := b.Groups(ctx)
			want, bad := in("groups/", 2, 1)
			look("groups", len(groups), err, want, bad)
			list, err := b.Releases(ctx)
			want, badRelease := in("releases/", 2, 1)
			look("releases", len(list), err, want, bad || badRelease)
			tokens, err := b.Tokens(ctx)
			want, bad = in("tokens/", 2, 1)
			look("tokens", len(tokens), err, want, bad)
			reports, err := b.Reports(ctx, "", 10)
			want, bad = in("reports/", 2, 1)
			look("reports", len(reports), err, want, bad)
			if err := b.Withdraw(ctx, "default", digest(t, one)); err != nil {
				t.Errorf("%s is %q: withdraw another: %v", damage, what, err)
			}
		}
	}
}

// A store that could not decide who came first (S3's 409) has perhaps nothing:
// what was to be there is then not said to be there.
func TestUndecided(t *testing.T) {
	b := open(&around{newMemory(), func(op string, run func() error) error {
		if strings.HasPrefix(op, "put ") {
			return blob.ErrChanged
		}
		return run()
	}})
	out, err := b.AddReports(t.Context(), "bess-01", []ota.Report{{ID: "a", Result: ota.Failed}})
	if len(out.Stored) != 0 || len(out.Rejected) != 0 || !errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("report: got %v and %v, want nothing stored, and ErrUnavailable", out, err)
	}
	if token, err := b.NewToken(t.Context(), "bess-01", ""); err == nil || token != "" {
		t.Errorf("token: got %q and %v, want an error", token, err)
	}
	if err := b.CreateGroup(t.Context(), "canary"); err == nil {
		t.Error("group: made, want an error")
	}
}

// A release whose manifest somebody has deleted is damaged, and not one that was
// never there.
func TestManifestIsGone(t *testing.T) {
	store := newMemory()
	b := open(store)
	file := build(t, "bess", "1.0.0", "", 1)
	mustPublish(t, b, file, PublishOptions{})
	r, err := b.Release(t.Context(), digest(t, file))
	if err != nil {
		t.Fatal(err)
	}
	delete(store.objects, r.Manifest.Key)
	if _, err := b.Envelope(t.Context(), r); !errors.Is(err, ErrDamaged) || errors.Is(err, blob.ErrNotFound) {
		t.Errorf("got %v, want ErrDamaged alone", err)
	}
	mustPublish(t, b, file, PublishOptions{})
	if _, err := b.Envelope(t.Context(), r); err != nil {
		t.Errorf("published again: %v", err)
	}
}

// small is a store that takes little at a time.
type small struct{ *memory }

func (small) MaxSize() int64 { return 1000 }

// What the store does not take is said before an hour of upload, not after it.
func TestTooLargeForTheStore(t *testing.T) {
	store := newMemory()
	file := build(t, "bess", "1.0.0", "", 1)
	_, err := open(small{store}).Publish(t.Context(), bytes.NewReader(file), int64(len(file)), PublishOptions{LongURLs: true})
	if !errors.Is(err, ErrInvalid) || errors.Is(err, ErrTooLong) || !strings.Contains(err.Error(), "takes 1000") {
		t.Errorf("got %v, want ErrInvalid with the limit", err)
	}
	if len(store.writes) != 0 {
		t.Errorf("%d objects were written, want none", len(store.writes))
	}
}

// A damaged bundle writes nothing at all, whichever byte it is.
func TestDamagedBundle(t *testing.T) {
	good := build(t, "bess", "1.0.0", "", 1)
	_, public := signer()
	keys, err := bundle.ParseKeys(1, public[0])
	if err != nil {
		t.Fatal(err)
	}
	hints := 0
	for at := range good {
		if at > 300 && at < len(good)-7000 && at%97 != 0 { // the middle of the envelope is alike
			continue
		}
		bad := append([]byte{}, good...)
		bad[at] ^= 1
		if f, err := bundle.Open(bytes.NewReader(bad), int64(len(bad))); err == nil {
			if _, err := f.VerifyAll(keys, nil); err == nil {
				hints++ // the signer's name, which is not signed
				continue
			}
		}
		store := newMemory()
		err := publish(t, open(store), bad, PublishOptions{Verify: keys.Verify})
		if err == nil || len(store.writes) > 0 {
			t.Fatalf("byte %d changed: %v, and %d objects written", at, err, len(store.writes))
		}
	}
	if hints > 100 {
		t.Errorf("%d bytes may be anything, want those of the key's id only", hints)
	}
	for _, bad := range [][]byte{nil, good[:11], good[:len(good)-1], append(append([]byte{}, good...), 0)} {
		store := newMemory()
		if err := publish(t, open(store), bad, PublishOptions{}); err == nil || len(store.writes) > 0 {
			t.Errorf("%d bytes instead of %d: %v, and %d objects written", len(bad), len(good), err, len(store.writes))
		}
	}
}
