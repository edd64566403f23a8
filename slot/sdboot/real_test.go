package sdboot_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/sdboot/sdboottest"
)

const (
	firmware = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	vars     = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	loader   = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	fatAt    = 1 << 20 // where the EFI system partition begins
)

// fakeImage is an EFI application (Microsoft, PE Format) that prints text on the serial
// port, and switches QEMU off.
func fakeImage(text string) []byte {
	b := make([]byte, 1024)
	u16, u32 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32
	copy(b, "MZ")
	u32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00\x64\x86\x01\x00")
	u16(b[0x54:], 240)    // size of the optional header
	u16(b[0x56:], 0x0022) // executable
	h := b[0x58:]
	u16(h, 0x20b)       // PE32+
	u32(h[4:], 512)     // code
	u32(h[16:], 0x1000) // entry point
	u32(h[20:], 0x1000) // base of code
	u32(h[32:], 0x1000) // alignment in memory
	u32(h[36:], 512)    // and in the file
	u32(h[56:], 0x2000) // size of the image
	u32(h[60:], 512)    // and of the headers
	u16(h[68:], 10)     // EFI application
	u32(h[108:], 16)    // directories, all empty
	s := b[0x58+240:]
	copy(s, ".text")
	u32(s[8:], 512)
	u32(s[12:], 0x1000)
	u32(s[16:], 512)
	u32(s[20:], 512)
	u32(s[36:], 0x60000020) // code, executable, readable
	n := copy(b[512:], []byte{
		0x48, 0x8d, 0x35, 20, 0, 0, 0, //  lea rsi, [rip+20]
		0xac, 0x84, 0xc0, 0x74, 0x07, //   next: lodsb; test al, al; jz end
		0x66, 0xba, 0xf8, 0x03, 0xee, //   mov dx, 0x3f8; out dx, al
		0xeb, 0xf4, //                     jmp next
		0x66, 0xba, 0xf4, 0x00, 0xee, //   end: mov dx, 0xf4; out dx, al  isa-debug-exit
		0xf4, 0xeb, 0xfd, //               hlt; jmp -1
	})
	copy(b[512+n:], text)
	return b
}

// realLoader is systemd-boot, to be started in QEMU with UEFI firmware.
type realLoader struct {
	t   *testing.T
	dir string
}

func newRealLoader(t *testing.T) realLoader {
	for _, tool := range []string{"qemu-system-x86_64", "mkfs.vfat", "mcopy", "mmd", "mdir"} {
		otatest.Tool(t, tool)
	}
	for _, file := range []string{firmware, vars, loader} {
		if _, err := os.Stat(file); err != nil {
			if os.Getenv("INTERLOCK_TOOLS") == "1" {
				t.Fatalf("%v: add its package, ovmf or systemd-boot-efi, to the Makefile", err)
			}
			t.Skipf("NOT TESTED: %v; make test installs it", err)
		}
	}
	return realLoader{t, t.TempDir()}
}

func (r realLoader) path(name string) string { return filepath.Join(r.dir, name) }

func (r realLoader) file(name string, content []byte) string {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), content, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return r.path(name)
}

