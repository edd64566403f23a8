package modbus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"

	bus "github.com/interlock-energy/ota/bus/modbus"
	"github.com/interlock-energy/ota/internal/inbox"
	"github.com/interlock-energy/ota/source/modbus/profile"
)

// FuzzServer sends any sequence of requests to a device in the middle of a transfer, and
// to one with none. It never panics, answers each request or closes the connection; the
// inbox gets nothing without a session, and never anything that makes it offer a release.
//
// The input is requests, each a byte of length and that many bytes of PDU; where a PDU
// begins with 16, address 0xE100 and session 0xFFFF, that session is replaced by the real
// one.
func FuzzServer(f *testing.F) {
	frame := func(pdus ...[]byte) (b []byte) {
		for _, p := range pdus {
			b = append(append(b, byte(len(p))), p...)
		}
		return b
	}
	write := func(address uint16, registers []uint16) []byte {
		b := []byte{16, byte(address >> 8), byte(address), 0, byte(len(registers)), byte(2 * len(registers))}
		return profile.Bytes(b, registers)
	}
	command := func(c profile.Command) []byte {
		registers := make([]uint16, profile.CommandSize)
		c.Encode(registers)
		return write(0xE020, registers)
	}
	block := func(n uint32, data string) []byte {
		return write(0xE100, (&profile.Block{Session: 0xFFFF, Number: n, Data: []byte(data)}).Append(nil))
	}
	f.Add(false, frame(command(profile.Command{Code: 1, Seq: 1, Component: 15, Size: 1000, Format: 1, SHA256: [32]byte{1}}), block(0, "x"), []byte{3, 0xE0, 0x40, 0, 32}))
	f.Add(true, frame(block(1, "x"), block(4, "yyy"), command(profile.Command{Code: 3, Seq: 2, Session: 0xFFFF}), command(profile.Command{Code: 4, Seq: 3, Session: 0xFFFF})))
	f.Add(true, frame([]byte{21, 9, 6, 0, 1, 0, 0, 0, 1, 7, 7}, []byte{20, 7, 6, 0xF0, 2, 0, 0, 0, 1}, []byte{20, 7, 6, 0, 1, 0, 0, 0, 121}))
	f.Add(false, frame([]byte{21, 13, 6, 0xF0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 7, 7}, command(profile.Command{Code: 1, Seq: 1, Component: 15, Size: 7, Format: 2, SHA256: [32]byte{1}})))
	f.Add(true, frame([]byte{23, 0xE0, 0x40, 0, 32, 0xE1, 0, 0, 7, 14, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}, []byte{6, 0xE0, 0x20, 0, 1}, []byte{22, 0, 0, 0, 0, 0, 0}, []byte{}))
	f.Add(true, frame(command(profile.Command{Code: 5, Seq: 9, Session: 0xFFFF}), block(0, "z")))
	f.Add(true, frame(command(profile.Command{Code: 8, Seq: 9, Session: 0xFFFF, Arg: 1}), command(profile.Command{Code: 9, Seq: 10}), command(profile.Command{Code: 7, Seq: 11})))
	f.Fuzz(func(t *testing.T, begun bool, input []byte) {
		if len(input) > 4<<10 {
			return
		}
		rel := newRelease(t, 3000)
		r := newRig(t, rel)
		m := r.master("192.0.2.1")
		if begun {
			m.open(offer(profile.Open, rel.Bundle))
			m.block(rel.Bundle, 0)
		}
		conn, err := r.hub.dial("192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for transaction := uint16(1); len(input) > 0; transaction++ {
			n := min(int(input[0]), len(input)-1)
			pdu := bytes.Clone(input[1 : 1+n])
			input = input[1+n:]
			if n == 0 || n > bus.MaxPDU {
				continue
			}
			if begun && n > 8 && pdu[0] == 16 && binary.BigEndian.Uint16(pdu[1:]) == 0xE100 && binary.BigEndian.Uint16(pdu[6:]) == 0xFFFF {
				binary.BigEndian.PutUint16(pdu[6:], m.session)
			}
			before := r.box.State()
			answer := ask(t, conn, transaction, pdu)
			after := r.box.State()
			if len(answer) == 0 || answer[0] != pdu[0] && answer[0] != pdu[0]|0x80 || len(answer) > bus.MaxPDU {
				t.Fatalf("asked % x, got % x", pdu, answer)
			}
			if before.Phase == inbox.Empty && after.Phase == inbox.Empty && after.Received > 0 {
				t.Fatalf("% x has put %d bytes into an inbox in which nothing was begun", pdu, after.Received)
			}
			if answer[0] == pdu[0]|0x80 && after.Received != before.Received && pdu[0] != 21 && after.Phase == before.Phase {
				t.Fatalf("% x was refused with % x, and %d bytes became %d", pdu, answer, before.Received, after.Received)
			}
			if _, err := r.src.Latest(t.Context()); err == nil {
				t.Fatal("a release is offered that nobody has pushed")
			}
		}
		m.status() // it is still there
	})
}

