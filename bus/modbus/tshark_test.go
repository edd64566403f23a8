package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/interlock-energy/ota/otatest"
)

// recorder is the client's end of a connection, and keeps what went through it.
type recorder struct {
	net.Conn
	mu       sync.Mutex
	segments []segment
}

// segment is a request, or all that came until the next one.
type segment struct {
	request bool
	data    []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	r.segments = append(r.segments, segment{true, slices.Clone(b)})
	r.mu.Unlock()
	return r.Conn.Write(b)
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := len(r.segments) - 1; n > 0 && last >= 0 && !r.segments[last].request {
		r.segments[last].data = append(r.segments[last].data, b[:n]...)
	} else if n > 0 {
		r.segments = append(r.segments, segment{false, slices.Clone(b[:n])})
	}
	return n, err
}

// record returns what a client and a server said to each other.
func record(t *testing.T, transport Transport, talk func(t *testing.T, ctx context.Context, c *Client, m *Memory)) (segments []segment) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := new(Memory)
		server := &Server{Handler: m}
		ctx, cancel := context.WithCancel(t.Context())
		ours, theirs := net.Pipe()
		wire := &recorder{Conn: ours}
		served := make(chan struct{})
		go func() {
			defer close(served)
			if transport == RTU {
				server.ServeRTU(ctx, theirs, 7)
				return
			}
			server.serveTCP(ctx, &client{conn: theirs})
		}()
		var c *Client
		if transport == RTU {
			c = NewRTU(wire, Config{Baud: 19200})
		} else {
			c = NewTCP(wire, Config{})
		}
		talk(t, ctx, c, m)
		c.Close()
		cancel()
		theirs.Close()
		<-served
		segments = wire.segments
	})
	return segments
}

// capture writes segments of a TCP connection to port 502 as Wireshark's file format
// (draft-ietf-opsawg-pcap, link type RAW 101), in packets made up here.
func capture(t *testing.T, segments []segment) (path string) {
	t.Helper()
	le, be := binary.LittleEndian, binary.BigEndian
	file := le.AppendUint32(nil, 0xA1B2C3D4)
	file = le.AppendUint16(le.AppendUint16(file, 2), 4)
	file = le.AppendUint32(append(file, make([]byte, 8)...), 65535)
	file = le.AppendUint32(file, 101)
	ports, next := [2]uint16{502, 40000}, [2]uint32{1, 1} // of the server and of the client
	for i, s := range segments {
		from := 0
		if s.request {
			from = 1
		}
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1} // without checksums, which tshark does not ask for
		be.PutUint16(ip[2:], uint16(40+len(s.data)))
		tcp := be.AppendUint16(be.AppendUint16(ip, ports[from]), ports[1-from])
		tcp = be.AppendUint32(be.AppendUint32(tcp, next[from]), next[1-from])
		tcp = append(tcp, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0)
		next[from] += uint32(len(s.data))
		packet := append(tcp, s.data...)
		file = le.AppendUint32(le.AppendUint32(file, uint32(i)), 0) // a second each
		file = le.AppendUint32(le.AppendUint32(file, uint32(len(packet))), uint32(len(packet)))
		file = append(file, packet...)
	}
	path = filepath.Join(t.TempDir(), "modbus.pcap")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tshark returns the fields of every packet, those that it has, as "name=value".
func tshark(t *testing.T, path, decoder string, names ...string) (packets [][]string) {
	t.Helper()
	args := []string{"-n", "-r", path, "-d", "tcp.port==502," + decoder, "-o", decoder + ".tcp.port:502", "-o", "mbrtu.crc_verification:TRUE", "-T", "fields", "-E", "separator=|"}
	for _, name := range names {
		args = append(args, "-e", name)
	}
	cmd := exec.Command(otatest.Tool(t, "tshark"), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // nobody's settings
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(string(exit.Stderr))
		}
		t.Fatalf("%s: %v", cmd, err)
	}
	for line := range strings.Lines(string(out)) {
		var packet []string
		for i, value := range strings.Split(strings.TrimRight(line, "\n"), "|") {
			if value != "" {
				packet = append(packet, names[i]+"="+value)
			}
		}
		packets = append(packets, packet)
	}
	return packets
}

