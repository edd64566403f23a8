// Package evidence writes down what happened in each update of a device: who asked,
// what was signed by whom, what the battery was like at each decision, what was
// decided by which limits, and how it ended. It is for whoever has to show
// afterwards that an update was made at a safe moment, or why it was not.
//
// The agent starts with [Open], and calls [Log.Begin], [Log.Write], [Log.Sample]
// and [Log.End]. Readers start with [List], [ReadFile], [Verify] and [VerifyDir].
//
// Every attempt at an update has a file of its own, DIR/TIME-VERSION-ATTEMPT.jsonl,
// which is only ever appended to. A line is a JSON object that holds the SHA-256 of
// the line before it, and the first line of a file that of the last line of the file
// before it; so whoever knows the hash of one line, the head, knows that nothing
// before it was changed, taken out, put in or moved.
//
// What is promised: when [Log.Write] returns nil, the line is on the medium, and no
// power cut takes it away. A line that a power cut tore is cut off when the file is
// opened again, and a line says so; so does one for lines that could not be written.
// What it does not prove: whoever may write the directory can write all of it anew.
// The head must be noted elsewhere for that. docs/evidence.md has the format.
package evidence

import (
	"encoding/json"
	"time"

	"github.com/interlock-energy/ota"
)

// Format is the version of the format of lines, in each file's first.
const Format = 1

// Kind says what a line is about. It is stored, so a value is never renamed.
type Kind string

// Kinds. The type of each kind's fields is in brackets.
const (
	KindOpened     Kind = "opened"     // first line of a file [Opened]
	KindAsked      Kind = "asked"      // somebody gave a command, or nobody had to [Asked]
	KindManifest   Kind = "manifest"   // what is to be installed [Manifest]
	KindGate       Kind = "gate"       // an answer of the gate, or several that are alike [Gate]
	KindThresholds Kind = "thresholds" // the limits on the battery were changed [Thresholds]
	KindQuiesce    Kind = "quiesce"    // the plant is prepared for the restart [Action]
	KindResume     Kind = "resume"     // the opposite [Action]
	KindState      Kind = "state"      // the update goes from one state to the next [State]
	KindRestart    Kind = "restart"    // the device is told to restart [Restart]
	KindBooted     Kind = "booted"     // what runs, after a restart [Booted]
	KindHealth     Kind = "health"     // answers of the health checks [Health]
	KindBootloader Kind = "bootloader" // what the bootloader is told [Bootloader]
	KindGap        Kind = "gap"        // lines that could not be written [Gap]
	KindRecovered  Kind = "recovered"  // a torn line was cut off [Recovered]
	KindResult     Kind = "result"     // how the update ended [Result]
	KindContinued  Kind = "continued"  // last line of a file that grew too large; another goes on [End]
	KindEnd        Kind = "end"        // last line of the attempt [End]
)

// Opened says whose file it is, and what came before.
type Opened struct {
	Format       int    `json:"format"`
	Device       string `json:"device"`
	Product      string `json:"product"`
	Agent        string `json:"agent"` // version of the agent
	Attempt      string `json:"attempt"`
	Version      string `json:"version"`                 // of the release
	Part         int    `json:"part"`                    // 1, 2, ... of the attempt
	Previous     string `json:"previous,omitempty"`      // name of the file before this one; empty: there was none
	PreviousHead string `json:"previous_head,omitempty"` // hash of its last line
	Damaged      string `json:"damaged,omitempty"`       // what was found wrong with an earlier part of this attempt, which is left as it is
}

// Asked is a command, or the rule that takes its place.
type Asked struct {
	For  string    `json:"for"`           // check, install, apply, abort, confirm, rollback; or "consent": to install and apply
	By   string    `json:"by"`            // "control socket", "automatic_update", "mandatory release", or who else
	UID  *uint32   `json:"uid,omitempty"` // of the process at the control socket, as the kernel says
	PID  *int32    `json:"pid,omitempty"`
	User string    `json:"user,omitempty"`
	At   time.Time `json:"at,omitzero"` // when, if that was before the file was opened
}

// Manifest is what is to be installed.
type Manifest struct {
	Digest          string          `json:"digest"` // SHA-256 of the signed manifest
	Version         string          `json:"version"`
	From            string          `json:"from"` // the version that runs
	SecurityVersion uint64          `json:"security_version"`
	Created         time.Time       `json:"created"`
	Expires         time.Time       `json:"expires,omitzero"`
	Mandatory       bool            `json:"mandatory,omitempty"`
	Limits          ota.Limits      `json:"limits,omitzero"`
	Images          []ota.ImageInfo `json:"images"`
	Signers         []string        `json:"signers,omitempty"` // ids of the keys whose signatures held
	Threshold       int             `json:"threshold"`         // how many had to; 0: signatures are not verified here
	Unknown         string          `json:"unknown,omitempty"` // why the signers are not known
	Sources         []string        `json:"sources,omitempty"` // that offered it
	Back            bool            `json:"back,omitempty"`    // the previous release, asked for by a person
}

