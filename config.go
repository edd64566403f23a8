package ota

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// SuspendAt is when the application is quiesced.
type SuspendAt int

const (
	// SuspendBeforeRestart quiesces for the restart only. The device works on
	// while it checks, downloads and waits.
	SuspendBeforeRestart SuspendAt = iota
	// SuspendBeforeCheck is the order of the ESP32 library's documentation:
	// everything is suspended from before the check to the restart, or to the end
	// of the attempt.
	SuspendBeforeCheck
)

// Config is what a manager needs to know. Fields without a stated default are
// required.
type Config struct {
	Product  string // manifests for other products are refused
	Hardware string // this unit's revision; default: "", which takes only releases for all revisions
	Version  string // of the firmware that is running now

	// SecurityVersion of the firmware that is running now, default 0. The record
	// can raise it, never lower it.
	SecurityVersion uint64

	Source Source
	Verify Verify
	Slots  Slots
	Gate   Gate
	Store  Store

	// Healthy reports whether the firmware on trial does its work. It is asked
	// once every HealthInterval until it has said yes for ValidationTime without a
	// break, or RollbackTimeout has passed. Nil means that only Confirm marks good.
	Healthy func(context.Context) error

	// SoakTime is how long firmware that was proven and marked good is watched, at work,
	// before the update counts as a success: faults that need a day do not show in a
	// trial of minutes. Only time in which the agent runs counts; a restart loses at
	// most a minute of it, or a hundredth, if that is longer. A return to the previous
	// release is not watched again. Default 0: no soak.
	//
	// Firmware from before this field does not know the state, so it is best switched on
	// one release after the agent that brings it.
	SoakTime time.Duration

	// Symptom reports what speaks against the firmware in the soak; nil is nothing. It is
	// asked once every HealthInterval, one question at a time, each for at most
	// SymptomTime. One that is there for SymptomTime without a break, or no answer for so
	// long, rolls back, with the error's text as the reason and its code, if it has one:
	// after Suspend, or when the gate says yes, and never else. Nil: only an agent that
	// crashes again and again, and a person, roll back.
	Symptom     func(context.Context) error
	SymptomTime time.Duration // default 30 s

	Hooks   Hooks
	Suspend SuspendAt // default: SuspendBeforeRestart

	CheckInterval time.Duration // between checks; 0: never by itself
	StartupDelay  time.Duration // before the check at boot; default 10 s; negative: no check at boot
	Automatic     bool          // install and apply without a person's consent; default false

	NoRollback      bool          // never roll back by itself or on command; default false
	Unprotected     bool          // install although the bootloader was seen not to come back, see [Prober]; default false
	RollbackTimeout time.Duration // for the trial; default 5 min
	ValidationTime  time.Duration // how long the trial must be healthy without a break; default 0: once
	HealthInterval  time.Duration // default 1 s

	GateInterval time.Duration // between questions to a gate that says no; default 1 s
	Retries      int           // of a request that fails, without progress in between; default 3; negative: none
	RetryDelay   time.Duration // between them, give or take a quarter; default 2 s
	StallTimeout time.Duration // a transfer without a byte for so long is broken off; default 120 s
	MaxBackoff   time.Duration // after the retries the attempt pauses, 1 min doubling up to this; default 1 h
	MaxTries     int           // restarts into a new slot that does not stay; default 3

	// VerifyMD5 also checks an image's MD5, where the manifest has one, when the slot
	// is read back. The SHA-256 of the same bytes is always checked and proves more;
	// MD5 doubles the time of reading back. Default false.
	VerifyMD5 bool

	// BuildTime of this software, a lower bound of the time for devices whose
	// clock starts in 1970. Default: none.
	BuildTime time.Time

	Log *slog.Logger // default: slog.Default()
}