// What is asked of every packet: of the frame, and of what it says.
var (
	frames = []string{"mbtcp.trans_id", "mbtcp.unit_id", "mbrtu.unit_id", "mbrtu.crc16.status", "_ws.malformed", "_ws.expert.message"}
	fields = strings.Fields(`modbus.func_code modbus.exception_code modbus.reference_num modbus.read_reference_num
		modbus.write_reference_num modbus.bit_cnt modbus.word_cnt modbus.read_word_cnt modbus.write_word_cnt modbus.byte_cnt
		modbus.bitnum modbus.bitval modbus.regnum16 modbus.regval_uint16 modbus.and_mask modbus.or_mask modbus.reference_type
		modbus.reference_num_32 modbus.data`)
)

var dissectors = map[Transport]string{TCP: "mbtcp", RTU: "mbrtu"}

// wholeFrames says whether tshark found frames and nothing wrong with them.
func wholeFrames(transport Transport, packets [][]string) error {
	for i, got := range packets {
		want := []string{"mbrtu.unit_id=7", "mbrtu.crc16.status=1"} // good
		if transport == TCP {
			want = []string{fmt.Sprintf("mbtcp.trans_id=%d", 1+i/2), "mbtcp.unit_id=7"}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("packet %d: got %q, want %q", i, got, want)
		}
	}
	return nil
}

// TestTshark: Wireshark's dissectors read our requests and answers as they were meant.
func TestTshark(t *testing.T) {
	var want []string
	for line := range strings.Lines(meant) {
		if line = strings.TrimSpace(line); line != "" {
			want = append(want, line)
		}
	}
	for _, transport := range []Transport{TCP, RTU} {
		t.Run(string(transport), func(t *testing.T) {
			path := capture(t, record(t, transport, talk))
			if err := wholeFrames(transport, tshark(t, path, dissectors[transport], frames...)); err != nil {
				t.Error(err)
			}
			packets := tshark(t, path, dissectors[transport], fields...)
			if len(packets) != len(want) {
				t.Fatalf("%d packets, want %d", len(packets), len(want))
			}
			for i, packet := range packets {
				if got := strings.ReplaceAll(strings.Join(packet, " "), "modbus.", ""); got != want[i] {
					t.Errorf("packet %d\ngot  %s\nwant %s", i, got, want[i])
				}
			}
		})
	}
}

// TestTsharkLimits: frames that are as long as they can be are whole, too; and ones
// that are damaged would have been noticed.
func TestTsharkLimits(t *testing.T) {
	for _, transport := range []Transport{TCP, RTU} {
		t.Run(string(transport), func(t *testing.T) {
			segments := record(t, transport, func(t *testing.T, ctx context.Context, c *Client, m *Memory) { everything(t, ctx, c, m) })
			longest := 0
			segments = slices.DeleteFunc(segments, func(s segment) bool {
				longest = max(longest, len(s.data))
				return s.request && transport == RTU && s.data[0] == 0 // a broadcast, which has no answer
			})
			if want := map[Transport]int{TCP: 260, RTU: 256}[transport]; longest != want { // V1.1b3, 4.1
				t.Errorf("the longest frame has %d bytes, want %d", longest, want)
			}
			whole := func() error {
				return wholeFrames(transport, tshark(t, capture(t, segments), dissectors[transport], frames...))
			}
			if err := whole(); err != nil {
				t.Error(err)
			}
			damaged := segments[4].data // FC 3
			if transport == TCP {
				damaged[5]-- // its length
			} else {
				damaged[len(damaged)-1] ^= 1 // its CRC
			}
			if err := whole(); err == nil {
				t.Error("a frame that is damaged: tshark found nothing")
			}
		})
	}
}

// refused are the exceptions of V1.1b3, 7.
var refused = []Exception{1, 2, 3, 4, 5, 6, 8, 10, 11}

