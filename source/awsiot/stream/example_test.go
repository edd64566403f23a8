package stream_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/interlock-energy/ota/source/awsiot/stream"
)

// A device reads file 0 of a stream that a job names, from byte 40,000 on.
func ExampleOpen() {
	ctx := context.Background()
	conn := exampleConn() // any MQTT connection with Publish and Subscribe

	r, err := stream.Open(ctx, conn, stream.Options{
		Thing: "bess-0001", Stream: "AFR_OTA-1", FileID: 0, Size: 100_000, Offset: 40_000,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer r.Close()
	var image bytes.Buffer // a device writes to a spool, and verifies that
	n, err := io.Copy(&image, r)
	fmt.Println(n, err)
	// Output: 60000 <nil>
}

// exampleConn is a fake with a file of 100,000 bytes.
func exampleConn() stream.Conn { return newNetwork(exampleT{}, 100_000, 1) }

// exampleT is what the fake needs of a test.
type exampleT struct{ testing.TB }

func (exampleT) Context() context.Context { return context.Background() }
