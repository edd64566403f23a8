package esp32_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/esp32test"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// flashImage makes a file with the flash of a new device that runs 1.0.0.
func flashImage(dir string) (path string, err error) {
	table, err := image.ParseTableCSV(strings.NewReader(esp32test.AwsS3Ota), image.TableOffset)
	if err != nil {
		return "", err
	}
	rows, err := table.Encode()
	if err != nil {
		return "", err
	}
	flash := bytes.Repeat([]byte{0xFF}, 4<<20)
	copy(flash[image.TableOffset:], rows)
	copy(flash[0xC000:], esp32.NewEntry(1, esp32.Valid).Encode())
	copy(flash[0x10000:], imagetest.App(imagetest.Spec{Version: "1.0.0", Size: 100_000}))
	path = filepath.Join(dir, "flash.bin")
	return path, os.WriteFile(path, flash, 0o600)
}

// An update by hand, from the first byte to the try.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path, err := flashImage(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	chip := image.ESP32
	cfg := esp32.Config{
		Flash: path, Chip: &chip, Rollback: true,
		Booted: func(context.Context) (slot, id string, err error) { return "app0", "boot 17", nil },
	}
	ctx := context.Background()
	update := func() error {
		slots, err := esp32.Open(cfg)
		if err != nil {
			return err
		}
		boot, err := slots.Booted(ctx)
		if err != nil {
			return err
		}
		slot, err := slots.Open(ctx, "controller", boot.Other)
		if err != nil {
			return err
		}
		defer slot.Close()
		firmware := imagetest.App(imagetest.Spec{Version: "1.0.1", Size: 100_000})
		if _, err := slot.WriteAt(firmware, 0); err != nil {
			return err
		}
		if err := slot.Sync(int64(len(firmware))); err != nil {
			return err
		}
		return slots.Try(ctx, boot.Other)
	}
	if err := update(); err != nil {
		fmt.Println(err)
		return
	}
	f, err := os.Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	state, err := esp32.ReadBoot(f, cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("next: %s, on trial: %v\n", state.Next, state.Trial)
	for i, e := range state.Entries {
		fmt.Printf("entry %d: number %d, %v\n", i, e.Seq, e.State)
	}
	// Output:
	// next: app1, on trial: true
	// entry 0: number 4, NEW
	// entry 1: number 3, VALID
}
