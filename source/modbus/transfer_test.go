package modbus_test

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/api"
	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/source/modbus"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// offered checks that the manager is offered exactly the release.
func offered(t *testing.T, src *modbus.Source, r []byte) {
	t.Helper()
	got, err := src.Latest(t.Context())
	if err != nil || !bytes.Equal(got, r) {
		t.Fatalf("Latest: got %d bytes, %v, want the %d of the manifest", len(got), err, len(r))
	}
}

func notOffered(t *testing.T, src *modbus.Source) {
	t.Helper()
	if got, err := src.Latest(t.Context()); !errors.Is(err, ota.ErrNoUpdate) {
		t.Fatalf("Latest: got %d bytes, %v, want %v", len(got), err, ota.ErrNoUpdate)
	}
}

// TestPush is the way of a release, from the first register to the proven end.
func TestPush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		consents := 0
		r := newRig(t, rel, func(c *modbus.Config) { c.Installing = func() { consents++ } })
		m := r.master("192.0.2.1")
		if s := m.status(); s != (profile.Status{}) {
			t.Errorf("before anything: got %+v, want zeros", s)
		}
		m.open(offer(profile.Open, rel.Bundle))
		s := m.status()
		if s.State != profile.Opening || s.Blocks != uint32(profile.Blocks(int64(len(rel.Bundle)))) || s.Window != 1 || s.IdleLeft != 60 {
			t.Errorf("after OPEN: got %+v, want OPENING, a window of 1 for the header, 60 s", s)
		}
		m.send(rel.Bundle)
		if s := m.until(profile.Received); s.Received != s.Blocks || s.Missing != s.Blocks || s.Window != 0 || s.Progress != 1000 {
			t.Errorf("all sent: got %+v", s)
		}
		notOffered(t, r.src)
		m.do(m.with(profile.CloseAll))
		m.until(profile.Verified)
		notOffered(t, r.src)
		m.do(m.with(profile.Install))
		if s := m.status(); s.State != profile.WaitSafe || consents != 1 {
			t.Errorf("after INSTALL: got %v and %d consents, want WAIT_SAFE and 1", s.State, consents)
		}
		select {
		case <-r.src.Wake():
		default:
			t.Error("the manager was not woken")
		}
		offered(t, r.src, rel.Signed)
		r.manager(func(h *api.CheckinRequest) {
			h.Status, h.UpdateDigest, h.Done, h.Total = ota.StatusDownloading, rel.Manifest.Digest, 10_000, 25_001
			h.Course = ota.Course{Try: 2, SecondsLeft: 70_000, ImagesDone: 1}
		})
		if s := m.status(); s.State != profile.Installing || s.Written != 10_000 || s.Progress != 399 || s.Attempt != 2 ||
			s.SecondsLeft != 70_000 || s.ModulesDone != 1 || s.ModulesFailed != 0 {
			t.Errorf("installing: got %+v, want the second try, 70000 s left and the first image", s)
		}
		r.manager(func(h *api.CheckinRequest) {
			h.Status, h.Code, h.Course = ota.StatusFailed, ota.ErrConnectivity, ota.Course{Try: 2, ImagesDone: 1, FailedImage: 2}
		})
		if s := m.status(); s.State != profile.Installing || s.Result != profile.Timeout || s.ModulesDone != 1 || s.ModulesFailed != 2 || s.SecondsLeft != 0 {
			t.Errorf("an attempt that failed: got %+v, want it at the second image", s)
		}
		// The restart, and the end.
		r.restart()
		m = r.master("192.0.2.1")
		r.manager(func(h *api.CheckinRequest) {
			h.Status, h.Code, h.Course = ota.StatusTrial, 0, ota.Course{Try: 2, SecondsLeft: 42, ImagesDone: 2}
		})
		if s := m.status(); s.State != profile.Trial || s.Session != 0 || s.Seq != 0 || s.SecondsLeft != 42 || s.ModulesDone != 3 {
			t.Errorf("after the restart: got %+v, want TRIAL, no session, 42 s left and both images", s)
		}
		r.manager(func(h *api.CheckinRequest) { h.Status, h.UpdateDigest = ota.StatusIdle, "" })
		if err := r.src.Report(t.Context(), ota.Report{ID: "1", Digest: rel.Manifest.Digest, Version: "1.1.0", Result: ota.Succeeded}); err != nil {
			t.Fatal(err)
		}
		if s := m.status(); s.State != profile.Confirmed || s.ModulesDone != 3 || s.SecondsLeft != 0 || s.Attempt != 0 {
			t.Errorf("after the report: got %+v, want CONFIRMED with both images, and no time left", s)
		}
		if d := m.display(); d.Update != "1.1.0" || d.Device != "bess-7" || d.Product != "bess" || d.Running != "1.0.0" || d.Charge != profile.NotAvailable || d.Age != 65535 {
			t.Errorf("display: got %+v", d)
		}
	})
}

