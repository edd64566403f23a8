package uboot_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
	"github.com/interlock-energy/ota/slot/uboot/uboottest"
)

// want compares some variables with what U-Boot reads.
func (v *device) want(t *testing.T, when string, want ...string) {
	t.Helper()
	vars := v.vars(t)
	for _, w := range want {
		name, value, _ := strings.Cut(w, "=")
		if got := vars[name]; got != value {
			t.Errorf("%s: got %s=%s, want %s", when, name, got, value)
		}
	}
}

// TestRAUCVariables writes the whole story down, as anybody with fw_printenv sees it.
func TestRAUCVariables(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	v.want(t, "first start", "BOOT_ORDER=A", "BOOT_A_LEFT=2", "BOOT_B_LEFT=0")
	must(t, markGood(t, v.slots(t)))
	v.want(t, "marked good", "BOOT_ORDER=A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0")
	must(t, writeOther(t, v.slots(t)))
	v.want(t, "written", "BOOT_ORDER=A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0")
	must(t, tryOther(t, v.slots(t)))
	v.want(t, "to be tried", "BOOT_ORDER=B A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=1", "interlock_try=B")
	v.cycle(t)
	v.want(t, "on trial", "BOOT_ORDER=B A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0", "interlock_try=B")
	must(t, markGood(t, v.slots(t)))
	v.want(t, "marked good", "BOOT_ORDER=B A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=3", "interlock_try=", "interlock_probe=proven 3 boot 2")
	must(t, writeOther(t, v.slots(t)))
	v.want(t, "A written", "BOOT_ORDER=B", "BOOT_A_LEFT=0", "BOOT_B_LEFT=3")
	must(t, tryOther(t, v.slots(t)))
	must(t, markGood(t, v.slots(t)))
	v.want(t, "the try of A taken back", "BOOT_ORDER=B", "BOOT_A_LEFT=0", "BOOT_B_LEFT=3", "interlock_try=")
}

// TestLastResort starts a slot that is good, and whose agent never comes up, until
// its attempts are used up. The slot before it, still whole, is there.
func TestLastResort(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	updated(t, v) // has started B once
	for range 2 {
		if slot := v.cycle(t); slot != "B" {
			t.Fatalf("got slot %s, want B while it has attempts", slot)
		}
	}
	if slot := v.cycle(t); slot != "A" {
		t.Fatalf("got slot %s, want A, the last resort", slot)
	}
	b, err := v.slots(t).Booted(t.Context())
	if err != nil || b.FellBack || b.Trial {
		t.Errorf("got %+v, %v: nothing was tried", b, err)
	}
	must(t, markGood(t, v.slots(t)))
	v.want(t, "A is good again", "BOOT_ORDER=A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0")
}

