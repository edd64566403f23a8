package overcan_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/otatest"
)

// A tester that never saw the file takes back what another one has pushed, if the manager lets go of it;
// otherwise the device's words say why not. Nothing in this needs the file.
func TestAbort(t *testing.T) {
	release := otatest.NewSigningKey(t).Release(t, "1.1.0", 4096+1234)
	file := bundleFile(t, release)
	for name, tt := range map[string]struct {
		manager error
		takes   time.Duration
		change  func(*site)
		want    error
		text    string
	}{
		"taken back":        {nil, 20 * time.Second, nil, nil, ""},
		"too late":          {fmt.Errorf("withdraw release 1.1.0: %w: the restart into it is under way", ota.ErrBusy), time.Second, nil, push.ErrTooLate, "the restart into it is under way"},
		"the disk is full":  {fmt.Errorf("keep the report: %w", ota.ErrFlashWrite), 0, nil, ota.ErrFlashWrite, "keep the report"},
		"an unknown tester": {nil, 0, func(s *site) { s.source.Testers = s.source.Testers[:0] }, ota.ErrAuthentication, "from nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, release, file, func(s *site) {
					s.source.Withdraw = func(ctx context.Context, digest string) error {
						select {
						case <-time.After(tt.takes):
						case <-ctx.Done():
							return ctx.Err()
						}
						if tt.manager != nil {
							return tt.manager
						}
						return s.inbox.Report(ctx, ota.Report{ID: "1", Digest: digest, Version: "1.1.0", Result: ota.Aborted, Reason: "aborted by a person"})
					}
				})
				if err := push.Run(t.Context(), s.tester(), file, push.Options{StageOnly: true}); err != nil {
					t.Fatal(err)
				}
				if err := s.inbox.Request(); err != nil {
					t.Fatal(err)
				}
				s.set(func(h *api.CheckinRequest) {
					h.Status, h.UpdateDigest, h.Reason = ota.StatusReadyToApply, release.Manifest.Digest, "state of charge 22.0 %"
				})
				time.Sleep(10 * time.Second) // the first tester's session ends
				if tt.change != nil {
					s.stop()
					tt.change(s)
					s.start()
				}
				was, err := push.Withdraw(t.Context(), s.tester(), push.Options{Timeout: 10 * time.Minute})
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) || tt.want == nil && was.Version != "1.1.0" {
					t.Errorf("got %v, %+v, want %v with %q", err, was, tt.want, tt.text)
				}
				if st := s.inbox.State(); (st.Phase == inbox.Ended) != (tt.want == nil) {
					t.Errorf("the inbox has %+v", st)
				}
				if tt.want != nil {
					return
				}
				if _, err := push.Withdraw(t.Context(), s.tester(), push.Options{}); !errors.Is(err, push.ErrNothing) {
					t.Errorf("again: got %v, want %v", err, push.ErrNothing)
				}
			})
		})
	}
}
