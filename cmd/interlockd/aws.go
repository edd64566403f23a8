//go:build !noaws

package main

import (
	"github.com/interlock-energy/ota/internal/agent"
	"github.com/interlock-energy/ota/internal/agent/amazon"
)

// newAWS is what sources of kind aws_iot and logs.cloudwatch are made with. The build
// tag noaws leaves it out, for devices on which it takes too much room.
func newAWS() agent.AWS { return amazon.AWS{} }
