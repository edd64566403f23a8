package modbus

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// hexed reads "15 0D 06 0004".
func hexed(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// must turns an encoder's result into bytes where a test knows that it is valid.
func must(b []byte, err error) []byte {
	if err != nil {
		return []byte("INVALID: " + err.Error())
	}
	return b
}

// spec are the examples of V1.1b3, chapter 6, function by function.
var spec = []struct {
	name            string
	encoded         []byte
	request, answer string
	data            string // of the answer
}{
	{"6.1", must(AppendRead(nil, ReadCoils, 0x13, 0x13)), "01 0013 0013", "01 03 CD6B05", "CD6B05"},
	{"6.2", must(AppendRead(nil, ReadDiscreteInputs, 0xC4, 0x16)), "02 00C4 0016", "02 03 ACDB35", "ACDB35"},
	{"6.3", must(AppendRead(nil, ReadHolding, 0x6B, 3)), "03 006B 0003", "03 06 022B 0000 0064", "022B 0000 0064"},
	{"6.4", must(AppendRead(nil, ReadInput, 8, 1)), "04 0008 0001", "04 02 000A", "000A"},
	{"6.5", AppendWriteCoil(nil, 0xAC, true), "05 00AC FF00", "05 00AC FF00", ""},
	{"6.6", AppendWriteRegister(nil, 1, 3), "06 0001 0003", "06 0001 0003", ""},
	{"6.11", must(AppendWriteCoils(nil, 0x13, bits("1011001110"))), "0F 0013 000A 02 CD01", "0F 0013 000A", ""},
	{"6.12", must(AppendWriteRegisters(nil, 1, []uint16{0x000A, 0x0102})), "10 0001 0002 04 000A 0102", "10 0001 0002", ""},
	{"6.14", must(AppendReadFile(nil, FileRange{4, 1, 2}, FileRange{3, 9, 2})),
		"14 0E 06 0004 0001 0002 06 0003 0009 0002", "14 0C 05 06 0DFE 0020 05 06 33CD 0040", "05 06 0DFE 0020 05 06 33CD 0040"},
	{"6.15", must(AppendWriteFile(nil, FileRecords{4, 7, []uint16{0x06AF, 0x04BE, 0x100D}})),
		"15 0D 06 0004 0007 0003 06AF 04BE 100D", "15 0D 06 0004 0007 0003 06AF 04BE 100D", ""},
	{"6.16", AppendMaskWrite(nil, 4, 0xF2, 0x25), "16 0004 00F2 0025", "16 0004 00F2 0025", ""},
	{"6.17", must(AppendReadWrite(nil, 3, 6, 0x0E, []uint16{0xFF, 0xFF, 0xFF})),
		"17 0003 0006 000E 0003 06 00FF 00FF 00FF", "17 0C 00FE 0ACD 0001 0003 000D 00FF", "00FE 0ACD 0001 0003 000D 00FF"},
	{"6.18", AppendReadFIFO(nil, 0x04DE), "18 04DE", "18 0006 0002 01B8 1284", "01B8 1284"},
}

func bits(s string) []bool {
	b := make([]bool, len(s))
	for i := range s {
		b[i] = s[i] == '1'
	}
	return b
}

func TestSpecificationExamples(t *testing.T) {
	for _, v := range spec {
		t.Run(v.name, func(t *testing.T) {
			request := hexed(t, v.request)
			if !bytes.Equal(v.encoded, request) {
				t.Errorf("request: got % X, want % X", v.encoded, request)
			}
			r, err := ParseRequest(request)
			if err != nil || r.Function != Function(request[0]) {
				t.Errorf("ParseRequest: got %v, %v", r, err)
			}
			data, err := ParseAnswer(request, hexed(t, v.answer))
			if want := hexed(t, v.data); err != nil || !bytes.Equal(data, want) {
				t.Errorf("answer: got % X, %v, want % X", data, err, want)
			}
			refused, err := ParseAnswer(request, []byte{request[0] | 0x80, 2})
			if refused != nil || err != IllegalAddress {
				t.Errorf("exception: got % X, %v, want %v", refused, err, IllegalAddress)
			}
		})
	}
}

// TestServerAnswersLikeTheSpecification has a server send the same examples.
func TestServerAnswersLikeTheSpecification(t *testing.T) {
	m := new(Memory)
	m.SetCoils(1, 0x13, bits("1011001111010110101")...)
	m.SetDiscreteInputs(1, 0xC4, bits("0011010111011011101011")...)
	m.SetHolding(1, 0x6B, 0x022B, 0, 0x64)
	m.SetInput(1, 8, 0x0A)
	m.SetCoils(1, 0xAC, false)
	m.SetHolding(1, 1, 0, 0, 0xFE, 0x12, 1, 3, 0x0D, 0xFF) // 3 to 8 read by FC 23; 4 is masked
	m.SetHolding(1, 0x0E, 0, 0, 0)
	m.SetFile(1, 4, 1, 0x0DFE, 0x20)
	m.SetFile(1, 3, 9, 0x33CD, 0x40)
	m.SetFIFO(1, 0x04DE, 0x01B8, 0x1284)
	server := &Server{Handler: m}
	for _, v := range spec {
		if v.name == "6.17" {
			m.SetHolding(1, 3, 0xFE, 0x0ACD, 1, 3, 0x0D, 0xFF)
		}
		got := server.answer(t.Context(), Call{Unit: 1}, hexed(t, v.request), new(scratch))
		if want := hexed(t, v.answer); !bytes.Equal(got, want) {
			t.Errorf("%s: got % X, want % X", v.name, got, want)
		}
		if v.name == "6.16" {
			// 0x12 and 0xF2, or 0x25 and not 0xF2 (V1.1b3, 6.16)
			if got := m.Holding(1, 4, 1)[0]; got != 0x17 {
				t.Errorf("masked: got %#x, want 0x17", got)
			}
		}
	}
	if got, want := m.Coils(1, 0x13, 10), bits("1011001110"); !slices.Equal(got, want) {
		t.Errorf("coils written: got %v, want %v", got, want)
	}
	if got, want := m.File(1, 4, 7, 3), []uint16{0x06AF, 0x04BE, 0x100D}; !slices.Equal(got, want) {
		t.Errorf("file written: got %x, want %x", got, want)
	}
	if !m.Coils(1, 0xAC, 1)[0] {
		t.Error("coil 0xAC was not set")
	}
}

// TestFramesCapturedElsewhere is a real RTU conversation of another stack, CRC included
// (libmodbus, pull request 330), and the CRC example of the serial guide, 6.2.2.
func TestFramesCapturedElsewhere(t *testing.T) {
	request := hexed(t, "0C 14 07 06 0004 0001 0008 C918")
	answer := hexed(t, "0C 14 12 11 06 741E 9D66 0000 39CE 7000 1400 64A0 0E73 D025")
	if got := AppendRTU(nil, 0x0C, must(AppendReadFile(nil, FileRange{4, 1, 8}))); !bytes.Equal(got, request) {
		t.Errorf("request: got % X, want % X", got, request)
	}
	if !validRTU(answer) || rtuAnswer(answer) != len(answer) {
		t.Errorf("answer: valid %v, length %d, want true, %d", validRTU(answer), rtuAnswer(answer), len(answer))
	}
	data, err := ParseAnswer(request[1:len(request)-2], answer[1:len(answer)-2])
	if err != nil {
		t.Fatal(err)
	}
	registers, rest := FileData(data)
	if want := hexed(t, "741E 9D66 0000 39CE 7000 1400 64A0 0E73"); !bytes.Equal(registers, want) || len(rest) != 0 {
		t.Errorf("records: got % X and %d more, want % X", registers, len(rest), want)
	}
	if got, want := CRC([]byte{2, 7}), uint16(0x1241); got != want {
		t.Errorf("CRC: got %#x, want %#x", got, want)
	}
}

// TestLimits shows every limit from both sides: the most that is encoded is also
// accepted by a server, and one more is neither.
func TestLimits(t *testing.T) {
	regs := func(n int) []uint16 { return make([]uint16, n) }
	read := func(f Function) func(n int) ([]byte, error) {
		return func(n int) ([]byte, error) { return AppendRead(nil, f, 0, uint16(n)) }
	}
	for _, l := range []struct {
		name   string
		most   int
		encode func(n int) ([]byte, error)
		raw    func(n int) []byte // the same, unchecked
		wrong  Exception          // for one more
	}{
		{"FC1", 2000, read(ReadCoils), nil, IllegalValue},
		{"FC2", 2000, read(ReadDiscreteInputs), nil, IllegalValue},
		{"FC3", 125, read(ReadHolding), nil, IllegalValue},
		{"FC4", 125, read(ReadInput), nil, IllegalValue},
		{"FC15", 1968, func(n int) ([]byte, error) { return AppendWriteCoils(nil, 0, make([]bool, n)) },
			func(n int) []byte { return appendBits(appendHead(nil, WriteCoils, 0, uint16(n)), make([]bool, n)) }, IllegalValue},
		{"FC16", 123, func(n int) ([]byte, error) { return AppendWriteRegisters(nil, 0, regs(n)) },
			func(n int) []byte {
				return appendRegisters(append(appendHead(nil, WriteRegisters, 0, uint16(n)), byte(2*n)), regs(n))
			}, IllegalValue},
		{"FC20", 121, func(n int) ([]byte, error) { return AppendReadFile(nil, FileRange{1, 0, uint16(n)}) },
			func(n int) []byte {
				return be.AppendUint16(appendHead([]byte{20, 7}, fileReference, 1, 0), uint16(n))
			}, IllegalAddress},
		{"FC20 sub-requests", 35, func(n int) ([]byte, error) { return AppendReadFile(nil, slices.Repeat([]FileRange{{1, 0, 1}}, n)...) },
			func(n int) []byte {
				return append([]byte{20, byte(7 * n)}, bytes.Repeat([]byte{6, 0, 1, 0, 0, 0, 1}, n)...)
			}, IllegalValue},
		{"FC21", 122, func(n int) ([]byte, error) { return AppendWriteFile(nil, FileRecords{1, 0, regs(n)}) },
			func(n int) []byte {
				return appendRegisters(be.AppendUint16(appendHead([]byte{21, byte(7 + 2*n)}, fileReference, 1, 0), uint16(n)), regs(n))
			}, IllegalValue},
		{"FC23 read", 125, func(n int) ([]byte, error) { return AppendReadWrite(nil, 0, uint16(n), 0, regs(1)) },
			func(n int) []byte {
				return append(appendHead(nil, ReadWrite, 0, uint16(n)), 0, 0, 0, 1, 2, 0, 0)
			}, IllegalValue},
		{"FC23 write", 121, func(n int) ([]byte, error) { return AppendReadWrite(nil, 0, 1, 0, regs(n)) },
			func(n int) []byte {
				return appendRegisters(append(be.AppendUint16(append(appendHead(nil, ReadWrite, 0, 1), 0, 0), uint16(n)), byte(2*n)), regs(n))
			}, IllegalValue},
	} {
		t.Run(l.name, func(t *testing.T) {
			for _, n := range []int{1, l.most} {
				pdu, err := l.encode(n)
				if err != nil || len(pdu) > MaxPDU {
					t.Fatalf("%d: got %d bytes, %v", n, len(pdu), err)
				}
				if _, err := ParseRequest(pdu); err != nil {
					t.Errorf("%d: a server answers %v", n, err)
				}
				if l.raw != nil && !bytes.Equal(pdu, l.raw(n)) {
					t.Errorf("%d: the raw form differs from the encoded one", n)
				}
			}
			for _, n := range []int{0, l.most + 1} {
				if _, err := l.encode(n); !errors.Is(err, ErrRequest) {
					t.Errorf("%d: encoding: got %v, want %v", n, err, ErrRequest)
				}
			}
			raw := l.raw
			if raw == nil {
				f := Function(must(l.encode(1))[0])
				raw = func(n int) []byte { return appendHead(nil, f, 0, uint16(n)) }
			}
			if _, err := ParseRequest(raw(l.most + 1)); err != l.wrong {
				t.Errorf("%d: a server answers %v, want %v", l.most+1, err, l.wrong)
			}
			if _, err := ParseRequest(raw(0)); err != IllegalValue {
				t.Errorf("0: a server answers %v, want %v", err, IllegalValue)
			}
		})
	}
}

// TestRequestsThatAServerRefuses are those that no client of ours would send.
func TestRequestsThatAServerRefuses(t *testing.T) {
	for _, c := range []struct {
		request string
		want    Exception
	}{
		{"", IllegalValue},
		{"00", IllegalFunction}, {"07", IllegalFunction}, {"2B0E0100", IllegalFunction}, {"83 02", IllegalFunction}, {"6D", IllegalFunction},
		{"03 0000 00", IllegalValue}, {"03 0000 0001 00", IllegalValue},
		{"03 FFFF 0002", IllegalAddress}, {"01 FFFF 0002", IllegalAddress}, {"04 FF84 007D", IllegalAddress},
		{"05 0000 FF01", IllegalValue}, {"05 0000 0001", IllegalValue}, {"05 0000 FF00 00", IllegalValue}, {"06 0000 00", IllegalValue}, {"06 0000 0000 00", IllegalValue},
		{"0F 0000 0009 01 FF", IllegalValue}, {"0F 0000 0008 02 FFFF", IllegalValue}, {"0F 0000 0008 01", IllegalValue}, {"0F FFFF 0002 01 03", IllegalAddress},
		{"10 0000 0001 02 00", IllegalValue}, {"10 0000 0001 03 000000", IllegalValue}, {"10 0000 0002 02 0000", IllegalValue}, {"10 FFFF 0002 04 00000000", IllegalAddress},
		{"16 0000 0000", IllegalValue}, {"16 0000 0000 0000 00", IllegalValue},
		{"17 0000 0001 0000 0001 02 00", IllegalValue}, {"17 0000 0001 0000 0001 01 0000", IllegalValue}, {"17 0000 0001 0000", IllegalValue},
		{"17 FFFF 0002 0000 0001 02 0000", IllegalAddress}, {"17 0000 0001 FFFF 0002 04 00000000", IllegalAddress},
		{"18 00", IllegalValue}, {"18 0000 00", IllegalValue},
		{"14 07 05 0001 0000 0001", IllegalAddress}, // reference type
		{"14 07 06 0000 0000 0001", IllegalAddress}, // file 0
		{"14 07 06 0001 2710 0001", IllegalAddress}, // record 10000
		{"14 07 06 0001 270F 0002", IllegalAddress}, // past record 9999
		{"14 07 06 0001 0000 0000", IllegalValue},   // nothing
		{"14 06 06 0001 0000 00", IllegalValue}, {"14 08 06 0001 0000 0001 00", IllegalValue}, {"14 07 06 0001 0000 0001 00", IllegalValue}, {"14", IllegalValue},
		{"14 0E 06 0001 0000 0079 06 0001 0000 0079", IllegalValue}, // the answer would be 488 bytes
		{"15 09 05 0001 0000 0001 0000", IllegalAddress}, {"15 09 06 0000 0000 0001 0000", IllegalAddress}, {"15 09 06 0001 2710 0001 0000", IllegalAddress},
		{"15 0B 06 0001 270F 0002 0000 0000", IllegalAddress}, {"15 09 06 0001 0000 0002 0000", IllegalValue}, {"15 07 06 0001 0000 0000", IllegalValue},
		{"15 10 06 0001 0000 0001 0000 06 0001 0000 0000", IllegalValue},
	} {
		request := hexed(t, c.request)
		if _, err := ParseRequest(request); err != c.want {
			t.Errorf("%s: got %v, want %v", c.request, err, c.want)
		}
		answer := (&Server{Handler: new(Memory)}).answer(t.Context(), Call{}, request, new(scratch))
		if len(answer) != 2 || answer[0]&0x80 == 0 || answer[1] != byte(c.want) {
			t.Errorf("%s: the server answers % X, want exception %d", c.request, answer, c.want)
		}
	}
	for _, c := range []struct {
		name string
		err  error
	}{
		{"file 0", second(AppendReadFile(nil, FileRange{0, 0, 1}))},
		{"record 10000", second(AppendReadFile(nil, FileRange{1, 10000, 1}))},
		{"past record 9999", second(AppendWriteFile(nil, FileRecords{1, 9999, make([]uint16, 2)}))},
		{"two ranges that do not fit", second(AppendReadFile(nil, FileRange{1, 0, 121}, FileRange{1, 0, 1}))},
		{"two records that do not fit", second(AppendWriteFile(nil, FileRecords{1, 0, make([]uint16, 118)}, FileRecords{1, 0, make([]uint16, 1)}))},
		{"no range", second(AppendReadFile(nil))}, {"no records", second(AppendWriteFile(nil))},
		{"past the last register", second(AppendRead(nil, ReadHolding, 65535, 2))},
		{"past the last coil", second(AppendWriteCoils(nil, 65535, make([]bool, 2)))},
		{"past the last written", second(AppendReadWrite(nil, 0, 1, 65535, make([]uint16, 2)))},
		{"past the last read", second(AppendReadWrite(nil, 65535, 2, 0, make([]uint16, 1)))},
		{"past the last", second(AppendWriteRegisters(nil, 65535, make([]uint16, 2)))},
		{"no read", second(AppendRead(nil, WriteCoil, 0, 1))},
	} {
		if !errors.Is(c.err, ErrRequest) {
			t.Errorf("encode %s: got %v, want %v", c.name, c.err, ErrRequest)
		}
	}
	if _, err := AppendWriteFile(nil, FileRecords{1, 0, make([]uint16, 117)}, FileRecords{0xFFFF, 9999, make([]uint16, 1)}); err != nil {
		t.Errorf("two records that just fit: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestAnswersThatAClientRefuses changes each answer of the specification in every way
// that makes it wrong: no prefix, no longer one, no other function, no other length.
func TestAnswersThatAClientRefuses(t *testing.T) {
	for _, v := range spec {
		request, answer := hexed(t, v.request), hexed(t, v.answer)
		refused := func(what string, b []byte) {
			t.Helper()
			if data, err := ParseAnswer(request, b); !errors.Is(err, ErrAnswer) || data != nil {
				t.Errorf("%s: %s, % X: got % X, %v, want %v", v.name, what, b, data, err, ErrAnswer)
			}
		}
		for n := range answer {
			refused("cut", answer[:n])
		}
		refused("longer", append(slices.Clone(answer), 0))
		for f := range 256 {
			if byte(f) != answer[0] && byte(f) != answer[0]|0x80 {
				refused("function", append([]byte{byte(f)}, answer[1:]...))
			}
		}
		refused("long exception", []byte{answer[0] | 0x80, 2, 0})
		refused("exception 0", []byte{answer[0] | 0x80, 0})
		checked := 1 // bytes after the function that have one right value: counts, echoes
		switch f := Function(answer[0]); {
		case f == ReadFIFO:
			checked = 4
		case f == ReadFile:
			checked = 3
		case f.Writes() && f != ReadWrite:
			checked = len(answer) - 1
		}
		for i := 1; i <= checked; i++ {
			for x := 1; x < 256; x++ {
				b := slices.Clone(answer)
				b[i] ^= byte(x)
				refused(fmt.Sprintf("byte %d", i), b)
			}
		}
	}
	fifo := AppendFIFO(nil, make([]uint16, 31))
	if _, err := ParseAnswer(AppendReadFIFO(nil, 0), fifo); err != nil {
		t.Errorf("31 in a queue: %v", err)
	}
	if _, err := ParseAnswer(AppendReadFIFO(nil, 0), AppendFIFO(nil, make([]uint16, 32))); !errors.Is(err, ErrAnswer) {
		t.Errorf("32 in a queue: got %v, want %v", err, ErrAnswer)
	}
}

func TestTCPHeader(t *testing.T) {
	for _, c := range []struct {
		header string
		size   int
		ok     bool
	}{
		{"0001 0000 0002 07", 1, true}, {"FFFF 0000 00FE FF", 253, true},
		{"0001 0000 0000 07", 0, false}, {"0001 0000 0001 07", 0, false}, {"0001 0000 00FF 07", 0, false}, {"0001 0000 FFFF 07", 0, false},
		{"0001 0001 0002 07", 0, false}, {"0001 0100 0002 07", 0, false}, {"0001 0000 0006", 0, false},
	} {
		header := hexed(t, c.header)
		transaction, unit, size, err := ParseTCP(header)
		if (err == nil) != c.ok || size != c.size || c.ok && (transaction != be.Uint16(header) || unit != header[6]) {
			t.Errorf("%s: got %d, %d, %d, %v, want size %d, ok %v", c.header, transaction, unit, size, err, c.size, c.ok)
		}
	}
	if got, want := AppendTCP(nil, 0x1501, 0xFF, []byte{3, 0, 4, 0, 1}), hexed(t, "1501 0000 0006 FF 03 0004 0001"); !bytes.Equal(got, want) {
		t.Errorf("got % X, want % X (TCP guide 3.1.3)", got, want)
	}
}

func TestExceptionsHaveNames(t *testing.T) {
	for e, want := range map[Exception]string{
		1: "modbus exception 1 (illegal function)", 2: "modbus exception 2 (illegal data address)", 3: "modbus exception 3 (illegal data value)",
		4: "modbus exception 4 (server device failure)", 5: "modbus exception 5 (acknowledge)", 6: "modbus exception 6 (server device busy)",
		8: "modbus exception 8 (memory parity error)", 10: "modbus exception 10 (gateway path unavailable)",
		11: "modbus exception 11 (gateway target device failed to respond)", 77: "modbus exception 77 (unknown)",
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	err := fmt.Errorf("read: %w", IllegalAddress)
	if e, ok := errors.AsType[Exception](err); !ok || e != IllegalAddress || !errors.Is(err, IllegalAddress) || errors.Is(err, IllegalValue) {
		t.Errorf("a wrapped exception is not found: %v", err)
	}
}

// The codec's steady state: what a client and a server do for FC 3 and FC 16.
type codecRun struct {
	name string
	run  func() error
}

func codecRuns() []codecRun {
	buf, out := make([]byte, 0, maxTCP), make([]byte, 0, maxTCP)
	values := make([]uint16, 120)
	read := must(AppendRead(nil, ReadHolding, 100, 120))
	write := must(AppendWriteRegisters(nil, 100, values))
	readAnswer, writeAnswer := AppendRegisters(nil, ReadHolding, values), AppendWritten(nil, write)
	refused := AppendException(nil, ReadHolding, IllegalAddress)
	rtu := AppendRTU(nil, 1, write)
	return []codecRun{
		{"FC3/request/encode", func() error {
			pdu, err := AppendRead(buf, ReadHolding, 100, 120)
			AppendTCP(out, 1, 1, pdu)
			return err
		}},
		{"FC3/request/decode", func() error { return second(ParseRequest(read)) }},
		{"FC3/answer/encode", func() error { AppendTCP(out, 1, 1, AppendRegisters(buf, ReadHolding, values)); return nil }},
		{"FC3/answer/decode", func() error {
			data, err := ParseAnswer(read, readAnswer)
			Registers(values, data)
			return err
		}},
		{"FC3/exception/decode", func() error {
			if _, err := ParseAnswer(read, refused); err != IllegalAddress {
				return errors.New("no exception")
			}
			return nil
		}},
		{"FC16/request/encode", func() error {
			pdu, err := AppendWriteRegisters(buf, 100, values)
			AppendRTU(out, 1, pdu)
			return err
		}},
		{"FC16/request/decode", func() error {
			r, err := ParseRequest(write)
			Registers(values, r.Data)
			return err
		}},
		{"FC16/answer/encode", func() error { AppendTCP(out, 1, 1, AppendWritten(buf, write)); return nil }},
		{"FC16/answer/decode", func() error { return second(ParseAnswer(write, writeAnswer)) }},
		{"RTU/frame/check", func() error {
			if !validRTU(rtu) {
				return errors.New("bad CRC")
			}
			return nil
		}},
	}
}

func TestCodecDoesNotAllocate(t *testing.T) {
	for _, c := range codecRuns() {
		if err := c.run(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := testing.AllocsPerRun(200, func() { c.run() }); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", c.name, got)
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	for _, c := range codecRuns() {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
