// Package watchdog feeds the hardware watchdog of a device: a timer beside the
// processor that restarts it unless somebody says in time that all is well. It is
// for the agent, whose firmware on trial may hang as a whole, kernel and all.
//
// Start with [Open] for the device, and [New] for a [Keeper] that feeds it as long
// as the program says so. The interface of the kernel is that of
// Documentation/watchdog/watchdog-api.rst; it has /dev/watchdog in every Linux.
//
// What is promised: the watchdog is fed only right after the program was asked, and
// has said that it is well. A program that is stuck, killed or gone does not feed,
// and the device restarts at the latest one timeout after it was fed last. The
// watchdog is disarmed only where [Keeper.Stop] or a [Need] says so.
//
// What the hardware decides: how long a timeout it takes, whether it can be
// disarmed at all ("nowayout"), and whether it tells afterwards that it was the
// one who has restarted the device.
package watchdog

import "time"

// Device is an open watchdog. Between its Open and its Close it counts down.
type Device interface {
	// Info says what the driver told when it was opened.
	Info() Info
	// SetTimeout sets the time from one feeding to the restart, in whole seconds
	// (rounded up), and returns what the driver made of it. A driver that cannot change
	// its timeout returns what it is, and no error; 0 is a timeout that it does not tell.
	SetTimeout(time.Duration) (time.Duration, error)
	// Feed begins the time anew.
	Feed() error
	// Close lets go of the device. With disarm the watchdog stops, if the driver can;
	// without, it goes on counting, and restarts the device unless the next one to open
	// it is in time.
	Close(disarm bool) error
}

// Info is what a driver says of a watchdog.
type Info struct {
	Identity string // of the hardware, for people
	// LastReset says whether the watchdog has caused the last restart, for people.
	LastReset string
	// NoWayOut: once opened it can never be disarmed (module parameter nowayout).
	NoWayOut bool
	// Lax: the driver disarms the watchdog at every close, that of a program that was
	// killed too, because it does not know the magic close.
	Lax bool
}

// States of [Status].
const (
	Held     = "held"     // open, and fed
	Starved  = "starved"  // open, and no longer fed: the device is about to restart
	Released = "released" // handed over: somebody else may open it
	Busy     = "busy"     // somebody else has it open, for example systemd
	Missing  = "missing"  // it cannot be opened, or has vanished
)

// Status is what a [Keeper] shows. Its names never change.
type Status struct {
	Device    string        `json:"device"`               // its path
	Identity  string        `json:"identity,omitempty"`   // of the hardware, once it was opened
	Timeout   time.Duration `json:"timeout_ns,omitempty"` // that holds, as the driver says
	State     string        `json:"state"`                // one of the states
	Why       string        `json:"why,omitempty"`        // for people, where the state is not as it should be
	LastReset string        `json:"last_reset,omitempty"` // whether the watchdog has caused the last restart
}

// What drivers tell, from include/uapi/linux/watchdog.h.
const (
	cardReset  = 0x0020 // WDIOF_CARDRESET: the watchdog has reset the processor
	setTimeout = 0x0080 // WDIOF_SETTIMEOUT
	magicClose = 0x0100 // WDIOF_MAGICCLOSE
)

// lastReset says what the boot status means. Most drivers do not tell.
func lastReset(options, bootStatus uint32) string {
	switch {
	case bootStatus&cardReset != 0:
		return "by this watchdog"
	case options&cardReset != 0:
		return "not by this watchdog"
	}
	return "not known: this driver does not tell"
}