// TestOthersInTheOrder keeps a rescue system in BOOT_ORDER, and attempts that are
// written in another way.
func TestOthersInTheOrder(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	s := v.slots(t)
	must(t, s.MarkGood(t.Context()))
	must(t, s.Set(map[string]string{"BOOT_ORDER": "rescue  B A", "BOOT_A_LEFT": "0x03", "BOOT_B_LEFT": "A", "BOOT_rescue_LEFT": "5"}))
	must(t, s.MarkGood(t.Context()))
	v.want(t, "marked good", "BOOT_ORDER=A B rescue", "BOOT_A_LEFT=0x03", "BOOT_B_LEFT=A", "BOOT_rescue_LEFT=5")
	must(t, writeOther(t, s))
	v.want(t, "B written", "BOOT_ORDER=A rescue", "BOOT_B_LEFT=0", "BOOT_rescue_LEFT=5")
	must(t, tryOther(t, s))
	v.want(t, "to be tried", "BOOT_ORDER=B A rescue")
	must(t, s.Set(map[string]string{"BOOT_B_LEFT": "nonsense", "BOOT_A_LEFT": "-1"}))
	must(t, s.MarkGood(t.Context()))
	v.want(t, "no numbers", "BOOT_ORDER=A rescue", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0")
}

// TestNoVariables has an environment that the boot script has not written to yet, so
// that its defaults count: both slots, three attempts each.
func TestNoVariables(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	s := v.slots(t)
	must(t, s.Set(map[string]string{"BOOT_ORDER": "", "BOOT_A_LEFT": "", "BOOT_B_LEFT": ""}))
	if b, err := s.Booted(t.Context()); err != nil || b.Trial || b.FellBack {
		t.Errorf("got %+v, %v", b, err)
	}
	must(t, s.MarkGood(t.Context()))
	v.want(t, "marked good", "BOOT_ORDER=A B", "BOOT_A_LEFT=3", "BOOT_B_LEFT=")
	must(t, writeOther(t, s))
	v.want(t, "B written", "BOOT_ORDER=A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0")
	must(t, s.Set(map[string]string{"BOOT_A_LEFT": "0", "interlock_try": "A"}))
	if b, err := s.Booted(t.Context()); err != nil || b.Trial {
		t.Errorf("no slot has attempts left: got %+v, %v, want no trial", b, err)
	}
}

func TestMenderVariables(t *testing.T) {
	v := newDevice(t, uboottest.Backend{Scheme: uboot.Mender})
	must(t, v.slots(t).Set(map[string]string{"bootlimit": ""})) // somebody's console session
	must(t, writeOther(t, v.slots(t)))
	v.want(t, "written", "mender_boot_part=2", "upgrade_available=0")
	must(t, tryOther(t, v.slots(t)))
	v.want(t, "to be tried", "mender_boot_part=11", "mender_boot_part_hex=b", "upgrade_available=1", "bootcount=0", "bootlimit=1")
	v.cycle(t)
	v.want(t, "on trial", "mender_boot_part=11", "upgrade_available=1", "bootcount=1")
	fallen := v.on(v.disk.Clone())
	must(t, markGood(t, v.slots(t)))
	v.want(t, "marked good", "mender_boot_part=11", "mender_boot_part_hex=b", "upgrade_available=0", "bootcount=0", "interlock_try=")
	fallen.cycle(t)
	fallen.want(t, "fell back", "mender_boot_part=2", "mender_boot_part_hex=2", "upgrade_available=0")
	if b, err := fallen.slots(t).Booted(t.Context()); err != nil || b.Slot != "A" || !b.FellBack {
		t.Errorf("got %+v, %v, want slot A and FellBack", b, err)
	}
}

// TestUnbootableBeforeTheFirstByte looks at the order of effects, and lets the
// environment fail.
func TestUnbootableBeforeTheFirstByte(t *testing.T) {
	for _, b := range backends {
		v := newDevice(t, b.Backend)
		updated(t, v)
		var effects []string
		v.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			effects = append(effects, effect)
			return otatest.Fault{}
		}
		must(t, writeOther(t, v.slots(t)))
		write := slices.IndexFunc(effects, func(e string) bool { return strings.HasPrefix(e, "write /device/a/") })
		env := slices.IndexFunc(effects, func(e string) bool { return strings.HasPrefix(e, "write /device/boot") })
		if b.Scheme != uboot.Mender && (env < 0 || env > write) { // Mender's never boots the other one
			t.Errorf("%s: got %q, want the environment before the slot", b.name, effects)
		}
		for range 7 {
			if slot := v.cycle(t); slot != "B" {
				t.Fatalf("%s: got slot %s, which is half written", b.name, slot)
			}
		}
		if b.Scheme == uboot.Mender {
			continue
		}
		c := newDevice(t, b.Backend)
		updated(t, c)
		was := c.Image(c.disk, "A")
		c.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, "write /device/boot") || strings.HasPrefix(effect, "erase") {
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		if err := writeOther(t, c.slots(t)); !errors.Is(err, ota.ErrFlashWrite) {
			t.Errorf("%s: got %v, want ErrFlashWrite", b.name, err)
		}
		if !slices.Equal(was, c.Image(c.disk, "A")) {
			t.Errorf("%s: the slot was written, and U-Boot may still boot it", b.name)
		}
	}
}

// TestOnTrial keeps the only place to return to.
func TestOnTrial(t *testing.T) {
	for _, b := range backends {
		v := newDevice(t, b.Backend)
		startTrial(t, v)
		if err := writeOther(t, v.slots(t)); err == nil || !strings.Contains(err.Error(), "on trial") {
			t.Errorf("%s: write the slot to return to: got %v", b.name, err)
		}
		for range 2 { // idempotent
			must(t, tryOther(t, v.slots(t)))
		}
		for i := range 5 {
			if slot := v.cycle(t); slot != "A" && i < 3 {
				t.Fatalf("%s: start %d after the way back: got slot %s, want A", b.name, i+1, slot)
			}
		}
		if got, err := v.slots(t).Booted(t.Context()); err != nil || got.Trial {
			t.Errorf("%s: got %+v, %v", b.name, got, err)
		}
	}
}

