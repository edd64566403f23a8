package lambda

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/door"
	"github.com/interlock-energy/ota/internal/lambda/event"
)

// file is what a front door is about: an object that is there, and what the
// documents say of it.
type file struct {
	door.Firmware
	key     string
	objects blob.Store
	urls    blob.Presigner
	object  blob.Object
}

// found returns the current image, or the bundle, for the request's group,
// ?product= and ?component=. The object is looked at first, as aws-s3-ota.md has
// it: an URL to what is not there would fail much later.
func (f *Function) found(r *request, whole bool) (*file, error) {
	out, size := f.single(r), int64(-1)
	if out == nil {
		rel, err := f.release(r)
		if err != nil {
			return nil, err
		}
		o := rel.Bundle
		if !whole {
			im, err := rel.ImageFor(r.URL.Query().Get("component"))
			if err != nil {
				return nil, door.Missing(err.Error())
			}
			o = im.Object
		}
		out = &file{key: o.Key, objects: f.cfg.Objects, urls: f.cfg.URLs, Firmware: door.Firmware{Version: rel.Version, MD5: o.MD5,
			SHA256: o.SHA256.String(), Notes: rel.Notes, Mandatory: rel.Mandatory, Reboot: rel.RequiresReboot, MinSoC: rel.Limits.MinSoC,
			Published: rel.Published}}
		size = o.Size
	} else if whole {
		return nil, door.Missing("this function serves one firmware file, which is in no bundle")
	}
	r.note(slog.String("version", clip(out.Version, 64)))
	var err error
	if out.object, err = out.objects.Stat(r.Context(), out.key); err != nil {
		if p := classify(err); p.status == http.StatusNotFound {
			return nil, door.Missing(fmt.Sprintf("the bucket has no %s", out.key))
		}
		return nil, err
	}
	if size >= 0 && out.object.Size != size {
		return nil, door.Fail("what the bucket has is damaged", fmt.Sprintf("%s is %d bytes, want %d", out.key, out.object.Size, size))
	}
	return out, nil
}

// single returns the one file that is in no release, if it is asked for.
func (f *Function) single(r *request) *file {
	s := f.cfg.Single
	if s == nil || r.group != api.DefaultGroup {
		return nil
	}
	return &file{key: s.Key, objects: s.Objects, urls: s.URLs, Firmware: door.Firmware{Version: s.Version, Reboot: true}}
}

func (f *Function) release(r *request) (*bucket.Release, error) {
	if f.cfg.Bucket == nil {
		return nil, door.Missing("this function serves one firmware file, for no group")
	}
	cur, err := f.current(r.Context(), r.group)
	if err == nil {
		var rel *bucket.Release
		if rel, err = cur.Of(r.URL.Query().Get("product")); err == nil {
			return rel, nil
		}
	}
	switch p := classify(err); p.status {
	case http.StatusNotFound:
		return nil, door.Missing("")
	case http.StatusConflict:
		return nil, &door.Error{Status: http.StatusBadRequest, Text: "which product?", Details: p.text}
	}
	return nil, err
}

// presign returns an URL of f, for as long as the configuration says.
func (f *Function) presign(ctx context.Context, urls blob.Presigner, key string) (string, error) {
	u, err := urls.PresignGet(ctx, key, f.cfg.URLLifetime)
	if err != nil {
		return "", fmt.Errorf("make an URL for %s: %w", key, err)
	}
	return u, nil
}

// document answers like the function of aws-s3-ota.md.
func (f *Function) document(w http.ResponseWriter, r *request) error {
	im, err := f.found(r, false)
	if err != nil {
		return err
	}
	if err := door.CheckVersion(im.Version); err != nil {
		return err // before an URL is made for nothing
	}
	u, err := f.presign(r.Context(), im.urls, im.key)
	if err != nil {
		return err
	}
	d := door.Document{Version: im.Version, URL: u}
	if err := d.Check(f.cfg.MaxURL); err != nil {
		return explain(err, u)
	}
	door.SetHeaders(w.Header())
	_, err = w.Write(d.JSON())
	return err
}

// explain adds to an error about a long URL what makes it long.
func explain(err error, address string) error {
	e, ok := err.(*door.Error)
	u, parseErr := url.Parse(address)
	if !ok || parseErr != nil || u.Scheme != "https" {
		return err
	}
	if token := u.Query().Get("X-Amz-Security-Token"); token != "" {
		e.Details += fmt.Sprintf("; %d of them are the session token of the function's role: give the function a signing key of a user"+
			" who may only read (SIGNING_SECRET_ARN, or SIGNING_KEY_ID and SIGNING_SECRET), or set MAX_URL=0 if no device has this limit", len(token))
	} else {
		e.Details += "; take a shorter name for the bucket, or set MAX_URL=0 if no device has this limit"
	}
	return e
}

// image serves the raw image with the headers of bess-ota-manager.md.
func (f *Function) image(w http.ResponseWriter, r *request) error {
	im, err := f.found(r, false)
	if err != nil {
		return err
	}
	return f.send(w, r, im)
}

// bundle serves the bundle, for agents without an account and for sticks.
func (f *Function) bundle(w http.ResponseWriter, r *request) error {
	b, err := f.found(r, true)
	if err != nil {
		return err
	}
	return f.send(w, r, b)
}

// maxCarried is the greatest file that goes through the function itself; Lambda's
// 6 MB less a third for base64.
const maxCarried = 4 << 20

// send answers a HEAD by itself, because S3 refuses one with the URL of a GET, and
// sends a GET to S3. Espressif's esp_http_client follows a 302 and keeps the
// method and all headers, Authorization included, which S3 refuses beside a
// presigned URL ("Only one auth mechanism allowed"): who sent one gets the bytes
// from here, if the file is small enough. Who can do better asks for a range, or
// forgets the header on the way (RFC 9110, section 15.4). A REST API gets none, as
// it hands out base64 for bytes unless it was told of binary types.
func (f *Function) send(w http.ResponseWriter, r *request, im *file) error {
	h := w.Header()
	im.Size = im.object.Size
	im.SetHeaders(h)
	h.Set("ETag", im.object.ETag) // S3's own, as the GET will have it
	h.Set("Accept-Ranges", "bytes")
	if r.Method == http.MethodHead {
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Length", strconv.FormatInt(im.object.Size, 10))
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if r.Header.Get("Authorization") != "" && r.Header.Get("Range") == "" && im.object.Size <= maxCarried &&
		event.OriginOf(r.Context()).Kind != event.REST {
		return carry(w, r, im)
	}
	u, err := f.presign(r.Context(), im.urls, im.key)
	if err != nil {
		return err
	}
	h.Set("Cache-Control", "no-store") // the address is a secret that ends
	h.Del("ETag")                      // of the file, not of this answer
	h.Set("Location", u)
	w.WriteHeader(http.StatusFound)
	return nil
}

func carry(w http.ResponseWriter, r *request, im *file) error {
	body, o, err := im.objects.Open(r.Context(), im.key, 0, -1)
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxCarried+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", im.key, err)
	}
	if int64(len(b)) != im.object.Size {
		return fmt.Errorf("read %s: got %d bytes, want %d: %w", im.key, len(b), im.object.Size, bucket.ErrDamaged)
	}
	w.Header().Set("ETag", o.ETag)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	r.note(slog.Int("carried", len(b)))
	_, err = w.Write(b)
	return err
}
