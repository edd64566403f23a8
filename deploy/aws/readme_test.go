package aws_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the pages call by name is there.
func TestPagesNameWhatIsThere(t *testing.T) {
	var names []string
	for _, file := range []string{"template.yaml", "iot.yaml"} {
		for _, section := range []string{"Parameters", "Resources", "Outputs"} {
			for name := range keys(load(t, file).at(section)) {
				names = append(names, name)
			}
		}
	}
	// Names of AWS's and of others.
	elsewhere := []string{"InvalidArgument"}
	for _, page := range []string{"README.md", "../../docs/aws.md"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, m := range regexp.MustCompile("[`*]([A-Z][a-z]+[A-Z][A-Za-z]+)(=[a-z0-9]+)?[`*]").FindAllSubmatch(b, -1) {
			if name := string(m[1]); !slices.Contains(names, name) && !slices.Contains(elsewhere, name) {
				t.Errorf("%s: %s is not in the templates", page, name)
			}
			found++
		}
		if found < 3 {
			t.Errorf("%s: %d names found: this test does not see them", page, found)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`).FindAllSubmatch(b, -1) {
			link := string(m[1])
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), link)); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}

// The commands of the page exist, with the flags that it gives them.
func TestReadmeCommands(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "interlock")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/interlock").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var commands []string
	for _, m := range regexp.MustCompile(`(?m)^    interlock (.+?)(?: *[>#].*)?$`).FindAllSubmatch(b, -1) {
		commands = append(commands, string(m[1]))
	}
	tpl := load(t, "template.yaml")
	output := strings.NewReplacer("${Bucket}", "BUCKET", "${Prefix}", "").Replace(tpl.at("Outputs.PublishCommand.Value").(map[string]any)["Fn::Sub"].(string))
	commands = append(commands, strings.TrimPrefix(output, "interlock "))
	if len(commands) < 4 {
		t.Fatalf("%d commands, want 4 at least: %q", len(commands), commands)
	}
	for _, c := range commands {
		words := strings.Fields(c)
		n := slices.IndexFunc(words, func(w string) bool { return strings.ContainsAny(w, "-./") || w == strings.ToUpper(w) })
		help, err := exec.CommandContext(t.Context(), program, append(slices.Clone(words[:n]), "--help")...).Output()
		if err != nil || !strings.Contains(string(help), "Usage: interlock "+strings.Join(words[:n], " ")) {
			t.Errorf("interlock %s: %v\n%s", c, err, help)
		}
		for _, w := range words[n:] {
			if strings.HasPrefix(w, "--") && !strings.Contains(string(help), w+"=") {
				t.Errorf("interlock %s: flag %s is not in its help", c, w)
			}
		}
	}
}
