package overcan

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/internal/push"
	"github.com/interlock-energy/ota/source/can/profile"
)

// mostTries is how often a block is sent in a row before the device is asked what it has.
const mostTries = 6

// errSmaller says that smaller blocks would get through, so that there is nothing to wait for.
var errSmaller = errors.New("the line needs smaller blocks")

// one sends a block, again with the same counter if no answer comes, which the device
// answers without taking it twice. A block that does not get through is given up early if
// smaller ones would: the device must be asked then what it has, since the same counter
// with other bytes would be taken for the same block.
func (d *Device) one(ctx context.Context, counter byte, block []byte, offset int64) error {
	pdu := uds.TransferRequest{Counter: counter, Data: block}.Append(nil)
	for try := 1; ; try++ {
		began := time.Now()
		err := d.ask(ctx, fmt.Sprintf("send %d bytes from %d on", len(block), offset), func(c *uds.Client) error {
			answer, err := c.Request(ctx, pdu)
			if err == nil {
				_, err = uds.ParseTransferAnswer(answer)
			}
			return err
		})
		switch {
		case err == nil:
			d.line.through(d.frames(len(block)))
			if d.reach = max(d.reach, 2*len(block)); d.reach >= d.payload() {
				d.reach = 0
			}
			return nil
		case !errors.Is(err, push.ErrLine):
			return err
		}
		d.line.stuck(d.frames(len(block)), time.Since(began))
		d.reach = len(block)
		switch {
		case try == mostTries || d.client == nil || !errors.Is(err, uds.ErrNoAnswer):
			return err
		case !d.exact && d.smaller(len(block)):
			return fmt.Errorf("%w: %w", errSmaller, err)
		}
	}
}

// frames is how many frames carry a block of so many bytes, with flow control and the
// answer.
func (d *Device) frames(block int) int {
	n := block + 2
	if n <= 7 {
		return 1 + 1
	}
	size := int(d.bus.BlockSize)
	if d.bus == (profile.Bus{}) {
		size = usualBlockSize
	}
	consecutive, controls := n/7, 1 // of n-6 bytes, rounded up
	if size > 0 {
		controls = (consecutive + size - 1) / size
	}
	return 1 + consecutive + controls + 1
}

// smallest is what fits a single frame beside service and counter.
const smallest = 5

// sized is how many bytes of the file are in the next block, of which the device takes
// so many at most.
func (d *Device) sized(most int) int {
	most = min(most, d.payload())
	if d.reach > 0 {
		most = min(most, d.reach)
	}
	best, _ := d.best(most)
	return best
}

// smaller says whether it is worth the questions that it takes to go on with smaller
// blocks.
func (d *Device) smaller(block int) bool {
	best, rate := d.best(block)
	return best < block && rate > 1.5*d.rate(block)
}

// best is the size, up to most, with which most bytes get through, and how many in a second.
func (d *Device) best(most int) (size int, rate float64) {
	size, rate = most, d.rate(most)
	// Sizes that fill their frames: six bytes of the message in the first, seven in each
	// of the others.
	for n, consecutive := smallest, 1; n < most; n, consecutive = 6+7*consecutive-2, consecutive+(consecutive+1)/2 {
		if r := d.rate(n); r > 1.02*rate { // otherwise the longer one
			size, rate = n, r
		}
	}
	return size, rate
}

// rate is how many bytes a second are to be expected of blocks of that size.
func (d *Device) rate(block int) float64 {
	// Short blocks escape some of the pauses that the device asks for; it makes up for that
	// before it answers.
	line := min(d.cfg.Line.rate(d.bus, block), d.cfg.Line.rate(d.bus, d.payload()))
	good := time.Duration(float64(block) / line * float64(time.Second))
	p := d.line.likely(d.frames(block))
	bad := good/2 + d.line.lost()
	return float64(block) * p / (p*good.Seconds() + (1-p)*bad.Seconds())
}

// quality is what is known of a line: how likely each part of its frames to be lost is. A
// message is lost with one of its frames, which ISO-TP does not send again, and costs the
// time until that is noticed; so the best length of a message depends on both. What is
// known is the outcome of each attempt, from which Bayes' rule makes weights. The zero
// value is a line of which nothing is known.
type quality struct {
	weights [len(losses)]float64 // that add up to 1; all 0: those of the beginning
	cost    time.Duration        // of an attempt that fails
}

// losses are parts of the frames that lines may lose.
var losses = [...]float64{1e-5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4}

const (
	goodLine  = 0.5   // how likely a line is to lose nothing, before anything is known
	forgets   = 0.002 // of the weights, after each attempt: lines change
	firstLoss = 300 * time.Millisecond
)

// beginning is the weight of losses[i] before anything is known.
func beginning(i int) float64 {
	if i == 0 {
		return goodLine
	}
	return (1 - goodLine) / float64(len(losses)-1)
}

func (q *quality) known() {
	if q.weights == [len(losses)]float64{} {
		for i := range q.weights {
			q.weights[i] = beginning(i)
		}
	}
}

// through notes that a message of so many frames got through.
func (q *quality) through(frames int) {
	q.learn(func(loss float64) float64 { return math.Pow(1-loss, float64(frames)) })
}

// stuck notes that it did not, and how long that took.
func (q *quality) stuck(frames int, took time.Duration) {
	q.cost = q.lost() + (took-q.lost())/4
	q.learn(func(loss float64) float64 { return 1 - math.Pow(1-loss, float64(frames)) })
}

func (q *quality) learn(likely func(loss float64) float64) {
	q.known()
	sum := 0.0
	for i, loss := range losses {
		q.weights[i] *= likely(loss)
		sum += q.weights[i]
	}
	for i := range q.weights {
		q.weights[i] = (1-forgets)*q.weights[i]/sum + forgets*beginning(i)
	}
}

// likely is how likely a message of so many frames is to get through.
func (q *quality) likely(frames int) float64 {
	q.known()
	p := 0.0
	for i, loss := range losses {
		p += q.weights[i] * math.Pow(1-loss, float64(frames))
	}
	return p
}

// lost is what a message that does not get through costs.
func (q *quality) lost() time.Duration {
	if q.cost == 0 {
		return firstLoss
	}
	return q.cost
}
