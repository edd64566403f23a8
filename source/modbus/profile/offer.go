package profile

import "fmt"

// Offer is what the transfer that is there began with: with it RESUME finds that transfer, also for a
// master that has not begun it, or has forgotten, and wants to take it back. All of it is 0
// if nothing is there. Devices may leave it out; these registers are 0 then.
type Offer struct {
	Size   uint32 // bytes of all that comes
	Format uint16 // Format...
	SHA256 [32]byte
}

// places of the offer, from OffsetOffer on.
const (
	offerFormat = 2
	offerHash   = 6
)

// Encode fills dst, which has OfferSize registers.
func (o *Offer) Encode(dst []uint16) {
	dst = dst[:OfferSize]
	clear(dst)
	put32(dst, o.Size)
	dst[offerFormat] = o.Format
	pack(dst[offerHash:], o.SHA256[:])
}

// DecodeOffer reads an offer, which must be whole. Errors wrap ErrFormat.
func DecodeOffer(src []uint16) (Offer, error) {
	if len(src) < OfferSize {
		return Offer{}, fmt.Errorf("%w: the offer has %d registers, want %d", ErrFormat, len(src), OfferSize)
	}
	o := Offer{Size: get32(src), Format: src[offerFormat]}
	unpack(o.SHA256[:], src[offerHash:])
	return o, nil
}
