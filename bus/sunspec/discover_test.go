package sunspec

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestDiscover(t *testing.T) {
	im, _ := plant(t)
	regs := fakeOf(im)
	d := discover(t, regs)
	want := []Model{
		{1, 40002, 66, 1}, {701, 40070, 153, 1}, {704, 40225, 65, 1}, {713, 40292, 7, 1}, {714, 40301, 68, 1},
		{715, 40371, 7, 1}, {802, 40380, 62, 1}, {803, 40444, 58, 1}, {804, 40504, 254, 1},
	}
	if !slices.Equal(d.Models, want) {
		t.Errorf("got %v, want %v", d.Models, want)
	}
	if regs.most > 2 {
		t.Errorf("got a read of %d registers, want at most 2: a device may lack what is behind the end", regs.most)
	}
}

func TestDiscoverFindsTheBase(t *testing.T) {
	map1 := []uint16{marker0, marker1, 99, 1, 7, endModel} // no length behind the end, as some devices have it
	for _, c := range []struct {
		name   string
		base   int
		search Search
		found  bool
	}{
		{"40000", 40000, Search{}, true},
		{"0", 0, Search{}, true},
		{"50000", 50000, Search{}, true},
		{"unusual", 39999, Search{}, false},
		{"extra", 39999, Search{Extra: []uint16{39999}}, true},
		{"others not wanted", 0, Search{Bases: []uint16{40000}}, false},
		{"only others", 0, Search{Bases: []uint16{50000, 0}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Discover(t.Context(), &fakeDevice{base: c.base, registers: map1}, c.search)
			if !c.found {
				if !errors.Is(err, ErrNotSunSpec) || d != nil {
					t.Errorf("got %v and %v, want %v", d, err, ErrNotSunSpec)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, want := int(d.Base), c.base; got != want {
				t.Errorf("got the base %d, want %d", got, want)
			}
			if want := []Model{{99, uint16(c.base) + 2, 1, 1}}; !slices.Equal(d.Models, want) {
				t.Errorf("got %v, want %v", d.Models, want)
			}
		})
	}
}

func TestDiscoverPrefersTheOrderGiven(t *testing.T) {
	registers := make([]uint16, 40010)
	copy(registers, []uint16{marker0, marker1, endModel})
	copy(registers[40000:], []uint16{marker0, marker1, endModel})
	for _, c := range []struct {
		search Search
		want   uint16
	}{
		{Search{}, 40000},
		{Search{Bases: []uint16{0, 40000}}, 0},
		{Search{Bases: []uint16{40000, 0}}, 40000},
		{Search{Extra: []uint16{0}}, 0},
	} {
		d, err := Discover(t.Context(), &fakeDevice{registers: registers}, c.search)
		if err != nil || d.Base != c.want {
			t.Errorf("%+v: got %v and %v, want %d", c.search, d, err, c.want)
		}
	}
}

func TestWrongMaps(t *testing.T) {
	full := make([]uint16, 65536)
	for i := range full {
		full[i] = 1 // everywhere a model 1 of length 1
	}
	copy(full, []uint16{marker0, marker1})
	many := []uint16{marker0, marker1}
	for range 65 {
		many = append(many, 99, 0)
	}
	many = append(many, endModel)
	for _, c := range []struct {
		name   string
		base   int
		map1   []uint16
		search Search
		found  int // models before it went wrong
		says   string
	}{
		{"without an end", 40000, []uint16{marker0, marker1, 99, 1, 0}, Search{}, 1, "may lack its end"},
		{"half a map", 40000, []uint16{marker0, marker1, 99, 1, 0, 802}, Search{}, 1, "length of model 802"},
		{"length past the last register", 40000, []uint16{marker0, marker1, 99, 25533, 0}, Search{}, 0, "runs past register 65535"},
		{"length up to the last register, no end", 40000, []uint16{marker0, marker1, 99, 25532, 0}, Search{}, 1, "without an end"},
		{"zeros only", 40000, append([]uint16{marker0, marker1}, make([]uint16, 1000)...), Search{}, 64, "more than 64 models"},
		{"too many", 40000, many, Search{}, 64, "more than 64 models"},
		{"too many for us", 40000, many, Search{MaxModels: 3}, 3, "more than 3 models"},
		{"never ends", 0, full, Search{Bases: []uint16{0}, MaxModels: 1 << 20}, 21844, "its length 1 runs past register 65535"},
		{"id in the last register", 0, idLast(), Search{Bases: []uint16{0}}, 1, "length of model 1 at 65536"},
		{"marker at the very end", 65534, []uint16{marker0, marker1}, Search{Bases: []uint16{65534}}, 0, "without an end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Discover(t.Context(), &fakeDevice{base: c.base, registers: c.map1}, c.search)
			if !errors.Is(err, ErrMap) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q", err, ErrMap, c.says)
			}
			if d == nil || len(d.Models) != c.found {
				t.Errorf("got %v, want the %d models before", d, c.found)
			}
		})
	}
	if d, err := Discover(t.Context(), &fakeDevice{base: 40000, registers: many}, Search{MaxModels: 65}); err != nil || len(d.Models) != 65 {
		t.Errorf("got %v, want 65 models if they are allowed", err)
	}
}

// idLast is a map whose second model has its id in register 65535.
func idLast() []uint16 {
	all := make([]uint16, 65536)
	copy(all, []uint16{marker0, marker1, 99, 65531})
	all[65535] = 1
	return all
}

func TestDiscoverCountsInstances(t *testing.T) {
	map1 := []uint16{marker0, marker1, 802, 0, 803, 0, 802, 1, 0, endModel}
	d := discover(t, &fakeDevice{base: 40000, registers: map1})
	if want := []Model{{802, 40002, 0, 1}, {803, 40004, 0, 1}, {802, 40006, 1, 2}}; !slices.Equal(d.Models, want) {
		t.Errorf("got %v, want %v", d.Models, want)
	}
	second, err := d.Select(802, 2)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Model{{803, 40004, 0, 1}, {802, 40006, 1, 2}}; !slices.Equal(second.Models, want) {
		t.Errorf("got %v, want %v", second.Models, want)
	}
	if _, err := d.Select(802, 3); !errors.Is(err, ErrNoModel) {
		t.Errorf("got %v, want %v", err, ErrNoModel)
	}
	if got, want := d.Without(802).Models, []Model{{803, 40004, 0, 1}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDiscoverStops(t *testing.T) {
	im, _ := plant(t)
	ctx, cancel := context.WithCancel(t.Context())
	regs := fakeOf(im)
	regs.before = func(read int, _, _ uint16) {
		if read == 5 {
			cancel()
		}
	}
	if _, err := Discover(ctx, regs, Search{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if got, want := regs.reads, 5; got != want {
		t.Errorf("got %d reads, want %d", got, want)
	}
}

func TestShortAnswers(t *testing.T) {
	im, _ := plant(t)
	regs := fakeOf(im)
	d := discover(t, regs)
	regs.short = true
	if _, err := Discover(t.Context(), regs, Search{}); err == nil {
		t.Error("discover: got no error")
	}
	for _, m := range d.Models {
		if _, err := d.Read(t.Context(), regs, m); err == nil {
			t.Errorf("read %d: got no error", m.ID)
		}
	}
}