// TestPushInOtherWays: blocks in any order, by function 23, in records of files, with
// the manifest on its own.
func TestPushInOtherWays(t *testing.T) {
	rel := newRelease(t)
	images := append(bytes.Clone(rel.Images["controller"]), rel.Images["module1"]...)
	install := func(t *testing.T, r *rig, m *master, b []byte) {
		t.Helper()
		s := m.until(profile.Received)
		if s.Received != s.Blocks {
			t.Errorf("received %d of %d blocks, and that is said to be all", s.Received, s.Blocks)
		}
		if bits := bitmap(t, m, s.Blocks); bits != s.Blocks {
			t.Errorf("the bitmap has %d blocks, want %d", bits, s.Blocks)
		}
		if got := readBack(t, m, len(b)); !bytes.Equal(got, b) {
			t.Error("other bytes are read back than were written")
		}
		m.do(m.with(profile.CloseAll))
		m.until(profile.Verified)
		m.do(m.with(profile.Install))
		offered(t, r.src, rel.Signed)
		manifest := readManifest(t, m)
		if !bytes.Equal(manifest, rel.Signed) {
			t.Errorf("the manifest is read back as %d bytes, want the %d that were signed", len(manifest), len(rel.Signed))
		}
	}
	t.Run("any order, and twice", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, rel)
			m := r.master("192.0.2.1")
			m.open(offer(profile.Open, rel.Bundle))
			s := m.status()
			for m.status().State == profile.Opening {
				s = m.status()
				for n := s.Missing; n < s.Missing+uint32(s.Window); n++ {
					m.block(rel.Bundle, n)
				}
			}
			there := m.status().Received // all of them from the beginning
			for _, n := range rand.New(rand.NewPCG(3, 4)).Perm(int(s.Blocks)) {
				if uint32(n) >= m.status().Missing && !r.box.Has(int64(n)*profile.BlockSize, 1) {
					there++
				}
				for range 2 {
					if e := m.block(rel.Bundle, uint32(n)); e != 0 {
						t.Fatalf("block %d: %v", n, e)
					}
				}
				if got := m.status().Received; got != there {
					t.Fatalf("with block %d of %d: got %d blocks received, want %d", n, s.Blocks, got, there)
				}
			}
			install(t, r, m, rel.Bundle)
		})
	})
	t.Run("function 23", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, rel)
			m := r.master("192.0.2.1")
			m.open(offer(profile.Open, rel.Bundle))
			s := m.status()
			for n := uint32(0); n < s.Blocks; n++ {
				block := profile.Block{Session: m.session, Number: n, Data: piece(rel.Bundle, n)}
				registers, err := m.c.ReadWrite(t.Context(), 1, m.base+profile.OffsetStatus, profile.StatusSize, m.base+profile.OffsetData, block.Append(nil))
				if err != nil {
					t.Fatal(err)
				}
				if s, err = profile.DecodeStatus(registers); err != nil || s.Missing != n+1 {
					t.Fatalf("block %d: got next missing %d, %v, want %d", n, s.Missing, err, n+1)
				}
			}
			install(t, r, m, rel.Bundle)
		})
	})
	t.Run("files", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, rel, func(c *modbus.Config) { c.Functions = []bus.Function{bus.WriteFile} })
			m := r.master("192.0.2.1")
			m.open(offer(profile.Open, rel.Bundle))
			if e := m.block(rel.Bundle, 0); e != bus.IllegalFunction {
				t.Errorf("a block where only files are taken: got %v, want %v", e, bus.IllegalFunction)
			}
			m.writeFiles(rel.Bundle, 122)
			for from := 0; from < len(rel.Bundle); from += profile.FileSize {
				part := rel.Bundle[from:min(from+profile.FileSize, len(rel.Bundle))]
				c := m.with(profile.VerifyFile)
				c.Arg, c.Arg2 = uint32(from/profile.FileSize+1), crc32.ChecksumIEEE(part)
				m.do(c)
				c.Arg2++
				if e := m.command(c); e != bus.IllegalValue || m.status().Result != profile.BadHash {
					t.Errorf("VERIFY_FILE with another CRC-32: got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, profile.BadHash)
				}
			}
			install(t, r, m, rel.Bundle)
		})
	})
	t.Run("images after the manifest", func(t *testing.T) {
		for name, size := range map[string]int{"whole records": 100, "odd pieces": 7} {
			t.Run(name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					r := newRig(t, rel)
					m := r.master("192.0.2.1")
					if e := m.command(bare(profile.Open, images)); e != bus.IllegalValue || m.status().Result != profile.BadParameter {
						t.Fatalf("OPEN before the manifest: got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, profile.BadParameter)
					}
					m.writeManifest(rel.Signed, size)
					m.open(bare(profile.Open, images))
					if s := m.status(); s.State != profile.Receiving || s.Window != 32 {
						t.Errorf("after OPEN: got %v and a window of %d, want RECEIVING and 32", s.State, s.Window)
					}
					if name == "odd pieces" {
						m.writeFiles(images, 33)
					} else {
						m.send(images)
					}
					install(t, r, m, images)
				})
			})
		}
	})
}

