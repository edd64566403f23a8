package overcan_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/internal/push/overcan"
	"github.com/interlock-energy/ota/source/can/profile"
)

// reader is a stand-in for a device of which data can be read and nothing else. It counts
// how often each identifier was asked for.
type reader struct {
	data  map[uds.DID][]byte
	asked map[uds.DID]int
}

func (r *reader) EnterSession(context.Context, uds.Call, uds.Session) error { return nil }

func (r *reader) ReadData(_ context.Context, _ uds.Call, did uds.DID) ([]byte, error) {
	r.asked[did]++
	b, ok := r.data[did]
	if !ok {
		return nil, uds.RequestOutOfRange
	}
	return b, nil
}

// TestStatusOfDevices: how an installation goes is asked for once there is one, and of a
// device with older firmware, which does not know, only once.
func TestStatusOfDevices(t *testing.T) {
	course := profile.Course{Progress: 400, Left: 42, Attempt: 2, ImagesDone: 3, ImagesFailed: 4}.Append(nil)
	for name, tt := range map[string]struct {
		state  profile.State
		course []byte // nil: it does not know
		asked  int    // for it, by two questions
		want   push.Status
		err    bool
	}{
		"receiving":             {state: profile.Receiving, course: course, want: push.Status{State: push.Receiving}},
		"installing":            {state: profile.Installing, course: course, asked: 2, want: push.Status{State: push.Installing, Done: 0.4, Left: 42 * time.Second, Attempt: 2, ImagesDone: 3, ImagesFailed: 4}},
		"trial":                 {state: profile.Trial, course: course, asked: 2, want: push.Status{State: push.Trial, Left: 42 * time.Second, Attempt: 2, ImagesDone: 3, ImagesFailed: 4}},
		"more than now":         {state: profile.Trial, course: append(course[:20:20], 1, 2), asked: 2, want: push.Status{State: push.Trial, Left: 42 * time.Second, Attempt: 2, ImagesDone: 3, ImagesFailed: 4}},
		"older":                 {state: profile.Trial, asked: 1, want: push.Status{State: push.Trial}},
		"cut on the way to us?": {state: profile.Trial, course: course[:19], asked: 2, err: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l := new(line)
			device := &reader{asked: map[uds.DID]int{}, data: map[uds.DID][]byte{profile.DIDState: {byte(tt.state)}, profile.DIDResult: {0}, profile.DIDProgress: make([]byte, 16)}}
			if tt.course != nil {
				device.data[profile.DIDCourse] = tt.course
			}
			conn := l.open(false)
			server := &uds.Server{Handler: device, Access: uds.DefaultAccess()}
			go func() { _ = server.Serve(ctx, uds.Tester{Name: "tester", Conn: conn}) }()
			d := over(t, l, overcan.Config{})
			defer d.Close()
			for range 2 {
				got, err := d.Status(ctx)
				if (err != nil) != tt.err || err == nil && got != tt.want {
					t.Errorf("%s: got %+v, %v, want %+v, an error: %v", name, got, err, tt.want, tt.err)
				}
			}
			if got := device.asked[profile.DIDCourse]; got != tt.asked {
				t.Errorf("%s: asked %d times how it goes, want %d", name, got, tt.asked)
			}
		})
	}
}