// ask sends a PDU and returns the answer's.
func ask(t *testing.T, conn io.ReadWriter, transaction uint16, pdu []byte) []byte {
	t.Helper()
	go conn.Write(bus.AppendTCP(nil, transaction, 1, pdu))
	header := make([]byte, 7)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatalf("asked % x: %v", pdu, err)
	}
	got, _, size, err := bus.ParseTCP(header)
	if err != nil || got != transaction {
		t.Fatalf("asked % x: transaction %d, %v, want %d", pdu, got, err, transaction)
	}
	answer := make([]byte, size)
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatalf("asked % x: %v", pdu, err)
	}
	return answer
}

// FuzzFiles writes and reads any records of a transfer whose bytes are known: what is
// read back is what was written, or nothing, and the end is where OPEN has said.
func FuzzFiles(f *testing.F) {
	f.Add(uint16(1), uint16(0), uint8(10), uint16(3001))
	f.Add(uint16(1), uint16(1500), uint8(1), uint16(3001))
	f.Add(uint16(1), uint16(9999), uint8(122), uint16(20001))
	f.Add(uint16(2), uint16(0), uint8(1), uint16(20001))
	f.Add(uint16(0xF001), uint16(0), uint8(2), uint16(100))
	f.Add(uint16(0xFF01), uint16(9999), uint8(1), uint16(100))
	f.Add(uint16(0xF003), uint16(9999), uint8(121), uint16(100))
	f.Add(uint16(0xF001), uint16(0), uint8(0), uint16(52)) // half of the length alone
	f.Add(uint16(0), uint16(10000), uint8(0), uint16(1))
	f.Fuzz(func(t *testing.T, file, record uint16, count uint8, size uint16) {
		rel := newRelease(t, 1+int(size))
		image := rel.Images["controller"]
		r := newRig(t, rel)
		m := r.master("192.0.2.1")
		m.writeManifest(rel.Signed, 100)
		m.open(bare(profile.Open, image))
		offset, ok := profile.Offset(file, record)
		n := int(count)%bus.MaxFileRead + 1
		end := offset + 2*int64(n)
		inside := ok && end <= int64(len(image)+len(image)%2) && int(record)+n <= profile.FileRecords
		data := make([]byte, 2*n)
		if inside {
			copy(data, image[offset:])
		}
		err := m.records(file, record, data)
		if inside != (err == nil) && !(file&0xFF == 1 && file >= 0xF000) {
			t.Fatalf("records %d to %d of file %d, %d bytes are to come: got %v, want it taken: %v", record, int(record)+n-1, file, len(image), err, inside)
		}
		if st := r.box.State(); inside && st.Received != min(end, int64(len(image)))-offset || !inside && st.Received != 0 {
			t.Fatalf("%d bytes were received", st.Received)
		}
		registers, err := m.c.ReadFile(context.Background(), 1, file, record, uint16(n))
		if inside && (err != nil || !bytes.Equal(profile.Bytes(nil, registers), data)) {
			t.Fatalf("read back: got %04x, %v, want % x", registers, err, data)
		}
	})
}
