package sunspec

import (
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"testing"
)

// Registers of models 802, 803 and 713, made with the official definitions and
// not with this package. The battery is at 57.5 %, 665.6 V and -2.5 A; its one
// string of 13 modules is at 24.1 to 28.7 °C.
const (
	hex802 = "0322003e0138514003e803e8ffffffffffffffffffff023fffff03de0000007b000600001267ffff000000040003ffffffffffff000000000000000000000000000000001a00ffffffff0d0effffffff0cf6ffffffffffffffe7fffffffff980ffff8000000100030000000100028000ffff8000fffffffffffdffffffff0000"
	hex803 = "0323003a00010001011fffffffff00f1ffffffff8000ffffffffffffffffffff8000ffff8000ffff8000fffffffdffffffff8000ffff8000000d00000003ffff023fffffffe70d0effff0cf6ffffffff011fffff00f1ffff8000ffff0000000300000000ffffffffffffffffffffffffffffffff80008000"
	hex713 = "02c9000751402eb8167626ac00000001fffe"
)

func vector(t testing.TB, text string) Block {
	bytes, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	var r []uint16
	for i := 0; i < len(bytes); i += 2 {
		r = append(r, uint16(bytes[i])<<8|uint16(bytes[i+1]))
	}
	return Block{Model{ID: r[0], Address: 40070, Length: r[1], Instance: 1}, r}
}

// settings say in units what the vectors are.
var (
	settings802 = []Setting{
		Number("AHRtg", 312), Number("WHRtg", 208000), Number("WChaRteMax", 100000), Number("WDisChaRteMax", 100000),
		Number("SoC", 57.5), Number("SoH", 99), Number("NCyc", 123),
		Symbolic("ChaSt", "HOLDING"), Symbolic("LocRemCtl", "REMOTE"), Number("Hb", 4711), Number("AlmRst", 0),
		Symbolic("Typ", "LITHIUM_ION"), Symbolic("State", "CONNECTED"),
		Bits("Evt1"), Bits("Evt2"), Bits("EvtVnd1"), Bits("EvtVnd2"),
		Number("V", 665.6), Number("CellVMax", 3.342), Number("CellVMin", 3.318), Number("A", -2.5), Number("W", -1664),
		Symbolic("SetOp", "CONNECT"), Symbolic("SetInvState", "INVERTER_STARTED"), Number("AMax_SF", -1),
	}
	settings803 = []Setting{
		Number("NStrCon", 1), Number("ModTmpMax", 28.7), Number("ModTmpMin", 24.1),
		Number("string[1].StrNMod", 13), Bits("string[1].StrSt", "STRING_ENABLED", "CONTACTOR_STATUS"),
		Number("string[1].StrSoC", 57.5), Number("string[1].StrA", -2.5),
		Number("string[1].StrCellVMax", 3.342), Number("string[1].StrCellVMin", 3.318),
		Number("string[1].StrModTmpMax", 28.7), Number("string[1].StrModTmpMin", 24.1),
		Bits("string[1].StrConSt", "CONTACTOR_0", "CONTACTOR_1"), Bits("string[1].StrEvt1"),
	}
	settings713 = []Setting{
		Number("WHRtg", 208000), Number("WHAvail", 119600), Number("SoC", 57.5), Number("SoH", 99), Symbolic("Sta", "OK"),
	}
)

func TestVectorsDecode(t *testing.T) {
	numbers := []struct {
		vector, path string
		want         float64 // NaN: no value
	}{
		{hex802, "AHRtg", 312}, {hex802, "WHRtg", 208000}, {hex802, "WChaRteMax", 100000},
		{hex802, "SoC", 57.5}, {hex802, "SoH", 99}, {hex802, "DoD", math.NaN()}, {hex802, "SoCMax", math.NaN()},
		{hex802, "NCyc", 123}, {hex802, "Hb", 4711}, {hex802, "CtrlHb", math.NaN()}, {hex802, "WarrDt", math.NaN()},
		{hex802, "V", 665.6}, {hex802, "VMax", math.NaN()}, {hex802, "CellVMax", 3.342}, {hex802, "CellVMin", 3.318},
		{hex802, "A", -2.5}, {hex802, "W", -1664}, {hex802, "ReqW", math.NaN()},
		{hex803, "NStr", 1}, {hex803, "ModTmpMax", 28.7}, {hex803, "ModTmpMin", 24.1}, {hex803, "ModTmpAvg", math.NaN()},
		{hex803, "string[1].StrSoC", 57.5}, {hex803, "string[1].StrA", -2.5}, {hex803, "string[1].StrModTmpMax", 28.7},
		{hex803, "string[1].StrSoH", math.NaN()}, {hex803, "string[2].StrSoC", math.NaN()},
		{hex713, "SoC", 57.5}, {hex713, "SoH", 99}, {hex713, "WHRtg", 208000}, {hex713, "WHAvail", 119600},
	}
	for _, c := range numbers {
		b := vector(t, c.vector)
		if got, want := b.Float(c.path), c.want; got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("%d %s: got %v, want %v", b.Model.ID, c.path, got, want)
		}
	}
	for _, c := range []struct{ vector, path, want string }{
		{hex802, "ChaSt", "HOLDING"}, {hex802, "LocRemCtl", "REMOTE"}, {hex802, "State", "CONNECTED"}, {hex802, "Typ", "LITHIUM_ION"},
		{hex802, "SetOp", "CONNECT"}, {hex802, "SetInvState", "INVERTER_STARTED"}, {hex713, "Sta", "OK"},
	} {
		b := vector(t, c.vector)
		if got, err := b.Enum(c.path); err != nil || got.Name != c.want {
			t.Errorf("%d %s: got %v and %v, want %s", b.Model.ID, c.path, got, err, c.want)
		}
	}
	for _, path := range []string{"ReqInvState", "StateVnd"} {
		if got, err := vector(t, hex802).Enum(path); err == nil {
			t.Errorf("802 %s: got %v, want no value", path, got)
		}
	}
	for _, c := range []struct {
		vector, path string
		want         []string
	}{
		{hex802, "Evt1", nil},
		{hex803, "string[1].StrSt", []string{"STRING_ENABLED", "CONTACTOR_STATUS"}},
		{hex803, "string[1].StrConSt", []string{"CONTACTOR_0", "CONTACTOR_1"}},
	} {
		if got, err := vector(t, c.vector).Bits(c.path); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v and %v, want %v", c.path, got, err, c.want)
		}
	}
}

func TestVectorsAreWhatAnImageSays(t *testing.T) {
	for _, c := range []struct {
		vector   string
		repeats  int
		settings []Setting
	}{{hex802, 0, settings802}, {hex803, 1, settings803}, {hex713, 0, settings713}} {
		want := vector(t, c.vector)
		im := NewImage(40000)
		m, err := im.Add(want.Model.ID, c.repeats)
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Set(m, c.settings...); err != nil {
			t.Fatal(err)
		}
		got, err := im.Block(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Registers) != len(want.Registers) {
			t.Fatalf("%d: got %d registers, want %d", m.ID, len(got.Registers), len(want.Registers))
		}
		for i := range want.Registers {
			if g, w := fmt.Sprintf("%04x", got.Registers[i]), fmt.Sprintf("%04x", want.Registers[i]); g != w {
				t.Errorf("%d, register %d: got %s, want %s", m.ID, i, g, w)
			}
		}
	}
}
