package cloudwatch

import "time"

// Diagnostics is what a device tells about itself. What is not known is nil or absent.
type Diagnostics struct {
	Device       string
	Product      string
	Version      string // of the firmware
	AgentVersion string
	State        string // IDLE and so on
	Uptime       time.Duration
	Attempts     int64            // updates begun since the agent started
	Results      map[string]int64 // by result: "updated", "failed", "rolled back"
	BytesDone    int64            // of images, since the agent started
	Retries      int64
	Seconds      map[string]float64 // by state
	Refusals     map[string]int64   // of the gate, by code

	BatterySoC         *float64 // percent
	BatteryTemperature *float64 // degrees Celsius, the hottest
	BatteryCurrent     *float64 // ampere, positive: discharging

	Log  Status // of the Writer
	Time time.Time
}

// Metrics returns d as figures of the namespace.
func (d Diagnostics) Metrics(namespace string) Metrics { return Metrics{} }
