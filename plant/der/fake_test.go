package der_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/sunspec"
	"github.com/interlock-energy/ota/otatest"
)

const rated = 100_000 // W

// fake is a battery with its converter, in memory: a fake. Its registers are SunSpec's,
// its power follows the set-point at a finite rate, and its dead-man counts down as 704
// says. It does what a test tells it to do wrong.
type fake struct {
	im                                           *sunspec.Image
	common, ac, controls, dc, ctl, battery, bank sunspec.Model

	disk *otatest.Disk // every write is an effect of it, so that it can be cut and fail

	mu       sync.Mutex
	own      float64 // W: the power if no set-point is in force
	slew     float64 // W/s
	w        float64 // the power that flows
	at       time.Time
	reverts  time.Time // when the dead-man strikes; zero: it does not run
	greatest float64   // W: the largest that was commanded or flowed
	closing  time.Time // when the contactors will be closed; zero: they do not move

	// What it does wrong.
	stuck      bool          // the power stays what it is
	ignores    string        // a point that keeps its value
	takes      time.Duration // until a write can be read back
	onTime     bool          // the dead-man starts when its time is written, not when it is enabled
	noRevert   bool          // the dead-man never starts
	blind      bool          // no current is measured
	welded     bool          // the contactors stay closed
	unreadable func() error  // asked before every read
}

func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{im: sunspec.NewImage(40000), disk: otatest.NewDisk(), slew: rated / 2, at: time.Now()}
	for _, m := range []struct {
		to      *sunspec.Model
		id      uint16
		repeats int
	}{{&f.common, 1, 0}, {&f.ac, 701, 0}, {&f.controls, 704, 0}, {&f.dc, 714, 1}, {&f.ctl, 715, 0}, {&f.battery, 802, 0}, {&f.bank, 803, 1}} {
		model, err := f.im.Add(m.id, m.repeats)
		if err != nil {
			t.Fatal(err)
		}
		*m.to = model
	}
	f.set(f.common, sunspec.Text("Mn", "Fake"), sunspec.Text("Md", "BESS"), sunspec.Text("SN", "0001"))
	f.set(f.controls, sunspec.Raw("WSet_SF", 0), sunspec.Raw("WSetPct_SF", 0xFFFF),
		sunspec.Symbolic("WSetEna", "DISABLED"), sunspec.Symbolic("WSetMod", "WATTS"),
		sunspec.Number("WSet", 1234), sunspec.Number("WSetRvrt", -77), sunspec.Number("WSetPct", 12), sunspec.Number("WSetPctRvrt", 3),
		sunspec.Symbolic("WSetEnaRvrt", "DISABLED"), sunspec.Number("WSetRvrtTms", 0), sunspec.Number("WSetRvrtRem", 0))
	f.set(f.battery, sunspec.Number("WChaRteMax", rated), sunspec.Number("WDisChaRteMax", rated/2), sunspec.Symbolic("LocRemCtl", "REMOTE"),
		sunspec.Symbolic("State", "CONNECTED"), sunspec.Symbolic("SetOp", "CONNECT"), sunspec.Symbolic("SetInvState", "INVERTER_STARTED"))
	f.set(f.ctl, sunspec.Symbolic("LocRemCtl", "REMOTE"), sunspec.Symbolic("OpCtl", "START"))
	f.set(f.bank, sunspec.Raw("string[1].StrSt", 3))
	f.flow()
	return f
}

// set is for the test: it counts as no write.
func (f *fake) set(m sunspec.Model, settings ...sunspec.Setting) {
	if err := f.im.Set(m, settings...); err != nil {
		panic(err)
	}
}

func (f *fake) block(m sunspec.Model) sunspec.Block {
	b, err := f.im.Block(m)
	if err != nil {
		panic(err)
	}
	return b
}

// commanded is the power that is asked for.
func (f *fake) commanded() float64 {
	b := f.block(f.controls)
	ctl, _ := f.block(f.ctl).Integer("OpCtl")
	inv, _ := f.block(f.battery).Integer("SetInvState")
	state, _ := f.block(f.battery).Integer("State")
	switch {
	case ctl == 0 || ctl == 2 || inv == 1 || inv == 2 || state == 1:
		return 0
	case b.Float("WSetEna") != 1:
		return f.own
	}
	if b.Float("WSetMod") == 0 {
		return b.Float("WSetPct") / 100 * rated
	}
	if v := b.Float("WSet"); !math.IsNaN(v) {
		return v
	}
	return f.own
}

