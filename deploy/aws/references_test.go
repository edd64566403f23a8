package aws_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// references returns what is wrong with the names that a template uses: those of
// parameters, resources, conditions and mappings that are not there, those that
// nobody uses, and resources that are used where they may not exist.
func references(tpl template) (wrong []string) {
	w := walker{tpl: tpl, used: map[string]bool{}}
	for _, section := range []string{"Rules", "Conditions", "Outputs"} {
		for name, v := range keys(tpl.at(section)) {
			w.walk(section+"."+name, v, w.conditionOf(v))
		}
	}
	for name, v := range keys(tpl.at("Resources")) {
		w.walk(name, v, w.conditionOf(v))
	}
	for _, section := range []string{"Parameters", "Conditions", "Mappings"} {
		for name := range keys(tpl.at(section)) {
			if !w.used[name] {
				w.wrong = append(w.wrong, section+"."+name+" is not used")
			}
		}
	}
	slices.Sort(w.wrong)
	return w.wrong
}

func keys(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

type walker struct {
	tpl   template
	used  map[string]bool
	wrong []string
}

func (w *walker) fail(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// conditionOf returns the condition of a resource or output, as one of those that
// hold inside of it.
func (w *walker) conditionOf(v any) []string {
	name, ok := keys(v)["Condition"].(string)
	if !ok {
		return nil
	}
	w.condition("", name)
	return []string{name}
}

func (w *walker) condition(where, name string) {
	w.used[name] = true
	if keys(w.tpl.at("Conditions"))[name] == nil {
		w.fail("%s: condition %s is not there", where, name)
	}
}

var inSub = regexp.MustCompile(`\$\{([^!}][^}]*)\}`)

func (w *walker) walk(where string, v any, holds []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			w.walk(where, e, holds)
		}
	case map[string]any:
		for key, e := range v {
			switch key {
			case "Ref":
				w.name(where, fmt.Sprint(e), holds)
			case "Fn::GetAtt":
				w.name(where, fmt.Sprint(e.([]any)[0]), holds)
			case "Fn::Sub":
				for _, m := range inSub.FindAllStringSubmatch(fmt.Sprint(e), -1) {
					name, _, _ := strings.Cut(m[1], ".")
					w.name(where, name, holds)
				}
			case "Fn::FindInMap":
				w.used[fmt.Sprint(e.([]any)[0])] = true
				w.walk(where, e, holds)
			case "Fn::If":
				list := e.([]any)
				w.condition(where, fmt.Sprint(list[0]))
				w.walk(where, list[1], append(slices.Clone(holds), fmt.Sprint(list[0])))
				w.walk(where, list[2], holds)
			default:
				w.walk(where, e, holds)
			}
		}
	}
}

func (w *walker) name(where, name string, holds []string) {
	w.used[name] = true
	if strings.HasPrefix(name, "AWS::") {
		if !slices.Contains([]string{"AWS::AccountId", "AWS::NoValue", "AWS::Partition", "AWS::Region", "AWS::StackName"}, name) {
			w.fail("%s: %s is not known", where, name)
		}
		return
	}
	r, isResource := keys(w.tpl.at("Resources"))[name]
	if _, isParameter := keys(w.tpl.at("Parameters"))[name]; !isResource && !isParameter {
		w.fail("%s: %s is not there", where, name)
	}
	if c, ok := keys(r)["Condition"].(string); ok && !slices.Contains(holds, c) {
		w.fail("%s: %s exists only if %s", where, name, c)
	}
}

func TestReferences(t *testing.T) {
	for _, file := range []string{"template.yaml", "iot.yaml"} {
		if wrong := references(load(t, file)); len(wrong) > 0 {
			t.Errorf("%s:\n%s", file, strings.Join(wrong, "\n"))
		}
	}
	for _, c := range []change{
		{"Resources.FunctionLogs", nil},
		{"Resources.SigningKey.Condition", nil},
		{"Resources.Function.Properties.Environment.Variables.SIGNING_SECRET_ARN", map[string]any{"Ref": "SigningSecret"}},
		{"Resources.Function.Properties.Timeout", 10},
		{"Conditions.HasDomain", nil},
		{"Conditions.Unused", map[string]any{"Fn::Equals": []any{"a", "b"}}},
		{"Outputs.Bucket.Value", map[string]any{"Fn::Sub": "${Bukcet}"}},
		{"Outputs.Bucket.Value", map[string]any{"Ref": "AWS::Regoin"}},
		{"Mappings.Unused", map[string]any{}},
	} {
		tpl := load(t, "template.yaml").clone(t)
		if err := tpl.apply(c); err != nil {
			t.Error(err)
		} else if len(references(tpl)) == 0 {
			t.Errorf("nobody noticed: %v", c)
		}
	}
}

// Every parameter can be understood and is bounded, and its default is within.
func TestParameters(t *testing.T) {
	for _, file := range []string{"template.yaml", "iot.yaml"} {
		tpl := load(t, file)
		for _, name := range slices.Sorted(maps.Keys(keys(tpl.at("Parameters")))) {
			p := keys(tpl.at("Parameters." + name))
			if p["Description"] == nil {
				t.Errorf("%s: %s has no description", file, name)
			}
			def := p["Default"]
			switch {
			case p["AllowedValues"] != nil:
				if list := p["AllowedValues"].([]any); def != nil && !slices.Contains(list, def) {
					t.Errorf("%s: the default %v of %s is not allowed", file, def, name)
				}
			case p["AllowedPattern"] != nil:
				re, err := regexp.Compile(`^(?:` + p["AllowedPattern"].(string) + `)$`)
				if err != nil || def != nil && !re.MatchString(def.(string)) {
					t.Errorf("%s: the default %q of %s does not match %v, %v", file, def, name, p["AllowedPattern"], err)
				}
			case p["MinValue"] != nil:
				if min, n := p["MinValue"].(int), def.(int); n < min || p["MaxValue"] != nil && n > p["MaxValue"].(int) {
					t.Errorf("%s: the default %v of %s is out of its bounds", file, def, name)
				}
			default:
				t.Errorf("%s: %s takes anything", file, name)
			}
		}
	}
}

func TestParameterPatterns(t *testing.T) {
	for name, tt := range map[string]struct{ good, bad []string }{
		"BucketName":     {[]string{"", "ota", "interlock-ota-1"}, []string{"a", "Ota", "ota.example", "-ota", "ota_", strings.Repeat("x", 64)}},
		"Prefix":         {[]string{"", "ota/", "a/b.c/"}, []string{"ota", "/ota/", "../", "Ota/", "a//b/"}},
		"Stage":          {[]string{"$default", "prod"}, []string{"", "a/b", "$other"}},
		"DomainName":     {[]string{"", "ota.example.com"}, []string{"localhost", "https://ota.example.com"}},
		"CertificateArn": {[]string{"", "arn:aws:acm:eu-central-1:123456789012:certificate/x"}, []string{"arn:aws:iam::1:x"}},
		"AlarmEmail":     {[]string{"", "ops@example.com"}, []string{"ops"}},
	} {
		re := regexp.MustCompile(load(t, "template.yaml").at("Parameters." + name + ".AllowedPattern").(string))
		for _, v := range tt.good {
			if !re.MatchString(v) {
				t.Errorf("%s: %q is refused", name, v)
			}
		}
		for _, v := range tt.bad {
			if re.MatchString(v) {
				t.Errorf("%s: %q is taken", name, v)
			}
		}
	}
}
