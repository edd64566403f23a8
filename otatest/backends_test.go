package otatest_test

import (
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/file/filetest"
)

// A backend is a row of the matrix of cuts.
type backend struct {
	name string
	otatest.Backend
}

// backends are all that there are. A new one is a line here.
var backends = []backend{
	{"file", filetest.Backend{}},
}
