package bucket

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/blob"
)

// seeds are files as this package writes them, and what people do to them.
func seeds(f *testing.F, prefix string) {
	store := newMemory()
	soc := 30.0
	files := [][]byte{build(f, "bess", "1.0.0", "notes\n\u2028", 1, func(m *ota.Manifest) { m.Limits.MinSoC = &soc }), build(f, "meter", "2.0.0-rc.1+b7", "", 2)}
	for _, file := range files {
		if _, err := open(store).Publish(f.Context(), strings.NewReader(string(file)), int64(len(file)), PublishOptions{}); err != nil {
			f.Fatal(err)
		}
	}
	if _, err := open(store).NewToken(f.Context(), "bess-05", "note"); err != nil {
		f.Fatal(err)
	}
	if _, err := open(store).AddReports(f.Context(), "bess", reportList()); err != nil {
		f.Fatal(err)
	}
	for key, content := range store.objects {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		f.Add(content)
		for from, to := range map[string]string{
			`"format": 1`: `"format": 2`, "images/": "tokens/", "bundles/": "../", `"controller"`: `"bms"`, `"size": `: `"size": -`, `"min_soc": `: `"min_soc": -`, `"min_soc": 3`: `"min_soc": 1e30`, `: {`: `: null, "x": {`,
			`"device": "bess-05"`: `"device": ""`, "default": "canary", `: "`: `: "\u0000`, `"md5"`: `"MD5"`,
		} {
			f.Add([]byte(strings.ReplaceAll(string(content), from, to)))
		}
	}
	for _, s := range []string{"", "null", "{}", "[]", `{"format":1,"group":"default"}`, `{"format":1,"group":"default","releases":{"a":null}}`, `{"format":1,"given":[""]}`} {
		f.Add([]byte(s))
	}
}

// FuzzCurrent: whatever is in the place of a current.json, what is taken for one
// leads to nothing but images, bundles and manifests of the layout, can be written
// again, and is then the same.
func FuzzCurrent(f *testing.F) {
	seeds(f, "groups/")
	f.Fuzz(func(t *testing.T, content []byte) {
		store := newMemory()
		store.objects["groups/default/current.json"] = content
		c, err := open(store).Current(t.Context(), "default")
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
			return
		}
		for product, r := range c.Releases {
			wellFormed(t, r)
			if got, err := c.Of(product); err != nil || got != r {
				t.Errorf("release of %s: got %v, %v", product, got, err)
			}
		}
		if r, err := c.Of(""); (err == nil) != (len(c.Releases) == 1) {
			t.Errorf("with %d releases: got %v, %v", len(c.Releases), r, err)
		}
		text, err := marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		store.objects["groups/default/current.json"] = text
		if now, err := open(store).Current(t.Context(), "default"); err != nil || !same(now, c) {
			t.Errorf("written again: %v, and another", err)
		}
	})
}

// FuzzRelease does so for release.json.
func FuzzRelease(f *testing.F) {
	seeds(f, "releases/")
	f.Fuzz(func(t *testing.T, content []byte) {
		var claimed struct {
			Digest string `json:"digest"`
		}
		name := strings.Repeat("0", 64)
		if json.Unmarshal(content, &claimed) == nil && isDigest(claimed.Digest) {
			name = claimed.Digest
		}
		store := newMemory()
		store.objects[releaseKey(name)] = content
		r, err := open(store).Release(t.Context(), name)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
			return
		}
		wellFormed(t, r)
		if r.Digest != name {
			t.Errorf("got release %s, want %s", r.Digest, name)
		}
		r.describe(nil)
	})
}

func wellFormed(t *testing.T, r *Release) {
	t.Helper()
	if ota.CheckName(r.Product) != nil || ota.CheckVersion(r.Version) != nil || len(r.Images) == 0 || r.Image != r.Images[0].Key {
		t.Errorf("%+v is none", r)
	}
	if soc := r.Limits.MinSoC; soc != nil && (*soc < 0 || *soc > 100) {
		t.Errorf("a charge of %v %%", *soc)
	}
	keys := map[string]string{r.Manifest.Key: "releases/" + r.Digest + "/manifest-", r.Bundle.Key: "bundles/" + r.Bundle.SHA256.String()}
	for _, im := range r.Images {
		keys[im.Key] = "images/" + im.SHA256.String()
		if im.Size < 1 || len(im.MD5) != 32 {
			t.Errorf("image %+v is none", im)
		}
	}
	for key, want := range keys {
		if !strings.HasPrefix(key, want) || blob.CheckKey(key) != nil {
			t.Errorf("key %q, want %s", key, want)
		}
	}
	if len(r.Tag()) < 40 || strings.ContainsAny(r.Tag(), "\"\\ \r\n") {
		t.Errorf("tag %q is none", r.Tag())
	}
}

// FuzzToken: nothing but a token is one.
func FuzzToken(f *testing.F) {
	seeds(f, "tokens/")
	hash := hashOf("secret")
	f.Add([]byte(`{"format":1,"id":"` + hash[:12] + `","device":"bess-05"}`))
	f.Add([]byte(`{"format":1,"id":"` + hash[:12] + `"}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		store := newMemory()
		store.objects["tokens/"+hash+".json"] = content
		got, err := open(store).Token(t.Context(), "secret")
		if err != nil {
			if !errors.Is(err, ErrDamaged) || got != (Token{}) {
				t.Errorf("got %v, %v, want ErrDamaged", got, err)
			}
			return
		}
		if got.ID != hash[:12] || got.Device != "" && ota.CheckName(got.Device) != nil {
			t.Errorf("got %+v", got)
		}
	})
}
