package awstest

import "time"

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
	Fate      Fate // what became of it
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
	KillBefore               // as CutBefore, and the broker is dead: see Kill
	KillAfter                // as CutAfter, and the broker is dead
)

// Fate is what happens to one message, and after which delay. A delay holds up
// everything behind it in the same direction of the same connection.
type Fate struct {
	Action Action
	Delay  time.Duration
}

// At gives message n (from 1) of a direction a fate; all others are delivered.
// Messages are counted from the first that the returned func sees.
func At(n int, d Direction, a Action) func(Packet) Fate { return nil }

// Seeded loses and doubles messages at random, with the given probabilities (0 to 1),
// the same ones for the same seed and order of messages.
func Seeded(seed uint64, lose, double float64) func(Packet) Fate { return nil }
