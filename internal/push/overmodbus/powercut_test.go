package overmodbus_test

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// At every request of a transfer the agent is killed, or the power of the device goes, with all that was
// not synced kept, lost, or in part. The transfer goes on, and ends with the file. What
// was acknowledged to the master is not sent again after a kill; after a power cut
// what the disk has lost is.
func TestPowerCutAtEveryRequest(t *testing.T) {
	n := requests(t, 0, 4)
	release, f := file(t, 2500)
	for name, end := range map[string]func(p *otatest.Process, seed uint64){
		"killed":     func(p *otatest.Process, _ uint64) { p.Kill() },
		"all kept":   func(p *otatest.Process, seed uint64) { p.PowerOff(otatest.KeepAll, seed) },
		"all lost":   func(p *otatest.Process, seed uint64) { p.PowerOff(otatest.DropAll, seed) },
		"some of it": func(p *otatest.Process, seed uint64) { p.PowerOff(otatest.Subset, seed) },
	} {
		cuts := 0
		for at := range n {
			bubble(t, fmt.Sprintf("%s/%d", name, at), func(t *testing.T) {
				disk := otatest.NewDisk()
				process := otatest.NewProcess(disk)
				restarted := make(chan struct{})
				var g *rig
				g = newRig(t, release, func(r *rig) {
					r.disk = process
					r.faults = bustest.Faults{From: bustest.Master, Exactly: func(rec bustest.Record) bustest.Verdict {
						if rec.N == at {
							end(process, uint64(at))
							go func() {
								defer close(restarted)
								g.halt()
								disk.PowerOn()
								g.disk = otatest.NewProcess(disk)
								<-time.After(3 * time.Second)
								g.start()
							}()
							return bustest.Cut // a device without power does not answer
						}
						return bustest.Pass
					}}
				})
				defer g.end()
				if err := g.persist(f, 4); err != nil {
					t.Fatal(err)
				}
				select {
				case <-restarted:
					cuts++
				case <-time.After(10 * time.Second): // a transfer may take a request less than the first one did
				}
				if err := g.persist(f, 4); err != nil { // it may have come after the end
					t.Fatal(err)
				}
				if name == "killed" || name == "all kept" {
					g.whole(f)
					return
				}
				st, got := g.inbox().State(), make([]byte, f.Size)
				if _, err := g.inbox().ReadAt(got, 0); err != nil && err != io.EOF {
					t.Error(err)
				}
				if st.Phase != inbox.Verified || string(got) != string(release.Bundle) {
					t.Errorf("got the inbox %s with %d bytes, want %s with the file", st.Phase, st.Received, inbox.Verified)
				}
			})
		}
		if cuts < n-3 {
			t.Errorf("%s: came to %d of %d requests", name, cuts, n)
		}
	}
}
