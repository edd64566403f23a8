package tryboot_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/tryboot"
	"github.com/interlock-energy/ota/slot/tryboot/tryboottest"
)

// pi is a device on a disk, with the firmware of the model.
type pi struct {
	t     *testing.T
	d     *otatest.Disk
	b     tryboottest.Backend
	boot  otatest.Boot
	boots int
	slots ota.Slots
}

func newPi(t *testing.T) *pi {
	t.Helper()
	p := &pi{t: t, d: otatest.NewDisk()}
	if err := p.b.Format(p.d, []byte("what the factory wrote")); err != nil {
		t.Fatal(err)
	}
	p.powerOn()
	return p
}

func (p *pi) powerOn() {
	p.t.Helper()
	slot, err := p.b.PowerOn(p.d)
	if err != nil {
		p.t.Fatal(err)
	}
	p.boots++
	p.boot = otatest.Boot{Slot: slot, ID: fmt.Sprint("boot ", p.boots)}
	p.open()
}

func (p *pi) open() {
	p.t.Helper()
	var err error
	if p.slots, err = p.b.Slots(p.d, p.boot, func(context.Context) error { return nil }); err != nil {
		p.t.Fatal(err)
	}
}

// restart is a warm one, through Reboot.
func (p *pi) restart(rest otatest.Rest) {
	p.t.Helper()
	if err := p.slots.Reboot(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	handover := p.d.Handover
	p.d.PowerOff(rest, 1)
	p.d.PowerOn()
	p.d.Handover = handover
	p.powerOn()
}

// powerCut takes the flag with it.
func (p *pi) powerCut() {
	p.t.Helper()
	p.d.PowerOff(otatest.DropAll, 1)
	p.d.PowerOn()
	p.powerOn()
}

func (p *pi) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pi) try(slot string) { p.t.Helper(); p.must(p.slots.Try(p.t.Context(), slot)) }
func (p *pi) markGood()       { p.t.Helper(); p.must(p.slots.MarkGood(p.t.Context())) }

// fill puts something into the other slot, so that it can be booted.
func (p *pi) fill() {
	p.t.Helper()
	b, err := p.slots.Booted(p.t.Context())
	p.must(err)
	s, err := p.slots.Open(p.t.Context(), "controller", b.Other)
	p.must(err)
	_, err = s.WriteAt([]byte("another image"), 0)
	p.must(errors.Join(err, s.Sync(13), s.Close()))
}

func (p *pi) want(slot string, trial bool) {
	p.t.Helper()
	b, err := p.slots.Booted(p.t.Context())
	if b.Slot != slot || b.Trial != trial || b.FellBack || err != nil {
		p.t.Fatalf("got %+v, %v, want slot %s, trial %v", b, err, slot, trial)
	}
}

func (p *pi) wantProbe(state ota.RollbackState, why string) {
	p.t.Helper()
	got, err := p.slots.(ota.Prober).Probe(p.t.Context())
	if got.State != state || !strings.Contains(got.Why, why) || err != nil {
		p.t.Errorf("got %s (%s), %v, want %s (%s)", got.State, got.Why, err, state, why)
	}
}

// write replaces autoboot.txt by hand.
func (p *pi) write(text string) {
	p.t.Helper()
	p.must(durable.WriteFile(p.d, tryboottest.Autoboot, []byte(text), 0o644))
}

func (p *pi) text() string { return string(p.d.Content(tryboottest.Autoboot)) }

func TestSlots(t *testing.T) {
	for _, rest := range []otatest.Rest{otatest.KeepAll, otatest.DropAll, otatest.Subset} {
		t.Run(fmt.Sprint("disk that loses power, ", rest), func(t *testing.T) {
			otatest.TestSlots(t, func(t *testing.T) otatest.SlotsUnderTest {
				p := newPi(t)
				return otatest.SlotsUnderTest{Slots: p.slots, TellsTrial: true,
					PowerCycle: func() (ota.Slots, error) { p.restart(rest); return p.slots, nil },
					Reopen:     func() (ota.Slots, error) { p.d.Kill(); p.open(); return p.slots, nil }}
			})
		})
	}
	t.Run("real files", func(t *testing.T) {
		otatest.TestSlots(t, realPi)
	})
}