// TestBackIntoADamagedSlot goes back from a slot that is not healthy to one that does
// not start any more. What runs badly is better than what does not run.
func TestBackIntoADamagedSlot(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	startTrial(t, v)
	must(t, tryOther(t, v.slots(t)))
	v.want(t, "on the way back", "BOOT_ORDER=A B", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0")
	for i := 0; v.cycle(t) == "A"; i++ {
		if i == 6 {
			t.Fatal("slot A is started for ever")
		}
	}
	if got, err := v.slots(t).Booted(t.Context()); err != nil || got.Slot != "B" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestNothingToWrite does everything twice, and counts writes.
func TestNothingToWrite(t *testing.T) {
	for _, b := range backends {
		for _, a := range acts {
			v := newDevice(t, b.Backend)
			a.ready(t, v)
			must(t, a.do(t, v.slots(t)))
			v.disk.OnEffect = func(_ int, effect string) otatest.Fault {
				if !strings.HasPrefix(effect, "sync ") && !strings.HasPrefix(effect, "write /device/a") && !strings.HasPrefix(effect, "write /device/b/") {
					t.Errorf("%s, %s, again: got %s", b.name, a.name, effect)
				}
				return otatest.Fault{}
			}
			must(t, a.do(t, v.slots(t)))
		}
	}
}

// TestProbe follows what a unit says of its bootloader, with one that counts and one
// that cannot save.
func TestProbe(t *testing.T) {
	for _, b := range backends {
		for _, counts := range []bool{true, false} {
			b.NoCount = !counts
			is := map[bool]ota.RollbackState{true: ota.RollbackProven, false: ota.RollbackBroken}[counts]
			idle := is
			if b.Scheme == uboot.Mender {
				idle = ota.RollbackUnknown // it counts on trial only
			}
			v := newDevice(t, b.Backend)
			want := func(when string, want ota.RollbackState) {
				t.Helper()
				before := v.copies()
				r, err := v.slots(t).Probe(t.Context())
				if err != nil || r.State != want || r.Why == "" {
					t.Errorf("%s, counts %v, %s: got %+v, %v, want %s", b.name, counts, when, r, err, want)
				}
				if after := v.copies(); !maps.Equal(before[0], after[0]) || !maps.Equal(before[1], after[1]) {
					t.Errorf("%s, %s: something was written", b.name, when)
				}
			}
			want("first start", ota.RollbackUnknown)
			must(t, markGood(t, v.slots(t)))
			want("first start, agent again", ota.RollbackUnknown)
			v.cycle(t)
			want("second start", idle)
			must(t, markGood(t, v.slots(t)))
			want("second start, agent again", idle)
			must(t, writeOther(t, v.slots(t)))
			must(t, tryOther(t, v.slots(t)))
			want("second start, to be tried", idle)
			if v.cycle(t) != "B" {
				t.Fatal("no trial")
			}
			want("on trial", is)
			must(t, markGood(t, v.slots(t)))
			want("on trial, marked good", is)
			v.cycle(t)
			must(t, writeOther(t, v.slots(t)))
			must(t, tryOther(t, v.slots(t)))
			v.cycle(t)
			if slot := v.cycle(t); (slot == "B") != counts {
				t.Errorf("%s, counts %v: got slot %s after a trial that was not marked good", b.name, counts, slot)
			}
			want("after a trial that was not marked good", is)
		}
	}
}

// TestProbeAndOthers does not blame the bootloader for what others have done, and
// does not praise it for that.
func TestProbeAndOthers(t *testing.T) {
	for _, tt := range []struct {
		name     string
		noCount  bool
		attempts int               // at this start; before it was 3
		saved    map[string]string // by another program, at this start
		want     ota.RollbackState
	}{
		{"nobody else", false, 3, nil, ota.RollbackProven},
		{"nobody else, no count", true, 3, nil, ota.RollbackBroken},
		{"a program that marks good", false, 3, map[string]string{"BOOT_A_LEFT": "3"}, ota.RollbackUnknown},
		{"a program that saves something", false, 3, map[string]string{"x": "1"}, ota.RollbackProven},
		{"a program that saves something, no count", true, 3, map[string]string{"x": "1"}, ota.RollbackBroken},
		{"a technician", true, 3, map[string]string{"BOOT_A_LEFT": "7"}, ota.RollbackUnknown},
		{"fewer attempts", false, 2, nil, ota.RollbackProven},
		{"more attempts, no count", true, 5, nil, ota.RollbackBroken},
	} {
		v := newDevice(t, uboottest.Backend{})
		must(t, markGood(t, v.slots(t)))
		v.NoCount = tt.noCount
		v.cycle(t)
		if tt.saved != nil {
			v.saveenv(t, tt.saved)
		}
		for _, when := range []string{"first", "marked good", "agent again"} {
			cfg := v.Config(v.boot)
			cfg.Attempts = tt.attempts
			s, err := uboot.OpenOn(v.disk, cfg)
			must(t, err)
			if r, err := s.Probe(t.Context()); err != nil || r.State != tt.want {
				t.Errorf("%s, %s: got %+v, %v, want %s", tt.name, when, r, err, tt.want)
			}
			must(t, s.MarkGood(t.Context()))
		}
	}
}

// saveenv changes variables as fw_setenv does: in the older copy only.
func (v *device) saveenv(t *testing.T, vars map[string]string) {
	t.Helper()
	layout := uboot.Layout{Redundant: true}
	var env [2]*uboot.Env
	places := v.Places()
	for i, p := range places {
		block, err := durable.ReadRange(v.disk, p.Path, p.Offset, p.Size)
		must(t, err)
		env[i], err = uboot.ParseEnv(block, layout)
		must(t, err)
	}
	newest := uboot.Newest(uboot.Incremental, [2]byte{env[0].Flags, env[1].Flags})
	e, p := env[newest], places[1-newest]
	for name, value := range vars {
		must(t, e.Set(name, value))
	}
	e.Flags++
	block, err := e.Encode(p.Size, layout)
	must(t, err)
	must(t, durable.WriteRange(v.disk, p.Path, p.Offset, block))
}

// TestProbeWithACopyDamaged does not blame the bootloader for a copy that rots.
func TestProbeWithACopyDamaged(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	must(t, markGood(t, v.slots(t)))
	v.cycle(t)
	for i, p := range v.Places() {
		c := v.on(v.disk.Clone())
		must(t, c.disk.Rot(p.Path, p.Offset+50))
		for _, when := range []string{"damaged", "repaired"} {
			r, err := c.slots(t).Probe(t.Context())
			if err != nil || r.State == ota.RollbackBroken {
				t.Errorf("copy %d, %s: got %+v, %v", i, when, r, err)
			}
			must(t, markGood(t, c.slots(t)))
		}
	}
}

func TestSingleCopy(t *testing.T) {
	dir := t.TempDir()
	cfg := uboot.Config{
		Env: []uboot.Place{{Path: filepath.Join(dir, "env"), Size: 512}}, Lock: filepath.Join(dir, "lock"),
		Components: map[string][2]string{"controller": {filepath.Join(dir, "a"), filepath.Join(dir, "b")}},
		Booted:     func(context.Context) (string, string, error) { return "A", "boot 1", nil },
		Log:        slog.New(slog.DiscardHandler),
	}
	if _, err := uboot.Open(cfg); err == nil || !strings.Contains(err.Error(), "AllowSingle") {
		t.Errorf("got %v, want that AllowSingle is needed", err)
	}
	cfg.AllowSingle = true
	s, err := uboot.Open(cfg)
	must(t, err)
	if err := s.MarkGood(t.Context()); err == nil {
		t.Error("mark good without an environment: got no error")
	}
	block, err := factory(t).Encode(512, single)
	must(t, err)
	must(t, durable.WriteFile(durable.OS{}, cfg.Env[0].Path, block, 0o600))
	must(t, s.Try(t.Context(), "B"))
	if all, err := s.All(); err != nil || all["BOOT_ORDER"] != "B A" || all["BOOT_B_LEFT"] != "1" {
		t.Errorf("got %q, %v", all, err)
	}
	if r, err := s.Probe(t.Context()); err != nil || !strings.Contains(r.Why, "single copy") {
		t.Errorf("got %+v, %v, want a word on the single copy", r, err)
	}
}

func TestFlashBlocks(t *testing.T) {
	v := newDevice(t, uboottest.Backend{Medium: uboottest.Flash})
	for _, second := range []int64{1 << 10, 6 << 10} { // in the first block; at no block's begin
		cfg := v.Config(v.boot)
		cfg.Env[1].Offset = second
		s, err := uboot.OpenOn(v.disk, cfg)
		must(t, err)
		if err := s.MarkGood(t.Context()); err == nil || !strings.Contains(err.Error(), "erase block") {
			t.Errorf("second copy at %d: got %v", second, err)
		}
	}
	v.want(t, "refused", "BOOT_A_LEFT=2")
}

// TestBehindCannotBeRead has a bad sector in what shares the erase block with a copy.
// The copy is written all the same, and what can be read is kept.
func TestBehindCannotBeRead(t *testing.T) {
	for i := range 2 {
		v := newDevice(t, uboottest.Backend{Medium: uboottest.Flash})
		p := v.Places()[i]
		bad := p.Offset + p.Size + 2048
		v.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, fmt.Sprintf("erase %s %d+", p.Path, p.Offset)) {
				bad = -1
			}
			return otatest.Fault{}
		}
		v.disk.OnRead = func(_ string, off int64, data []byte) error {
			if off <= bad && bad < off+int64(len(data)) {
				return syscall.EIO
			}
			return nil
		}
		must(t, markGood(t, v.slots(t)))
		v.disk.OnRead = nil
		v.wantTwice(t, "a bad sector behind a copy")
		must(t, v.Untouched(v.disk))
	}
}

