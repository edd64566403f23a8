package image

// AppDesc is what an application says of itself: esp_app_desc_t of
// esp_app_desc.h. Without a signature nothing vouches for it.
type AppDesc struct {
	SecureVersion uint32
	Version       string // at most 31 bytes; longer ones were cut by the build
	Project       string
	Date, Time    string // of the build, such as "Mar  1 2026" and "12:00:00"
	IDF           string // version of ESP-IDF
	ELFSHA256     [32]byte
	MinBlockRev   uint16 // of the eFuse block, major*100+minor
	MaxBlockRev   uint16 // 0: no limit
	MMUPageSize   uint32 // bytes
}

// BootloaderDesc is what a bootloader says of itself, since ESP-IDF 5.2:
// esp_bootloader_desc_t of esp_bootloader_desc.h.
type BootloaderDesc struct {
	SecureVersion byte
	Version       uint32
	IDF           string // version of ESP-IDF
	Built         string // date and time
}
