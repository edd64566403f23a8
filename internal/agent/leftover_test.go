package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/otatest"
)

// receive puts all of a release, or half of it, into the inbox of a kind.
func receive(t *testing.T, disk durable.FS, kind string, rel *otatest.SignedRelease, all bool) {
	t.Helper()
	box, err := inbox.Open(inbox.Config{FS: disk, Dir: inboxDir("/state", kind), Verify: rel.Verify, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = box.Begin(inbox.Offer{Size: int64(len(rel.Bundle)), SHA256: sha256.Sum256(rel.Bundle)}); err == nil {
		err = box.Put(0, rel.Bundle[:len(rel.Bundle)/2])
	}
	if err == nil && all {
		synctest.Wait()
		err = errors.Join(box.Put(int64(len(rel.Bundle)/2), rel.Bundle[len(rel.Bundle)/2:]), box.Finish())
	}
	synctest.Wait()
	if err := errors.Join(err, box.Close()); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, disk durable.FS, dir string) string {
	t.Helper()
	entries, err := disk.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

// What was received for a source that is not configured any more goes, unless the manager is at it, or how
// that ended is still to be reported; nothing else does.
func TestRemoveLeft(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	digest := rel.Manifest.Digest
	modbus, can, https := Source{Modbus: new(ModbusServer)}, Source{CANBus: new(CANServer)}, Source{HTTPS: new(HTTPS)}
	const others = "canbus inbox-old record"
	for _, tt := range []struct {
		name    string
		sources []Source
		record  ota.Record
		want    string // of the inboxes
		says    string
	}{
		{"both are configured", []Source{modbus, can}, ota.Record{State: ota.Idle}, "inbox-canbus inbox-modbus", ""},
		{"in the other order", []Source{can, https, modbus}, ota.Record{State: ota.Idle}, "inbox-canbus inbox-modbus", ""},
		{"one is", []Source{https, can}, ota.Record{State: ota.Idle}, "inbox-canbus", "source=modbus dir=/state/inbox-modbus bytes="},
		{"none is", []Source{https}, ota.Record{State: ota.Idle}, "", "source=canbus dir=/state/inbox-canbus bytes="},
		{"it is being installed", []Source{https}, ota.Record{State: ota.Staged, Digest: digest}, "inbox-canbus inbox-modbus", "it is being installed"},
		{"it is on trial", []Source{can}, ota.Record{State: ota.Trial, Digest: digest}, "inbox-canbus inbox-modbus", "it is being installed"},
		{"another is being installed", []Source{https}, ota.Record{State: ota.Staged, Digest: "another"}, "", "is removed"},
		{"nobody knows what is being installed", []Source{https}, ota.Record{State: ota.Staged}, "inbox-canbus inbox-modbus", "stays"},
		{"a newer agent has written the record", []Source{https}, ota.Record{Format: 2, State: ota.Idle}, "inbox-canbus inbox-modbus", ""},
		{"a report is unsent", []Source{https}, ota.Record{State: ota.Idle, Unsent: []ota.Report{{Digest: "another"}, {Digest: digest}}}, "inbox-canbus inbox-modbus", "still to be reported"},
		{"a report of another is unsent", []Source{https}, ota.Record{State: ota.Idle, Unsent: []ota.Report{{Digest: "another"}}}, "", "is removed"},
	} {
		synctest.Test(t, func(t *testing.T) {
			disk := otatest.NewDisk()
			receive(t, disk, "modbus", rel, true)
			receive(t, disk, "canbus", rel, true)
			for _, name := range []string{"/state/canbus", "/state/inbox-old"} { // of other parts, and of who knows
				if err := durable.MkdirAll(disk, name, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := durable.WriteFile(disk, "/state/record", []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the next start has nothing to do
				var said bytes.Buffer
				removeLeft(disk, "/state", tt.sources, &tt.record, slog.New(slog.NewTextHandler(&said, nil)))
				got := names(t, disk, "/state")
				want := strings.Join(strings.Fields(strings.Replace(others, "inbox-old", tt.want+" inbox-old", 1)), " ")
				if got != want {
					t.Errorf("%s: got %s, want %s", tt.name, got, want)
				}
				if !strings.Contains(said.String(), tt.says) || tt.says == "" && said.Len() > 0 {
					t.Errorf("%s: it says %q, want %q", tt.name, said.String(), tt.says)
				}
				if strings.Contains(tt.says, "removed") || strings.Contains(tt.says, "bytes=") {
					tt.says = ""
				}
			}
		})
	}
}

// A power cut at any effect of the removal, and a disk that refuses, leave something that the next start ends, and
// inboxes of sources that are configured whole.
func TestRemoveLeftPowerCut(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	runs := 0
	synctest.Test(t, func(t *testing.T) {
		full := otatest.NewDisk()
		receive(t, full, "modbus", rel, true)
		receive(t, full, "canbus", rel, false)
		sources, r, quiet := []Source{{CANBus: new(CANServer)}}, &ota.Record{State: ota.Idle}, slog.New(slog.DiscardHandler)
		for _, how := range []otatest.How{otatest.Before, otatest.After, otatest.Torn} {
			for _, rest := range []otatest.Rest{otatest.DropAll, otatest.KeepAll, otatest.Subset} {
				for at := 1; ; at++ {
					disk := full.Clone()
					disk.Arm(otatest.Cut{At: at, How: how, Rest: rest, Seed: uint64(at)})
					proc := otatest.NewProcess(disk)
					removeLeft(proc, "/state", sources, r, quiet)
					if !proc.Ended() {
						break
					}
					runs++
					disk.PowerOn()
					removeLeft(disk, "/state", sources, r, quiet)
					disk.PowerOff(otatest.DropAll, 1)
					disk.PowerOn()
					if got := names(t, disk, "/state"); got != "inbox-canbus" {
						t.Errorf("%v, %v, effect %d: got %s, want inbox-canbus", how, rest, at, got)
					}
					if got, want := names(t, disk, "/state/inbox-canbus"), names(t, full, "/state/inbox-canbus"); got != want {
						t.Errorf("%v, %v, effect %d: the inbox in use has %s, want %s", how, rest, at, got, want)
					}
				}
			}
		}
	})
	if t.Logf("%d power cuts", runs); runs < 40 {
		t.Errorf("%d power cuts, want one at each effect, in 9 ways", runs)
	}
}

// A transfer that is half done goes on when sources are put in another order, or their settings change: its
// folder is that of the kind.
func TestHalfDoneTransferStays(t *testing.T) {
	rel := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000)
	const media = "{media: {path: /media/*}}"
	a, err := configured(t, "source:", "sources: [{modbus: {listen: '127.0.0.1:0'}}, "+media+"]")
	if err != nil {
		t.Fatal(err)
	}
	half := int64(len(rel.Bundle) / 2)
	offer := inbox.Offer{Size: int64(len(rel.Bundle)), SHA256: sha256.Sum256(rel.Bundle)}
	for i, sources := range [][]Source{
		{{Modbus: &ModbusServer{Listen: "127.0.0.1:0"}}, {Media: &Media{Path: "/media/*"}}},
		{{Media: &Media{Path: "/media/*"}}, {Modbus: &ModbusServer{Listen: "127.0.0.1:0", DeviceID: 7, MaxFile: 1 << 20}}},
		{{Modbus: &ModbusServer{Serial: &Serial{Device: "/dev/ttyS9"}, Consent: true}}, {CANBus: &CANServer{Interface: "can0"}}},
	} {
		a.cfg.Source, a.cfg.Sources, a.verify = nil, sources, rel.Verify
		removeLeft(durable.OS{}, a.cfg.StateDir, a.cfg.allSources(), &ota.Record{State: ota.Idle}, a.log)
		set, err := a.newSources("1.0.0", false)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range set.sources {
			p, ok := s.Source.(*pushed)
			if !ok || s.name != "modbus" {
				continue
			}
			if i == 0 {
				if _, err := p.Begin(offer); err != nil {
					t.Fatal(err)
				}
				if err := p.Put(0, rel.Bundle[:half]); err != nil && !errors.Is(err, inbox.ErrEarly) {
					t.Fatal(err)
				}
			}
			if s := p.State(); s.Offer != offer || s.Received == 0 {
				t.Errorf("change %d: got %+v, want the half of the transfer", i, s)
			}
		}
		set.close()
	}
	removeLeft(durable.OS{}, a.cfg.StateDir, nil, &ota.Record{State: ota.Idle}, a.log)
	if _, err := os.Stat(inboxDir(a.cfg.StateDir, "modbus")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the source: got %v, want that it is gone", err)
	}
}
