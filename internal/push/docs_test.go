package push_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	canprofile "github.com/interlock-energy/ota/source/can/profile"
	modbusprofile "github.com/interlock-energy/ota/source/modbus/profile"
)

var update = flag.Bool("update", false, "write the tables of docs/fieldbus.md anew")

// TestManual compares the tables in docs/fieldbus.md, from which people write masters and
// testers, with what the code does.
func TestManual(t *testing.T) {
	const path = "../../docs/fieldbus.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for mark, table := range map[string]string{"modbus map": modbusTable(), "can map": canTable()} {
		begin := "<!-- " + mark + " -->\n"
		before, rest, ok := strings.Cut(text, begin)
		old, after, found := strings.Cut(rest, "<!-- end -->")
		if !ok || !found {
			t.Fatalf("the manual has no place for the %s", mark)
		}
		if old != table && !*update {
			t.Errorf("the %s in the manual is not that of the code; write it anew with go test ./internal/push -run TestManual -update", mark)
		}
		text = before + begin + table + "<!-- end -->" + after
	}
	// What a tester has to sign cannot be found out in any other way.
	purpose, _ := strings.CutSuffix(string(canprofile.SecurityMessage("", nil)), "\x00\x00\x00")
	algorithm, _ := strings.CutSuffix(string(canprofile.Algorithm[:]), "\x00")
	for _, want := range []string{purpose, algorithm, fmt.Sprintf("The seed has %d bytes", canprofile.SeedSize), fmt.Sprintf("signature of that, %d bytes", canprofile.KeySize)} {
		if !strings.Contains(text, strings.TrimSuffix(want, "\x00")) {
			t.Errorf("the manual does not say %q", want)
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

func modbusTable() string {
	var b strings.Builder
	b.WriteString("| offset | registers | name | type | unit | | what |\n|---|---:|---|---|---|---|---|\n")
	for _, r := range modbusprofile.Map() {
		fmt.Fprintf(&b, "| +%03X | %d | `%s` | %s | %s | %s | %s |\n", r.Offset, r.Registers, r.Name, r.Type, r.Unit, r.Access, cell(r.Description))
	}
	return b.String()
}

func canTable() string {
	var b strings.Builder
	b.WriteString("| | | bytes | | session | key | what |\n|---|---|---|---|---|---|---|\n")
	for _, r := range canprofile.Map() {
		key := ""
		if r.Key {
			key = "yes"
		}
		fmt.Fprintf(&b, "| %s %04X | `%s` | %s | %s | %v | %s | %s |\n", r.Kind, r.ID, r.Name, r.Size, r.Access, r.Sessions, key, cell(r.Description))
	}
	return b.String()
}
