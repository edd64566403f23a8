package awstest

import (
	"math/rand/v2"
	"time"
)

// Direction is where a message goes.
type Direction int

// Directions.
const (
	ToBroker Direction = iota + 1 // from the device
	ToDevice
)

// Packet is one PUBLISH on the wire between a device and the broker.
type Packet struct {
	Client    string
	Direction Direction
	N         int // of all messages of both directions since the broker's first start, from 1
	Topic     string
	Payload   []byte
	QoS       byte
	Dup       bool
	Fate      Fate // what became of it; in Broker.Log only
}

// Action is what happens to a message.
type Action int

// Actions.
const (
	Deliver    Action = iota // as it should be
	Lose                     // it vanishes, and with it its acknowledgement
	Double                   // it arrives twice
	CutBefore                // the connection ends; it never arrived
	CutAfter                 // it arrived and took effect; the connection ends before the acknowledgement
	KillBefore               // as CutBefore, and the whole broker is dead: see Broker.Kill
	KillAfter                // as CutAfter, and the whole broker is dead
)

// Fate is what happens to one message, and after which delay. A delay holds up
// everything behind it in the same direction of the same connection.
type Fate struct {
	Action Action
	Delay  time.Duration
}

// At gives message n (from 1) of a direction a fate; all others are delivered.
// Messages are counted from the first that the returned func sees.
func At(n int, d Direction, a Action) func(Packet) Fate {
	seen := 0
	return func(p Packet) Fate {
		if p.Direction != d {
			return Fate{}
		}
		if seen++; seen == n {
			return Fate{Action: a}
		}
		return Fate{}
	}
}

// Seeded loses and doubles messages at random, with the given probabilities (0 to 1),
// the same ones for the same seed and order of messages.
func Seeded(seed uint64, lose, double float64) func(Packet) Fate {
	pick := seeded(seed, lose, double)
	return func(Packet) Fate { return Fate{Action: pick()} }
}

// SeededBlocks is Seeded for the blocks of [Streams].
func SeededBlocks(seed uint64, lose, double float64) func(Block) Action {
	pick := seeded(seed, lose, double)
	return func(Block) Action { return pick() }
}

func seeded(seed uint64, lose, double float64) func() Action {
	r := rand.New(rand.NewPCG(seed, 0))
	return func() Action {
		switch x := r.Float64(); {
		case x < lose:
			return Lose
		case x < lose+double:
			return Double
		}
		return Deliver
	}
}
