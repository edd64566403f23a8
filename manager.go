package ota

import (
	"context"
	"errors"
)

// Manager carries one device through its updates. Its methods may be called
// from any goroutine; the work is done by the one in Run.
type Manager struct{ cfg Config }

// New returns a manager. It touches neither slots nor network.
func New(cfg Config) (*Manager, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	return &Manager{cfg: cfg}, nil
}

// Run works until ctx ends or the device restarts.
func (m *Manager) Run(ctx context.Context) error { return errors.New("in work") }

// Snapshot returns what the manager is doing.
func (m *Manager) Snapshot() Snapshot { return Snapshot{} }

// A Call is a command under way. Commands return at once; Wait waits.
type Call struct{}

// Wait returns how the command ended, or ctx's error; the command goes on then.
func (c *Call) Wait(ctx context.Context) error { return nil }

// Check looks for a release now.
func (m *Manager) Check() *Call { return nil }

// Install begins, or allows, the installation of the release that is available, up to READY_TO_APPLY.
func (m *Manager) Install() *Call { return nil }

// Apply allows the restart into the staged release. If the gate says no now,
// Wait returns its refusal, and the restart follows as soon as it says yes.
func (m *Manager) Apply() *Call { return nil }

// Abort gives the update up. It works in every state until the restart.
func (m *Manager) Abort() *Call { return nil }

// Confirm marks the firmware on trial good, whatever Healthy says.
func (m *Manager) Confirm() *Call { return nil }

// RollBack returns to the previous slot: out of a trial at once, otherwise by
// way of gate, restart and trial as for an update.
func (m *Manager) RollBack() *Call { return nil }
