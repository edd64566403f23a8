package ota_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/interlock-energy/ota"

// TestArrows keeps data flowing one way: what each package must not need.
func TestArrows(t *testing.T) {
	aws := []string{"github.com/aws", "github.com/eclipse", "github.com/mochi-mqtt", "github.com/fxamacker", module + "/source/awsiot", module + "/internal/cloudwatch"}
	server := []string{module + "/internal/web", module + "/internal/fleet", module + "/internal/rollout", module + "/internal/blob"}
	for _, c := range []struct {
		of   string   // a pattern of packages
		tags string   // of the build
		not  []string // these, and whatever is below them
		only []string // nothing of ours but these and what is below them; nil: anything
	}{
		{of: ".", not: []string{"net/http", "os/exec", "net"}, only: []string{}},
		{of: "./api", only: []string{""}},
		{of: "./bundle", not: []string{"net/http", "os/exec"}, only: []string{""}},
		{of: "./gate", not: []string{"net/http", "os/exec"}, only: []string{""}},
		{of: "./gate/bms", not: []string{"net/http", "os/exec"}, only: []string{"", "gate"}},
		{of: "./gate/bms/bmssunspec", not: []string{"net/http", "os/exec"}, only: []string{"", "gate/bms", "bus/sunspec"}},
		{of: "./gate/bms/bmscan", not: []string{"net/http", "os/exec"}, only: []string{"", "gate/bms", "bus/can", "bus/can/broadcast", "bus/crash"}},
		{of: "./bus/...", not: []string{"net/http", "os/exec"}, only: []string{}},
		{of: "./slot/...", not: append([]string{"net/http", "os/exec"}, server...)},
		{of: "./source/https", not: append([]string{"os/exec", module + "/slot", module + "/gate", module + "/source/media"}, server...)},
		{of: "./source/media", not: append([]string{"net/http", "os/exec", module + "/slot", module + "/gate", module + "/source/https"}, server...)},
		{of: "./source/awsiot/...", not: append([]string{"os/exec", module + "/slot", module + "/gate", module + "/source/https", module + "/source/media", module + "/internal/agent"}, server...)},
		{of: "./source/modbus/...", not: append([]string{"net/http", "os/exec", module + "/slot", module + "/gate", module + "/internal/agent"}, server...)},
		{of: "./source/can/...", not: append([]string{"net/http", "os/exec", module + "/slot", module + "/gate", module + "/internal/agent"}, server...)},
		{of: "./internal/inbox", not: append([]string{"net/http", "os/exec", module + "/source", module + "/bus/can", module + "/bus/isotp", module + "/bus/modbus", module + "/bus/uds"}, server...)},
		{of: "./internal/inbox/standing", not: []string{"net/http", "os/exec", module + "/source", module + "/bus/can", module + "/bus/isotp", module + "/bus/modbus", module + "/bus/uds", module + "/gate", module + "/internal/agent"}},
		{of: "./internal/push/...", not: append([]string{"net/http", "os/exec", module + "/slot", module + "/gate", module + "/internal/agent", module + "/internal/inbox"}, server...)},
		{of: "./internal/agent", not: append(slices.Clone(aws), server...)},
		{of: "./cmd/interlockd", tags: "noaws", not: aws},
		{of: "./internal/blob", not: aws},
		{of: "./internal/bucket", not: append([]string{module + "/internal/fleet", module + "/internal/web", "database/sql"}, aws...)},
		{of: "./internal/door", not: append([]string{module + "/internal/fleet", module + "/internal/web"}, aws...)},
		{of: "./cmd/interlock-lambda", not: []string{"database/sql", "modernc.org", module + "/internal/fleet", module + "/internal/web", module + "/internal/agent", module + "/source"}},
		{of: "./awstest", not: append([]string{module + "/internal/agent", module + "/source"}, server...)},
		{of: "./plant", not: []string{"net/http", "os/exec", "net"}, only: []string{}},
		{of: "./plant/der", not: []string{"net/http", "os/exec", "net"}, only: []string{"plant", "plant/internal/memory", "bus/sunspec", "internal/durable"}},
		{of: "./plant/modbus", not: []string{"net/http", "os/exec", "net"}, only: []string{"plant", "plant/internal/memory", "internal/durable"}},
		{of: "./plant/http", not: []string{"os/exec"}, only: []string{"plant"}},
		{of: "./cmd/interlockd", not: append([]string{"database/sql", "modernc.org", "github.com/alecthomas"}, server...)},
		{of: "./internal/fleet", not: []string{module + "/internal/web", module + "/internal/agent"}},
	} {
		t.Run(c.of+c.tags, func(t *testing.T) {
			out, err := exec.Command("go", "list", "-deps", "-tags", c.tags, c.of).CombinedOutput()
			if err != nil {
				t.Fatalf("go list: %v\n%s", err, out)
			}
			deps := strings.Fields(string(out))
			self, err := exec.Command("go", "list", c.of).Output()
			if err != nil {
				t.Fatal(err)
			}
			for _, dep := range deps {
				if slices.ContainsFunc(c.not, func(p string) bool { return dep == p || strings.HasPrefix(dep, p+"/") }) {
					t.Errorf("needs %s", dep)
				}
				ours, isOurs := strings.CutPrefix(dep, module)
				ours = strings.TrimPrefix(ours, "/")
				if isOurs && c.only != nil && !slices.Contains(c.only, ours) && !slices.Contains(strings.Fields(string(self)), dep) {
					t.Errorf("needs our %q", ours)
				}
			}
		})
	}
}
