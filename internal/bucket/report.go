package bucket

import (
	"context"
	"errors"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
)

// Report is how one update of one device ended.
type Report struct {
	Format   int        `json:"format"` // 1
	Device   string     `json:"device"`
	Received time.Time  `json:"received"`
	Report   ota.Report `json:"report"`
}

// AddReports stores outcomes. What it names as stored is durable; a report whose
// id this device has used before is stored already, whatever else it says. With
// an error, reports that are in neither list of the answer are to be sent again.
func (b *Bucket) AddReports(ctx context.Context, device string, reports []ota.Report) (api.ReportsResponse, error) {
	return api.ReportsResponse{}, errors.ErrUnsupported
}

// Reports returns the newest n reports of a device, or of all for "", newest first.
func (b *Bucket) Reports(ctx context.Context, device string, n int) ([]Report, error) {
	return nil, errors.ErrUnsupported
}