// Limits are the device's limits on the battery.
type Limits struct {
	MinSoC         float64 `json:"min_soc"`         // %
	MaxTemperature float64 `json:"max_temperature"` // °C
	MinTemperature float64 `json:"min_temperature"` // °C
	MaxCurrent     float64 `json:"max_current"`     // A
	MaxAgeMS       int64   `json:"max_age_ms"`      // of a signal

	// All of them, with the names of bms.Thresholds.
	All json.RawMessage `json:"all,omitempty"`
}

// Signal is what was measured, as it was known at the decision.
type Signal struct {
	Name   string    `json:"name"`
	Value  float64   `json:"value"`
	Unit   string    `json:"unit,omitempty"`
	At     time.Time `json:"at,omitzero"`
	AgeMS  *int64    `json:"age_ms,omitempty"` // at the decision
	Source string    `json:"source,omitempty"`
}

// Beat is a counter that shows that the battery's own system is at work.
type Beat struct {
	Count    uint64 `json:"count"`
	WithinMS int64  `json:"within_ms,omitempty"`
}

// Range is what a signal was within, in answers that are not kept one by one.
type Range struct {
	Name   string  `json:"name"`
	Source string  `json:"source,omitempty"`
	Unit   string  `json:"unit,omitempty"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// Repeat sums up answers that are alike; the line has the last of them.
type Repeat struct {
	Count   int       `json:"count"` // answers, with the last and without those of lines before
	Since   time.Time `json:"since"` // the first of them
	Changes int       `json:"changes,omitempty"`
	Ranges  []Range   `json:"ranges,omitempty"`
}

// Gate is an answer of the gate. A yes is a line of its own, written before anybody
// acts on it, and so is each refusal that is another than the one before.
type Gate struct {
	Moment     ota.Moment  `json:"moment"`
	Yes        bool        `json:"yes"`
	Code       string      `json:"code,omitempty"` // name of the refusal's code
	Reason     string      `json:"reason,omitempty"`
	TookMS     int64       `json:"took_ms"`
	Thresholds *Limits     `json:"thresholds,omitempty"` // of the device; nil: no battery was asked
	Release    *ota.Limits `json:"release,omitempty"`    // of the release
	Battery    string      `json:"battery,omitempty"`    // what the battery's part of the gate said: yes, or why not
	Source     string      `json:"source,omitempty"`     // of the reading
	Valid      bool        `json:"valid,omitempty"`      // the battery's own system vouches for it
	Error      string      `json:"error,omitempty"`      // why there is no reading
	Signals    []Signal    `json:"signals,omitempty"`
	Beat       *Beat       `json:"beat,omitempty"`
	Alarms     []string    `json:"alarms,omitempty"`
	Warnings   []string    `json:"warnings,omitempty"`
	Mode       string      `json:"mode,omitempty"`
	Contactors string      `json:"contactors,omitempty"`
	Control    string      `json:"control,omitempty"`
	Repeat     *Repeat     `json:"repeat,omitempty"`
}

// Thresholds is a change of the device's limits.
type Thresholds struct {
	Old Limits    `json:"old"`
	New Limits    `json:"new"`
	By  Asked     `json:"by"`
	At  time.Time `json:"at,omitzero"` // when, if that was before the file was opened
}

// Action is a step of quiesce or resume.
type Action struct {
	Phase  string `json:"phase"` // begun, step, done, failed
	Step   string `json:"step,omitempty"`
	Error  string `json:"error,omitempty"`
	TookMS int64  `json:"took_ms,omitempty"`
}

// State is a step of the machine. The line is written before the record is saved.
type State struct {
	From   ota.State `json:"from"`
	To     ota.State `json:"to"`
	Reason string    `json:"reason,omitempty"`
	Error  string    `json:"error,omitempty"` // the record could not be saved, and it is not known which of the two it says
}

// Restart is a restart that was asked for.
type Restart struct {
	Slot  string `json:"slot"` // that runs
	Error string `json:"error,omitempty"`
}

// Booted is what runs.
type Booted struct {
	Slot     string `json:"slot"`
	BootID   string `json:"boot_id"`
	Version  string `json:"version"`
	FellBack bool   `json:"fell_back,omitempty"` // the bootloader says that it came back
	Trial    bool   `json:"trial,omitempty"`     // the bootloader says that this slot is tried
}

// Health is an answer of the health checks.
type Health struct {
	OK     bool    `json:"ok"`
	Error  string  `json:"error,omitempty"`
	Checks []Check `json:"checks,omitempty"`
	Repeat *Repeat `json:"repeat,omitempty"`
}

// Check is one health check.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Error  string `json:"error,omitempty"`
	TookMS int64  `json:"took_ms"`
}

// Bootloader is what the bootloader was told: try, or mark good.
type Bootloader struct {
	Do    string `json:"do"` // "try" or "mark good"
	Slot  string `json:"slot"`
	Phase string `json:"phase"` // begun, done, failed
	Error string `json:"error,omitempty"`
}

// Gap says that lines are missing because they could not be written.
type Gap struct {
	Lost  int       `json:"lost"`
	Since time.Time `json:"since"`
	Error string    `json:"error"` // of the first
}

// Recovered says that the end of the file was torn.
type Recovered struct {
	Cut int64 `json:"cut"` // bytes
}

// Result is how the update ended, as the server is told.
type Result struct {
	Report ota.Report `json:"report"`
}

// End is the last line of a file.
type End struct {
	How string `json:"how"` // in short: a result of package ota, or why there is none
}
