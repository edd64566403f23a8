// Package aws_test checks the CloudFormation templates without an account: what
// they protect, that every protection is really checked, and, with AWS's own
// description of its resource types, that every name in them exists.
package aws_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// template is a template as JSON would have it: the short forms of YAML, such as
// !Ref x, are the long ones, such as {"Ref": "x"}.
type template map[string]any

func load(t *testing.T, file string) template {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	v, err := plain(doc.Content[0])
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return v.(map[string]any)
}

func plain(n *yaml.Node) (any, error) {
	v, err := untagged(n)
	if err != nil {
		return nil, err
	}
	switch tag := n.ShortTag(); {
	case strings.HasPrefix(tag, "!!"):
		return v, nil
	case tag == "!Ref", tag == "!Condition":
		return map[string]any{tag[1:]: v}, nil
	case tag == "!GetAtt":
		resource, attribute, _ := strings.Cut(fmt.Sprint(v), ".")
		return map[string]any{"Fn::GetAtt": []any{resource, attribute}}, nil
	case tag == "!Sub", tag == "!If", tag == "!Not", tag == "!Equals", tag == "!FindInMap", tag == "!And", tag == "!Or", tag == "!Join":
		return map[string]any{"Fn::" + tag[1:]: v}, nil
	}
	return nil, fmt.Errorf("line %d: tag %s is not known", n.Line, n.ShortTag())
}

func untagged(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, twice := m[key]; twice {
				return nil, fmt.Errorf("line %d: %s is there twice", n.Content[i].Line, key)
			}
			v, err := plain(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[key] = v
		}
		return m, nil
	case yaml.SequenceNode:
		list := []any{}
		for _, c := range n.Content {
			v, err := plain(c)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.ScalarNode:
		var v any
		if strings.HasPrefix(n.ShortTag(), "!!") {
			return v, n.Decode(&v)
		}
		return n.Value, nil
	}
	return nil, fmt.Errorf("line %d: aliases are not for CloudFormation", n.Line)
}

// clone returns a deep copy, with numbers as JSON has them.
func (tpl template) clone(t *testing.T) template {
	t.Helper()
	b, err := json.Marshal(tpl)
	if err != nil {
		t.Fatal(err)
	}
	var c template
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// at returns what is at a path such as Resources.Bucket.Type, or nil.
func (tpl template) at(path string) any {
	var v any = map[string]any(tpl)
	for part := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			v = in[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(in) {
				return nil
			}
			v = in[i]
		default:
			return nil
		}
	}
	return v
}

// text is what is at a path, in one line of JSON.
func (tpl template) text(path string) string { return line(tpl.at(path)) }

func line(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return strings.Trim(strings.TrimSpace(b.String()), `"`)
}

// change is what somebody might do to a template. No value: takes it away.
type change struct {
	path  string
	value any
}

func (c change) String() string {
	if c.value == nil {
		return "without " + c.path
	}
	return c.path + " = " + line(c.value)
}

// apply fails for a path that is not there, unless something new is put there.
func (tpl template) apply(c change) error {
	parent, last := "", c.path
	if i := strings.LastIndex(c.path, "."); i >= 0 {
		parent, last = c.path[:i], c.path[i+1:]
	}
	switch in := tpl.at(parent).(type) {
	case map[string]any:
		if _, there := in[last]; !there && c.value == nil {
			return fmt.Errorf("%s is not there", c.path)
		}
		if c.value == nil {
			delete(in, last)
		} else {
			in[last] = c.value
		}
		return nil
	case []any:
		i, err := strconv.Atoi(last)
		if err != nil || i >= len(in) || c.value == nil {
			return fmt.Errorf("%s: want the index of something to replace", c.path)
		}
		in[i] = c.value
		return nil
	}
	return fmt.Errorf("%s is not there", parent)
}
