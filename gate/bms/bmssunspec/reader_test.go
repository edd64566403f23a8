package bmssunspec_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/gate/bms/bmssunspec"
)

// link is a fake of a line to a device: slow, broken or stuck, as a test wants it. It
// counts, and notices if two ask at once.
type link struct {
	device sunspec.Registers
	takes  time.Duration // each read
	stuck  bool          // no answer, until the one who asked gives up
	err    error
	before func() // called before every read

	mu           sync.Mutex
	asking, most int
	searches     int // reads of the marker
}

func (l *link) ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error) {
	l.mu.Lock()
	l.asking++
	l.most = max(l.most, l.asking)
	if address == 40000 && count == 2 {
		l.searches++
	}
	device, takes, stuck, err, before := l.device, l.takes, l.stuck, l.err, l.before
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.asking--
		l.mu.Unlock()
	}()
	if before != nil {
		before()
	}
	if stuck {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return device.ReadHolding(ctx, address, count)
}

func (l *link) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// within asks with a context that ends after d.
func within(t *testing.T, r *bmssunspec.Reader, d time.Duration) (bms.Reading, error) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return r.Read(ctx)
}

// TestSearchGoesOn: over a slow line, the search takes longer than the gate waits. It
// goes on, and is not begun again by those who ask meanwhile.
func TestSearchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{device: whole(t), takes: time.Second} // a search is 14 reads
		r := reader(t, bmssunspec.Config{Registers: l})
		for i := range 3 {
			_, err := within(t, r, 2*time.Second)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "test: look for the battery's models: ") {
				t.Errorf("question %d: got %v, want to hear that the models are looked for", i, err)
			}
		}
		time.Sleep(20 * time.Second)
		l.set(func() { l.takes = 100 * time.Millisecond })
		got, err := within(t, r, 2*time.Second)
		if err != nil || got.Value(bms.SoC) != 57.5 || l.searches != 1 {
			t.Errorf("got %v, %v after %d searches, want 57.5 %% after one", got.Value(bms.SoC), err, l.searches)
		}
		if age := time.Since(got.At); age < 600*time.Millisecond { // six models
			t.Errorf("the reading is %v old, want the time that reading took", age)
		}
	})
}

// TestPatience: a search ends, with what was the matter, and the next question begins
// another one.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		patience, want time.Duration
	}{{0, 30 * time.Second}, {5 * time.Minute, 5 * time.Minute}} {
		synctest.Test(t, func(t *testing.T) {
			l := &link{device: whole(t), stuck: true}
			r := reader(t, bmssunspec.Config{Registers: l, Patience: tt.patience})
			began := time.Now()
			_, err := r.Read(t.Context())
			if took := time.Since(began); err == nil || took != tt.want || !strings.Contains(err.Error(), "not within "+tt.want.String()) {
				t.Errorf("got %v after %v, want an end after %v", err, took, tt.want)
			}
			l.set(func() { l.stuck = false })
			if _, err := r.Read(t.Context()); err != nil || l.searches != 2 {
				t.Errorf("got %v after %d searches, want none after 2", err, l.searches)
			}
		})
	}
}

// TestRediscovery: after an error, a device may be another one. It is looked at anew
// before it is believed.
func TestRediscovery(t *testing.T) {
	l := &link{device: whole(t)}
	r := reader(t, bmssunspec.Config{Registers: l})
	want := func(soc float64, searches int) {
		t.Helper()
		got, err := r.Read(t.Context())
		if err != nil || got.Value(bms.SoC) != soc || l.searches != searches {
			t.Fatalf("got %v %%, %v after %d searches, want %v %% after %d", got.Value(bms.SoC), err, l.searches, soc, searches)
		}
	}
	want(57.5, 1)
	want(57.5, 1)

	broken := errors.New("the line is cut")
	l.err = broken
	for range 2 {
		if _, err := r.Read(t.Context()); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "test: ") {
			t.Errorf("got %v, want %v", err, broken)
		}
	}
	l.err = nil
	want(57.5, 3)

	// Restarted with other models, 802 is elsewhere.
	l.device = with(t, []uint16{715, 802}, change{802, sunspec.Number("SoC", 44)})
	if _, err := r.Read(t.Context()); err == nil {
		t.Error("got no error, want one: the map has changed")
	}
	want(44, 4)

	// Of a device that is no battery any more, nothing is known.
	l.device = with(t, []uint16{715})
	for range 3 {
		if got, err := r.Read(t.Context()); err == nil {
			t.Errorf("got %+v, want an error", got)
		}
	}
	l.device = with(t, []uint16{802}, change{802, sunspec.Number("SoC", 45)})
	want(45, l.searches+1)
}

