package awsiot

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/source/awsiot/stream"
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

// Limits of a FreeRTOS OTA document: the agents write the file's number with one
// digit (Jobs-for-AWS-IoT-embedded-sdk, otaJobParser).
const (
	maxAFRFiles = 10
	maxAFRPath  = 1024 // characters
	afrPresign  = "aws.s3.presigned"
)

// isAFR reports whether a job document is meant for parseAFR. A document that also has
// "interlock" is not: it is for a fleet with devices of both kinds.
func isAFR(document json.RawMessage) bool {
	var top struct {
		AFR       json.RawMessage `json:"afr_ota"`
		Interlock json.RawMessage `json:"interlock"`
	}
	return json.Unmarshal(document, &top) == nil && given(top.AFR) && !given(top.Interlock)
}

func given(j json.RawMessage) bool { return len(j) > 0 && !bytes.Equal(j, []byte("null")) }

// parseAFR reads a job document {"afr_ota":{...}} as AWS IoT's "create-ota-update"
// makes it (FreeRTOS user guide, "OTA updates", and the parsers of its agents). Numbers
// may be quoted. Names that it does not know are ignored. Of signatures it takes every
// kind with SHA-256: which algorithm, the key decides. Errors are for the operator who
// made the job.
func parseAFR(document json.RawMessage) (*afrJob, error) {
	fail := func(format string, a ...any) (*afrJob, error) {
		return nil, fmt.Errorf("the FreeRTOS OTA job cannot be used: "+format, a...)
	}
	if len(document) > maxDocument {
		return fail("its document has %d bytes, want at most %d", len(document), maxDocument)
	}
	var top struct {
		Version text `json:"version"`
		AFR     struct {
			Protocols []string                     `json:"protocols"`
			Stream    string                       `json:"streamname"`
			Version   text                         `json:"version"`
			Files     []map[string]json.RawMessage `json:"files"`
		} `json:"afr_ota"`
	}
	if err := json.Unmarshal(document, &top); err != nil {
		return fail("%s", clean(err.Error(), 200))
	}
	doc := &top.AFR
	job := &afrJob{Stream: doc.Stream}
	job.MQTT, job.HTTP = slices.Contains(doc.Protocols, "MQTT"), slices.Contains(doc.Protocols, "HTTP")
	switch {
	case !job.MQTT && !job.HTTP:
		return fail(`protocols are %s, want "MQTT", "HTTP" or both`, clean(fmt.Sprintf("%q", doc.Protocols), 100))
	case job.MQTT && doc.Stream == "":
		return fail("streamname is missing, and the protocol is MQTT")
	case doc.Stream != "" && !streamName(doc.Stream):
		return fail("streamname %s: want 1 to 128 letters, digits, - and _", clean(strconv.Quote(doc.Stream), 140))
	case len(doc.Files) == 0 || len(doc.Files) > maxAFRFiles:
		return fail("%d files, want 1 to %d", len(doc.Files), maxAFRFiles)
	}
	seen := map[int]bool{}
	for i, fields := range doc.Files {
		f, err := parseAFRFile(fields, job)
		if err != nil {
			return fail("file %d of %d: %w", i+1, len(doc.Files), err)
		}
		if seen[f.ID] {
			return fail("file %d of %d: fileid %d is that of another file, too", i+1, len(doc.Files), f.ID)
		}
		seen[f.ID] = true
		for _, v := range []text{doc.Version, top.Version} {
			if f.Version == "" {
				f.Version = string(v)
			}
		}
		job.Files = append(job.Files, f)
	}
	return job, job.reachable()
}

