package sunspec

import (
	"errors"
	"testing"
)

func TestLongModelNeedsThreeReads(t *testing.T) {
	im, models := plant(t)
	if got, want := models[804].Length, uint16(254); got != want {
		t.Fatalf("got a length of %d, want %d", got, want)
	}
	regs := fakeOf(im)
	d := discover(t, regs)
	regs.reads, regs.most = 0, 0
	b, err := d.Read(t.Context(), regs, models[804])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := regs.reads, 5; got != want {
		t.Errorf("got %d reads, want %d: three, between two of the heartbeat", got, want)
	}
	if regs.most > MaxRead {
		t.Errorf("got a read of %d registers, want at most %d", regs.most, MaxRead)
	}
	if got, want := b.Float("module[13].ModCellTmpMax"), 28.7; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if n, err := b.Repeats("module"); err != nil || n != 13 {
		t.Errorf("got %d modules and %v, want 13", n, err)
	}
}

// A battery that changes between the parts of one read must not be seen half
// old and half new: the strings' maximum is in the first read, the last modules
// in the third.
func TestTornReads(t *testing.T) {
	for _, c := range []struct {
		name      string
		heartbeat bool
		changes   int // how many times, each in the middle of a pass
		torn      bool
	}{
		{"heartbeat, once", true, 1, false},
		{"heartbeat, always", true, 1 << 20, true},
		{"two passes, once", false, 1, false},
		{"two passes, twice", false, 2, false},
		{"two passes, always", false, 1 << 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			im, models := plant(t)
			regs := fakeOf(im)
			d := discover(t, regs)
			changes, temp := 0, 28.7
			regs.before = func(_ int, address, _ uint16) {
				if address != models[804].Address+MaxRead || changes == c.changes {
					return
				}
				changes++
				temp++
				err := im.Set(models[804], Number("ModTmpMax", temp), Number("module[13].ModCellTmpMax", temp))
				if err == nil && c.heartbeat {
					err = im.Set(models[802], Number("Hb", 4711+float64(changes)))
				}
				if err != nil {
					t.Error(err)
				}
				regs.registers = im.Registers()
			}
			read := ReadModel
			if c.heartbeat {
				read = d.Read
			}
			b, err := read(t.Context(), regs, models[804])
			if c.torn {
				if !errors.Is(err, ErrTorn) {
					t.Errorf("got %v, want %v", err, ErrTorn)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, want := b.Float("module[13].ModCellTmpMax"), b.Float("ModTmpMax"); got != want || got != temp {
				t.Errorf("got %v in the third read and %v in the first, want %v in both", got, want, temp)
			}
			if changes != c.changes {
				t.Errorf("got %d changes, want %d", changes, c.changes)
			}
		})
	}
}

func TestHeartbeatThatIsNotThere(t *testing.T) {
	im, models := plant(t)
	if err := im.Set(models[802], Missing("Hb")); err != nil {
		t.Fatal(err)
	}
	regs := fakeOf(im)
	d := discover(t, regs)
	regs.reads = 0
	if _, err := d.Read(t.Context(), regs, models[804]); err != nil {
		t.Fatal(err)
	}
	if got, want := regs.reads, 2*(1+3); got != want {
		t.Errorf("got %d reads, want %d: two whole passes", got, want)
	}
}

func TestModelThatMoved(t *testing.T) {
	im, models := plant(t)
	regs := fakeOf(im)
	d := discover(t, regs)
	at := models[802].Address - im.base
	for _, change := range []func(){
		func() { regs.registers[at] = 803 },
		func() { regs.registers[at+1]++ },
	} {
		regs.registers = im.Registers()
		change()
		if _, err := d.Read(t.Context(), regs, models[802]); !errors.Is(err, ErrMap) {
			t.Errorf("got %v, want %v", err, ErrMap)
		}
	}
}

func TestReadRefusesWhatCannotBe(t *testing.T) {
	regs := &fakeDevice{registers: make([]uint16, 65536)}
	if _, err := ReadModel(t.Context(), regs, Model{ID: 802, Address: 65500, Length: 62}); !errors.Is(err, ErrMap) {
		t.Errorf("got %v, want %v", err, ErrMap)
	}
	if got, want := regs.reads, 0; got != want {
		t.Errorf("got %d reads, want %d", got, want)
	}
}
