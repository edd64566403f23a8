package grub_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/grub"
	"github.com/interlock-energy/ota/slot/grub/grubtest"
)

// fakeKernel is a kernel in the format that GRUB's linux command takes (Linux,
// Documentation/arch/x86/boot.rst, protocol 2.03). All that it does is to print its
// command line on the serial port, and to switch QEMU off.
func fakeKernel() []byte {
	code := []byte{
		0x8b, 0x9e, 0x28, 0x02, 0, 0, // mov ebx, [esi+0x228]  cmd_line_ptr
		0xba, 0xf8, 0x03, 0, 0, //       mov edx, 0x3f8
		0x8a, 0x03, //             next: mov al, [ebx]
		0x84, 0xc0, 0x74, 0x04, //       test al, al; jz end
		0xee, 0x43, 0xeb, 0xf6, //       out dx, al; inc ebx; jmp next
		0xb0, 0x0a, 0xee, //        end: mov al, '\n'; out dx, al
		0xba, 0xf4, 0, 0, 0, 0xee, //    mov edx, 0xf4; out dx, al  isa-debug-exit
		0xf4, 0xeb, 0xfd, //             hlt; jmp -1
	}
	k := make([]byte, 4096)
	k[0x1f1] = 1                                        // setup_sects
	binary.LittleEndian.PutUint32(k[0x1f4:], 3072/16)   // syssize
	binary.LittleEndian.PutUint16(k[0x1fe:], 0xaa55)    // boot_flag
	copy(k[0x200:], "\xeb\x3aHdrS\x03\x02")             // jump, header, version
	k[0x211] = 1                                        // loadflags: LOADED_HIGH
	binary.LittleEndian.PutUint32(k[0x214:], 0x100000)  // code32_start
	binary.LittleEndian.PutUint32(k[0x22c:], 0x37fffff) // initrd_addr_max
	copy(k[1024:], code)
	return k
}

const fatAt = 1 << 20 // where the boot partition begins

// realGRUB is a disk with GRUB and our script, to be started in QEMU.
type realGRUB struct {
	t    *testing.T
	dir  string
	disk []byte
}

func newRealGRUB(t *testing.T) realGRUB {
	for _, tool := range []string{"qemu-system-x86_64", "grub-mkimage", "mkfs.vfat", "mcopy", "mmd"} {
		otatest.Tool(t, tool)
	}
	const boot = "/usr/lib/grub/i386-pc/boot.img"
	mbr, err := os.ReadFile(boot)
	if err != nil {
		if os.Getenv("INTERLOCK_TOOLS") == "1" {
			t.Fatalf("%v: add the package grub-pc-bin to the Makefile", err)
		}
		t.Skipf("NOT TESTED: %v; make test installs it", err)
	}
	g := realGRUB{t: t, dir: t.TempDir()}
	core := g.path("core.img")
	g.run("grub-mkimage", "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/grub",
		"biosdisk", "part_msdos", "fat", "normal", "configfile", "test", "echo", "loadenv", "linux", "boot", "sleep", "reboot", "serial", "terminal", "minicmd")
	g.file("fat", make([]byte, 4<<20))
	g.run("mkfs.vfat", g.path("fat"))
	g.run("mmd", "-i", g.path("fat"), "::/grub")
	g.file("grub.cfg", []byte(grub.Script))
	g.file("vmlinuz", fakeKernel())
	g.file("initrd", []byte("not looked at"))
	g.run("mcopy", "-i", g.path("fat"), g.path("grub.cfg"), "::/grub/grub.cfg")
	g.run("mcopy", "-i", g.path("fat"), g.path("vmlinuz"), g.path("initrd"), "::/")

	// Sector 0 is boot.img, which loads sector 1, which loads the rest of core.img.
	// The one partition follows. (GRUB, grub-core/boot/i386/pc/boot.S and diskboot.S)
	coreImage := g.read("core.img")
	fat := g.read("fat")
	g.disk = make([]byte, fatAt+len(fat))
	copy(g.disk, mbr)
	binary.LittleEndian.PutUint64(g.disk[0x5c:], 1)
	g.disk[0x64] = 0xff             // the drive that the BIOS names
	copy(g.disk[0x66:], "\x90\x90") // no check for floppies
	clear(g.disk[0x1b8:0x1fe])      // boot.img has code for floppies there
	copy(g.disk[0x1be:], "\x80\xfe\xff\xff\x0c\xfe\xff\xff")
	binary.LittleEndian.PutUint32(g.disk[0x1c6:], fatAt/512)
	binary.LittleEndian.PutUint32(g.disk[0x1ca:], uint32(len(fat)/512))
	copy(g.disk[0x1fe:], "\x55\xaa")
	binary.LittleEndian.PutUint64(coreImage[0x1f4:], 2)
	if len(coreImage) > fatAt-512 {
		t.Fatalf("core.img has %d bytes, want at most %d", len(coreImage), fatAt-512)
	}
	copy(g.disk[512:], coreImage)
	copy(g.disk[fatAt:], fat)
	return g
}

