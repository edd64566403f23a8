package bustest

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/bus/can"
)

// TestUnstuffed: with its CRC each frame is a multiple of the polynomial, by long division
// of what a receiver sees; and the stuff bits are those that a receiver takes out again.
func TestUnstuffed(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		f := can.Frame{ID: random.Uint32N(can.MaxStandard + 1), Len: uint8(random.IntN(9)), Remote: random.IntN(8) == 0}
		if random.IntN(2) == 0 {
			f.ID, f.Extended = random.Uint32N(can.MaxExtended+1), true
		}
		for i := range f.Len {
			if !f.Remote {
				f.Data[i] = byte(random.Uint32()) & byte(-random.IntN(2))
			}
		}
		bits := unstuffed(f)
		want := 34 + 8*len(f.Bytes())
		if f.Extended {
			want += 20
		}
		if len(bits) != want {
			t.Fatalf("%v: %d bits, want %d", f, len(bits), want)
		}
		rest := append([]byte(nil), bits...)
		polynomial := []byte{1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1} // ISO 11898-1, 10.4.2.6
		for i := range len(rest) - 15 {
			if rest[i] == 1 {
				for k, p := range polynomial {
					rest[i+k] ^= p
				}
			}
		}
		if strings.Contains(string(rest), "\x01") {
			t.Fatalf("%v: the CRC leaves a rest", f)
		}
		var wire []byte // as a sender builds it
		for _, bit := range bits {
			wire = append(wire, '0'+bit)
			if s := string(wire); strings.HasSuffix(s, "00000") {
				wire = append(wire, '1')
			} else if strings.HasSuffix(s, "11111") {
				wire = append(wire, '0')
			}
		}
		if got, want := Bits(f), len(wire)+tailBits; got != want {
			t.Fatalf("%v: %d bits, want %d", f, got, want)
		}
	}
}