// realPi has its slots, autoboot.txt and a device tree in files of this machine. Its
// firmware reads no more than the two lines that count.
func realPi(t *testing.T) otatest.SlotsUnderTest {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("autoboot.txt", []byte(tryboottest.Text))
	boots, arg := 0, ""
	cfg := tryboot.Config{Components: map[string][2]string{"controller": {at("a"), at("b")}}, Autoboot: at("autoboot.txt"), State: at("state"),
		DeviceTree: dir, BootID: func() (string, error) { return fmt.Sprint(boots), nil }, Capacity: 1 << 20,
		Restart: func(_ context.Context, a string) error { arg = a; return nil }}
	var slots *tryboot.Slots
	boot := func() (ota.Slots, error) {
		text, err := os.ReadFile(at("autoboot.txt"))
		if err != nil {
			return nil, err
		}
		parts, flag := strings.Split(string(text), "boot_partition="), byte(0)
		partition := parts[1][0] - '0'
		if arg == "0 tryboot" {
			partition, flag = parts[2][0]-'0', 1
		}
		put("partition", []byte{0, 0, 0, partition})
		put("tryboot", []byte{0, 0, 0, flag})
		boots++
		slots, err = tryboot.Open(cfg)
		return slots, err
	}
	s, err := boot()
	if err != nil {
		t.Fatal(err)
	}
	return otatest.SlotsUnderTest{Slots: s, TellsTrial: true, Cuts: true,
		PowerCycle: func() (ota.Slots, error) {
			if err := slots.Reboot(t.Context()); err != nil {
				return nil, err
			}
			return boot()
		},
		Reopen: func() (ota.Slots, error) { slots, err = tryboot.Open(cfg); return slots, err }}
}

// The firmware's flag is lost with the power, and so is the try.
func TestTryIsForThisBoot(t *testing.T) {
	p := newPi(t)
	p.fill()
	p.try("B")
	p.powerCut()
	p.want("A", false)
	p.restart(otatest.DropAll) // nobody has said it in this boot
	p.want("A", false)
	p.try("B")
	p.restart(otatest.DropAll)
	p.want("B", true)
	p.powerCut()
	p.want("A", false)
}

// A restart whose argument is dropped is no fall: nobody knows of one.
func TestDeafKernel(t *testing.T) {
	p := newPi(t)
	p.b.Deaf = true
	p.open()
	p.fill()
	p.try("B")
	p.restart(otatest.KeepAll)
	p.want("A", false)
	p.wantProbe(ota.RollbackUnknown, "has not tried a slot yet")
}

// The way back from a trial that somebody has stopped needs no word to the firmware.
func TestBackFromTrial(t *testing.T) {
	p := newPi(t)
	p.fill()
	p.try("B")
	p.restart(otatest.DropAll)
	before := p.text()
	p.try("A")
	p.restart(otatest.DropAll)
	p.want("A", false)
	if got := p.text(); got != before {
		t.Errorf("autoboot.txt was written:\n%s", got)
	}
}