// flow lets the time pass that has passed, and shows the result in the registers.
func (f *fake) flow() {
	now := time.Now()
	if !f.closing.IsZero() && now.After(f.closing) {
		f.closing = time.Time{}
		f.set(f.battery, sunspec.Symbolic("State", "CONNECTED"))
		f.set(f.bank, sunspec.Raw("string[1].StrSt", 3))
	}
	if !f.reverts.IsZero() && now.After(f.reverts) {
		f.pass(f.reverts)
		b := f.block(f.controls)
		for to, from := range map[string]string{"WSet": "WSetRvrt", "WSetPct": "WSetPctRvrt", "WSetEna": "WSetEnaRvrt"} {
			v, _ := b.Integer(from)
			f.set(f.controls, sunspec.Raw(to, uint64(v)))
		}
		f.reverts = time.Time{}
	}
	f.pass(now)
	left := uint64(0)
	if !f.reverts.IsZero() {
		left = uint64(math.Ceil(f.reverts.Sub(now).Seconds()))
	}
	f.set(f.controls, sunspec.Raw("WSetRvrtRem", left))
	f.set(f.ac, sunspec.Raw("W_SF", 1), sunspec.Number("W", f.w))
	if f.blind {
		f.set(f.battery, sunspec.Missing("A"))
		f.set(f.dc, sunspec.Missing("DCA"), sunspec.Missing("Prt[1].DCA"))
		return
	}
	f.set(f.battery, sunspec.Number("A", f.w/800))
	f.set(f.dc, sunspec.Symbolic("Prt[1].PrtTyp", "ESS"), sunspec.Number("Prt[1].DCA", f.w/800), sunspec.Number("DCA", 99))
}

func (f *fake) pass(to time.Time) {
	most := f.slew * to.Sub(f.at).Seconds()
	f.at = to
	if !f.stuck {
		f.w += max(-most, min(most, f.commanded()-f.w))
	}
	f.greatest = max(f.greatest, math.Abs(f.w), math.Abs(f.commanded()))
}

func (f *fake) ReadHolding(ctx context.Context, address, count uint16) ([]uint16, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unreadable != nil {
		if err := f.unreadable(); err != nil {
			return nil, err
		}
	}
	f.flow()
	return f.im.ReadHolding(ctx, address, count)
}

func (f *fake) WriteRegisters(ctx context.Context, address uint16, values []uint16) error {
	var refused error
	err := f.disk.Effect("write "+f.name(address), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.flow()
		refused = f.write(ctx, address, values)
		f.flow()
	})
	return errors.Join(err, refused)
}

func (f *fake) write(ctx context.Context, address uint16, values []uint16) error {
	name := f.name(address)
	if f.ignores != "" && name == f.ignores {
		return nil
	}
	if f.takes > 0 {
		time.AfterFunc(f.takes, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.flow()
			f.took(ctx, name, address, values)
		})
		return nil
	}
	return f.took(ctx, name, address, values)
}

func (f *fake) took(ctx context.Context, name string, address uint16, values []uint16) error {
	if err := f.im.WriteRegisters(ctx, address, values); err != nil {
		return err
	}
	b := f.block(f.controls)
	ena, _ := b.Integer("WSetEna")
	after, _ := b.Integer("WSetRvrtTms")
	inControls := address >= f.controls.Address && address < f.controls.Address+f.controls.Length
	starts := name == "704 WSetEna" || f.onTime && inControls && slices.Contains([]string{"704 WSetRvrtTms", "704 WSetEnaRvrt"}, name)
	switch {
	case after == 0 && (starts || name == "704 WSetRvrtTms" && f.onTime) || ena == 0:
		f.reverts = time.Time{}
	case starts && !f.noRevert:
		f.reverts = time.Now().Add(time.Duration(after) * time.Second)
	}
	switch op, _ := f.block(f.battery).Integer("SetOp"); {
	case name != "802 SetOp" || f.welded:
	case op == 2:
		f.closing = time.Time{}
		f.set(f.battery, sunspec.Symbolic("State", "DISCONNECTED"))
		f.set(f.bank, sunspec.Raw("string[1].StrSt", 1))
	default:
		f.closing = time.Now().Add(2 * time.Second) // precharge
		f.set(f.battery, sunspec.Symbolic("State", "INITIALIZING"))
	}
	return nil
}

// name is the point at an address: "704 WSet".
func (f *fake) name(address uint16) string {
	for _, m := range []sunspec.Model{f.controls, f.ctl, f.battery} {
		for _, p := range sunspec.Define(m.ID).Points {
			if m.Address+p.Offset == address {
				return fmt.Sprintf("%d %s", m.ID, p.Name)
			}
		}
	}
	return fmt.Sprint(address)
}

// state is everything that Quiesce may change, and nothing that changes by itself.
func (f *fake) state() map[string]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flow()
	all := map[string]int64{}
	for _, m := range []sunspec.Model{f.controls, f.ctl, f.battery} {
		b := f.block(m)
		for _, p := range sunspec.Define(m.ID).Points {
			if v, err := b.Integer(p.Name); err == nil && p.Writable {
				all[fmt.Sprintf("%d %s", m.ID, p.Name)] = v
			}
		}
	}
	all["802 State"], _ = f.block(f.battery).Integer("State")
	return all
}
