package sdboot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
)

const (
	// loaderGUID is the vendor of systemd-boot's variables (systemd,
	// docs/BOOT_LOADER_INTERFACE.md).
	loaderGUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	// featureCounting is the bit of LoaderFeatures for boot counting (the same; 1 << 4).
	featureCounting = 1 << 4
	maxVar          = 64 << 10
)

// efiVar returns the value of one of systemd-boot's variables without the attributes,
// 4 bytes that efivarfs puts before it (Linux, Documentation/filesystems/efivarfs.rst).
func (s *Slots) efiVar(name string) ([]byte, error) {
	file := filepath.Join(s.cfg.EFIVars, name+"-"+loaderGUID)
	b, err := durable.ReadFile(s.fsys, file, maxVar)
	if err != nil {
		return nil, err
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("EFI variable %s has %d bytes, want 4 at least", name, len(b))
	}
	return b[4:], nil
}

// efiString decodes UTF-16, little endian, up to a zero.
func efiString(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

func base(efiPath string) string { return path.Base(strings.ReplaceAll(efiPath, `\`, "/")) }

// Probe implements [ota.Prober]. A good slot is not counted, so that systemd-boot does
// count is proven by a trial: by this one, or by one that fell back. Before the first,
// what can be seen is only what would prevent it.
func (s *Slots) Probe(ctx context.Context) (ota.Rollback, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.probe(ctx)
	if err != nil {
		return ota.Rollback{}, fmt.Errorf("find out whether systemd-boot counts: %w", err)
	}
	return r, nil
}

func (s *Slots) probe(ctx context.Context) (ota.Rollback, error) {
	b, running, _, err := s.booted(ctx)
	if err != nil {
		return ota.Rollback{}, err
	}
	all, err := s.directory().list()
	if err != nil {
		return ota.Rollback{}, err
	}
	if why, err := s.prevented(); why != "" || err != nil {
		return ota.Rollback{State: ota.RollbackBroken, Why: why}, err
	}
	counted, err := s.efiVar("LoaderBootCountPath")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ota.Rollback{}, err
	}
	e, ok := parseName(base(efiString(counted)), s.cfg.Entries[running].Name)
	proven := func(format string, a ...any) (ota.Rollback, error) {
		return ota.Rollback{State: ota.RollbackProven, Why: fmt.Sprintf(format, a...)}, nil
	}
	switch {
	case b.FellBack:
		return proven("systemd-boot has counted the try of slot %s, and come back", b.Other)
	case ok && e.done > 0:
		return proven("systemd-boot has counted this start of slot %s", b.Slot)
	case b.Trial:
		return proven("systemd-boot has counted the try of slot %s", b.Slot)
	}
	_, settled := good(all[running])
	for _, e := range all[running] {
		if !settled && !e.good && e.left == 1 && e.done == 0 { // as Try has made it
			return ota.Rollback{State: ota.RollbackBroken, Why: fmt.Sprintf("systemd-boot has started slot %s and not counted that: %s has the name that it had before; check that the firmware can write to the EFI system partition, and the version of systemd-boot", b.Slot, e.path)}, nil
		}
	}
	return ota.Rollback{State: ota.RollbackUnknown, Why: "systemd-boot does not count the starts of a good slot; the first trial will tell"}, nil
}

// prevented returns what keeps the counting from having effect, or "".
func (s *Slots) prevented() (why string, err error) {
	info, err := s.efiVar("LoaderInfo")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := s.fsys.Stat(s.cfg.EFIVars); err != nil {
			break // not mounted: nothing is known
		}
		return "the EFI variable LoaderInfo is missing: systemd-boot did not start this system", nil
	case err != nil:
		return "", err
	case !strings.HasPrefix(efiString(info), "systemd-boot "):
		return fmt.Sprintf("the boot loader is %q, want systemd-boot", efiString(info)), nil
	}
	features, err := s.efiVar("LoaderFeatures")
	if err == nil && len(features) == 8 && binary.LittleEndian.Uint64(features)&featureCounting == 0 {
		return "this systemd-boot says that it does not count", nil
	}
	preset, err := s.efiVar("LoaderEntryDefault")
	if err == nil && efiString(preset) != "" {
		return fmt.Sprintf("the EFI variable LoaderEntryDefault names %q, which wins over the counting: remove it with bootctl set-default ''", efiString(preset)), nil
	}
	conf := filepath.Join(filepath.Dir(s.cfg.Dir), "loader.conf")
	text, err := durable.ReadFile(s.fsys, conf, maxText)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == "default" {
			return fmt.Sprintf("%s has a default, %s, which wins over the counting: remove that line", conf, f[1]), nil
		}
	}
	return "", nil
}