func TestMarkGood(t *testing.T) {
	p := newPi(t)
	p.fill()
	p.try("B")
	p.restart(otatest.DropAll)
	p.wantProbe(ota.RollbackProven, "tries slot B now, and boots slot A next")
	p.markGood()
	want := strings.NewReplacer("=2", "=3", "=3", "=2").Replace(tryboottest.Text)
	if got := p.text(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p.open()
	p.wantProbe(ota.RollbackProven, "has tried a slot before")
	p.powerCut()
	p.want("B", false)
	p.wantProbe(ota.RollbackProven, "has tried a slot before")

	p.markGood() // as at each start: nothing to write
	var written []string
	p.d.OnEffect = func(_ int, effect string) otatest.Fault {
		if !strings.HasPrefix(effect, "sync ") {
			written = append(written, effect)
		}
		return otatest.Fault{}
	}
	p.markGood()
	if len(written) > 0 {
		t.Errorf("MarkGood with nothing to do: %q", written)
	}
}

// On trial, the other slot is what boots next.
func TestTrialDoesNotWrite(t *testing.T) {
	p := newPi(t)
	p.fill()
	p.try("B")
	p.restart(otatest.DropAll)
	for _, damage := range []string{"", "gibberish\n"} {
		if damage != "" {
			p.write(damage)
		}
		s, err := p.slots.Open(t.Context(), "controller", "A")
		p.must(err)
		if _, err := s.WriteAt([]byte("x"), 0); !errors.Is(err, ota.ErrFlashWrite) || !strings.Contains(err.Error(), "slot B is on trial") {
			t.Errorf("got %v, want a refusal", err)
		}
	}
	p.want("B", true)
}

// Somebody chose the slot with reboot 3. Before the other is written, it must not be
// the one that boots.
func TestPrepare(t *testing.T) {
	p := newPi(t)
	p.fill()
	p.boot = otatest.Boot{Slot: "B", ID: "by hand"}
	p.open()
	p.wantProbe(ota.RollbackUnknown, "slot B is booted without a try, although slot A is the one that boots")
	s, err := p.slots.Open(t.Context(), "controller", "A")
	p.must(err)
	var order []string
	p.d.OnEffect = func(_ int, effect string) otatest.Fault {
		if what, _, _ := strings.Cut(effect, " 0+"); strings.HasSuffix(what, "autoboot.txt") || strings.HasPrefix(what, "write /dev/") {
			order = append(order, what)
		}
		return otatest.Fault{}
	}
	if _, err := s.WriteAt([]byte("new image"), 0); err != nil {
		t.Fatal(err)
	}
	want := "write /boot/autoboot.txt, sync /boot/autoboot.txt, write /dev/mmcblk0p2"
	if got := strings.Join(order, ", "); !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want it to end with %s", got, want)
	}
	p.d.OnEffect = nil
	p.powerCut()
	p.want("B", false)
}

