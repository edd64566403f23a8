package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/interlock-energy/ota"
)

// PathDiagnostics is where the agent's counts are: GET shows them, and POST tells
// them to everybody who keeps metrics as well. Both answer with [Diagnostics].
const PathDiagnostics = "/v1/diagnostics"

// Diagnostics is what an agent has counted since it started, and how it is now.
// Names in JSON never change.
type Diagnostics struct {
	Time   time.Time `json:"time"`
	Device string    `json:"device"`
	Agent  string    `json:"agent"`  // version of the agent itself
	Uptime float64   `json:"uptime"` // seconds since the agent started, which all counts are about

	Running string        `json:"running"` // version of the firmware
	Slot    string        `json:"slot"`
	Status  ota.Status    `json:"status"`
	Code    ota.ErrorCode `json:"code"`

	Checks       int `json:"checks"`        // for a release
	ChecksFailed int `json:"checks_failed"` // of them, not counting those that found nothing new

	Attempts int            `json:"attempts"`          // updates begun
	Results  map[string]int `json:"results,omitempty"` // updates that ended, by ota.Result
	Unsent   int            `json:"unsent"`            // reports that nobody has confirmed yet

	Refusals map[string]int     `json:"refusals,omitempty"` // times that the gate began to say no, by the name of the code
	Seconds  map[string]float64 `json:"seconds,omitempty"`  // spent in each status, by its name
	Bytes    int64              `json:"bytes"`              // verified and written

	Readings []ota.Signal `json:"readings,omitempty"` // the battery, as last read
	Memory   uint64       `json:"memory"`             // bytes that the agent has from the system
	LogsLost int64        `json:"logs_lost"`          // lines that a log could not take
	LogsHeld int64        `json:"logs_held"`          // bytes that wait for CloudWatch

	// Reported says who was told, for people; empty for GET.
	Reported []string `json:"reported,omitempty"`
}

// Diagnoser is a [Device] that counts.
type Diagnoser interface {
	Diagnostics(ctx context.Context) Diagnostics
	// ReportDiagnostics tells the counts to the log and to all who keep metrics.
	ReportDiagnostics(ctx context.Context) Diagnostics
}

// Diagnostics returns what the agent has counted. With report it also tells the
// log and all who keep metrics.
func (c *Client) Diagnostics(ctx context.Context, report bool) (Diagnostics, error) {
	method := http.MethodGet
	if report {
		method = http.MethodPost
	}
	return call[Diagnostics](ctx, c, method, PathDiagnostics, nil)
}

func diagnostics(w http.ResponseWriter, r *http.Request, d Device) error {
	who, ok := d.(Diagnoser)
	if !ok {
		return fmt.Errorf("diagnostics: %w: this device does not count", ErrBadRequest)
	}
	if r.Method == http.MethodPost {
		return write(w, http.StatusOK, who.ReportDiagnostics(r.Context()))
	}
	return write(w, http.StatusOK, who.Diagnostics(r.Context()))
}
