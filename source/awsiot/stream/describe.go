package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/interlock-energy/ota"
)

// describeTries times describeWait is how long Describe waits at most.
const (
	describeTries = 3
	describeWait  = 10 * time.Second
)

// Describe asks what a stream has; of o it needs Thing, Stream and Format. It waits
// up to half a minute for the answer. Errors are as those of the reader of [Open].
func Describe(ctx context.Context, conn Conn, o Options) (Description, error) {
	fail := func(err error) (Description, error) {
		return Description{}, fmt.Errorf("describe stream %.64s: %w", o.Stream, err)
	}
	if err := o.checkNames(); err != nil {
		return Description{}, fmt.Errorf("describe stream: %w: %w", ota.ErrInternal, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan Description, 1)
	refusals := make(chan *Rejected, 1)
	ours := newToken()
	handlers := map[string]func([]byte){
		"description/": func(b []byte) {
			if token, d, err := o.Format.parseDescription(b); err == nil && (token == ours || token == "") {
				offer(answers, d)
			}
		},
		"rejected/": func(b []byte) {
			if token, r, err := o.Format.parseRejected(b); err == nil && (token == ours || token == "") {
				offer(refusals, r)
			}
		},
	}
	for topic, handle := range handlers {
		unsubscribe, err := conn.Subscribe(ctx, o.prefix()+topic+string(o.Format), func(_ string, b []byte) { handle(b) })
		if err != nil {
			return fail(networkError(err))
		}
		defer unsubscribe()
	}
	payload, err := o.Format.encode(describeRequest{Token: ours})
	if err != nil {
		return fail(err)
	}
	last := fmt.Errorf("%w: no answer in %v", ota.ErrConnectivity, describeTries*describeWait)
	for range describeTries {
		if err := conn.Publish(ctx, o.prefix()+"describe/"+string(o.Format), 0, payload); err != nil {
			last = networkError(err)
		}
		timer := time.NewTimer(describeWait)
		select {
		case d := <-answers:
			timer.Stop()
			return d, nil
		case r := <-refusals:
			if !r.passing() {
				timer.Stop()
				return fail(r)
			}
			last = r
			select {
			case <-timer.C:
			case <-ctx.Done():
				return fail(context.Cause(ctx))
			}
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fail(context.Cause(ctx))
		}
	}
	return fail(last)
}

// offer leaves v in c if there is room.
func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}
