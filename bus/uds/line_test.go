package uds_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/interlock-energy/ota/bus/bustest"
	"github.com/interlock-energy/ota/bus/can"
	"github.com/interlock-energy/ota/bus/isotp"
	"github.com/interlock-energy/ota/bus/uds"
	"github.com/interlock-energy/ota/otatest"
)

// onBus runs a test of a client and a server on an emulated CAN bus, with ISO-TP.
func onBus(t *testing.T, bus bustest.CANConfig, config isotp.Config, server *uds.Server, test func(t *testing.T, d *device, c *uds.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		wire := bustest.NewCAN(bus)
		near, far := isotp.NewMux(wire.Join("tester")), isotp.NewMux(wire.Join("device"))
		open := func(m *isotp.Mux, a isotp.Address) *isotp.Channel {
			c, err := m.Open(a, config)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		tester, device := open(near, isotp.Normal(0x7E0, 0x7E8)), open(far, isotp.Normal(0x7E8, 0x7E0))
		b := newBench(t, server)
		ctx, cancel := context.WithCancel(t.Context())
		b.cancel = cancel
		b.done.Go(func() { b.ends = append(b.ends, server.Serve(ctx, uds.Tester{Conn: device})) })
		c := uds.NewClient(tester, uds.ClientConfig{})
		defer func() {
			c.Close()
			b.stop()
			near.Close()
			far.Close()
			wire.Close()
		}()
		test(t, b.d, c)
	})
}

