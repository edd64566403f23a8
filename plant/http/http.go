// Package http quiesces and resumes a plant that has a controller of its own, by
// asking that over HTTP. It is for the agent beside such a controller.
//
// Start with [New]. Each verb is one POST with a JSON body:
//
//	{"action":"quiesce","device":"bess-17","release":"2.1.0"}
//
// Any 2xx except 202 means done. 202 means that it has begun: the same address is then
// asked with GET until it says 200. Everything else is an error, redirects too. What
// is asked for may be asked for again, so both must be idempotent on the other side,
// and resume without quiesce must change nothing.
package http

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/interlock-energy/ota/plant"
)

var _ plant.Action = (*Controller)(nil)

// Config says whom to ask. Both addresses are needed.
type Config struct {
	Quiesce, Resume string        // addresses, http or https
	Device          string        // for the body
	Release         func() string // version of the release that is being installed; nil or "": unknown
	Token           string        // sent as "Authorization: Bearer"; only over https, or to this machine
	TLS             *tls.Config   // nil: the system's authorities
	Timeout         time.Duration // for each verb, within the caller's; 0: 2 min
	Poll            time.Duration // between two GETs; 0: 1 s
	Progress        func(text string)
}

// Controller is a [plant.Action].
type Controller struct{ cfg Config }

// New checks the configuration. It asks nothing.
func New(cfg Config) (*Controller, error) { return &Controller{cfg}, nil }

// Quiesce implements [plant.Action].
func (c *Controller) Quiesce(ctx context.Context) error { return errors.New("not yet") }

// Resume implements [plant.Action].
func (c *Controller) Resume(ctx context.Context) error { return errors.New("not yet") }
