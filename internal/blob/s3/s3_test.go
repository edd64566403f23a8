package s3_test

import (
	"fmt"
	"testing"

	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/blobtest"
	"github.com/interlock-energy/ota/internal/blob/s3/s3test"
)

func TestStore(t *testing.T) {
	for _, o := range []s3test.Options{{}, {TLS: true, Region: "eu-central-1"}} {
		t.Run(fmt.Sprintf("TLS=%v", o.TLS), func(t *testing.T) {
			server := s3test.Start(t, o)
			n := 0
			blobtest.Run(t, func(t *testing.T) blob.Store {
				n++
				return server.Store(t, fmt.Sprint("prefix/", n))
			})
		})
	}
}
