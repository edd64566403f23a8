package awsiot

import (
	"encoding/json"
	"errors"

	"github.com/interlock-energy/ota"
)

// afrJob is a FreeRTOS OTA job document ("afr_ota") that is well formed.
type afrJob struct {
	Stream string // ID of the stream; "" if there is none
	MQTT   bool   // the files can be had from Stream
	HTTP   bool   // the files can be had from their URLs
	Files  []afrFile
}

// afrFile is one file of an afrJob.
type afrFile struct {
	Path          string // on the device, as the operator named it
	Size          int64  // bytes
	ID            int    // in the stream
	URL           string // presigned; "" if only by MQTT
	Version       string // "version" of the file or of the document; "" if it has none
	SignatureName string // for example sig-sha256-ecdsa
	Signature     []byte // of the whole file
}

// parseAFR reads a job document {"afr_ota":{...}}. Errors are for the operator
// who made the job.
func parseAFR(document json.RawMessage) (*afrJob, error) {
	return nil, errors.New("read the FreeRTOS OTA job: not written yet")
}

// isAFR reports whether a job document is meant to be one for parseAFR.
func isAFR(document json.RawMessage) bool { return false }

// afrReceiving is statusDetails while bytes of total come, as FreeRTOS agents
// write them: {"receive":"64/285"}, in blocks of 4 KiB.
func afrReceiving(done, total int64) map[string]string { return nil }

// afrSelfTest is statusDetails before the restart ("ready") and during the trial
// ("active"); running is the version that was running when the job came.
func afrSelfTest(active bool, running string) map[string]string { return nil }

// afrOutcome is statusDetails of the final status.
func afrOutcome(r ota.Report) map[string]string { return nil }
