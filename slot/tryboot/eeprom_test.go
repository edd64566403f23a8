package tryboot_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/tryboot"
	"github.com/interlock-energy/ota/slot/tryboot/tryboottest"
)

// fat makes a file system with mkfs.vfat and mtools, with these files in its root.
func fat(t *testing.T, bits string, files ...string) []byte {
	t.Helper()
	mkfs, mcopy := otatest.Tool(t, "mkfs.vfat"), otatest.Tool(t, "mcopy")
	image := filepath.Join(t.TempDir(), "image")
	size := map[string]int64{"12": 1 << 20, "16": 20 << 20, "32": 34 << 20}[bits]
	args := [][]string{{mkfs, "-C", "-F", bits, "-n", "BOOT", image, fmt.Sprint(size >> 10)}}
	for _, name := range files {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, []string{mcopy, "-i", image, path, "::"})
	}
	for _, a := range args {
		if out, err := exec.Command(a[0], a[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", a, err, out)
		}
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tryImage writes image into slot B and tries it, with the boot component known.
func tryImage(t *testing.T, image []byte) error {
	t.Helper()
	p := newPi(t)
	p.d.MkDevice("/dev/mmcblk0p3", int64(max(len(image), 1<<20)))
	cfg := tryboottest.Config("1", nil)
	cfg.BootComponent = "controller"
	s, err := tryboot.OpenOn(tryboottest.On(p.d, "A", false), cfg)
	p.must(err)
	sl, err := s.Open(t.Context(), "controller", "B")
	p.must(err)
	_, err = sl.WriteAt(image, 0)
	p.must(errors.Join(err, sl.Sync(int64(len(image))), sl.Close()))
	return s.Try(t.Context(), "B")
}

func TestEEPROMUpdateIsRefused(t *testing.T) {
	many := []string{"start4.elf", "config.txt", "a name that is longer than eight.txt"}
	for _, bits := range []string{"12", "16", "32"} {
		if err := tryImage(t, fat(t, bits, many...)); err != nil {
			t.Errorf("FAT%s: got %v", bits, err)
		}
		err := tryImage(t, fat(t, bits, append(many, "pieeprom.upd")...))
		if ota.CodeOf(err) != ota.ErrValidation || !strings.Contains(err.Error(), "holds pieeprom.upd") {
			t.Errorf("FAT%s: got %v, want a refusal", bits, err)
		}
	}
	// Beyond the first cluster of a root directory.
	for i := range 60 {
		many = append(many, fmt.Sprintf("file%d.dtb", i))
	}
	if err := tryImage(t, fat(t, "32", append(many, "pieeprom.upd")...)); err == nil || !strings.Contains(err.Error(), "holds pieeprom.upd") {
		t.Errorf("in the second cluster: got %v, want a refusal", err)
	}
}

func TestNoFATIsRefused(t *testing.T) {
	for _, image := range [][]byte{[]byte("x"), bytes.Repeat([]byte{0xff}, 4096), make([]byte, 4096)} {
		if err := tryImage(t, image); err == nil || !strings.Contains(err.Error(), "no FAT file system") {
			t.Errorf("got %v, want a refusal", err)
		}
	}
}