// What others wrote into the file stays as it is.
func TestKeepsLines(t *testing.T) {
	for _, text := range []string{
		tryboottest.Text,
		strings.ReplaceAll(tryboottest.Text, "\n", "\r\n"),
		"tryboot_a_b=1\nboot_partition=2\n\n[none]\nboot_partition=9\n# the other\n[tryboot]\nother=thing x\nboot_partition=3",
		"[tryboot]\nboot_partition=7\n[all]\nboot_partition=2\ntryboot_a_b=0\ntryboot_a_b=1\n[tryboot]\nboot_partition=3\n",
	} {
		p := newPi(t)
		p.fill()
		p.write(text)
		p.try("B")
		p.restart(otatest.DropAll)
		p.want("B", true)
		p.markGood()
		p.powerCut()
		p.want("B", false)
		i, j := strings.LastIndex(text, "boot_partition=2"), strings.LastIndex(text, "boot_partition=3")
		want := text[:i] + "boot_partition=3" + text[i+16:j] + "boot_partition=2" + text[j+16:]
		if got := p.text(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A file that gives no choice is refused, and repaired from the copy if there is one.
func TestWrongAutoboot(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "tryboot_a_b=1 is missing"},
		{"[all]\ntryboot_a_b=0\nboot_partition=2\n[tryboot]\nboot_partition=3\n", "tryboot_a_b=1 is missing"},
		{"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=2\n", "is 2 in both sections"},
		{"[all]\ntryboot_a_b=1\nboot_partition=2\n", "missing under [tryboot]"},
		{"[tryboot]\nboot_partition=3\n[all]\ntryboot_a_b=1\nboot_partition=2\n", "must come after [all]"},
		{"tryboot_a_b=1\n[tryboot]\nboot_partition=3\n", "missing under [all]"},
		{"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=4\n", "want 2 and 3"},
		{"[all]\ntryboot_a_b=1\nboot_partition=2\n[pi4]\nboot_partition=3\n", "section [pi4] is not known"},
		{"[all]\ntryboot_a_b=1\nboot_partition = 2\n[tryboot]\nboot_partition=3\n", `"boot_partition " is no name`},
		{"[all]\ntryboot_a_b=1\nboot_partition=02\n[tryboot]\nboot_partition=3\n", `"02", want a number`},
		{"\xff\xff\xff\xff", "byte 0 is no text"},
		{tryboottest.Text + strings.Repeat("#", 512), "more than 512 bytes"},
	} {
		p := newPi(t)
		p.fill()
		p.write(tt.text)
		p.wantProbe(ota.RollbackUnknown, tt.want) // the agent that repairs it does not ask again
		if err := p.slots.Try(t.Context(), "B"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: try: got %v, want %s", tt.text, err, tt.want)
		}
		// The first write had the running slot made sure of, which left a copy.
		p.markGood()
		if got := p.text(); got != tryboottest.Text {
			t.Errorf("%q: repaired to %q", tt.text, got)
		}
		// Without the copy, nothing is written that would be a guess.
		p.write(tt.text)
		p.must(errors.Join(p.d.Remove(tryboottest.State), p.d.SyncDir("/data")))
		p.wantProbe(ota.RollbackBroken, tt.want)
		err := p.slots.MarkGood(t.Context())
		if err == nil || !strings.Contains(err.Error(), "write it anew, with boot_partition=2 under [all] and 3 under [tryboot]") || p.text() != tt.text {
			t.Errorf("%q: got %v, and %q", tt.text, err, p.text())
		}
	}
	p := newPi(t)
	p.fill()
	p.must(errors.Join(p.d.Remove(tryboottest.Autoboot), p.d.SyncDir("/boot")))
	p.wantProbe(ota.RollbackUnknown, "no such file")
	p.markGood()
	if got := p.text(); got != tryboottest.Text {
		t.Errorf("a file that is gone was repaired to %q", got)
	}
}

// Firmware that does not say what it has booted is not guessed at.
func TestOldFirmware(t *testing.T) {
	cell := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for _, tt := range []struct {
		tree map[string][]byte
		want string
	}{
		{nil, "older than 2022-10-18"},
		{map[string][]byte{"partition": cell(2)}, "older than 2022-10-18"},
		{map[string][]byte{"partition": cell(0), "tryboot": cell(0)}, "0 means that it does not know"},
		{map[string][]byte{"partition": cell(1), "tryboot": cell(0)}, "partition 1 is booted, want 2 or 3"},
		{map[string][]byte{"partition": {2}, "tryboot": cell(0)}, "has 1 bytes, want 4"},
		{map[string][]byte{"partition": cell(2), "tryboot": make([]byte, 8)}, "more than 4 bytes"},
	} {
		p := newPi(t)
		s, err := tryboot.OpenOn(tryboottest.WithTree{FS: p.d, Answers: tt.tree}, tryboottest.Config("1", nil))
		p.must(err)
		if _, err := s.Booted(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
		p.slots = s
		p.wantProbe(ota.RollbackBroken, tt.want)
		for _, err := range []error{s.MarkGood(t.Context()), s.Try(t.Context(), "B")} {
			if err == nil {
				t.Error("got no error")
			}
		}
	}
}

// A state that is damaged is a wish less. It stands in no restart's way.
func TestStateRots(t *testing.T) {
	for at := int64(0); ; at++ {
		p := newPi(t)
		p.fill()
		p.try("B")
		if p.d.Rot(tryboottest.State, at) != nil {
			if at < 100 {
				t.Fatalf("the state has %d bytes", at)
			}
			return
		}
		p.restart(otatest.DropAll)
		p.want("A", false)
		p.try("B")
		p.restart(otatest.DropAll)
		p.want("B", true)
	}
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

// MarkGood on trial is cut and torn everywhere. Either slot boots then, and the agent
// that starts there makes the file whole again.
func TestMarkGoodCuts(t *testing.T) {
	base := newPi(t)
	base.fill()
	base.try("B")
	base.restart(otatest.DropAll)
	tried := 0
	for at := 1; ; at++ {
		came := false
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, unit := range []int{1, 4, 16, 512, 4096} {
				for seed := range uint64(12) {
					p := *base
					p.t, p.d = t, base.d.Clone()
					p.open()
					cut := otatest.Cut{At: at, How: how, Unit: unit, Rest: otatest.Rest(seed % 3), Seed: seed}
					p.d.Arm(cut)
					if came = cutOff(func() { p.markGood() }); !came {
						continue
					}
					tried++
					p.d.PowerOn()
					p.powerOn()
					slot := p.boot.Slot
					p.markGood()
					if _, err := p.slots.Booted(t.Context()); err != nil {
						t.Fatalf("%v: %v", cut, err)
					}
					p.powerCut()
					p.want(slot, false)
					if got := p.text(); got != tryboottest.Text && got != strings.NewReplacer("=2", "=3", "=3", "=2").Replace(tryboottest.Text) && how != otatest.Torn {
						t.Errorf("%v: got %q", cut, got)
					}
				}
			}
		}
		if !came {
			break
		}
	}
	if tried < 500 {
		t.Errorf("only %d cuts came", tried)
	}
	t.Logf("%d cuts", tried)
}

// A process that is killed leaves what it wrote in the cache, where the next one finds
// it: that is not the medium.
func TestKilledInMarkGood(t *testing.T) {
	base := newPi(t)
	base.fill()
	base.try("B")
	base.restart(otatest.DropAll)
	for at := 1; ; at++ {
		came := false
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			p := *base
			p.t, p.d = t, base.d.Clone()
			p.open()
			// The register survives the agent, and so does what runs.
			p.d.Arm(otatest.Cut{At: at, How: how, Agent: true, Seed: uint64(at)})
			if came = cutOff(func() { p.markGood() }); !came {
				return
			}
			p.d.PowerOn()
			p.open()
			p.markGood()
			p.powerCut()
			if p.boot.Slot != "B" {
				t.Errorf("killed %v effect %d: MarkGood returned nil, and slot %s boots", how, at, p.boot.Slot)
			}
		}
	}
}

// Every effect of a change fails once, and did it or did not: what returned an error is
// done by the next call.
func TestFaults(t *testing.T) {
	for _, did := range []bool{false, true} {
		for at := 1; ; at++ {
			p := newPi(t)
			p.fill()
			p.try("B")
			p.restart(otatest.DropAll)
			p.d.Arm(otatest.Cut{})
			p.d.OnEffect = func(n int, _ string) otatest.Fault {
				if n == at {
					return otatest.Fault{Err: syscall.EIO, Did: did}
				}
				return otatest.Fault{}
			}
			err := p.slots.MarkGood(t.Context())
			if p.d.Effects() < at {
				break
			}
			p.d.OnEffect = nil
			if err != nil && ota.CodeOf(err) != ota.ErrFlashWrite {
				t.Errorf("effect %d: got %v, want ErrFlashWrite", at, err)
			}
			p.markGood()
			p.powerCut()
			p.want("B", false)
		}
	}
}

// A medium that keeps other bytes than it was given is noticed.
func TestReadsBack(t *testing.T) {
	p := newPi(t)
	p.fill()
	p.try("B")
	p.restart(otatest.DropAll)
	written := false
	p.d.OnEffect = func(_ int, effect string) otatest.Fault {
		written = written || strings.HasPrefix(effect, "write "+tryboottest.Autoboot)
		return otatest.Fault{}
	}
	p.d.OnRead = func(name string, _ int64, b []byte) error {
		if written && name == tryboottest.Autoboot && len(b) > 0 {
			b[0] ^= 0x80
		}
		return nil
	}
	if err := p.slots.MarkGood(t.Context()); ota.CodeOf(err) != ota.ErrFlashWrite {
		t.Errorf("got %v, want ErrFlashWrite", err)
	}
}

func TestReadErrors(t *testing.T) {
	p := newPi(t)
	p.d.OnRead = func(name string, _ int64, _ []byte) error {
		if name == tryboottest.Autoboot || name == tryboottest.State {
			return syscall.EIO
		}
		return nil
	}
	p.want("A", false)
	p.wantProbe(ota.RollbackBroken, "input/output error")
	if err := p.slots.MarkGood(t.Context()); err == nil {
		t.Error("mark good: got no error")
	}
	if err := p.slots.Reboot(t.Context()); err != nil {
		t.Errorf("restart: got %v, want that it restarts", err)
	}
}

func TestConfig(t *testing.T) {
	good := tryboottest.Config("1", nil)
	for _, tt := range []struct {
		change func(*tryboot.Config)
		want   string
	}{
		{func(c *tryboot.Config) { c.Autoboot = "" }, "the place of autoboot.txt is not given"},
		{func(c *tryboot.Config) { c.State = "" }, "no state file is given"},
		{func(c *tryboot.Config) { c.State = c.Autoboot }, "both in /boot/autoboot.txt"},
		{func(c *tryboot.Config) { c.BootID = nil }, "nobody says the id of the boot"},
		{func(c *tryboot.Config) { c.Partitions = [2]int{2, 2} }, "partitions are 2 and 2"},
		{func(c *tryboot.Config) { c.Partitions = [2]int{1, 2} }, "partitions are 1 and 2"},
		{func(c *tryboot.Config) { c.Partitions = [2]int{2, 63} }, "partitions are 2 and 63"},
		{func(c *tryboot.Config) { c.Components = nil }, "no components are given"},
		{func(c *tryboot.Config) { c.Components = map[string][2]string{"boot": {"/dev/a", c.Autoboot}} }, "autoboot.txt"},
	} {
		c := good
		tt.change(&c)
		if _, err := tryboot.OpenOn(otatest.NewDisk(), c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	s, err := tryboot.OpenOn(otatest.NewDisk(), good)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reboot(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported without Config.Restart", err)
	}
}

// A few of every way to cut, over whole updates. An image that does not come up is lost,
// and not failed: the firmware leaves no trace of the try.
func TestCuts(t *testing.T) {
	for _, sc := range otatest.Scenarios(2) {
		t.Run(strings.ReplaceAll(sc.Name, " ", "_"), func(t *testing.T) {
			if sc.Name == "image does not start" {
				sc.Results = []ota.Result{ota.Lost}
			}
			synctest.Test(t, func(t *testing.T) {
				tally := otatest.Cuts(tryboottest.Backend{}, sc, otatest.Options{Step: 23, Second: 997})
				for _, f := range tally.Failures {
					if rotten(f.Cuts) {
						continue
					}
					t.Error(f)
				}
				if tally.Cuts < tally.Effects/2 || tally.Effects < 20 {
					t.Errorf("%d cuts of %d effects: the harness has not done its work", tally.Cuts, tally.Effects)
				}
			})
		})
	}
}

// rotten is a bit of autoboot.txt, or of the state, that flips. There is one copy,
// without a checksum, and a 3 is one bit from a 2: the slot before boots then.
func rotten(cuts []otatest.Cut) bool {
	return slices.ContainsFunc(cuts, func(c otatest.Cut) bool { return c.How == otatest.Rotten && c.Where == otatest.InControl })
}
