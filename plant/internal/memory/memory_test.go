package memory_test

import (
	"bytes"
	"errors"
	"maps"
	"testing"

	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/plant/internal/memory"
)

type note struct {
	Device string           `json:"device"`
	Points map[string]int64 `json:"points"`
}

var sample = note{"Fake BESS 0001", map[string]int64{"WSet": -38_000, "WSetEna": 1}}

// TestCuts loses power at every effect of Save and of Forget. There is the whole
// memory, or none.
func TestCuts(t *testing.T) {
	cuts := 0
	for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
		for _, rest := range []otatest.Rest{otatest.DropAll, otatest.KeepAll, otatest.Subset} {
			for at, fell := 1, true; fell; at++ {
				disk := otatest.NewDisk()
				file := memory.File{FS: disk, Path: "/state/plant-a"}
				disk.Arm(otatest.Cut{At: at, How: how, Rest: rest, Seed: uint64(at)})
				saved := false
				func() {
					defer func() {
						if r := recover(); r != nil {
							if _, ok := r.(*otatest.PowerCut); !ok {
								panic(r)
							}
						}
					}()
					if err := file.Save(sample); err != nil {
						t.Fatal(err)
					}
					saved = true
					if err := file.Forget(); err != nil {
						t.Fatal(err)
					}
				}()
				if fell = disk.Fell(); !fell { // what is done stays done
					disk.PowerOff(rest, 0)
				}
				disk.PowerOn()
				var got note
				err := file.Load(&got)
				whole := err == nil && got.Device == sample.Device && maps.Equal(got.Points, sample.Points)
				if !whole && !errors.Is(err, memory.ErrNone) || !fell && !errors.Is(err, memory.ErrNone) {
					t.Errorf("cut %d %v %v, saved %v: got %+v, %v", at, how, rest, saved, got, err)
				}
				cuts++
			}
		}
	}
	t.Logf("%d cuts", cuts)
}

func TestForgetTwice(t *testing.T) {
	file := memory.File{FS: otatest.NewDisk(), Path: "/state/plant-a"}
	for range 2 { // also where there never was a directory
		if err := file.Forget(); err != nil {
			t.Error(err)
		}
	}
	if err := file.Load(&note{}); !errors.Is(err, memory.ErrNone) {
		t.Errorf("got %v, want none", err)
	}
}

// TestEveryBit: no bit of the file can change unnoticed.
func TestEveryBit(t *testing.T) {
	data, err := memory.Encode(sample)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(data) {
		data[bit/8] ^= 1 << (bit % 8)
		if err := memory.Decode(data, &note{}); !errors.Is(err, memory.ErrDamaged) {
			t.Errorf("bit %d: got %v, want damaged", bit, err)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	for n := range data {
		if err := memory.Decode(data[:n], &note{}); !errors.Is(err, memory.ErrDamaged) {
			t.Errorf("the first %d bytes: got %v, want damaged", n, err)
		}
	}
	newer, err := memory.Encode(map[string]any{"device": "a", "pv": 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := memory.Decode(newer, &note{}); !errors.Is(err, memory.ErrDamaged) {
		t.Errorf("of newer software: got %v, want damaged", err)
	}
	if err := memory.Decode(append(data, data...), &note{}); !errors.Is(err, memory.ErrDamaged) {
		t.Errorf("with something behind it: got %v, want damaged", err)
	}
}

// FuzzDecode: what is believed is what Encode writes, to the byte.
func FuzzDecode(f *testing.F) {
	for _, v := range []any{sample, note{}, map[string]any{"device": 7}, []int{1}} {
		data, err := memory.Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)-1])
	}
	f.Add([]byte("interlock-plant 1 \n"))
	f.Add([]byte("interlock-plant 2 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v note
		err := memory.Decode(data, &v)
		if err != nil {
			if !errors.Is(err, memory.ErrDamaged) {
				t.Errorf("got %v, want damaged", err)
			}
			return
		}
		again, err := memory.Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		var w note
		if err := memory.Decode(again, &w); err != nil || w.Device != v.Device || !maps.Equal(w.Points, v.Points) || !bytes.HasPrefix(again, []byte("interlock-plant 1 ")) {
			t.Errorf("got %+v, %v, want %+v", w, err, v)
		}
	})
}
