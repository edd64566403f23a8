package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota/internal/control"
)

type deviceDiagnosticsCmd struct {
	socketFlag
	Report bool `help:"Also write the counts to the device's log and send them to CloudWatch as metrics, if that is configured."`
}

func (*deviceDiagnosticsCmd) Help() string {
	return `Counts since the agent was started: checks, updates and how they ended, what the gate refused, bytes, and the time spent in each status.

Examples:

    interlock device diagnostics
    interlock device diagnostics --report
    interlock device diagnostics --json | jq .results`
}

func (c *deviceDiagnosticsCmd) Run(ctx context.Context, e *env) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	d, err := client.Diagnostics(ctx, c.Report)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(d)
	}
	for _, row := range diagnosticRows(&d) {
		fmt.Fprintf(e.stdout, "%-16s%s\n", row[0], row[1])
	}
	return nil
}

func diagnosticRows(d *control.Diagnostics) [][2]string {
	counts := func(m map[string]int) string {
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, fmt.Sprintf("%d %s", m[k], clean(k)))
		}
		return or(strings.Join(parts, ", "), "none")
	}
	rows := [][2]string{
		{"device", clean(d.Device)},
		{"agent", fmt.Sprintf("%s, up %s", clean(d.Agent), seconds(d.Uptime))},
		{"runs", fmt.Sprintf("%s in slot %s", clean(d.Running), clean(d.Slot))},
		{"status", d.Status.String()},
		{"checks", fmt.Sprintf("%d, %d failed", d.Checks, d.ChecksFailed)},
		{"updates", fmt.Sprintf("%d begun; ended: %s", d.Attempts, counts(d.Results))},
		{"refusals", counts(d.Refusals)},
		{"written", size(d.Bytes)},
	}
	var spent []string
	for _, k := range slices.SortedFunc(maps.Keys(d.Seconds), func(a, b string) int { return int(d.Seconds[b] - d.Seconds[a]) }) {
		spent = append(spent, seconds(d.Seconds[k])+" "+clean(k))
	}
	rows = append(rows, [2]string{"time", strings.Join(spent, ", ")})
	if d.Unsent > 0 {
		rows = append(rows, [2]string{"reports", fmt.Sprintf("%d not confirmed yet", d.Unsent)})
	}
	rows = append(rows, [2]string{"memory", size(int64(d.Memory))})
	if d.LogsLost > 0 || d.LogsHeld > 0 {
		rows = append(rows, [2]string{"log", fmt.Sprintf("%d lines lost, %s wait to be sent", d.LogsLost, size(d.LogsHeld))})
	}
	if len(d.Reported) > 0 {
		rows = append(rows, [2]string{"reported to", clean(strings.Join(d.Reported, ", "))})
	}
	return rows
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
