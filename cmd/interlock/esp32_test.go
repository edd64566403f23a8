package main

import (
	"crypto"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/image"
	"github.com/interlock-energy/ota/slot/esp32/image/imagetest"
)

// esp32App FILE CHIP VERSION BYTES [KEY.pem] makes an application; of the version
// "bootloader", a bootloader.
func esp32App(ts *testscript.TestScript, neg bool, args []string) {
	chip, err := image.ParseChip(args[1])
	ts.Check(err)
	n, err := strconv.Atoi(args[3])
	ts.Check(err)
	spec := imagetest.Spec{Chip: chip, Project: "bess", Version: args[2], Size: n, Seed: uint64(len(args[2]))}
	b := imagetest.App(spec)
	if args[2] == "bootloader" {
		b = imagetest.Bootloader(spec)
	}
	if len(args) > 4 {
		text, err := os.ReadFile(ts.MkAbs(args[4]))
		ts.Check(err)
		var key crypto.Signer
		key, err = bundle.ParsePrivateKey(text)
		ts.Check(err)
		b, err = image.Sign(b, key)
		ts.Check(err)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// otadata FILE OFFSET SEQUENCE STATE writes an entry into a flash, or into a file of its own.
func otadata(ts *testscript.TestScript, neg bool, args []string) {
	var n [3]uint64
	for i := range n {
		var err error
		n[i], err = strconv.ParseUint(args[i+1], 0, 32)
		ts.Check(err)
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt(esp32.NewEntry(uint32(n[1]), esp32.State(n[2])).Encode(), int64(n[0]))
	ts.Check(err)
	ts.Check(f.Close())
}

// erase FILE OFFSET BYTES erases a part of a flash, or makes an erased file.
func erase(ts *testscript.TestScript, neg bool, args []string) {
	at, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xFF
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR|os.O_CREATE, 0o644)
	ts.Check(err)
	_, err = f.WriteAt(b, at)
	ts.Check(err)
	ts.Check(f.Close())
}

// part FILE FLASH OFFSET BYTES cuts a part out of a flash.
func part(ts *testscript.TestScript, neg bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	n, err := strconv.Atoi(args[3])
	ts.Check(err)
	at, err := strconv.Atoi(args[2])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b[at:at+n], 0o644))
}

// put FLASH OFFSET FILE writes a file into a flash.
func put(ts *testscript.TestScript, neg bool, args []string) {
	at, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[2]))
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt(b, at)
	ts.Check(err)
	ts.Check(f.Close())
}

// word FILE OFFSET VALUE writes a number of 32 bits.
func word(ts *testscript.TestScript, neg bool, args []string) {
	at, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	v, err := strconv.ParseUint(args[2], 0, 32)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt(binary.LittleEndian.AppendUint32(nil, uint32(v)), at)
	ts.Check(err)
	ts.Check(f.Close())
}

// nofile PATTERN wants that no file's name is like that.
func nofile(ts *testscript.TestScript, neg bool, args []string) {
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(names) > 0 {
		ts.Fatalf("there are %q", names)
	}
}