// TestShortContext: one who gave up in the middle says nothing about the device.
func TestShortContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{device: whole(t)}
		r := reader(t, bmssunspec.Config{Registers: l})
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.takes = time.Second
		if _, err := within(t, r, 2500*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		if _, err := r.Read(t.Context()); err != nil || l.searches != 1 {
			t.Errorf("got %v after %d searches, want none after one", err, l.searches)
		}
	})
}

// TestTorn: values that change while they are read are an error, and the device stays
// known: to look for it again would only take longer.
func TestTorn(t *testing.T) {
	b := with(t, []uint16{802})
	large, err := b.Add(804, 13) // needs three reads
	if err != nil {
		t.Fatal(err)
	}
	l := &link{device: b}
	r := reader(t, bmssunspec.Config{Registers: l})
	if _, err := r.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0.0
	l.before = func() {
		n++
		b.set(t, 802, sunspec.Number("Hb", n))
		if err := b.Set(large, sunspec.Number("module[13].ModCellTmpMax", n)); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Read(t.Context()); !errors.Is(err, sunspec.ErrTorn) {
		t.Errorf("got %v, want %v", err, sunspec.ErrTorn)
	}
	l.before = nil
	if _, err := r.Read(t.Context()); err != nil || l.searches != 1 {
		t.Errorf("afterwards: got %v and %d searches, want none and one", err, l.searches)
	}
}

// TestOneAtATime: whoever asks, and also while one reads and another looks for models
// after an error, the device is asked one thing at a time.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{device: whole(t), takes: 10 * time.Millisecond}
		r := reader(t, bmssunspec.Config{Registers: l})
		reads := 0
		l.before = func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			reads++
			l.err = nil
			if reads%17 == 0 {
				l.err = errors.New("a disturbance")
			}
		}
		var good, bad int
		var mu sync.Mutex
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				for range 20 {
					_, err := r.Read(t.Context())
					mu.Lock()
					if err == nil {
						good++
					} else {
						bad++
					}
					mu.Unlock()
				}
			})
		}
		group.Wait()
		if l.most != 1 || good == 0 || bad == 0 || l.searches < 2 {
			t.Errorf("%d asked at once, want 1; %d answers, %d errors and %d searches, want some of each", l.most, good, bad, l.searches)
		}
	})
}

// TestTurn: who waits for another reading gives up when told to.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{device: whole(t)}
		r := reader(t, bmssunspec.Config{Registers: l})
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.takes = time.Minute
		slow := make(chan error)
		go func() {
			_, err := r.Read(t.Context())
			slow <- err
		}()
		synctest.Wait()
		if _, err := within(t, r, time.Second); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for another reading") {
			t.Errorf("got %v, want to hear that another reading is under way", err)
		}
		if err := <-slow; err != nil {
			t.Error(err)
		}
	})
}

// TestForgottenMeanwhile: many wait for a search, and the first of them finds the
// device gone. The others hear of an error too; none works with a device that is not
// there.
func TestForgottenMeanwhile(t *testing.T) {
	for range 300 {
		gone := make(chan struct{})
		l := &link{device: with(t, []uint16{802}), before: func() { <-gone }}
		r := reader(t, bmssunspec.Config{Registers: &vanishing{link: l}})
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if got, err := r.Read(t.Context()); err == nil {
					t.Errorf("got %+v, want an error", got)
				}
			})
		}
		close(gone)
		group.Wait()
	}
}

// vanishing is a fake of a device that answers a search, and nothing more.
type vanishing struct{ *link }

func (v *vanishing) ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error) {
	if count > 2 {
		return nil, errors.New("no answer")
	}
	return v.link.ReadHolding(ctx, address, count)
}

func TestNew(t *testing.T) {
	for _, tt := range []struct {
		config bmssunspec.Config
		want   string
	}{
		{bmssunspec.Config{}, "read a battery over SunSpec: the registers are missing"},
		{bmssunspec.Config{Registers: whole(t), Directions: "inwards"}, `read a battery over SunSpec: directions are "inwards", want "charging", "discharging", "ignore" or nothing`},
	} {
		if _, err := bmssunspec.New(tt.config); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	l := &link{device: whole(t)}
	reader(t, bmssunspec.Config{Registers: l})
	if l.most != 0 {
		t.Error("a new reader asks the device")
	}
	// The map may be elsewhere.
	far := sunspec.NewImage(1000)
	m, err := far.Add(802, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := far.Set(m, sunspec.Number("SoC", 12.5)); err != nil {
		t.Fatal(err)
	}
	r := reader(t, bmssunspec.Config{Registers: far, Search: sunspec.Search{Bases: []uint16{1000}}})
	if got, err := r.Read(t.Context()); err != nil || got.Value(bms.SoC) != 12.5 {
		t.Errorf("got %v %%, %v, want 12.5 %%", got.Value(bms.SoC), err)
	}
}