func TestConfigErrors(t *testing.T) {
	for want, change := range map[string]func(*uboot.Config){
		"Booted is not set":      func(c *uboot.Config) { c.Booted = nil },
		"slot name":              func(c *uboot.Config) { c.Names = [2]string{"A B", "C"} },
		"both slots are called":  func(c *uboot.Config) { c.Names = [2]string{"A", "A"} },
		"0 places":               func(c *uboot.Config) { c.Env = nil },
		"size 4":                 func(c *uboot.Config) { c.Env[0].Size = 4 },
		"offset -1":              func(c *uboot.Config) { c.Env[0].Offset = -1 },
		"want the same":          func(c *uboot.Config) { c.Env[1].Size++ },
		"overlap":                func(c *uboot.Config) { c.Env[1].Offset = 100 },
		`flags are "x"`:          func(c *uboot.Config) { c.Flags = "x" },
		`scheme "x"`:             func(c *uboot.Config) { c.Scheme = "x" },
		"attempts are":           func(c *uboot.Config) { c.Attempts = 256 },
		"partitions are 3 and 3": func(c *uboot.Config) { c.Scheme, c.Parts = uboot.Mender, [2]int{3, 3} },
		"are both in":            func(c *uboot.Config) { c.Components = map[string][2]string{"x": {"/device/boot", "/b"}} },
		"no components":          func(c *uboot.Config) { c.Components = nil },
	} {
		cfg := uboottest.Backend{}.Config(otatest.Boot{Slot: "A", ID: "1"})
		change(&cfg)
		if _, err := uboot.OpenOn(otatest.NewDisk(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// parted is a fake of a file system whose devices are parts of disks.
type parted struct {
	durable.FS
	parts map[string]durable.Extent
}

func (p parted) Extent(name string) durable.Extent { return p.parts[name] }

// TestPartsOfADisk refuses an environment inside of a slot's partition, and two slots
// in one place, whatever they are called.
func TestPartsOfADisk(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	const mib = 1 << 20
	cfg := v.Config(v.boot)
	disk := v.Places()[0].Path
	cfg.Env = []uboot.Place{{Path: disk, Offset: 4 * mib, Size: 8192}, {Path: disk, Offset: 4*mib + 8192, Size: 8192}}
	slots := cfg.Components["controller"]
	for _, tt := range []struct {
		name, want string
		a, b       durable.Extent
	}{
		{"behind the environment", "", durable.Extent{Disk: "179:0", Start: 5 * mib, Size: mib}, durable.Extent{Disk: "179:0", Start: 6 * mib, Size: mib}},
		{"on another disk", "", durable.Extent{Disk: "8:0", Size: 6 * mib}, durable.Extent{Disk: "179:0", Start: 6 * mib, Size: mib}},
		{"over a copy", "copy 1 of the environment at 0x402000", durable.Extent{Disk: "179:0", Start: 4*mib + 8192, Size: mib}, durable.Extent{Disk: "179:0", Start: 6 * mib, Size: mib}},
		{"the disk itself", "copy 0 of the environment", durable.Extent{Disk: "8:0", Size: mib}, durable.Extent{Disk: "179:0", Size: 64 * mib}},
		{"one in the other", "slot A of component controller", durable.Extent{Disk: "8:0", Size: 8 * mib}, durable.Extent{Disk: "8:0", Start: 4 * mib, Size: mib}},
		{"not known", "", durable.Extent{}, durable.Extent{}},
	} {
		_, err := uboot.OpenOn(parted{v.disk, map[string]durable.Extent{disk: {Disk: "179:0", Size: 64 * mib}, slots[0]: tt.a, slots[1]: tt.b}}, cfg)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "same place")) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestErrorsOfTheKernel(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	lost := errors.New("no such file")
	for _, booted := range []func(context.Context) (string, string, error){
		func(context.Context) (string, string, error) { return "", "", lost },
		func(context.Context) (string, string, error) { return "C", "1", nil },
		func(context.Context) (string, string, error) { return "A", "", nil },
	} {
		cfg := v.Config(v.boot)
		cfg.Booted = booted
		s, err := uboot.OpenOn(v.disk, cfg)
		must(t, err)
		before := v.vars(t)
		for _, a := range acts[1:4] {
			if a.do(t, s) == nil {
				t.Errorf("%s: got no error", a.name)
			}
		}
		if !maps.Equal(before, v.vars(t)) {
			t.Error("something was written")
		}
	}
	if err := v.slots(t).Reboot(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("reboot: got %v", err)
	}
}

// TestLock holds fw_setenv's lock during every access of a change, and waits for
// whoever has it.
func TestLock(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	cfg := v.Config(v.boot)
	cfg.Lock = filepath.Join(t.TempDir(), "lock")
	s, err := uboot.OpenOn(v.disk, cfg)
	must(t, err)
	accesses := 0
	locked := func(what string) {
		accesses++
		if l, err := durable.Lock(cfg.Lock); !errors.Is(err, durable.ErrLocked) {
			t.Errorf("%s without the lock: %v", what, errors.Join(err, l.Close()))
		}
	}
	v.disk.OnEffect = func(_ int, effect string) otatest.Fault { locked(effect); return otatest.Fault{} }
	v.disk.OnRead = func(name string, _ int64, _ []byte) error { locked("read " + name); return nil }
	held, err := durable.Lock(cfg.Lock)
	must(t, err)
	done := make(chan error)
	go func() { done <- s.MarkGood(context.Background()) }()
	must(t, held.Close())
	must(t, <-done)
	if accesses < 8 {
		t.Errorf("got %d accesses, want two reads, two writes and their syncs at least", accesses)
	}
	v.disk.OnEffect, v.disk.OnRead = nil, nil
	if l, err := durable.Lock(cfg.Lock); err != nil {
		t.Errorf("the lock was not let go: %v", err)
	} else {
		l.Close()
	}
}

// TestWornOutBlock has a block of NOR flash that cannot be erased any more, under one
// of the copies. What is marked good boots all the same.
func TestWornOutBlock(t *testing.T) {
	for i := range 2 {
		v := newDevice(t, uboottest.Backend{Medium: uboottest.Flash})
		startTrial(t, v)
		worn := fmt.Sprintf("erase /device/boot %d+", v.Places()[i].Offset)
		v.disk.OnEffect = func(_ int, effect string) otatest.Fault {
			if strings.HasPrefix(effect, worn) {
				return otatest.Fault{Err: syscall.EIO}
			}
			return otatest.Fault{}
		}
		newest := 0
		if c := v.flags(); c[1] == 1 {
			newest = 1
		}
		if err := markGood(t, v.slots(t)); !errors.Is(err, ota.ErrFlashWrite) {
			t.Errorf("copy %d: got %v, want ErrFlashWrite", i, err)
		}
		if i == newest { // the other one has been written, and this one marked
			v.want(t, "marked good", "BOOT_ORDER=B A", "BOOT_B_LEFT=3")
		}
		v.wantForeign(t, worn)
	}
}

// TestTryRefills tries from a slot that has one attempt left.
func TestTryRefills(t *testing.T) {
	v := newDevice(t, uboottest.Backend{})
	must(t, v.slots(t).Set(map[string]string{"BOOT_A_LEFT": "0"}))
	must(t, tryOther(t, v.slots(t)))
	for i, want := range []string{"B", "A", "A"} {
		if slot := v.cycle(t); slot != want {
			t.Fatalf("start %d: got slot %s, want %s", i+1, slot, want)
		}
	}
}

// TestTryAndWrite writes a slot that was to be tried. Then it was not, and the device
// has not come back from it.
func TestTryAndWrite(t *testing.T) {
	for _, b := range backends {
		v := newDevice(t, b.Backend)
		must(t, tryOther(t, v.slots(t)))
		must(t, writeOther(t, v.slots(t)))
		for range 2 {
			got, err := v.slots(t).Booted(t.Context())
			if err != nil || got.Slot != "A" || got.FellBack || got.Trial {
				t.Errorf("%s: got %+v, %v, want slot A and nothing else", b.name, got, err)
			}
			v.cycle(t)
		}
	}
}
