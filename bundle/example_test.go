package bundle_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// A release is built and signed by one person, signed by another, and verified
// by a device that wants both signatures.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image, out := filepath.Join(dir, "controller.img"), filepath.Join(dir, "2.1.0.bundle")
	if err := os.WriteFile(image, []byte("firmware"), 0o600); err != nil {
		log.Fatal(err)
	}
	builderPrivate, builderPublic, err := bundle.GenerateKey("ed25519")
	if err != nil {
		log.Fatal(err)
	}
	safetyPrivate, safetyPublic, err := bundle.GenerateKey("p256")
	if err != nil {
		log.Fatal(err)
	}
	keys, err := bundle.ParseKeys(2, builderPublic, safetyPublic) // what the device has
	if err != nil {
		log.Fatal(err)
	}

	builder, err := bundle.ParsePrivateKey(builderPrivate)
	if err != nil {
		log.Fatal(err)
	}
	m := &ota.Manifest{Product: "bess-controller", Version: "2.1.0", Created: time.Now()}
	if err := bundle.Build(out, m, map[string]string{"controller": image}, builder); err != nil {
		log.Fatal(err)
	}
	fmt.Println("refused with one signature:", verify(out, keys) != nil)

	safety, err := bundle.ParsePrivateKey(safetyPrivate)
	if err != nil {
		log.Fatal(err)
	}
	if err := bundle.SignFile(out, safety); err != nil {
		log.Fatal(err)
	}
	fmt.Println("refused with two:", verify(out, keys) != nil)
	// Output:
	// refused with one signature: true
	// verified 8 of 8 bytes
	// refused with two: false
}

func verify(path string, keys *bundle.Keys) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return err
	}
	f, err := bundle.Open(r, info.Size())
	if err != nil {
		return err
	}
	_, err = f.VerifyAll(keys, func(done, total int64) { fmt.Printf("verified %d of %d bytes\n", done, total) })
	return err
}

// The manager of a device takes Keys.Verify as its only source of trust.
func ExampleKeys_Verify() {
	_, public, err := bundle.GenerateKey("")
	if err != nil {
		log.Fatal(err)
	}
	keys, err := bundle.ParseKeys(1, public)
	if err != nil {
		log.Fatal(err)
	}
	cfg := ota.Config{Product: "bess-controller", Verify: keys.Verify}
	_, err = cfg.Verify([]byte("not an envelope"))
	fmt.Println(ota.CodeOf(err).Name())
	// Output: VALIDATION_FAILED
}

func ExampleDescribeImage() {
	f, err := os.Open("testdata/format1-ed25519.bundle")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	im, err := bundle.DescribeImage("controller", f, bundle.DefaultChunkSize, false)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(im.Size, "bytes in", len(im.Chunks), "chunks")
	// Output: 6751 bytes in 1 chunks
}
