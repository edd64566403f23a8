package image

import (
	"fmt"
	"strings"
)

// ChipID is the kind of chip that an image is for: esp_chip_id_t of
// esp_app_format.h.
type ChipID uint16

// The chips that ESP-IDF knows.
const (
	ESP32    ChipID = 0
	ESP32S2  ChipID = 2
	ESP32C3  ChipID = 5
	ESP32S3  ChipID = 9
	ESP32C2  ChipID = 12
	ESP32C6  ChipID = 13
	ESP32H2  ChipID = 16
	ESP32P4  ChipID = 18
	ESP32C61 ChipID = 20
	ESP32C5  ChipID = 23
	ESP32H21 ChipID = 25
	ESP32H4  ChipID = 28
	ESP32S31 ChipID = 32
)

var chips = []struct {
	id   ChipID
	name string
}{
	{ESP32, "ESP32"}, {ESP32S2, "ESP32-S2"}, {ESP32C3, "ESP32-C3"}, {ESP32S3, "ESP32-S3"}, {ESP32C2, "ESP32-C2"},
	{ESP32C6, "ESP32-C6"}, {ESP32H2, "ESP32-H2"}, {ESP32P4, "ESP32-P4"}, {ESP32C61, "ESP32-C61"}, {ESP32C5, "ESP32-C5"},
	{ESP32H21, "ESP32-H21"}, {ESP32H4, "ESP32-H4"}, {ESP32S31, "ESP32-S31"},
}

// String returns the name as the vendor writes it, such as "ESP32-S3".
func (c ChipID) String() string {
	for _, known := range chips {
		if known.id == c {
			return known.name
		}
	}
	return fmt.Sprintf("unknown chip %d", uint16(c))
}

// ParseChip returns the chip of a name such as "ESP32-S3", "esp32s3" or "esp32-s3".
func ParseChip(name string) (ChipID, error) {
	plain := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "") }
	names := make([]string, len(chips))
	for i, known := range chips {
		if plain(known.name) == plain(name) {
			return known.id, nil
		}
		names[i] = known.name
	}
	return 0, fmt.Errorf("no chip is named %q: want one of %s", name, strings.Join(names, ", "))
}

// defaultPage is what a chip maps flash by, in bytes, unless the application's
// descriptor says otherwise.
const defaultPage = 64 << 10

// mapped are the addresses at which a chip sees its flash: SOC_DROM_LOW to
// SOC_DROM_HIGH and SOC_IROM_LOW to SOC_IROM_HIGH of its soc.h.
var mapped = map[ChipID][][2]uint32{
	ESP32:    {{0x3F400000, 0x3F800000}, {0x400D0000, 0x40400000}},
	ESP32S2:  {{0x3F000000, 0x3FF80000}, {0x40080000, 0x40800000}},
	ESP32C3:  {{0x3C000000, 0x3C800000}, {0x42000000, 0x42800000}},
	ESP32S3:  {{0x3C000000, 0x3E000000}, {0x42000000, 0x44000000}},
	ESP32C2:  {{0x3C000000, 0x3C400000}, {0x42000000, 0x42400000}},
	ESP32C6:  {{0x42000000, 0x42800000}},
	ESP32H2:  {{0x42000000, 0x42800000}},
	ESP32P4:  {{0x40000000, 0x44000000}},
	ESP32C61: {{0x42000000, 0x44000000}},
	ESP32C5:  {{0x42000000, 0x44000000}},
}

// maps reports whether the chip sees its flash at an address. For a chip whose
// addresses are not known here it is false.
func (c ChipID) maps(addr uint32) bool {
	for _, r := range mapped[c] {
		if addr >= r[0] && addr < r[1] {
			return true
		}
	}
	return false
}

// BootloaderOffset returns where in flash the chip's ROM looks for the
// bootloader (CONFIG_BOOTLOADER_OFFSET_IN_FLASH of ESP-IDF), and false for a chip
// that is not known here.
func (c ChipID) BootloaderOffset() (offset uint32, ok bool) {
	switch c {
	case ESP32, ESP32S2:
		return 0x1000, true
	case ESP32P4, ESP32C5, ESP32H4, ESP32S31:
		return 0x2000, true
	case ESP32S3, ESP32C2, ESP32C3, ESP32C6, ESP32C61, ESP32H2, ESP32H21:
		return 0, true
	}
	return 0, false
}

// MarshalText returns the name, for JSON.
func (c ChipID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a name as [ParseChip] does.
func (c *ChipID) UnmarshalText(b []byte) (err error) {
	*c, err = ParseChip(string(b))
	return err
}
