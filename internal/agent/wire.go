package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/gate"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/source/https"
	"github.com/interlock-energy/ota/source/media"
)

// This file is where kinds in the configuration become adapters. To add one, add
// a case.

// newSource makes the source that s describes, for a device that runs version. One that is
// made for a check of the configuration reads no state.
func (a *Agent) newSource(s *Source, version string, check bool) (ota.Source, error) {
	kind, err := s.kind()
	if err != nil {
		return nil, err
	}
	switch kind {
	case "https":
		return a.newHTTPS(s.HTTPS, version)
	case "media":
		return a.newMedia(s.Media.Path, s.Media.Poll, version)
	case "sd_card":
		return a.newMedia(s.SDCard.FilePath, 0, version)
	case "usb":
		return a.newMedia(s.USB.DevicePath, 0, version)
	case "aws_iot":
		src, err := a.newAWSIoT(s.AWSIoT, version)
		if err != nil {
			return nil, fmt.Errorf("aws_iot: %w", err)
		}
		return src, nil
	case "modbus":
		src, err := a.newModbusServer(s.Modbus, version, check)
		if err != nil {
			return nil, fmt.Errorf("modbus: %w", err)
		}
		return src, nil
	case "canbus":
		src, err := a.newCANServer(s.CANBus, version, check)
		if err != nil {
			return nil, fmt.Errorf("canbus: %w", err)
		}
		return src, nil
	}
	return nil, fmt.Errorf("kind %q is not known; known are %s", kind, knownSources)
}

const knownSources = "https, aws_iot, modbus, canbus, media, sd_card and usb"

// sections returns the names of the sections that are given.
func (s *Source) sections() (given []string) {
	for _, x := range []struct {
		name  string
		given bool
	}{{"https", s.HTTPS != nil}, {"aws_iot", s.AWSIoT != nil}, {"modbus", s.Modbus != nil}, {"canbus", s.CANBus != nil}, {"media", s.Media != nil}, {"sd_card", s.SDCard != nil}, {"usb", s.USB != nil}} {
		if x.given {
			given = append(given, x.name)
		}
	}
	return given
}

// kind returns what s is, from its kind or from the only section that is given.
func (s *Source) kind() (string, error) {
	sections := s.sections()
	switch {
	case len(sections) > 1:
		return "", fmt.Errorf("sections %s are given; a source has one, list several under sources", strings.Join(sections, " and "))
	case s.Kind == "" && len(sections) == 0:
		return "", errors.New("it is empty; known kinds are " + knownSources)
	case s.Kind == "":
		return sections[0], nil
	case len(sections) == 1 && sections[0] != s.Kind:
		return "", fmt.Errorf("kind is %q, and the section is %s", s.Kind, sections[0])
	case len(sections) == 0 && slices.Contains([]string{"https", "aws_iot", "modbus", "canbus", "media", "sd_card", "usb"}, s.Kind):
		return "", fmt.Errorf("section %s is missing", s.Kind)
	}
	return s.Kind, nil
}

func (a *Agent) newHTTPS(h *HTTPS, version string) (ota.Source, error) {
	c := https.Config{
		URL: h.URL, Kind: https.Kind(h.Kind),
		Device: a.cfg.Device.ID, Product: a.cfg.Device.Product, Hardware: a.cfg.Device.Hardware, Version: version, Agent: a.cfg.Version,
		BasicUser: h.BasicAuthUser, BasicPassword: h.BasicAuthPass, Token: h.Token, AllowPlain: h.AllowPlain, ReadBuffer: h.ReadBuffer,
		ConnectTimeout: time.Duration(h.ConnectTimeout), ResponseTimeout: time.Duration(h.ResponseTimeout),
		StallTimeout: time.Duration(a.cfg.StallTimeout), Now: a.now,
	}
	if h.URL == "" {
		return nil, errors.New("https.url is missing")
	}
	for _, f := range []struct {
		key, path string
		inline    string
		to        func([]byte)
	}{
		{"cert_pem_file", h.CertPEMFile, h.CertPEM, func(b []byte) { c.CACert, c.CAName = b, h.CertPEMFile }},
		{"token_file", h.TokenFile, h.Token, func(b []byte) { c.Token = firstLine(b) }},
		{"basic_auth_pass_file", h.BasicAuthPassFile, h.BasicAuthPass, func(b []byte) { c.BasicPassword = firstLine(b) }},
		{"client_cert_file", h.ClientCertFile, "", func(b []byte) { c.ClientCert = b }},
		{"client_key_file", h.ClientKeyFile, "", func(b []byte) { c.ClientKey = b }},
	} {
		if f.path == "" {
			continue
		}
		if f.inline != "" {
			return nil, fmt.Errorf("https.%s and https.%s are both given; keep one", strings.TrimSuffix(f.key, "_file"), f.key)
		}
		b, err := readSmall(f.path)
		if err != nil {
			return nil, fmt.Errorf("https.%s: %w", f.key, err)
		}
		if len(bytes.TrimSpace(b)) == 0 {
			return nil, fmt.Errorf("https.%s: %s is empty", f.key, f.path)
		}
		f.to(b)
	}
	if h.CertPEM != "" {
		c.CACert, c.CAName = []byte(h.CertPEM), "cert_pem"
	}
	s, err := https.New(c)
	if err != nil {
		return nil, fmt.Errorf("https: %w", err)
	}
	s.SetState(a.checkin)
	return s, nil
}

