package esp32_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
)

// device brings a unit to where an act begins.
func device(t *testing.T, b esp32test.Backend, life ...string) (*otatest.Disk, *unit) {
	t.Helper()
	d, u := onDisk(t, b)
	if _, err := u.start(); err != nil {
		t.Fatal(err)
	}
	for _, what := range life {
		if err := u.act(what); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	return d, u
}

// act does one thing of a device's life.
func (u *unit) act(what string) error {
	ctx := context.Background()
	b, err := u.slots.Booted(ctx)
	if err != nil {
		return err
	}
	switch what {
	case "install":
		s, err := u.slots.Open(ctx, "controller", b.Other)
		if err != nil {
			return err
		}
		defer s.Close()
		fw := u.b.Pack(bytes.Repeat([]byte(fmt.Sprint("boot", u.boots)), 2500))
		for at := 0; at < len(fw); at += 4096 {
			if _, err := s.WriteAt(fw[at:min(at+4096, len(fw))], int64(at)); err != nil {
				return err
			}
		}
		return s.Sync(int64(len(fw)))
	case "begin to install":
		s, err := u.slots.Open(ctx, "controller", b.Other)
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.WriteAt(make([]byte, 4096), 0)
		return err
	case "try":
		return u.slots.Try(ctx, b.Other)
	case "good":
		return u.slots.MarkGood(ctx)
	case "boot":
		_, err := u.start()
		return err
	}
	return fmt.Errorf("no act is named %s", what)
}

// cutOff runs do, and reports whether a power cut ended it.
func cutOff(do func()) (came bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(*otatest.PowerCut); !ok {
				panic(p)
			}
			came = true
		}
	}()
	do()
	return false
}

// tears lists every way to cut effect at. Raw flash has no cache, so that there is
// no rest.
func tears(at int, file bool) (all []otatest.Cut) {
	rests := []otatest.Rest{otatest.DropAll}
	if file {
		rests = []otatest.Rest{otatest.KeepAll, otatest.Subset, otatest.DropAll}
	}
	for _, rest := range rests {
		all = append(all, otatest.Cut{At: at, How: otatest.Before, Rest: rest, Seed: uint64(at)},
			otatest.Cut{At: at, How: otatest.After, Rest: rest, Seed: uint64(at)})
		for _, unit := range []int{1, 4, 16, 512, 4096} {
			for seed := range uint64(3) {
				all = append(all, otatest.Cut{At: at, How: otatest.Torn, Rest: rest, Unit: unit, Seed: seed})
			}
		}
	}
	return all
}

// Every act is cut at every effect in every way. Afterwards a whole image boots, and
// it is the one that we say; and the next agent brings everything into order. See
// TestTearsOfTry for what does not boot for good.
func TestTears(t *testing.T) {
	count := 0
	for _, test := range []struct {
		life []string
		act  string
		may  string // slots that may boot after the cut
	}{
		{nil, "good", "ota_0"}, // the first start after the factory
		{[]string{"good"}, "install", "ota_0"},
		{[]string{"good", "install"}, "try", "ota_0 ota_1"},
		{[]string{"good", "install", "try"}, "good", "ota_0 ota_1"}, // takes it back
		{[]string{"good", "install", "try"}, "begin to install", "ota_0 ota_1"},
		{[]string{"good", "install", "try"}, "boot", "ota_0 ota_1"},
		{[]string{"good", "install", "try", "boot"}, "good", "ota_0 ota_1"},
		{[]string{"good", "install", "try", "boot"}, "try", "ota_0"}, // goes back
		{[]string{"good", "install", "try", "boot"}, "boot", "ota_0"},
		{[]string{"good", "install", "try", "boot", "boot"}, "good", "ota_0"},
		{[]string{"good", "install", "try", "boot", "boot"}, "install", "ota_0"},
		{[]string{"good", "install", "try", "boot", "boot", "install"}, "try", "ota_0 ota_1"},
		{[]string{"good", "install", "try", "boot", "good"}, "boot", "ota_1"},
		{[]string{"good", "install", "try", "boot", "good"}, "install", "ota_1"},
		{[]string{"good", "install", "try", "boot", "good", "install"}, "try", "ota_0 ota_1"},
		{[]string{"good", "install", "try", "boot", "good", "install", "try", "boot"}, "good", "ota_0 ota_1"},
	} {
		for _, b := range []esp32test.Backend{{}, {File: true}} {
			name := fmt.Sprint(b.File, test.life, test.act)
			before, u := device(t, b, test.life...)
			for at := 1; ; at++ {
				ends := true
				for _, cut := range tears(at, b.File) {
					d := before.Clone()
					v := *u
					v.fsys = d
					if _, err := v.open(); err != nil {
						t.Fatal(err)
					}
					d.Arm(cut)
					if !cutOff(func() {
						if err := v.act(test.act); err != nil {
							t.Fatal(err)
						}
					}) {
						break
					}
					ends = false
					count++
					d.PowerOn()
					if err := v.recovers(d, test.may); err != nil {
						t.Fatalf("%s, %v: %v", name, cut, err)
					}
				}
				if ends {
					if at == 1 && test.act != "try" {
						t.Logf("%s writes nothing", name)
					}
					break
				}
			}
		}
	}
	t.Logf("%d cuts", count)
}

