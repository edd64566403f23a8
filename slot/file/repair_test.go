package file_test

import "testing"

// MarkGood at the start of an agent changes nothing, and repairs a copy that is bad
// all the same: the other may be the next.
func TestMarkGoodRepairsACopy(t *testing.T) {
	ctx := t.Context()
	for _, at := range []int64{0, 65536} {
		d, s := diskDevice(t)
		if err := s.MarkGood(ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.Rot(bootFile, at+24); err != nil {
			t.Fatal(err)
		}
		if err := s.MarkGood(ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.Rot(bootFile, 65536-at+24); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Booted(ctx); err != nil || b.Slot != "A" {
			t.Errorf("one copy rotten at %d, repaired, and then the other: got %+v, %v, want A booted", at, b, err)
		}
	}
}
