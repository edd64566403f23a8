package modbus

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"
)

// script is a fake connection: the server reads what it holds, and then the end, and
// what it writes is kept.
type script struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(b []byte) (int, error)         { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)        { return s.out.Write(b) }
func (s *script) Close() error                       { return nil }
func (s *script) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (s *script) SetDeadline(t time.Time) error      { return nil }
func (s *script) SetReadDeadline(t time.Time) error  { return nil }
func (s *script) SetWriteDeadline(t time.Time) error { return nil }

// everywhere is a fake handler with everything at every address, which checks what the
// server promises to handlers.
type everywhere struct{ t *testing.T }

func (e everywhere) span(address uint16, n, most int) error {
	if n < 1 || n > most || int(address)+n > 1<<16 {
		e.t.Errorf("the handler was asked for %d at %d", n, address)
	}
	return nil
}
func (e everywhere) ReadHolding(_ context.Context, _ Call, a uint16, v []uint16) error {
	return e.span(a, len(v), 125)
}
func (e everywhere) WriteHolding(_ context.Context, _ Call, a uint16, v []uint16) error {
	return e.span(a, len(v), 123)
}
func (e everywhere) MaskHolding(context.Context, Call, uint16, uint16, uint16) error { return nil }
func (e everywhere) ReadInput(_ context.Context, _ Call, a uint16, v []uint16) error {
	return e.span(a, len(v), 125)
}
func (e everywhere) ReadCoils(_ context.Context, _ Call, a uint16, v []bool) error {
	return e.span(a, len(v), 2000)
}
func (e everywhere) WriteCoils(_ context.Context, _ Call, a uint16, v []bool) error {
	return e.span(a, len(v), 1968)
}
func (e everywhere) ReadDiscreteInputs(_ context.Context, _ Call, a uint16, v []bool) error {
	return e.span(a, len(v), 2000)
}
func (e everywhere) ReadFile(_ context.Context, _ Call, file, record uint16, v []uint16) error {
	return e.file(file, record, len(v), MaxFileRead)
}
func (e everywhere) WriteFile(_ context.Context, _ Call, file, record uint16, v []uint16) error {
	return e.file(file, record, len(v), MaxFileWrite)
}
func (e everywhere) file(file, record uint16, n, most int) error {
	if file == 0 || n < 1 || n > most || int(record)+n > 10000 {
		e.t.Errorf("the handler was asked for %d records from %d of file %d", n, record, file)
	}
	return nil
}
func (e everywhere) ReadFIFO(_ context.Context, _ Call, a uint16, dst []uint16) (int, error) {
	return int(a) % 33, nil // sometimes more than there may be
}

// checkAnswer says what is wrong with an answer of the server above.
func checkAnswer(t *testing.T, request, answer []byte) {
	t.Helper()
	if len(answer) > MaxPDU {
		t.Errorf("an answer of %d bytes", len(answer))
	}
	if _, err := ParseRequest(request); err != nil {
		if len(answer) != 2 || answer[0] != request[0]|0x80 || Exception(answer[1]) != err {
			t.Errorf("% X: got % X, want exception %d", request, answer, err)
		}
		return
	}
	_, err := ParseAnswer(request, answer)
	if e, ok := err.(Exception); err != nil && !(ok && e == IllegalValue && Function(request[0]) == ReadFIFO) {
		t.Errorf("% X: got % X: %v", request, answer, err)
	}
}

// FuzzTCP gives a server a stream of bytes. It answers every whole request before the
// first thing that is not Modbus, in order, with what its own client accepts, and
// nothing else.
func FuzzTCP(f *testing.F) {
	var all []byte
	for i, v := range spec {
		frame := AppendTCP(nil, uint16(i), 1, hexed(f, v.request))
		f.Add(frame)
		all = append(all, frame...)
	}
	f.Add(all)
	f.Add(append(all[:30:30], 0, 1, 0, 1, 0, 6))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		conn := &script{in: bytes.NewReader(stream)}
		(&Server{Handler: everywhere{t}}).serveTCP(t.Context(), &client{conn: conn})
		out := conn.out.Bytes()
		for len(stream) >= headerSize {
			transaction, unit, size, err := ParseTCP(stream)
			if err != nil || len(stream) < headerSize+size {
				break
			}
			gotTransaction, gotUnit, gotSize, err := ParseTCP(out)
			if err != nil || len(out) < headerSize+gotSize || gotTransaction != transaction || gotUnit != unit {
				t.Fatalf("request %d of unit %d: got % X, %v", transaction, unit, out[:min(len(out), 20)], err)
			}
			checkAnswer(t, stream[headerSize:headerSize+size], out[headerSize:headerSize+gotSize])
			stream, out = stream[headerSize+size:], out[headerSize+gotSize:]
		}
		if len(out) > 0 {
			t.Errorf("%d bytes more than there were requests: % X", len(out), out)
		}
	})
}