// recovers judges what is left after a cut.
func (u *unit) recovers(d *otatest.Disk, may string) error {
	flash := &memory{b: d.Content(esp32test.Flash)}
	cfg := u.b.Config(otatest.Boot{}, nil)
	claim, err := esp32.ReadBoot(flash, cfg)
	if err != nil {
		return err
	}
	if _, err := u.start(); err != nil {
		return err
	}
	if claim.Next != u.running {
		return fmt.Errorf("we said that %s boots, and %s does", claim.Next, u.running)
	}
	if !bytes.Contains([]byte(may), []byte(u.running)) {
		return fmt.Errorf("%s boots, want one of %s", u.running, may)
	}
	first := u.running
	if err := u.slots.MarkGood(context.Background()); err != nil {
		return err
	}
	for range 3 {
		if _, err := u.start(); err != nil {
			return err
		}
		b, err := u.slots.Booted(context.Background())
		if err != nil || u.running != first || b.Trial || b.FellBack {
			return fmt.Errorf("after MarkGood in %s: %+v, %v", first, b, err)
		}
	}
	was := d.Content(esp32test.Flash)
	if err := u.slots.MarkGood(context.Background()); err != nil {
		return err
	}
	if now := d.Content(esp32test.Flash); !bytes.Equal(was, now) {
		return fmt.Errorf("MarkGood writes once more: at %#x", differs(was, now))
	}
	return nil
}

