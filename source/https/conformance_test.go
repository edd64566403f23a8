package https_test

import (
	"io"
	"log"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/https"
)

func quiet(testing.TB) *log.Logger { return log.New(io.Discard, "", 0) }

func TestConformance(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			otatest.TestSource(t, func(t *testing.T) otatest.SourceUnderTest {
				var o *other
				return otatest.SourceUnderTest{
					New: func(t *testing.T, r *otatest.SignedRelease) ota.Source {
						if o == nil {
							o = newOther(t, r)
						}
						return newSource(t, o.config(kind))
					},
					Break: func(t *testing.T) {
						o.CloseClientConnections()
						o.Listener.Close()
					},
					Hang: func(t *testing.T) { o.set(func() { o.hang = true }) },
				}
			})
		})
	}
}

var _ ota.Reporter = (*https.Source)(nil)
