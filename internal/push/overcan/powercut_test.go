package overcan_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/otatest"
)

// At every message of a transfer the agent is killed, or the power of the device goes, with
// all that was not synced kept, lost, or in part. The transfer goes on, and ends with
// the release verified.
func TestPowerCutAtEveryMessage(t *testing.T) {
	release, file, change := small(t)
	for name, end := range map[string]func(p *otatest.Process, seed uint64){
		"killed":     func(p *otatest.Process, _ uint64) { p.Kill() },
		"all kept":   func(p *otatest.Process, seed uint64) { p.PowerOff(otatest.KeepAll, seed) },
		"all lost":   func(p *otatest.Process, seed uint64) { p.PowerOff(otatest.DropAll, seed) },
		"some of it": func(p *otatest.Process, seed uint64) { p.PowerOff(otatest.Subset, seed) },
	} {
		t.Run(name, func(t *testing.T) {
			messages := 0
			for k := int64(0); ; k++ {
				var n atomic.Int64
				synctest.Test(t, func(t *testing.T) {
					disk := otatest.NewDisk()
					process := otatest.NewProcess(disk)
					var node atomic.Pointer[bustest.Node]
					s := newSite(t, release, file, func(s *site) {
						change(s)
						s.box.FS = process
						s.source.Link.Open = func(context.Context) (can.Bus, error) {
							joined := s.bus.Join("device")
							node.Store(joined)
							return joined, nil
						}
					})
					restarted := make(chan struct{})
					s.tell = func(pdu) {
						if n.Add(1) != k+1 {
							return
						}
						end(process, uint64(k))
						if joined := node.Load(); joined != nil { // what is dead does not answer
							joined.Break(errors.New("no power"))
						}
						s.dead = true
						go func() {
							defer close(restarted)
							s.stop()
							disk.PowerOn()
							s.box.FS = otatest.NewProcess(disk)
							time.Sleep(20 * time.Second)
							s.dead = false
							s.start()
						}()
					}
					err := s.stage(t.Context())
					if n.Load() > k {
						<-restarted
						if err == nil {
							err = s.stage(t.Context()) // it may have come after the end
						}
					}
					if err != nil {
						t.Fatalf("message %d: %v", k, err)
					}
					if name == "killed" || name == "all kept" {
						s.installed()
					}
					if got := s.inbox.State(); got.Received != file.Size {
						t.Errorf("got %d bytes, want %d", got.Received, file.Size)
					}
					if t.Failed() {
						t.Fatalf("message %d", k)
					}
				})
				if n.Load() <= k {
					break
				}
				messages++
			}
			if messages < 40 {
				t.Errorf("got %d messages, want at least 40", messages)
			}
		})
	}
}