func differs(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// While a slot is tried, each tear leaves it untried or on trial: at no moment does
// it boot for good. So it is also while the try is taken back.
func TestTearsOfTry(t *testing.T) {
	for _, life := range [][]string{
		{"good", "install"},
		{"good", "install", "try", "boot", "boot"}, // over an aborted one
		{"good", "install", "try", "boot", "good", "install"},
		{"install"}, // the first start of all, with one entry
	} {
		for _, act := range []string{"try", "begin to install", "good"} {
			for _, b := range []esp32test.Backend{{}, {File: true}} {
				before, u := device(t, b, life...)
				for at := 1; ; at++ {
					ends := true
					for _, cut := range tears(at, b.File) {
						if cut.Unit > 4 {
							continue
						}
						d := before.Clone()
						v := *u
						v.fsys = d
						if _, err := v.open(); err != nil {
							t.Fatal(err)
						}
						d.Arm(cut)
						if !cutOff(func() {
							if err := v.act(act); err != nil {
								t.Fatal(err)
							}
						}) {
							break
						}
						ends = false
						d.PowerOn()
						was := v.running
						for i := range 2 {
							if _, err := v.start(); err != nil {
								t.Fatal(err)
							}
							if v.running != was && (i == 1 || act != "try") {
								t.Fatalf("%v %s, %v: start %d is %s, want %s", life, act, cut, i+1, v.running, was)
							}
						}
					}
					if ends {
						break
					}
				}
			}
		}
	}
}

// The end of a trial, torn, with a factory application that nobody wants: it is the
// old slot or the new one that boots.
func TestMarkGoodTorn(t *testing.T) {
	b := esp32test.Backend{Table: esp32test.SmallFactory}
	before, u := device(t, b, "good", "install", "try", "boot", "good", "install", "try", "boot")
	seen := map[string]bool{}
	for at := 1; ; at++ {
		for _, cut := range tears(at, false) {
			if cut.Unit > 4 {
				continue
			}
			d := before.Clone()
			v := *u
			v.fsys = d
			if _, err := v.open(); err != nil {
				t.Fatal(err)
			}
			d.Arm(cut)
			if !cutOff(func() { v.do("good") }) {
				if !seen["ota_0"] || !seen["ota_1"] {
					t.Errorf("boots %v, want both in the end", seen)
				}
				return
			}
			d.PowerOn()
			if _, err := v.start(); err != nil || v.running == "factory" {
				t.Fatalf("%v: %s boots (%v)", cut, v.running, err)
			}
			seen[v.running] = true
		}
	}
}

// One entry rots, each bit of it, at rest: what was marked good still boots.
func TestRot(t *testing.T) {
	for _, life := range [][]string{
		{"good"},
		{"good", "begin to install"},
		{"good", "install", "try", "boot", "boot", "good"},
		{"good", "install", "try", "boot", "good"},
	} {
		before, u := device(t, esp32test.Backend{}, life...)
		off := int64(partition(t, table(t, esp32test.Small), "otadata").Offset)
		for i := range int64(2) {
			for bit := range 32 * 8 {
				d := before.Clone()
				sector := d.Content(esp32test.Flash)[off+i*0x1000:][:4096]
				sector[bit/8] ^= 1 << (bit % 8)
				poke(t, d, esp32test.Flash, sector, off+i*0x1000)
				v := *u
				v.fsys = d
				if _, err := v.start(); err != nil || v.running != u.running {
					t.Fatalf("%v, entry %d, bit %d: boots %s, %v, want %s", life, i, bit, v.running, err, u.running)
				}
				if err := v.slots.MarkGood(t.Context()); err != nil {
					t.Fatal(err)
				}
				// Now the other may rot.
				poke(t, d, esp32test.Flash, bytes.Repeat([]byte{0}, 32), off+(1-i)*0x1000)
				if _, err := v.start(); err != nil || v.running != u.running {
					t.Fatalf("%v, entry %d, bit %d, and then the other: boots %s, %v, want %s", life, i, bit, v.running, err, u.running)
				}
			}
		}
	}
}

// Faults of the medium at every effect: an error, and what boots afterwards is what
// ran, or what is on trial. Done again without the fault, the act succeeds.
func TestWriteErrors(t *testing.T) {
	broken := fmt.Errorf("this fake says that the flash is broken")
	for _, act := range []string{"good", "try", "install"} {
		life := []string{"good", "install"}
		if act == "good" {
			life = append(life, "try")
		}
		before, u := device(t, esp32test.Backend{}, life...)
		for at, failed := 1, true; failed; at++ {
			for _, did := range []bool{false, true} {
				d := before.Clone()
				v := *u
				v.fsys = d
				if _, err := v.open(); err != nil {
					t.Fatal(err)
				}
				failed = false
				d.OnEffect = func(n int, _ string) otatest.Fault {
					if n == at {
						failed = true
						return otatest.Fault{Err: broken, Did: did}
					}
					return otatest.Fault{}
				}
				err := v.act(act)
				if failed && ota.CodeOf(err) != ota.ErrFlashWrite {
					t.Errorf("%s, effect %d: got %v, want ErrFlashWrite", act, at, err)
				}
				d.OnEffect = nil
				if err := v.act(act); err != nil {
					t.Errorf("%s after a fault at effect %d: %v", act, at, err)
				}
				if err := v.act("boot"); err != nil {
					t.Error(err)
				}
				if want := map[string]string{"good": "ota_0", "install": "ota_0", "try": "ota_1"}[act]; v.running != want {
					t.Errorf("%s after a fault at effect %d: %s boots, want %s", act, at, v.running, want)
				}
			}
		}
	}
}