func (g realGRUB) path(name string) string { return filepath.Join(g.dir, name) }

func (g realGRUB) file(name string, content []byte) {
	g.t.Helper()
	if err := os.WriteFile(g.path(name), content, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g realGRUB) read(name string) []byte {
	g.t.Helper()
	b, err := os.ReadFile(g.path(name))
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g realGRUB) run(name string, args ...string) {
	g.t.Helper()
	if out, err := exec.Command(otatest.Tool(g.t, name), args...).CombinedOutput(); err != nil {
		g.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

var slotArg = regexp.MustCompile(`BOOT_IMAGE=/vmlinuz .*interlock\.slot=(\w+)`)

// start starts GRUB with these blocks and device.cfg, and returns the slot whose
// kernel ran, the blocks that GRUB leaves, and what was on the screen.
func (g realGRUB) start(device string, env map[string][]byte) (slot string, after map[string][]byte, screen string) {
	g.t.Helper()
	fat := g.path("disk") + fmt.Sprint("@@", fatAt)
	g.file("disk", g.disk)
	g.file("device.cfg", []byte("serial --unit=0\nterminal_output serial\nset kernel=/vmlinuz\nset initrd=/initrd\nset slot_A=(hd0,msdos1)\nset slot_B=(hd0,msdos1)\n"+device))
	g.run("mcopy", "-i", fat, g.path("device.cfg"), "::/grub/device.cfg")
	for name, b := range env {
		g.file(name, b)
		g.run("mcopy", "-i", fat, g.path(name), "::/grub/"+name)
	}
	// The exit status says nothing: our kernel switches off with one that is not 0.
	out, _ := exec.Command(otatest.Tool(g.t, "qemu-system-x86_64"), "-accel", "tcg", "-M", "pc", "-m", "64", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "file="+g.path("disk")+",format=raw,if=ide").CombinedOutput()
	if m := slotArg.FindSubmatch(out); m != nil {
		slot = string(m[1])
	}
	after = map[string][]byte{}
	for name := range env {
		g.run("mcopy", "-n", "-i", fat, "::/grub/"+name, g.path("after"))
		after[name] = g.read("after")
		os.Remove(g.path("after"))
	}
	return slot, after, string(out)
}

// GRUB itself runs our script, and must start the slot that the model starts, and
// leave the blocks byte by byte as the model leaves them.
func TestRealGRUB(t *testing.T) {
	g := newRealGRUB(t)
	for _, test := range grubStates {
		t.Run(test.name, func(t *testing.T) {
			g := g
			g.t = t
			d := newDevice(t, grubtest.Backend{})
			test.prepare(d)
			env := map[string][]byte{}
			for file, name := range map[string]string{"grubenv": grubtest.Env, "grubenv2": grubtest.Env2} {
				if b := d.disk.Content(name); b != nil {
					env[file] = b
				}
			}
			slot, after, screen := g.start(test.device, env)
			order := grubtest.Script(d.disk)
			want := order[0]
			if strings.Contains(test.device, "slot_"+want) { // it does not load
				want = order[1]
			}
			if slot != want || test.want != "" && slot != test.want {
				t.Errorf("got slot %q, the model starts %q, want %q; GRUB says\n%s", slot, want, test.want, screen)
			}
			for file, b := range after {
				if want := d.disk.Content("/boot/grub/" + file); !bytes.Equal(b, want) {
					t.Errorf("%s: got\n%s\nthe model leaves\n%s", file, b, want)
				}
			}
		})
	}
}

// grubStates are states of a device that GRUB may find.
var grubStates = []struct {
	name    string
	device  string // lines of device.cfg
	want    string // slot; "": as the model says
	prepare func(d *device)
}{
	{"new", "", "A", func(d *device) {}},
	{"try", "", "B", try},
	{"trial is used up", "", "A", func(d *device) { try(d); d.powerOn() }},
	{"fell back and was not marked good", "", "A", func(d *device) { try(d); d.powerOn(); d.powerOn() }},
	{"marked good", "", "B", updated},
	{"B has its last start", "", "B", func(d *device) { updated(d); powerOns(d, 7) }},
	{"B has no starts left", "", "A", func(d *device) { updated(d); powerOns(d, 8) }},
	{"no slot has starts left", "", "B", func(d *device) { updated(d); powerOns(d, 16) }},
	{"A has no starts left, B is half written", "", "A", func(d *device) { half(d); powerOns(d, 7) }},
	{"B is half written and was on trial", "", "A", func(d *device) { try(d); d.powerOn(); d.powerOn(); half(d); powerOns(d, 9) }},
	{"on trial without anything else", "", "B", func(d *device) {
		try(d)
		d.reseal(func(v map[string]string) { v["A_OK"] = "0" })
	}},
	{"kernel on trial does not load", "set slot_B=(hd0,msdos7)\n", "A", try},
	{"good kernel does not load", "set slot_A=(hd0,msdos7)\n", "B", func(d *device) {
		try(d)
		d.powerOn()
		d.must(d.slots().MarkGood(d.t.Context()))
		d.reseal(func(v map[string]string) { v["ORDER"] = "A B" })
	}},
	{"second is newer", "", "B", func(d *device) { older(d, "grubenv", try) }},
	{"first is newer", "", "B", func(d *device) { older(d, "grubenv2", try) }},
	{"second is newer, round the corner", "", "B", func(d *device) { powerOns(d, 1); older(d, "grubenv", try) }},
	{"first is newer, round the corner", "", "B", func(d *device) { powerOns(d, 2); older(d, "grubenv2", try) }},
	{"first has no signature", "", "A", func(d *device) { d.edit(grubtest.Env, func(b []byte) { b[3] ^= 1 }) }},
	{"second has no signature", "", "A", func(d *device) { d.edit(grubtest.Env2, func(b []byte) { b[3] ^= 1 }) }},
	{"first is missing", "", "A", func(d *device) { d.must(d.disk.Remove(grubtest.Env)) }},
	{"second is missing", "", "A", func(d *device) { d.must(d.disk.Remove(grubtest.Env2)) }},
	{"trial, and first without signature", "", "A", func(d *device) { try(d); d.edit(grubtest.Env, func(b []byte) { b[0] ^= 1 }) }},
	{"trial, and second without signature", "", "A", func(d *device) { try(d); d.edit(grubtest.Env2, func(b []byte) { b[0] ^= 1 }) }},
	{"trial, and a wrong seal in first", "", "B", func(d *device) { try(d); d.replace(grubtest.Env, "A_OK=1", "A_OK=0") }},
	{"trial, and a wrong seal in second", "", "B", func(d *device) { try(d); d.replace(grubtest.Env2, "ORDER=B A", "ORDER=A B") }},
	{"wrong number", "", "A", func(d *device) { d.replace(grubtest.Env2, "interlock_seq=2", "interlock_seq=4") }},
	{"both damaged", "", "A", func(d *device) {
		try(d)
		d.replace(grubtest.Env, "A_OK=1", "A_OK=0")
		d.replace(grubtest.Env2, "A_OK=1", "A_OK=0")
	}},
	{"variables of others", "", "B", func(d *device) {
		try(d)
		for _, name := range []string{grubtest.Env, grubtest.Env2} {
			d.replace(name, "ORDER=", "zz=one\\\\two\\\nthree = #\n# remark\nORDER=")
		}
	}},
	{"full", "", "B", func(d *device) {
		try(d)
		for _, name := range []string{grubtest.Env, grubtest.Env2} {
			n := bytes.Count(d.disk.Content(name), []byte("#")) - 1 // but for that of the signature
			d.replace(name, "ORDER=", "zz="+strings.Repeat("x", n-4)+"\nORDER=")
		}
	}},
}

func try(d *device) { d.must(d.slots().Try(d.t.Context(), d.booted().Other)) }

func updated(d *device) {
	try(d)
	d.powerOn()
	d.must(d.slots().MarkGood(d.t.Context()))
}

func powerOns(d *device, n int) {
	for range n {
		d.powerOn()
	}
}

// half writes the beginning of the other slot.
func half(d *device) {
	d.t.Helper()
	sl, err := d.slots().Open(d.t.Context(), "controller", d.booted().Other)
	d.must(err)
	_, err = sl.WriteAt([]byte("half"), 0)
	d.must(err)
	d.must(sl.Close())
}

// older does change, and lets one of the two blocks be as before.
func older(d *device, file string, change func(d *device)) {
	name := "/boot/grub/" + file
	before := d.disk.Content(name)
	change(d)
	d.write(name, before)
}

// edit changes the bytes of a block.
func (d *device) edit(name string, change func(b []byte)) {
	d.t.Helper()
	b := d.disk.Content(name)
	change(b)
	d.write(name, b)
}

// replace changes text in a block, which keeps its length.
func (d *device) replace(name, from, to string) {
	d.t.Helper()
	b := d.disk.Content(name)
	if bytes.Count(b, []byte(from)) != 1 {
		d.t.Fatalf("%s has not exactly one %q:\n%s", name, from, b)
	}
	changed := bytes.Replace(b, []byte(from), []byte(to), 1)
	changed = append(changed, bytes.Repeat([]byte{'#'}, len(b))...)
	if len(bytes.Trim(changed[len(b):], "#")) > 0 {
		d.t.Fatalf("%s does not hold %q", name, to)
	}
	d.write(name, changed[:len(b)])
}

// reseal changes variables of both blocks, and seals them as the package's comment says.
func (d *device) reseal(change func(v map[string]string)) {
	d.t.Helper()
	for _, name := range []string{grubtest.Env, grubtest.Env2} {
		b := string(d.disk.Content(name))
		v := map[string]string{}
		for _, l := range strings.Split(b, "\n") {
			if name, value, ok := strings.Cut(l, "="); ok {
				v[name] = value
			}
		}
		change(v)
		s := v["interlock_seq"]
		v["interlock_begin"] = s
		for _, n := range []string{"ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY", "interlock_trial", "interlock_boot"} {
			v["interlock_begin"] += v[n] + s
		}
		v["interlock_end"] = v["interlock_begin"]
		lines := strings.Split(b, "\n")
		for i, l := range lines {
			if name, _, ok := strings.Cut(l, "="); ok {
				lines[i] = name + "=" + v[name]
			}
		}
		if changed := strings.Join(lines, "\n"); len(changed) != len(b) {
			d.t.Fatalf("got %d bytes, want %d", len(changed), len(b))
		} else if err := durable.WriteRange(d.disk, name, 0, []byte(changed)); err != nil {
			d.t.Fatal(err)
		}
	}
}