// writeFiles writes b by function 21, so many records at once.
func (m *master) writeFiles(b []byte, records int) {
	m.t.Helper()
	for at := 0; at < len(b); {
		file, record := profile.Place(int64(at))
		n := min(records, profile.FileRecords-int(record))
		part := b[at:min(at+2*n, len(b))]
		err := m.c.WriteFile(m.t.Context(), m.unit, file, record, profile.Registers(nil, part))
		if exception(m.t, err) == bus.DeviceBusy {
			pause(time.Duration(m.status().RetryAfter) * time.Millisecond)
			continue
		}
		if err != nil {
			m.t.Fatalf("file %d, record %d: %v", file, record, err)
		}
		at += len(part)
	}
}

// writeManifest writes the manifest of format 2.
func (m *master) writeManifest(signed []byte, records int) {
	m.t.Helper()
	b := append([]byte{0, 0, byte(len(signed) >> 8), byte(len(signed))}, signed...)
	for at := 0; at < len(b); at += 2 * records {
		file, record := profile.SpecialPlace(profile.FileManifest, at)
		if err := m.c.WriteFile(m.t.Context(), m.unit, file, record, profile.Registers(nil, b[at:min(at+2*records, len(b))])); err != nil {
			m.t.Fatalf("manifest, byte %d of %d: %v", at, len(b), err)
		}
	}
}

// bitmap counts the blocks that are said to be there, which are all from the first on.
func bitmap(t *testing.T, m *master, blocks uint32) (n uint32) {
	t.Helper()
	for at := 0; at < int(blocks+15)/16; at += 100 {
		file, record := profile.SpecialPlace(profile.FileBitmap, 2*at)
		registers, err := m.c.ReadFile(t.Context(), m.unit, file, record, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range registers {
			if v&(v+1) != 0 {
				t.Errorf("bitmap from block %d on: got %016b, want the lowest bits first", n, v)
			}
			for ; v != 0; v &= v - 1 {
				n++
			}
		}
	}
	return n
}

// readBack reads what was received by function 20.
func readBack(t *testing.T, m *master, size int) (b []byte) {
	t.Helper()
	for len(b) < size {
		file, record := profile.Place(int64(len(b)))
		registers, err := m.c.ReadFile(t.Context(), m.unit, file, record, uint16(min(100, (size-len(b)+1)/2)))
		if err != nil {
			t.Fatal(err)
		}
		b = profile.Bytes(b, registers)
	}
	return b[:size]
}

func readManifest(t *testing.T, m *master) []byte {
	t.Helper()
	var b []byte
	for size := 4; len(b) < size; {
		file, record := profile.SpecialPlace(profile.FileManifest, len(b))
		registers, err := m.c.ReadFile(t.Context(), m.unit, file, record, 100)
		if err != nil {
			t.Fatal(err)
		}
		b = profile.Bytes(b, registers)
		size = 4 + int(b[0])<<24 + int(b[1])<<16 + int(b[2])<<8 + int(b[3])
		if len(b) >= size {
			return b[4:size]
		}
	}
	return nil
}

// TestRestart: what was acknowledged is there after the agent was killed, and RESUME finds
// it. Nothing is asked for twice.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rel := newRelease(t)
		r := newRig(t, rel)
		sent := map[uint32]int{}
		m := r.master("192.0.2.1")
		m.open(offer(profile.Open, rel.Bundle))
		for lives := 0; ; {
			s := m.status()
			if s.Missing == s.Blocks {
				break
			}
			if s.Window == 0 {
				pause(10 * time.Millisecond)
				continue
			}
			if e := m.block(rel.Bundle, s.Missing); e != 0 {
				t.Fatalf("block %d: %v", s.Missing, e)
			}
			if sent[s.Missing]++; len(sent)%10 == 0 {
				lives++
				old := m.session
				r.restart()
				m = r.master("192.0.2.1")
				m.session = old
				if e := m.block(rel.Bundle, 0); e != bus.IllegalValue || m.status().Result != profile.NoSession {
					t.Fatalf("a block of a session before the restart: got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, profile.NoSession)
				}
				if e := m.command(offer(profile.Resume, rel.Bundle[1:])); e != bus.IllegalValue || m.status().Result != profile.NoSession {
					t.Fatalf("RESUME of something else: got %v, %v, want %v, %v", e, m.status().Result, bus.IllegalValue, profile.NoSession)
				}
				m.open(offer(profile.Resume, rel.Bundle))
			}
		}
		for n, times := range sent {
			if times != 1 {
				t.Errorf("block %d was asked for %d times, want once", n, times)
			}
		}
		m.do(m.with(profile.CloseAll))
		m.until(profile.Verified)
		// Verified stays verified.
		r.restart()
		m = r.master("192.0.2.1")
		m.open(offer(profile.Resume, rel.Bundle))
		m.until(profile.Verified)
		m.do(m.with(profile.Install))
		offered(t, r.src, rel.Signed)
	})
}

