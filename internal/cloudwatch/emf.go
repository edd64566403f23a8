package cloudwatch

import (
	"errors"
	"time"
)

// Unit is one of CloudWatch's units.
type Unit string

// Metrics are figures of one moment.
type Metrics struct {
	Namespace  string
	Dimensions []Dimension
	Values     []Metric
	Properties map[string]string // searchable, no figures: versions and states
	Time       time.Time
}

// Dimension tells one source of figures from the others.
type Dimension struct{ Name, Value string }

// Metric is one figure.
type Metric struct {
	Name  string
	Value float64
	Unit  Unit // default None
}

// EMF returns m in CloudWatch's embedded metric format.
func (m Metrics) EMF() ([]byte, error) { return nil, errors.New("write figures: not built yet") }
