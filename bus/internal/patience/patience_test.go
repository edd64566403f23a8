package patience

import (
	"testing"
	"time"
)

const ms = time.Millisecond

func TestTimer(t *testing.T) {
	quick := func(x *Timer) {
		for range 50 {
			x.Took(3 * ms)
		}
	}
	over := func(n int) func(*Timer) {
		return func(x *Timer) {
			for range n {
				x.Over()
			}
		}
	}
	for name, tt := range map[string]struct {
		do   []func(*Timer)
		want time.Duration
	}{
		"nothing known":                          {nil, 1000 * ms},
		"nothing lost":                           {[]func(*Timer){quick}, 1000 * ms},
		"lost, before anything was known":        {[]func(*Timer){over(3)}, 1000 * ms},
		"lost, from a quick peer":                {[]func(*Timer){quick, over(1)}, 100 * ms},
		"twice in a row":                         {[]func(*Timer){quick, over(2)}, 200 * ms},
		"again and again":                        {[]func(*Timer){quick, over(99)}, 1000 * ms},
		"and then it came":                       {[]func(*Timer){quick, over(5), quick}, 100 * ms},
		"one that is as slow as is allowed":      {[]func(*Timer){over(1), func(x *Timer) { x.Took(900 * ms) }}, 1000 * ms},
		"it has become slower: at the next time": {[]func(*Timer){quick, over(1), func(x *Timer) { x.Took(90 * ms) }}, 13*ms + 875*time.Microsecond + 4*21*ms + 3*ms},
	} {
		t.Run(name, func(t *testing.T) {
			x := Timer{Most: time.Second, Least: 100 * ms}
			for _, do := range tt.do {
				do(&x)
			}
			if got := x.Now(); (got - tt.want).Abs() > 5*ms {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	fixed := Timer{Most: time.Second}
	quick(&fixed)
	fixed.Over()
	if got := fixed.Now(); got != time.Second {
		t.Errorf("one that does not adapt: got %v, want 1s", got)
	}
}