// TestRate: blocks of 4095 bytes keep at least 90 % of what ISO-TP lets through at STmin
// 0: 7 bytes of data in each frame of a block, and nothing between the blocks but the
// answer.
func TestRate(t *testing.T) {
	const blocks = 20
	onBus(t, bustest.CANConfig{Worst: true}, isotp.Config{}, &uds.Server{}, func(t *testing.T, d *device, c *uds.Client) {
		ctx := t.Context()
		if err := again(func() error { return unlock(ctx, c) }); err != nil {
			t.Fatal(err)
		}
		size, err := c.RequestDownload(ctx, uds.DownloadRequest{Size: blocks * 4093})
		if err != nil {
			t.Fatal(err)
		}
		block := bytes.Repeat([]byte{0x55}, size)
		start := time.Now()
		for i := range blocks {
			if _, err := c.TransferData(ctx, byte(i+1), block); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(start)
		frame := bustest.WorstBits(can.Standard(0x7E0, make([]byte, 8)...))
		limit := 500_000 / float64(frame) * 7
		got := float64(blocks*size) / took.Seconds()
		t.Logf("%.0f B/s, %.1f %% of %.0f B/s", got, 100*got/limit, limit)
		if got < 0.9*limit {
			t.Errorf("%.0f B/s, want at least 90 %% of %.0f B/s", got, limit)
		}
	})
}

func unlock(ctx context.Context, c *uds.Client) error {
	if _, err := c.DiagnosticSession(ctx, uds.Programming); err != nil {
		return err
	}
	seed, err := c.RequestSeed(ctx, 1, nil)
	if err != nil {
		return err
	}
	return c.SendKey(ctx, 1, key(seed))
}

// TestSlowBlock: a block that takes longer than S3 on the bus keeps its session, since
// its frames are no silence.
func TestSlowBlock(t *testing.T) {
	onBus(t, bustest.CANConfig{}, isotp.Config{STmin: 20 * time.Millisecond}, &uds.Server{}, func(t *testing.T, d *device, c *uds.Client) {
		ctx := t.Context()
		if err := unlock(ctx, c); err != nil {
			t.Fatal(err)
		}
		size, err := c.RequestDownload(ctx, uds.DownloadRequest{Size: 4093})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := c.TransferData(ctx, 1, make([]byte, size)); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < 10*time.Second {
			t.Errorf("the block took %v: this proves nothing", took)
		}
		if _, err := c.TransferExit(ctx, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestFramesLost: with every tenth frame lost, doubled or out of order on the bus, the
// image arrives whole.
func TestFramesLost(t *testing.T) {
	for name, faults := range map[string]bustest.Faults{
		"lost":    {Lose: 0.1},
		"doubled": {Double: 0.1},
		"swapped": {Reorder: 0.1},
	} {
		for seed := range uint64(20) {
			faults.Seed = seed
			onBus(t, bustest.CANConfig{Faults: faults}, isotp.Config{}, &uds.Server{MaxBlock: 8}, func(t *testing.T, d *device, c *uds.Client) {
				// Keys count, and may be lost: this tester begins again until all is done.
				var err error
				for range 20 {
					if err = reprogram(t.Context(), c); err == nil {
						break
					}
					time.Sleep(11 * time.Second)
				}
				if err != nil {
					t.Fatalf("%s, seed %d: %v", name, seed, err)
				}
				if got := d.done[len(d.done)-1]; !bytes.Equal(got, image) {
					t.Errorf("%s, seed %d: got %q, want %q", name, seed, got, image)
				}
			})
		}
	}
}

// TestTshark: Wireshark reads in our frames what we said, of the services that it knows.
func TestTshark(t *testing.T) {
	program := otatest.Tool(t, "tshark")
	tap := &bustest.Tap{}
	onBus(t, bustest.CANConfig{Tap: tap}, isotp.Config{}, &uds.Server{}, func(t *testing.T, d *device, c *uds.Client) {
		ctx := t.Context()
		if err := reprogram(ctx, c); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadData(ctx, 0xF195); err != nil {
			t.Error(err)
		}
		if err := c.Reset(ctx, uds.HardReset); !errors.Is(err, uds.ServiceNotSupportedInSession) {
			t.Error(err)
		}
		if err := c.TesterPresent(ctx); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "uds.pcap")
	if err := os.WriteFile(path, capture(tap), 0o600); err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields("uds.sid uds.reply uds.dsc.type uds.dsc.parameter_record uds.er.type uds.rdbi.data_identifier uds.rdbi.data_record uds.sa.type uds.sa.seed uds.rc.type uds.rc.identifier uds.rd.memory_address uds.rd.memory_size uds.rd.max_number_of_block_length uds.td.block_sequence_counter uds.err.sid uds.err.code uds.cdtcs.type _ws.malformed")
	args := []string{"-n", "-r", path, "--disable-protocol", "autosar-nm", "-d", "can.subdissector,iso15765", "-d", "iso15765.subdissector,uds", "-Y", "uds", "-T", "fields", "-E", "separator=,"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, &trouble)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		var there []string
		for _, f := range strings.Split(strings.TrimSpace(line), ",") {
			if f = strings.TrimLeft(strings.TrimPrefix(f, "0x"), "0"); f != "" {
				there = append(there, f)
			}
		}
		got = append(got, strings.Join(there, " "))
	}
	// The service; 1 of an answer; and what Wireshark knows of it, without leading zeros.
	want := strings.Split("10 3|10 1 3 3201f4|31 1 203|31 1 1 203|85 2|85 1 2|28|28 1|10 2|10 1 2 3201f4|"+
		"27 1|27 1 1 1020301|27 2|27 1 2|31 1 ff00|31 1 1 ff00|34 14|34 1 fff|36 1|36 1 1|37|37 1|"+
		"31 1 202|31 1 1 202|31 1 ff01|31 1 1 ff01|11 1|11 1 1|22 f195|22 1 f195 312e322e33|11 1|3f 1 11 7f|3e|3e 1", "|")
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// capture writes the frames of a tap as Wireshark's file format, with the link type
// LINKTYPE_CAN_SOCKETCAN (227).
func capture(tap *bustest.Tap) []byte {
	le, be := binary.LittleEndian, binary.BigEndian
	file := le.AppendUint32(nil, 0xA1B2C3D4)
	file = le.AppendUint16(le.AppendUint16(file, 2), 4)
	file = le.AppendUint32(append(file, make([]byte, 8)...), 65535)
	file = le.AppendUint32(file, 227)
	for _, r := range tap.Records() {
		file = le.AppendUint32(le.AppendUint32(file, 0), 0)
		file = le.AppendUint32(le.AppendUint32(file, 16), 16)
		file = append(be.AppendUint32(file, r.Frame.ID), r.Frame.Len, 0, 0, 0)
		file = append(file, r.Frame.Data[:]...)
	}
	return file
}
