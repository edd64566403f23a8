package awsiot_test

import (
	"fmt"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
)

func TestConformance(t *testing.T) {
	for _, form := range []string{"bundle", "manifest"} {
		t.Run(form, func(t *testing.T) {
			otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
				var r *rig
				return otatest.SourceUnderTest{
					New: func(t *testing.T, rel *otatest.SignedRelease) ota.Source {
						if r == nil {
							r = newRig(t)
							if rel != nil {
								offer(r, form, rel)
							}
						}
						cfg := r.config(running)
						if rel != nil {
							cfg.Verify = rel.Verify
						}
						cfg.ClientID = "" // sources of one device after each other have one id
						s, _ := start(t, cfg)
						return s
					},
					Break: func(t *testing.T) {
						r.broker.Kill()
						r.bucket.CloseClientConnections()
						r.bucket.Listener.Close()
					},
					Hang: func(t *testing.T) { r.bucket.set(func() { r.bucket.hang = true }) },
				}
			})
		})
	}
}

// offer makes a job for a release.
func offer(r *rig, form string, rel *otatest.SignedRelease) {
	if form == "bundle" {
		r.bucket.put("bundle", rel.Bundle)
		r.create("job-1", fmt.Sprintf(`{"interlock":{"bundle":%q}}`, presigned("bundle")))
		return
	}
	r.bucket.put("manifest", rel.Signed)
	images := ""
	for i := range rel.Manifest.Images {
		c := rel.Manifest.Images[i].Component
		r.bucket.put(c, rel.Images[c])
		images += fmt.Sprintf(",%q:%q", c, presigned(c))
	}
	r.create("job-1", fmt.Sprintf(`{"interlock":{"manifest":%q,"images":{%s}}}`, presigned("manifest"), images[1:]))
}
