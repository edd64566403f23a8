package durable

import (
	"os"
	"path/filepath"
	"testing"
)

// TestExtent reads a sysfs as the kernel shows it for a disk with two partitions.
func TestExtent(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"devices/mmcblk0/dev": "179:0\n", "devices/mmcblk0/size": "61071360\n",
		"devices/mmcblk0/mmcblk0p1/partition": "1\n", "devices/mmcblk0/mmcblk0p1/start": "8192\n", "devices/mmcblk0/mmcblk0p1/size": "524288\n",
		"devices/mmcblk0/mmcblk0p2/partition": "2\n", "devices/mmcblk0/mmcblk0p2/start": "532480\n", "devices/mmcblk0/mmcblk0p2/size": "nonsense\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for number, device := range map[string]string{"179:0": "mmcblk0", "179:1": "mmcblk0/mmcblk0p1", "179:2": "mmcblk0/mmcblk0p2"} {
		if err := os.Symlink(filepath.Join(dir, "devices", device), filepath.Join(dir, number)); err != nil {
			t.Fatal(err)
		}
	}
	disk, partition := extent(dir, "179:0"), extent(dir, "179:1")
	if want := (Extent{"179:0", 0, 61071360 * 512}); disk != want {
		t.Errorf("disk: got %+v, want %+v", disk, want)
	}
	if want := (Extent{"179:0", 4 << 20, 256 << 20}); partition != want {
		t.Errorf("partition: got %+v, want %+v", partition, want)
	}
	for _, number := range []string{"179:2", "179:3"} {
		if got := extent(dir, number); got != (Extent{}) {
			t.Errorf("%s: got %+v, want nothing", number, got)
		}
	}
	if got := (OS{}).Extent(dir); got != (Extent{}) {
		t.Errorf("a directory: got %+v, want nothing", got)
	}
	for _, tt := range []struct {
		a    Extent
		want bool
	}{
		{disk, true}, {partition, true}, {Extent{}, false}, {Extent{"179:8", 4 << 20, 1 << 20}, false},
		{Extent{"179:0", 4<<20 - 8192, 8192}, false}, {Extent{"179:0", 4<<20 - 8192, 8193}, true},
		{Extent{"179:0", 260 << 20, 8192}, false}, {Extent{"179:0", 260<<20 - 1, 8192}, true},
	} {
		if got := tt.a.Overlaps(partition); got != tt.want {
			t.Errorf("%+v overlaps the partition: got %v", tt.a, got)
		}
	}
}
