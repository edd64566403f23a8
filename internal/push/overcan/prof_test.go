package overcan_test
import ("testing";"testing/synctest";"time";"context";"fmt"
"github.com/interlock-energy/ota/bus/bustest"
"github.com/interlock-energy/ota/otatest")
func TestProf(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 2000)
	file := bundleFile(t, release)
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, release, file, func(s *site) { s.can.Faults = bustest.Faults{Lose:0.1,Seed:2} })
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		b := time.Now()
		s.tell = func(p pdu){ fmt.Println(time.Since(b).Round(time.Millisecond), p) }
		s.stage(ctx)
	})
}
