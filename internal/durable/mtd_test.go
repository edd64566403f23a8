package durable

import (
	"bytes"
	"os"
	"testing"
)

// TestFlash writes to the raw flash that the environment names, and loses what is on
// it. A machine with the module mtdram has one: modprobe mtdram erase_size=64.
func TestFlash(t *testing.T) {
	name := os.Getenv("INTERLOCK_MTD")
	if name == "" {
		t.Skip("INTERLOCK_MTD names no MTD character device")
	}
	f, err := OS{}.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, ok := f.(Eraser)
	if !ok {
		t.Fatalf("%s is no Eraser", name)
	}
	block := e.EraseSize()
	size, err := f.Size()
	if err != nil || block < 512 || size < 2*block {
		t.Fatalf("got %d bytes in blocks of %d, %v", size, block, err)
	}
	for i := range byte(3) { // every time over what is there
		want := bytes.Repeat([]byte{0x5a + i}, int(block)+100)
		if err := WriteRange(OS{}, name, block, want[:block]); err != nil {
			t.Fatal(err)
		}
		if err := WriteRange(OS{}, name, 0, want[:100]); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadRange(OS{}, name, block, block); err != nil || !bytes.Equal(got, want[:block]) {
			t.Errorf("read back other bytes, %v", err)
		}
		rest, err := ReadRange(OS{}, name, 100, block-100)
		if err != nil || len(bytes.Trim(rest, "\xff")) != 0 {
			t.Errorf("behind what was written: got not erased flash, %v", err)
		}
	}
	if err := e.Erase(1, block); err == nil {
		t.Error("erase at no block's begin: got no error")
	}
	if err := e.Erase(size, block); err == nil {
		t.Error("erase behind the end: got no error")
	}
	if err := SyncFile(OS{}, name); err != nil {
		t.Error(err)
	}
}
