package image_test

import (
	"bytes"
	"testing"

	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

func TestQuick(t *testing.T) {
	b := imagetest.App(imagetest.Spec{Version: "1.2.3", Project: "bess", Size: 100000})
	info, err := image.Verify(bytes.NewReader(b), int64(len(b)), image.Options{App: true, Exact: true})
	t.Logf("%+v %+v %v", info, info.App, err)
}