func (c *Config) fill() error {
	for _, f := range []struct {
		missing bool
		name    string
	}{
		{c.Source == nil, "Source"}, {c.Verify == nil, "Verify"}, {c.Slots == nil, "Slots"},
		{c.Gate == nil, "Gate"}, {c.Store == nil, "Store"},
	} {
		if f.missing {
			return fmt.Errorf("configure the manager: %s is missing", f.name)
		}
	}
	if err := checkName(c.Product); err != nil {
		return fmt.Errorf("configure the manager: product: %w", err)
	}
	if c.Hardware != "" {
		if err := checkName(c.Hardware); err != nil {
			return fmt.Errorf("configure the manager: hardware: %w", err)
		}
	}
	if err := CheckVersion(c.Version); err != nil {
		return fmt.Errorf("configure the manager: running version: %w", err)
	}
	for _, d := range []struct {
		v           *time.Duration
		byDefault   time.Duration
		name        string
		negativeMay bool
	}{
		{&c.CheckInterval, 0, "CheckInterval", false},
		{&c.StartupDelay, 10 * time.Second, "StartupDelay", true},
		{&c.RollbackTimeout, 5 * time.Minute, "RollbackTimeout", false},
		{&c.ValidationTime, 0, "ValidationTime", false},
		{&c.HealthInterval, time.Second, "HealthInterval", false},
		{&c.SoakTime, 0, "SoakTime", false},
		{&c.SymptomTime, 30 * time.Second, "SymptomTime", false},
		{&c.GateInterval, time.Second, "GateInterval", false},
		{&c.RetryDelay, 2 * time.Second, "RetryDelay", false},
		{&c.StallTimeout, 2 * time.Minute, "StallTimeout", false},
		{&c.MaxBackoff, time.Hour, "MaxBackoff", false},
	} {
		if *d.v < 0 && !d.negativeMay {
			return fmt.Errorf("configure the manager: %s is %v, want 0 or more", d.name, *d.v)
		}
		if *d.v == 0 {
			*d.v = d.byDefault
		}
	}
	if c.ValidationTime >= c.RollbackTimeout {
		return fmt.Errorf("configure the manager: ValidationTime %v is not shorter than RollbackTimeout %v", c.ValidationTime, c.RollbackTimeout)
	}
	if c.Retries == 0 {
		c.Retries = 3
	}
	c.Retries = max(c.Retries, 0)
	if c.MaxTries < 0 {
		return fmt.Errorf("configure the manager: MaxTries is %d, want 0 or more", c.MaxTries)
	}
	if c.MaxTries == 0 {
		c.MaxTries = 3
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Snapshot is what can be told about a device at one moment.
type Snapshot struct {
	Status  Status    `json:"status"`
	Code    ErrorCode `json:"code"`              // why it failed, or why it waits
	Reason  string    `json:"reason,omitempty"`  // the same for people
	Signals []Signal  `json:"signals,omitempty"` // what the gate saw when it last refused
	Causes  []Cause   `json:"causes,omitempty"`  // what it refused for
	State   State     `json:"state"`
	Since   time.Time `json:"since"` // of this status

	Running string  `json:"running"`          // the version that is running
	Latest  string  `json:"latest,omitempty"` // the newest version that the source offered
	Update  *Update `json:"update,omitempty"` // what is being installed, or could be
	Back    bool    `json:"back,omitempty"`   // Update is an asked-for return to the previous release
	Done    int64   `json:"done"`             // bytes of Update verified and written
	Course  Course  `json:"course,omitzero"`  // how Update goes, beyond its bytes
	Last    *Report `json:"last,omitempty"`   // how the last update ended
	Unsent  int     `json:"unsent"`           // reports that the source has not confirmed

	Slot        string    `json:"slot"`               // the slot that is running
	Other       string    `json:"other"`              // the slot that is not
	Previous    string    `json:"previous,omitempty"` // the version in the other slot, if it is whole
	CanRollBack bool      `json:"can_roll_back"`      //
	WhyNot      string    `json:"why_not,omitempty"`  // why it cannot roll back
	Skipped     []Skipped `json:"skipped,omitempty"`

	Bootloader Rollback `json:"bootloader"` // whether this unit comes back by itself
}

// Course is how the update in hand goes, in numbers that bars and countdowns are made of.
// Each is 0 as long as it is not known. Names in its JSON never change.
type Course struct {
	// Try is which try of the update this is, from 1: how often the device was restarted
	// into it, the next restart included while that is still to come. Attempts to fetch are
	// not counted, nor is a restart that was called off.
	Try int `json:"try,omitempty"`

	// SecondsLeft, rounded up, is until the present status is over if nothing changes: the
	// image written at the pace so far, a gate's wait that ends by itself (see
	// [Refusal.Ready]), a trial proven or, while something is wrong with it, given up; the
	// same for a soak and its symptoms. Time that is set does not change it, except for a
	// gate that goes by the clock on the wall.
	SecondsLeft int64 `json:"seconds_left,omitempty"`

	// ImagesDone is how many images of the release, in the manifest's order, were written
	// and read back.
	ImagesDone int `json:"images_done,omitempty"`

	// FailedImage is at which image, from 1 in the manifest's order, the update has just
	// failed, if it was one.
	FailedImage int `json:"failed_image,omitempty"`
}

// Update is a release for people and user interfaces.
type Update struct {
	Version         string      `json:"version"`
	Digest          string      `json:"digest"`
	Notes           string      `json:"notes,omitempty"`
	Size            int64       `json:"size"` // bytes of all images
	Images          []ImageInfo `json:"images"`
	Mandatory       bool        `json:"mandatory"`
	RequiresReboot  bool        `json:"requires_reboot"`
	Limits          Limits      `json:"limits,omitzero"`
	SecurityVersion uint64      `json:"security_version"`
	Created         time.Time   `json:"created"`
	Expires         time.Time   `json:"expires,omitzero"`
}

// ImageInfo is an image without its chunks.
type ImageInfo struct {
	Component string `json:"component"`
	Size      int64  `json:"size"` // bytes
	SHA256    Hash   `json:"sha256"`
	MD5       string `json:"md5,omitempty"`
}

// Info returns what people want to know of m.
func (m *Manifest) Info() *Update {
	u := &Update{Version: m.Version, Digest: m.Digest, Notes: m.Notes, Size: m.Size(), Mandatory: m.Mandatory,
		RequiresReboot: !m.NoReboot, Limits: m.Limits, SecurityVersion: m.SecurityVersion, Created: m.Created, Expires: m.Expires}
	for _, im := range m.Images {
		u.Images = append(u.Images, ImageInfo{im.Component, im.Size, im.SHA256, im.MD5})
	}
	return u
}
