// Package filetest puts file slots on the disks of package otatest.
package filetest

import (
	"bytes"
	"context"
	"io"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file"
)

// Backend is an [otatest.Backend] of file slots. The zero value is ready.
type Backend struct{}

const dir = "/device"

// Format implements [otatest.Backend].
func (Backend) Format(d *otatest.Disk, image []byte) error {
	if err := durable.MkdirAll(d, "/data", 0o755); err != nil { // where the record is
		return err
	}
	return file.FormatOn(d, file.Config{Dir: dir}, map[string]io.Reader{"controller": bytes.NewReader(image)})
}

// PowerOn implements [otatest.Backend].
func (Backend) PowerOn(d *otatest.Disk) (string, error) {
	s, err := file.OpenOn(d, file.Config{Dir: dir})
	if err != nil {
		return "", err
	}
	return s.PowerOn(context.Background())
}

// Slots implements [otatest.Backend].
func (Backend) Slots(d *otatest.Disk, _ otatest.Boot, restart func(context.Context) error) (ota.Slots, error) {
	return file.OpenOn(d, file.Config{Dir: dir, Restart: restart})
}

// Image implements [otatest.Backend].
func (Backend) Image(d *otatest.Disk, slot string) []byte {
	name := dir + "/a/controller.img"
	if slot == "B" {
		name = dir + "/b/controller.img"
	}
	content, err := durable.ReadFile(d, name, 1<<30)
	if err != nil {
		return nil // no file, no image
	}
	return content
}
