package otatest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// How says what a cut is, and where in an effect it falls.
type How int

// Hows. The first three take the power, or the process, away. The others are faults
// of the medium, after which everything goes on.
const (
	Before How = iota // the effect does not happen
	After             // it happens, but whoever asked for it does not hear of it
	// Torn: it happens in part. Of a write, some units reach the medium and one
	// holds anything, also in bytes of that unit that were not written to. Of a
	// sync, any part of what was to be synced reaches the medium. Names are
	// changed as a whole or not at all, chance decides.
	Torn
	// Misread: one read fails once. At counts reads.
	Misread
	// BadSector: a read fails, and so does every other one of the sector of 512 bytes
	// in it that chance picks, until somebody writes there. At counts reads. [Cuts]
	// leaves out what is Nowhere.
	BadSector
	// Rotten: before the effect, one bit of what is stored flips, in a place of the
	// kind Where that chance picks, in cache and medium.
	Rotten
)

var hows = [...]string{"before", "after", "torn", "misread", "badsector", "rotten"}

func (h How) String() string { return hows[h] }

// power reports whether h takes the power or the process away.
func (h How) power() bool { return h <= Torn }

// Rest says what a power cut does to what was written but not synced.
type Rest int

// Rests.
const (
	KeepAll Rest = iota // it had reached the medium just in time
	DropAll             // nothing had
	Subset              // some had, in any order: chance decides for every 4 KiB and every name
)

var rests = [...]string{"keep", "drop", "subset"}

func (r Rest) String() string { return rests[r] }

// Where is the kind of a place in which a bit may rot.
type Where int

// Wheres.
const (
	Nowhere Where = iota // where no second copy of anything can help
	InRecord
	InControl // of the bootloader
	InSlot    // in the image that is not running yet
)

var wheres = [...]string{"nowhere", "record", "control", "slot"}

func (w Where) String() string { return wheres[w] }

// A Cut is one fault: a loss of power, an end of the process, or a medium that does
// not give back what was stored.
type Cut struct {
	At    int    // the effect, or the read, counted from 1 after Arm; 0: none
	How   How    //
	Rest  Rest   // of a power cut; without meaning for Agent
	Unit  int    // Torn: bytes that the medium writes at once, 1 to 4096; default 512
	Where Where  // Rotten: in what
	Seed  uint64 // decides wherever chance does; the same seed decides the same

	// Agent says that only the process ends, killed. The page cache survives, and
	// Torn writes a part without damage.
	Agent bool
}

// String returns the cut in the form that [ParseCuts] reads: the count of the effect
// or read, how, what happens to the rest, the unit and the seed.
func (c Cut) String() string {
	rest := c.Rest.String()
	switch {
	case c.How == Rotten:
		rest = c.Where.String()
	case !c.How.power():
		rest = "-"
	case c.Agent:
		rest = "killed"
	}
	return fmt.Sprintf("%d:%s:%s:%d:%d", c.At, c.How, rest, c.Unit, c.Seed)
}

// ParseCuts reads cuts that are joined by commas.
func ParseCuts(s string) (cuts []Cut, err error) {
	for s := range strings.SplitSeq(s, ",") {
		c, err := parseCut(strings.Split(s, ":"))
		if err != nil {
			return nil, fmt.Errorf("read cut %q, want a form like 12:torn:drop:512:7: %w", s, err)
		}
		cuts = append(cuts, c)
	}
	return cuts, nil
}

func parseCut(f []string) (c Cut, err error) {
	if len(f) != 5 {
		return c, fmt.Errorf("it has %d parts of 5", len(f))
	}
	if c.How = How(slices.Index(hows[:], f[1])); c.How < 0 {
		return c, fmt.Errorf("how is %q, want one of %q", f[1], hows)
	}
	switch {
	case c.How == Rotten:
		if c.Where = Where(slices.Index(wheres[:], f[2])); c.Where < 0 {
			return c, fmt.Errorf("where is %q, want one of %q", f[2], wheres)
		}
	case !c.How.power():
	case f[2] == "killed":
		c.Agent = true
	default:
		if c.Rest = Rest(slices.Index(rests[:], f[2])); c.Rest < 0 {
			return c, fmt.Errorf("rest is %q, want killed or one of %q", f[2], rests)
		}
	}
	if c.At, err = strconv.Atoi(f[0]); err == nil {
		c.Unit, err = strconv.Atoi(f[3])
	}
	if err == nil {
		c.Seed, err = strconv.ParseUint(f[4], 10, 64)
	}
	return c, err
}

func (c Cut) unit() int {
	if c.Unit <= 0 {
		return 512
	}
	return min(c.Unit, pageSize)
}

func (c Cut) chance() *rand.Rand { return rand.New(rand.NewPCG(c.Seed, uint64(c.At)<<8|uint64(c.How))) }