func (a *Agent) newMedia(path string, poll Duration, version string) (ota.Source, error) {
	if path == "" {
		return nil, errors.New("the path is missing: a bundle file, a folder, or a pattern such as /media/*")
	}
	if strings.HasPrefix(path, "/dev/") {
		return nil, fmt.Errorf("%s is a device; let the system mount it, and give the place where it is mounted, such as /media/*", path)
	}
	return media.New(media.Config{Path: path, Product: a.cfg.Device.Product, Hardware: a.cfg.Device.Hardware, Version: version,
		Fits:   func(m *ota.Manifest) error { return a.judge(m, version) },
		Last:   func(m *ota.Manifest) bool { return a.skipped(m.Digest) },
		Verify: a.verify, Poll: time.Duration(poll), Log: a.log})
}

// newVerify makes the only way from bytes to a manifest, and, if the configuration
// has keys for it, the part of it that takes raw images under code signing.
func newVerify(cfg *Config) (verify ota.Verify, code *bundle.CodeSigning, err error) {
	if code, err = newCodeSigning(cfg); err != nil {
		return nil, nil, err
	}
	verify = bundle.Unsigned
	if valueOr(cfg.VerifySignature, true) {
		keys, err := newKeys(cfg)
		if err != nil {
			return nil, nil, err
		}
		verify = keys.Verify
	}
	if code != nil {
		verify = bundle.VerifyAny(map[string]ota.Verify{bundle.PayloadType: verify, bundle.CodeSignedType: code.Verify})
	}
	return verify, code, nil
}

// newCodeSigning reads the keys of raw images under code signing, or returns nil.
func newCodeSigning(cfg *Config) (*bundle.CodeSigning, error) {
	var pems [][]byte
	for _, s := range cfg.allSources() {
		if s.AWSIoT == nil {
			continue
		}
		for _, path := range s.AWSIoT.CodeSigningFiles {
			b, err := readSmall(path)
			if err != nil {
				return nil, fmt.Errorf("aws_iot.code_signing_files: %w", err)
			}
			pems = append(pems, b)
		}
	}
	if len(pems) == 0 {
		return nil, nil
	}
	code, err := bundle.ParseCodeSigning(cfg.Device.Product, orDefault(cfg.Slot.Component, defaultComponent), pems...)
	if err != nil {
		return nil, fmt.Errorf("aws_iot.code_signing_files: %w", err)
	}
	return code, nil
}

// newKeys reads the keys that releases must be signed with.
func newKeys(cfg *Config) (*bundle.Keys, error) {
	k := &cfg.Keys
	if len(k.Files) == 0 && k.PublicKeyPEM == "" {
		return nil, errors.New("keys.files is missing: without a public key no release can be verified, and none is taken")
	}
	var pems [][]byte
	for _, path := range k.Files {
		b, err := readSmall(path)
		if err != nil {
			return nil, fmt.Errorf("keys.files: %w", err)
		}
		pems = append(pems, b)
	}
	if k.PublicKeyPEM != "" {
		pems = append(pems, []byte(k.PublicKeyPEM))
	}
	keys, err := bundle.ParseKeys(orDefault(k.Threshold, 1), pems...)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return keys, nil
}

// newGates combines what must be so before an update goes on.
func newGates(cfg *Config, guard *bms.Guard) (all, windows ota.Gate, err error) {
	battery := ota.Gate(gate.NoBattery)
	if guard != nil {
		answer := time.Second
		if cfg.Battery.Poll == 0 {
			answer = time.Duration(orDefault(cfg.Battery.Timeout, Duration(answer)))
		}
		battery = gate.Timeout(answer, guard.Gate)
	}
	gates := []ota.Gate{gate.Dwell(time.Duration(valueOr(cfg.Dwell, Duration(30*time.Second))), 0, battery)}
	if len(cfg.Windows) > 0 {
		var hours []gate.Hours
		for i, w := range cfg.Windows {
			h, err := gate.ParseHours(w)
			if err != nil {
				return nil, nil, fmt.Errorf("windows, entry %d: %w", i+1, err)
			}
			hours = append(hours, h)
		}
		if windows, err = gate.Window(hours...); err != nil {
			return nil, nil, fmt.Errorf("windows: %w", err)
		}
		gates = append(gates, windows)
	}
	return gate.All(gates...), windows, nil
}

func webURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not an http or https URL", s)
	}
	return u, nil
}

// readSmall reads a key, certificate, token or version.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxConfig)
	}
	return os.ReadFile(path)
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return strings.TrimSpace(line)
}