// talk uses each function once, some as in the examples of V1.1b3, 6.
func talk(t *testing.T, ctx context.Context, c *Client, m *Memory) {
	m.SetCoils(7, 0x13, true, false, true, true, false, true, false, false, true, true)
	m.SetDiscreteInputs(7, 0xC4, true, true, false)
	m.SetHolding(7, 0x6B, 555, 0, 100)
	m.SetInput(7, 8, 10)
	m.SetFIFO(7, 0x4DE, 0x1B8, 0x1284)
	m.OnRead = func(_ context.Context, _ Call, address uint16, _ int) error {
		if address >= 0x9000 {
			return Exception(address - 0x9000)
		}
		return nil
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	_, err := c.ReadCoils(ctx, 7, 0x13, 10)
	check(err)
	_, err = c.ReadDiscreteInputs(ctx, 7, 0xC4, 3)
	check(err)
	_, err = c.ReadHolding(ctx, 7, 0x6B, 3)
	check(err)
	_, err = c.ReadInput(ctx, 7, 8, 1)
	check(err)
	check(c.WriteCoil(ctx, 7, 0x13, true))
	check(c.WriteCoil(ctx, 7, 0x13, false))
	check(c.WriteRegister(ctx, 7, 0x6B, 3))
	check(c.WriteCoils(ctx, 7, 0x13, []bool{true, false, true, true, false, false, true, true, true, false}))
	check(c.WriteRegisters(ctx, 7, 0x6B, []uint16{10, 0x102}))
	check(c.WriteFile(ctx, 7, 4, 7, []uint16{0x6AF, 0x4BE, 0x100D}))
	_, err = c.ReadFile(ctx, 7, 4, 7, 3)
	check(err)
	check(c.MaskWrite(ctx, 7, 0x6B, 0xF2, 0x25))
	_, err = c.ReadWrite(ctx, 7, 0x6B, 3, 0x6C, []uint16{0xFF, 0xFE})
	check(err)
	_, err = c.ReadFIFO(ctx, 7, 0x4DE)
	check(err)
	for _, e := range refused {
		if _, err := c.ReadHolding(ctx, 7, 0x9000+uint16(e), 1); !errors.Is(err, e) {
			t.Errorf("got %v, want %v", err, e)
		}
	}
}

// meant is what talk says, in Wireshark's words: requests and answers in turn.
const meant = `
	func_code=1 reference_num=19 bit_cnt=10
	func_code=1 byte_cnt=2 bitnum=19,20,21,22,23,24,25,26,27,28 bitval=1,0,1,1,0,1,0,0,1,1
	func_code=2 reference_num=196 bit_cnt=3
	func_code=2 byte_cnt=1 bitnum=196,197,198 bitval=1,1,0
	func_code=3 reference_num=107 word_cnt=3
	func_code=3 byte_cnt=6 regnum16=107,108,109 regval_uint16=555,0,100
	func_code=4 reference_num=8 word_cnt=1
	func_code=4 byte_cnt=2 regnum16=8 regval_uint16=10
	func_code=5 reference_num=19 data=ff00
	func_code=5 reference_num=19 data=ff00
	func_code=5 reference_num=19 data=0000
	func_code=5 reference_num=19 data=0000
	func_code=6 reference_num=107 data=0003
	func_code=6 reference_num=107 data=0003
	func_code=15 reference_num=19 bit_cnt=10 byte_cnt=2 data=cd01
	func_code=15 reference_num=19 bit_cnt=10
	func_code=16 reference_num=107 word_cnt=2 byte_cnt=4 regnum16=107,108 regval_uint16=10,258
	func_code=16 reference_num=107 word_cnt=2
	func_code=21 word_cnt=3 byte_cnt=13 reference_type=6 reference_num_32=262151 data=06af04be100d
	func_code=21 word_cnt=3 byte_cnt=13 reference_type=6 reference_num_32=262151 data=06af04be100d
	func_code=20 word_cnt=3 byte_cnt=7 reference_type=6 reference_num_32=262151
	func_code=20 byte_cnt=8,7 reference_type=6 data=06af04be100d
	func_code=22 reference_num=107 and_mask=0x00f2 or_mask=0x0025
	func_code=22 reference_num=107 and_mask=0x00f2 or_mask=0x0025
	func_code=23 read_reference_num=107 write_reference_num=108 read_word_cnt=3 write_word_cnt=2 byte_cnt=4 data=00ff00fe
	func_code=23 byte_cnt=6 data=000700ff00fe
	func_code=24 reference_num=1246
	func_code=24 word_cnt=2 data=01b81284
	func_code=3 reference_num=36865 word_cnt=1
	func_code=3 exception_code=1
	func_code=3 reference_num=36866 word_cnt=1
	func_code=3 exception_code=2
	func_code=3 reference_num=36867 word_cnt=1
	func_code=3 exception_code=3
	func_code=3 reference_num=36868 word_cnt=1
	func_code=3 exception_code=4
	func_code=3 reference_num=36869 word_cnt=1
	func_code=3 exception_code=5
	func_code=3 reference_num=36870 word_cnt=1
	func_code=3 exception_code=6
	func_code=3 reference_num=36872 word_cnt=1
	func_code=3 exception_code=8
	func_code=3 reference_num=36874 word_cnt=1
	func_code=3 exception_code=10
	func_code=3 reference_num=36875 word_cnt=1
	func_code=3 exception_code=11
`