func (r realLoader) run(name string, args ...string) string {
	r.t.Helper()
	out, err := exec.Command(otatest.Tool(r.t, name), args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// start starts systemd-boot with the entries of d, and returns the slot whose image
// ran, the names of entries that are there afterwards, and what was on the screen.
func (r realLoader) start(d *device) (slot string, entries []string, screen string) {
	r.t.Helper()
	fat := r.file("fat", make([]byte, 8<<20))
	r.run("mkfs.vfat", fat)
	r.run("mmd", "-i", fat, "::/EFI", "::/EFI/BOOT", "::/EFI/interlock", "::/loader", "::/loader/entries")
	r.run("mcopy", "-i", fat, loader, "::/EFI/BOOT/BOOTX64.EFI")
	r.run("mcopy", "-i", fat, r.file("loader.conf", []byte("timeout 0\nconsole-mode keep\n")), "::/loader/loader.conf")
	for _, slot := range []string{"A", "B"} {
		r.run("mcopy", "-i", fat, r.file("image", fakeImage("runs slot "+slot)), "::/EFI/interlock/"+strings.ToLower(slot)+".efi")
	}
	files, err := d.disk.ReadDir(sdboottest.Dir)
	d.must(err)
	for _, f := range files {
		r.run("mcopy", "-i", fat, r.file("entry", d.disk.Content(filepath.Join(sdboottest.Dir, f.Name()))), "::/loader/entries/"+f.Name())
	}
	disk := make([]byte, fatAt)
	copy(disk[0x1be:], "\x00\xfe\xff\xff\xef\xfe\xff\xff") // one partition, of type EFI
	binary.LittleEndian.PutUint32(disk[0x1c6:], fatAt/512)
	b, err := os.ReadFile(fat)
	d.must(err)
	binary.LittleEndian.PutUint32(disk[0x1ca:], uint32(len(b)/512))
	copy(disk[0x1fe:], "\x55\xaa")
	whole := r.file("disk", append(disk, b...))
	nv, err := os.ReadFile(vars)
	d.must(err)
	// The exit status says nothing: our image switches off with one that is not 0.
	out, _ := exec.Command(otatest.Tool(r.t, "qemu-system-x86_64"), "-accel", "tcg", "-M", "q35", "-m", "128", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "if=pflash,format=raw,readonly=on,file="+firmware, "-drive", "if=pflash,format=raw,file="+r.file("vars", nv),
		"-drive", "file="+whole+",format=raw,if=virtio").CombinedOutput()
	screen = string(out)
	if _, after, ok := strings.Cut(screen, "runs slot "); ok {
		slot = after[:1]
	}
	for _, name := range strings.Fields(r.run("mdir", "-b", "-i", whole+fmt.Sprint("@@", fatAt), "::/loader/entries")) {
		entries = append(entries, filepath.Base(name))
	}
	slices.Sort(entries)
	return slot, entries, screen
}

// systemd-boot itself must start the slot that the model starts, and leave the names of
// entries as the model leaves them.
func TestRealLoader(t *testing.T) {
	r := newRealLoader(t)
	for _, test := range []struct {
		name    string
		want    string
		prepare func(d *device)
	}{
		{"try, and the left-over of a write", "B", func(d *device) {
			try(d)
			d.write(sdboottest.Dir+"/interlock-a.conf.tmp", "efi /EFI/interlock/a.efi\noptions interlock.slot=A\nversion 9\nsort-key interlock\n")
		}},
		{"trial is used up", "A", func(d *device) { try(d); d.powerOn() }},
		{"try the way back", "A", func(d *device) { try(d); d.powerOn(); markGood(d); d.powerOn(); try(d) }},
		{"version 10 after version 9", "B", func(d *device) {
			for range 8 {
				try(d)
				d.powerOn()
				markGood(d)
			}
			try(d)
		}},
		{"plain and used up", "B", func(d *device) {
			try(d)
			d.powerOn()
			content := string(d.disk.Content(sdboottest.Dir + "/interlock-b+0-1.conf"))
			markGood(d)
			d.write(sdboottest.Dir+"/interlock-b+0-1.conf", content)
		}},
		{"both names after a cut", "B", func(d *device) {
			try(d)
			d.write(sdboottest.Dir+"/interlock-b+0-1.conf", string(d.disk.Content(sdboottest.Dir+"/interlock-b+1.conf")))
		}},
		{"an entry that starts nothing", "A", func(d *device) { d.write(sdboottest.Dir+"/interlock-b.conf", "version 9\nsort-key interlock\n") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := r
			r.t = t
			d := newDevice(t)
			test.prepare(d)
			slot, entries, screen := r.start(d)
			want, err := d.PowerOn(d.disk)
			d.must(err)
			if slot != want || slot != test.want {
				t.Errorf("got slot %q, the model starts %q, want %q; the screen says\n%s", slot, want, test.want, screen)
			}
			files, err := d.disk.ReadDir(sdboottest.Dir)
			d.must(err)
			var names []string
			for _, f := range files {
				names = append(names, f.Name())
			}
			slices.Sort(names)
			if !slices.Equal(entries, names) {
				t.Errorf("got entries %q afterwards, the model leaves %q", entries, names)
			}
		})
	}
}
