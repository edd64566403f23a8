package otatest_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/interlock-energy/ota/otatest"
)

// A write to raw flash that is cut clears some of the bits that it was to clear, sets
// none, and leaves alone what is beside it.
func TestDiskTornWriteToFlash(t *testing.T) {
	partly := 0
	for _, unit := range []int{1, 4, 16, 512, 4096} {
		for seed := range uint64(50) {
			d := otatest.NewDisk()
			d.MkFlash("/flash", 8192, 4096)
			f, err := d.OpenFile("/flash", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte{0x5A}, 64)
			d.Arm(otatest.Cut{At: 1, How: otatest.Torn, Unit: unit, Seed: seed})
			func() {
				defer func() {
					if _, ok := recover().(*otatest.PowerCut); !ok {
						t.Error("no cut")
					}
				}()
				f.WriteAt(want, 100)
			}()
			d.PowerOn()
			got := d.Content("/flash")
			for i, b := range got {
				switch {
				case (i < 100 || i >= 164) && b != 0xFF:
					t.Fatalf("unit %d, seed %d: byte %d beside the write is %#x", unit, seed, i, b)
				case i >= 100 && i < 164 && b&0x5A != 0x5A:
					t.Fatalf("unit %d, seed %d: byte %d is %#x, and was to become 0x5A", unit, seed, i, b)
				}
			}
			if !bytes.Equal(got[100:164], want) && !bytes.Equal(got[100:164], bytes.Repeat([]byte{0xFF}, 64)) {
				partly++
			}
		}
	}
	if partly < 200 {
		t.Errorf("%d of 250 were done in part, want most", partly)
	}
}