func streamName(s string) bool {
	return len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

// parseAFRFile reads one file. Its fields are raw because the name of one is not known.
func parseAFRFile(fields map[string]json.RawMessage, job *afrJob) (f afrFile, err error) {
	var size, id number
	var cert, scheme, version text
	for _, field := range []struct {
		name string
		to   any
		must bool
	}{
		{"filepath", (*text)(&f.Path), true}, {"filesize", &size, true}, {"fileid", &id, true}, {"certfile", &cert, true},
		{"update_data_url", (*text)(&f.URL), false}, {"auth_scheme", &scheme, false}, {"version", &version, false},
	} {
		j := fields[field.name]
		if !given(j) {
			if field.must {
				return f, fmt.Errorf("%s is missing", field.name)
			}
			continue
		}
		if err := json.Unmarshal(j, field.to); err != nil {
			return f, fmt.Errorf("%s: %s", field.name, clean(err.Error(), 200))
		}
	}
	f.Size, f.ID, f.Version = int64(size), int(id), string(version)
	switch {
	case f.Path == "" || len(f.Path) > maxAFRPath:
		return f, fmt.Errorf("filepath has %d characters, want 1 to %d", len(f.Path), maxAFRPath)
	case size < 1 || size > ota.MaxImageSize:
		return f, fmt.Errorf("filesize is %d, want 1 to %d bytes", size, int64(ota.MaxImageSize))
	case id < 0 || id > stream.MaxFileID:
		return f, fmt.Errorf("fileid is %d, want 0 to %d", id, stream.MaxFileID)
	case f.URL != "" && scheme != afrPresign && !job.MQTT:
		return f, fmt.Errorf("auth_scheme is %s, want %q", clean(strconv.Quote(string(scheme)), 80), afrPresign)
	case f.URL != "" && scheme != afrPresign:
		f.URL = ""
	}
	f.SignatureName, f.Signature, err = afrSignature(fields)
	return f, err
}

// afrSignature returns the one signature with SHA-256. The platform's name for it is
// sig-HASH-ALGORITHM.
func afrSignature(fields map[string]json.RawMessage) (name string, sig []byte, err error) {
	var weak []string
	for n := range fields {
		switch {
		case !strings.HasPrefix(n, "sig-"):
		case !strings.HasPrefix(n, "sig-sha256-"):
			weak = append(weak, n)
		case name != "":
			return "", nil, errors.New("there are two signatures with SHA-256, want one")
		default:
			name = n
		}
	}
	slices.Sort(weak)
	switch {
	case name == "" && len(weak) > 0:
		return "", nil, fmt.Errorf("the signature is %s, want one with SHA-256: sign with a code-signing profile that has it", clean(strconv.Quote(weak[0]), 80))
	case name == "":
		return "", nil, errors.New("the signature is missing (sig-sha256-ecdsa or sig-sha256-rsa)")
	}
	var encoded text
	if err := json.Unmarshal(fields[name], &encoded); err != nil {
		return "", nil, fmt.Errorf("%s: %s", clean(name, 40), clean(err.Error(), 200))
	}
	plain := strings.Map(func(r rune) rune { // what "base64" writes has line ends
		if strings.ContainsRune("\r\n ", r) {
			return -1
		}
		return r
	}, string(encoded))
	if sig, err = base64.StdEncoding.DecodeString(plain); err != nil || len(sig) == 0 {
		return "", nil, fmt.Errorf("%s is not base64", clean(name, 40))
	}
	return name, sig, nil
}

// reachable reports whether every file can be had, and takes back a protocol by which
// not all can.
func (j *afrJob) reachable() error {
	for i := range j.Files {
		f := &j.Files[i]
		if j.HTTP && f.URL == "" {
			if !j.MQTT {
				return fmt.Errorf("the FreeRTOS OTA job cannot be used: file %d of %d: update_data_url is missing, and the protocol is HTTP", i+1, len(j.Files))
			}
			j.HTTP = false
		}
	}
	for i := range j.Files {
		if f := &j.Files[i]; j.MQTT && f.Size > stream.MaxFileSize {
			if !j.HTTP {
				return fmt.Errorf("the FreeRTOS OTA job cannot be used: file %d of %d has %d bytes, and a stream has files of at most %d: offer it by HTTP as well",
					i+1, len(j.Files), f.Size, stream.MaxFileSize)
			}
			j.MQTT = false
		}
	}
	return nil
}

// number is a whole number, which may be quoted.
type number int64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *number) UnmarshalJSON(j []byte) error {
	s := string(j)
	if unquoted, err := strconv.Unquote(s); err == nil {
		s = unquoted
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%.40q is no whole number", s)
	}
	*n = number(v)
	return nil
}

// text is a string, and nothing else.
type text string

// UnmarshalJSON implements [json.Unmarshaler].
func (t *text) UnmarshalJSON(j []byte) error {
	var s string
	if err := json.Unmarshal(j, &s); err != nil {
		return fmt.Errorf("%.40q is no string", j)
	}
	*t = text(s)
	return nil
}

// afrBlock is the block size that FreeRTOS agents count in, in bytes
// (otaconfigLOG2_FILE_BLOCK_SIZE 12).
const afrBlock = 4096

// afrReceiving is statusDetails while bytes of total come, as FreeRTOS agents
// write them: {"receive":"64/285"}, in blocks of 4 KiB.
func afrReceiving(done, total int64) map[string]string {
	blocks := func(n int64) int64 { return (max(n, 0) + afrBlock - 1) / afrBlock }
	received := blocks(total)
	if done < total {
		received = max(done, 0) / afrBlock
	}
	return map[string]string{"receive": fmt.Sprintf("%d/%d", received, blocks(total))}
}

// afrSelfTest is statusDetails before the restart ("ready") and during the trial
// ("active"); running is the version that was running when the job came.
func afrSelfTest(active bool, running string) map[string]string {
	if active {
		return map[string]string{"self_test": "active", "updatedBy": afrVersion(running)}
	}
	return map[string]string{"self_test": "ready", "updatedBy": afrVersion(running)}
}

// afrVersion writes a version as the agents do in a number: 8 bits, 8 bits and 16 bits
// (AppVersion32_t). What does not fit stays what it is.
func afrVersion(v string) string {
	core, _, _ := strings.Cut(v, "+")
	core, _, _ = strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return v
	}
	var n uint64
	for i, width := range []int{8, 8, 16} {
		x, err := strconv.ParseUint(parts[i], 10, width)
		if err != nil {
			return v
		}
		n = n<<width | x
	}
	return fmt.Sprintf("0x%x", n)
}

// afrOutcome is statusDetails of the final status. The spaces are the agents' own. The
// number is that of [ota.ErrorCode] without its sign: those of the agents name places
// in their own code.
func afrOutcome(r ota.Report) map[string]string {
	if r.Result == ota.Succeeded {
		return map[string]string{"reason": "accepted  v" + r.Version, "updatedBy": "  v" + r.From}
	}
	return map[string]string{"reason": fmt.Sprintf("rejected: 0x%x", -int(r.Code))}
}
