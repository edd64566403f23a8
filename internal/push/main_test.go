package push_test

import (
	"testing"

	"github.com/interlock-energy/ota/bus/crash/crashtest"
)

func TestMain(m *testing.M) { crashtest.Main(m) }