// TestOddMasters: a slow one, one that sends everything again and again, and one that
// never reads the status.
func TestOddMasters(t *testing.T) {
	rel := newRelease(t)
	t.Run("slow", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, rel)
			m := r.master("192.0.2.1")
			m.open(offer(profile.Open, rel.Bundle))
			for n := range uint32(profile.Blocks(int64(len(rel.Bundle)))) {
				if e := m.block(rel.Bundle, n); e != 0 {
					t.Fatalf("block %d after %v of silence: %v", n, 50*time.Second, e)
				}
				pause(50 * time.Second)
			}
			m.until(profile.Received)
		})
	})
	t.Run("sends everything again", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, rel)
			m := r.master("192.0.2.1")
			m.open(offer(profile.Open, rel.Bundle))
			for range 20 {
				for n := range uint32(profile.Blocks(int64(len(rel.Bundle)))) {
					if e := m.block(rel.Bundle, n); e != 0 && e != bus.DeviceBusy {
						t.Fatalf("block %d: %v", n, e)
					}
				}
			}
			m.do(m.with(profile.CloseAll))
			m.until(profile.Verified)
			if e := m.block(rel.Bundle, 3); e != 0 {
				t.Errorf("a block once more, when all is verified: %v", e)
			}
			m.until(profile.Verified)
		})
	})
	t.Run("does not read", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, rel)
			m := r.master("192.0.2.1")
			m.open(offer(profile.Open, rel.Bundle))
			// With as many requests on the way as the server takes, and no look at the window.
			results := make(chan error)
			blocks := uint32(profile.Blocks(int64(len(rel.Bundle))))
			for busy := uint32(1); busy > 0; {
				busy = 0
				for n := range blocks {
					go func() {
						b := profile.Block{Session: m.session, Number: n, Data: piece(rel.Bundle, n)}
						results <- m.c.WriteRegisters(t.Context(), 1, m.base+profile.OffsetData, b.Append(nil))
					}()
				}
				for range blocks {
					switch e := exception(t, <-results); e {
					case 0:
					case bus.DeviceBusy:
						busy++
					default:
						t.Fatalf("got %v, want none or %v", e, bus.DeviceBusy)
					}
				}
			}
			m.until(profile.Received)
		})
	})
}

