package agent

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Duration is a time.Duration that is written with a unit: 90s, 5m, 24h, 7d.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalYAML refuses numbers without a unit, which others take for seconds,
// milliseconds, or nanoseconds.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseDuration(n.Value)
	if n.Kind != yaml.ScalarNode {
		err = fmt.Errorf("want a duration like 90s")
	}
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", n.Line, err)}}
	}
	*d = Duration(v)
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration, want a form like 90s, 5m, 24h or 7d", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	v, err := time.ParseDuration(s)
	switch {
	case err != nil && s != "" && strings.Trim(s, "0123456789.") == "":
		return 0, fmt.Errorf("duration %s has no unit, write %ss for seconds", s, s)
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration, want a form like 90s, 5m, 24h or 7d", s)
	case v < 0:
		return 0, fmt.Errorf("duration %s is negative", s)
	}
	return v, nil
}

// Command is a program and its arguments. In YAML it is a list, which is run as
// it is, or a string, which is given to /bin/sh -c.
type Command []string

// UnmarshalYAML reads both forms.
func (c *Command) UnmarshalYAML(n *yaml.Node) error {
	bad := func(what string) error {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %s; want a list of words, or one line for the shell", n.Line, what)}}
	}
	switch n.Kind {
	case yaml.ScalarNode:
		if strings.TrimSpace(n.Value) == "" {
			return bad("the command is empty")
		}
		*c = Command{"/bin/sh", "-c", n.Value}
	case yaml.SequenceNode:
		var words []string
		if err := n.Decode(&words); err != nil {
			return err
		}
		if len(words) == 0 || words[0] == "" {
			return bad("the command is empty")
		}
		*c = words
	default:
		return bad("this is not a command")
	}
	return nil
}
