package image_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

func TestTableCSV(t *testing.T) {
	const nvs = "nvs,data,nvs,0x9000,0x6000\n"
	part := func(typ, subtype byte, offset, size uint32, label string) image.Partition {
		return image.Partition{Type: typ, Subtype: subtype, Offset: offset, Size: size, Label: label}
	}
	for _, tt := range []struct {
		name, csv string
		want      []image.Partition
	}{
		{"two slots, offsets left out", "\ufeff# Name,   Type, SubType, Offset,  Size, Flags\r\n" +
			"nvs,      data, nvs,     ,        0x4000,\r\n" +
			"\r\n" +
			"otadata,  data, ota,     ,        8K,\r\n" +
			"phy_init, data, phy,     ,        0x1000,,\r\n" +
			"# the application\r\n" +
			"ota_0,    app,  ota_0,   ,        1536K,\r\n" +
			"ota_1,    app,  ota_1,   ,        1M,encrypted, # comment, and more\r\n" +
			"config,   data, nvs,     ,        12k,readonly:encrypted\r\n",
			[]image.Partition{
				part(1, 2, 0x9000, 0x4000, "nvs"), part(1, 0, 0xD000, 0x2000, "otadata"), part(1, 1, 0xF000, 0x1000, "phy_init"),
				part(0, 0x10, 0x10000, 0x180000, "ota_0"), {Type: 0, Subtype: 0x11, Offset: 0x190000, Size: 0x100000, Label: "ota_1", Encrypted: true},
				{Type: 1, Subtype: 2, Offset: 0x290000, Size: 0x3000, Label: "config", Encrypted: true, ReadOnly: true},
			}},
		{"numbers", "a,0x40,0x7,36864,4096\nb,64,8,0xB000,0x10", []image.Partition{part(0x40, 7, 0x9000, 0x1000, "a"), part(0x40, 8, 0xB000, 0x10, "b")}},
		{"names in capitals", "a,APP,Factory,,1M", []image.Partition{part(0, 0, 0x10000, 0x100000, "a")}},
		{"size up to an offset", nvs + "factory,app,factory,,-2M", []image.Partition{part(1, 2, 0x9000, 0x6000, "nvs"), part(0, 0, 0x10000, 0x1F0000, "factory")}},
		{"all subtypes have a number", "a,data,,,4K\nb,data,littlefs,,4K\nc,data,nvs_keys,,4K\nd,app,test,,64K\ne,app,tee_1,,64K\nf,data,tee_ota,,8K",
			[]image.Partition{part(1, 6, 0x9000, 0x1000, "a"), part(1, 0x83, 0xA000, 0x1000, "b"), part(1, 4, 0xB000, 0x1000, "c"),
				part(0, 0x20, 0x10000, 0x10000, "d"), part(0, 0x31, 0x20000, 0x10000, "e"), part(1, 0x90, 0x30000, 0x2000, "f")}},
		{"bootloader and table", "b,bootloader,primary,0x1000,0x7000\nt,partition_table,primary,N/A,N/A\n" + nvs,
			[]image.Partition{part(2, 0, 0x1000, 0x7000, "b"), part(3, 0, 0x8000, 0x1000, "t"), part(1, 2, 0x9000, 0x6000, "nvs")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := image.ParseTableCSV(strings.NewReader(tt.csv), image.TableOffset)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&image.Table{Partitions: tt.want, MD5: true}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTableCSVRefused(t *testing.T) {
	const nvs = "nvs,data,nvs,0x9000,0x6000\n"
	for csv, want := range map[string]string{
		"":                                     "is empty",
		"# nothing\n":                          "is empty",
		nvs + "a,data,phy,0xE000,4K":           "line 2: offset 0xe000 of \"a\" is before 0xf000",
		"a,data,phy,0x8000,4K":                 "line 1: offset 0x8000 of \"a\" is before 0x9000",
		nvs + "nvs,data,phy,,4K":               "labels must differ",
		"a,data,phy,,":                         "\"a\" has no size",
		"a,data,phy":                           "\"a\" has no size",
		"a":                                    "type \"\" is neither app, data",
		"a,firmware,phy,,4K":                   "type \"firmware\" is neither",
		"a,255,0,,4K":                          "type \"255\"",
		"a,-1,0,,4K":                           "type \"-1\"",
		"a,app,,,1M":                           "subtype \"\" is neither",
		"a,app,ota_16,,1M":                     "ota_0 to ota_15",
		"a,app,ota_01,,1M":                     "subtype \"ota_01\"",
		"a,app,nvs,,1M":                        "subtype \"nvs\" is neither a number from 0 to 254 nor one of: factory, test",
		"a,data,256,,4K":                       "subtype \"256\"",
		"a,data,phy,nowhere,4K":                "offset \"nowhere\" is not a number",
		"a,data,phy,,4X":                       "size \"4X\" is not a number",
		"a,data,phy,,010":                      "size \"010\" is not a number",
		"a,data,phy,,K":                        "size \"K\" is not a number",
		"a,data,phy,,0":                        "is in no flash",
		"a,data,phy,,-4K":                      "is in no flash",
		"a,data,phy,-4K,4K":                    "is before",
		"a,data,phy,0xFFFFF000,8K":             "is in no flash",
		"a,data,phy,,9000M":                    "is in no flash",
		"a,data,phy,,4K,secret":                "flag \"secret\" is neither",
		"a,data,phy,,4K,,more":                 "7 columns, want at most 6",
		"a,data,phy,,4K # comment":             "size \"4K # comment\" is not a number",
		"a,data,phy,$BASE,4K":                  "variables are not supported",
		"seventeen bytes..,data,phy,,4K":       "17 bytes, want at most 16",
		"a,app,factory,0x11000,1M":             "at no multiple of 0x10000",
		"otadata,data,ota,0xC000,0x1000":       "must have 0x2000",
		"b,bootloader,primary,N/A,N/A\n" + nvs: "offset \"N/A\" is not a number",
		strings.Repeat("#\n", 40000):           "larger than 65536 bytes",
		strings.Repeat("#", 70000):             "read partition table",
	} {
		got, err := image.ParseTableCSV(strings.NewReader(csv), image.TableOffset)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got %v, %v, want an error with %q", csv, got, err, want)
		}
		if want != "read partition table" && ota.CodeOf(err) != ota.ErrValidation {
			t.Errorf("%.60q: got code %v, want a validation error", csv, ota.CodeOf(err))
		}
	}
	var many strings.Builder
	for i := range 95 {
		fmt.Fprintf(&many, "p%d,0x40,%d,,4K\n", i, i)
	}
	if _, err := image.ParseTableCSV(strings.NewReader(many.String()), image.TableOffset); err == nil || !strings.Contains(err.Error(), "95 partitions are too many") {
		t.Errorf("95 rows: got %v, want that they are too many", err)
	}
	broken := io.MultiReader(strings.NewReader(nvs), iotest.ErrReader(errBroken))
	if _, err := image.ParseTableCSV(broken, image.TableOffset); !errors.Is(err, errBroken) {
		t.Errorf("got %v, want the error of the reader", err)
	}
}

// What Kind prints is what a partitions.csv takes.
func TestKind(t *testing.T) {
	for typ := range byte(0xFF) {
		for subtype := range byte(0xFF) {
			p := image.Partition{Type: typ, Subtype: subtype, Label: "x", Size: 0x2000}
			if p.Type == image.TypePartitionTable && p.Subtype == 0 || p.Type == image.TypeBootloader && p.Subtype == 0 {
				continue
			}
			a, b := p.Kind()
			if p.Type == image.TypeApp && p.Subtype > image.AppOTA0 && p.Subtype < image.AppOTA0+16 {
				continue // not without those before it
			}
			if p.Type == image.TypeData && p.Subtype == image.DataNVS {
				p.Size = 0x3000
			}
			got, err := image.ParseTableCSV(strings.NewReader(fmt.Sprintf("x,%s,%s,,%d", a, b, p.Size)), image.TableOffset)
			if err != nil {
				t.Errorf("%s, %s: %v", a, b, err)
				continue
			}
			if q := got.Partitions[0]; q.Type != typ || q.Subtype != subtype {
				t.Errorf("%s, %s: got %d and %d, want %d and %d", a, b, q.Type, q.Subtype, typ, subtype)
			}
		}
	}
	if _, got := (image.Partition{Subtype: image.AppOTA0 + 12}).Kind(); got != "ota_12" {
		t.Errorf("got %q, want ota_12", got)
	}
}

func ExampleParseTableCSV() {
	table, err := image.ParseTableCSV(strings.NewReader(`
# name,  type, subtype, offset, size
nvs,     data, nvs,     ,       16K
otadata, data, ota,     ,       8K
ota_0,   app,  ota_0,   ,       1M
ota_1,   app,  ota_1,   ,       1M
`), image.TableOffset)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range table.OTA() {
		fmt.Println(p)
	}
	// Output:
	// partition "ota_0" (0x10000 to 0x110000)
	// partition "ota_1" (0x110000 to 0x210000)
}
