//go:build noaws

package main

import "github.com/interlock-energy/ota/internal/agent"

func newAWS() agent.AWS { return nil }