// TestBadReleases: what is not signed, not for this device, or not what was announced is
// never offered, and the status says why.
func TestBadReleases(t *testing.T) {
	good := newRelease(t)
	broken := func(at int) []byte {
		b := bytes.Clone(good.Bundle)
		b[at] ^= 1
		return b
	}
	stranger := otatest.NewSigningKey(t).Release(t, "1.1.0", 3000).Bundle
	for name, c := range map[string]struct {
		b      []byte
		want   profile.Result
		reason string
	}{
		"no bundle":        {bytes.Repeat([]byte("x"), 5000), profile.BadSignature, "not a bundle"},
		"another key":      {stranger, profile.BadSignature, "signature"},
		"manifest changed": {broken(200), profile.BadSignature, ""},
		"another product":  {key.Sign(t, &ota.Manifest{Product: "kettle", Version: "1.1.0"}, 3000).Bundle, profile.Incompatible, "kettle"},
		"an older version": {key.Sign(t, &ota.Manifest{Product: "bess", Version: "0.9.0"}, 3000).Bundle, profile.TooOld, "0.9.0"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRigJudging(t, good, func(m *ota.Manifest) error {
					switch {
					case m.Product != "bess":
						return errors.Join(ota.ErrIncompatible, errors.New("for product "+m.Product))
					case ota.CompareVersions(m.Version, "1.0.0") < 0:
						return errors.Join(ota.ErrIncompatible, errors.New("version "+m.Version+" is older"))
					}
					return nil
				})
				m := r.master("192.0.2.1")
				m.open(offer(profile.Open, c.b))
				var s profile.Status
				for s = m.status(); s.State == profile.Opening; s = m.status() {
					for n := s.Missing; n < s.Missing+uint32(s.Window); n++ {
						m.block(c.b, n)
					}
					pause(10 * time.Millisecond)
				}
				if s.State != profile.Failed || s.Result != c.want || s.Window != 0 || !strings.Contains(m.display().Reason, c.reason) {
					t.Errorf("got %v, %v, a window of %d, %q, want FAILED, %v, 0, and %q in the reason", s.State, s.Result, s.Window, m.display().Reason, c.want, c.reason)
				}
				if e := m.command(m.with(profile.Install)); e != bus.IllegalValue {
					t.Errorf("INSTALL: got %v, want %v", e, bus.IllegalValue)
				}
				notOffered(t, r.src)
				// Another try with the right one works.
				m.push(good.Bundle)
			})
		})
	}
	t.Run("an image changed", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, good)
			m := r.master("192.0.2.1")
			b := broken(len(good.Bundle) - 100)
			m.open(offer(profile.Open, good.Bundle))
			blocks := uint32(profile.Blocks(int64(len(b))))
			for n := uint32(0); n < blocks; {
				if e := m.block(b, n); e == bus.DeviceBusy {
					pause(100 * time.Millisecond)
				} else if n++; e != 0 {
					t.Fatalf("block %d: %v", n-1, e)
				}
			}
			synctest.Wait()
			pause(10 * time.Second) // for the device to look at what it has
			s := m.status()
			if s.State != profile.Receiving || s.Missing == s.Blocks {
				t.Fatalf("with a wrong byte: got %v, the first missing block %d of %d, want RECEIVING, for its chunk is asked for again", s.State, s.Missing, s.Blocks)
			}
			if e := m.command(m.with(profile.CloseAll)); e != bus.IllegalValue {
				t.Errorf("CLOSE with a chunk missing: got %v, want %v", e, bus.IllegalValue)
			}
			m.send(good.Bundle)
			m.do(m.with(profile.CloseAll))
			m.until(profile.Verified)
		})
	})
	t.Run("a manifest alone that is not signed", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			r := newRig(t, good)
			m := r.master("192.0.2.1")
			bad := bytes.Clone(good.Signed)
			bad[len(bad)/2] ^= 1
			b := append([]byte{0, 0, byte(len(bad) >> 8), byte(len(bad))}, bad...)
			var last error
			for at := 0; at < len(b) && last == nil; at += 200 {
				last = m.c.WriteFile(t.Context(), 1, profile.FileManifest, uint16(at/2), profile.Registers(nil, b[at:min(at+200, len(b))]))
			}
			if exception(t, last) != bus.IllegalValue || m.status().Result != profile.BadSignature {
				t.Errorf("got %v, %v, want %v, %v", last, m.status().Result, bus.IllegalValue, profile.BadSignature)
			}
			if e := m.command(bare(profile.Open, good.Images["controller"])); e != bus.IllegalValue {
				t.Errorf("OPEN after it: got %v, want %v", e, bus.IllegalValue)
			}
			tail := len(b) / 200 * 200
			if e := exception(t, m.records(profile.FileManifest, uint16(tail/2), b[tail:])); e != bus.DeviceBusy {
				t.Errorf("its end once more: got %v, want %v, for it begins anew", e, bus.DeviceBusy)
			}
			// Two masters do not mix their manifests.
			if e := exception(t, m.records(profile.FileManifest, 0, b[:200])); e != 0 {
				t.Errorf("the beginning: %v", e)
			}
			second := r.master("192.0.2.2")
			if e := exception(t, second.records(profile.FileManifest, 100, b[200:400])); e != bus.DeviceBusy {
				t.Errorf("the middle of another master: got %v, want %v", e, bus.DeviceBusy)
			}
		})
	})
}
