package demo

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
)

// imageSize in bytes: enough to watch on a slow link, as on a cellular one.
const imageSize = 2 << 20

// releases are files that a firmware engineer would make with the commands
// keygen and build.
type releases struct {
	publicKey string // for devices
	factory   string // image that devices are made with
	good      string // bundle
	broken    string // bundle of a release that does not start
}

func makeReleases(dir string) (*releases, error) {
	privatePEM, publicPEM, err := bundle.GenerateKey("")
	if err != nil {
		return nil, err
	}
	key, err := bundle.ParsePrivateKey(privatePEM)
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	r := &releases{publicKey: file("public.pem"), factory: file("controller-" + oldVersion + ".img"),
		good: file("bess-" + goodVersion + ".bundle"), broken: file("bess-" + brokenOne + ".bundle")}
	if err := os.WriteFile(r.publicKey, publicPEM, 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(r.factory, image(oldVersion, runs), 0o644); err != nil {
		return nil, err
	}
	for _, b := range []struct{ version, script, notes, out string }{
		{goodVersion, runs, "Fixes the fan curve at low ambient temperature.", r.good},
		{brokenOne, fails, "Was never tried on a device. It does not start.", r.broken},
	} {
		img := file("controller-" + b.version + ".img")
		if err := os.WriteFile(img, image(b.version, b.script), 0o644); err != nil {
			return nil, err
		}
		m := &ota.Manifest{Product: product, Version: b.version, Created: time.Now().UTC().Truncate(time.Second), Notes: b.notes}
		if err := bundle.Build(b.out, m, map[string]string{"controller": img}, key); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// The firmware is a shell script, so that it runs on any machine. Only builtins
// are used. It ends with its standard input, see internal/supervise.
const (
	runs  = "#!/bin/sh\necho interlock-firmware %s\nwhile read -r line; do :; done\nexit 0\n"
	fails = "#!/bin/sh\necho \"controller %s: cannot map the converter's registers\" >&2\nexit 1\n"
)

// image returns firmware of a realistic size. What pads it is never reached, and
// differs between versions, so that nothing can be left out of a download.
func image(version, script string) []byte {
	b := bytes.NewBuffer(make([]byte, 0, imageSize))
	fmt.Fprintf(b, script, version)
	for n := 0; b.Len() < imageSize; n++ {
		fmt.Fprintf(b, "# %s %07d %016x\n", version, n, uint64(n+1)*0x9e3779b97f4a7c15)
	}
	return b.Bytes()[:imageSize]
}
