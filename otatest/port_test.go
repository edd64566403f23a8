package otatest_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/interlock-energy/ota/otatest"
)

func TestPorts(t *testing.T) {
	l, err := net.Listen("tcp", otatest.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	nobody := otatest.NobodyAddr(t)
	if c, err := net.Dial("tcp", nobody); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v, want a refusal", c, err)
	}
	if l, err := net.Listen("tcp", nobody); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, %v: somebody can listen there", l, err)
	}
}