// FuzzRTU gives a server's line bytes in pieces: the first byte of each says how many
// there are, and whether silence follows. What is answered was asked, in a frame with a
// right CRC, and there never is more kept than a few frames.
func FuzzRTU(f *testing.F) {
	for _, frame := range slices.Concat(requestsRTU(f), answersRTU(f)) {
		f.Add(append([]byte{byte(len(frame))<<1 | 1}, frame...))
		f.Add(append([]byte{3 << 1}, frame...))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		server := &rtuServer{Server: &Server{Handler: everywhere{t}}, units: []byte{1, 2}}
		server.frames.lengths = server.lengths
		var all []byte
		for len(script) > 0 {
			n, silent := int(script[0]>>1), script[0]&1 != 0
			script = script[1:]
			n = min(n, len(script))
			server.frames.put(script[:n])
			all = append(all, script[:n]...)
			script = script[n:]
			taken := 0
			for frame := server.frames.next(silent); frame != nil; frame = server.frames.next(silent) {
				taken += len(frame) + 2
				if !bytes.Contains(all, AppendRTU(nil, frame[0], frame[1:])) {
					t.Fatalf("a frame that never came: % X", frame)
				}
				checkAnswer(t, frame[1:], server.answer(t.Context(), Call{Unit: frame[0]}, frame[1:], &server.scratch))
			}
			if taken > len(all) {
				t.Fatalf("%d bytes of frames in %d bytes", taken, len(all))
			}
			if silent && server.frames.n != 0 {
				t.Fatalf("%d bytes are kept after the silence", server.frames.n)
			}
		}
	})
}

// FuzzResponse gives a client any answer to any request: what it takes for data has the
// size that was asked for.
func FuzzResponse(f *testing.F) {
	for _, v := range spec {
		f.Add(hexed(f, v.request), hexed(f, v.answer))
		f.Add(hexed(f, v.request), []byte{hexed(f, v.answer)[0] | 0x80, 2})
	}
	f.Fuzz(func(t *testing.T, request, answer []byte) {
		data, err := ParseAnswer(request, answer)
		if err != nil {
			return
		}
		r, err := ParseRequest(request)
		if err != nil {
			t.Fatalf("an answer to a request that is none: %v", err)
		}
		want := -1
		switch r.Function {
		case ReadCoils, ReadDiscreteInputs:
			want = (int(r.Count) + 7) / 8
			Bits(make([]bool, r.Count), data)
		case ReadHolding, ReadInput, ReadWrite:
			want = 2 * int(r.Count)
			Registers(make([]uint16, r.Count), data)
		case ReadFIFO:
			want = min(len(data), 2*MaxFIFO) &^ 1
		case ReadFile:
			for sub := range subRequests(r) {
				var registers []byte
				if registers, data = FileData(data); len(registers) != 2*int(sub.count) {
					t.Fatalf("%d bytes of a record, want %d", len(registers), 2*sub.count)
				}
			}
			want = 0
		default:
			want = 0
		}
		if len(data) != want {
			t.Errorf("% X, % X: got %d bytes, want %d", request, answer, len(data), want)
		}
	})
}

// FuzzClient gives a client's TCP connection any bytes after its request: it never hands
// out what is not an answer to it.
func FuzzClient(f *testing.F) {
	f.Add(AppendTCP(nil, 1, 1, AppendRegisters(nil, ReadHolding, []uint16{1, 2})))
	f.Add(AppendTCP(AppendTCP(nil, 2, 1, []byte{3, 2, 0, 0}), 1, 1, []byte{0x83, 2}))
	f.Add([]byte{0, 1, 0, 0, 0, 255, 1})
	f.Fuzz(func(t *testing.T, stream []byte) {
		ours, theirs := net.Pipe()
		go func() {
			io.ReadFull(theirs, make([]byte, headerSize+5))
			theirs.Write(stream)
			theirs.Close()
		}()
		c := NewTCP(ours, Config{Retries: -1})
		defer c.Close()
		got, err := c.ReadHolding(t.Context(), 1, 0, 2)
		if err == nil && !bytes.Contains(stream, AppendTCP(nil, 1, 1, AppendRegisters(nil, ReadHolding, got))) {
			t.Errorf("% X: got %v", stream, got)
		}
		if err != nil && os.IsTimeout(err) {
			t.Errorf("% X: got %v, want an end", stream, err)
		}
	})
}
