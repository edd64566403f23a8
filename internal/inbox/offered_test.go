package inbox_test

import (
	"errors"
	"testing"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// What is verified waits until somebody asks for it, also over a restart.
func TestNotOfferedUnasked(t *testing.T) {
	disk := otatest.NewDisk()
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 50_000)
	b := open(t, config(disk, rel))
	begin(t, b, offer(rel))
	putAll(t, b, rel.Bundle, 4093)
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	wait(t, b, inbox.Verified)
	for range 2 {
		if _, err := b.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
			t.Errorf("Latest of what nobody asked for: got %v, want %v", err, ota.ErrNoUpdate)
		}
		select {
		case <-b.Wake():
			t.Error("the manager was woken for what nobody asked for")
		default:
		}
		b.Close()
		b = open(t, config(disk, rel))
		wait(t, b, inbox.Verified)
	}
}
